"""Classify every file of a folder, compare it with Pillow, and report what answers lose without a notice.

``python -m tests.corpus FOLDER`` decodes each file as the service does, without a network. It prints one line for each
fault, a table of outcomes by format, and a table of losses for each pair of input and output format. It exits with 1 if
there is a fault.

A file is *read* if its size and its pixels are Pillow's, where Pillow reads it; *broken* is 400, *unsupported* 415 and
*too large* 413. A fault is any other exception, a size or a picture other than Pillow's, or a 415 for a plain file of 8
bits that Pillow reads. Pillow's picture counts only if it decodes without an error.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps

from app import codec
from app.codec import exif

LIMITS = codec.DecodeLimits()
LEVELS = 12.0
"""Mean difference from Pillow's picture, in 8-bit levels, from which a picture is another one."""
SIDE = 64
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
ERRORS = {codec.BrokenImage: "broken", codec.UnsupportedImage: "unsupported", codec.TooLarge: "too large"}


@dataclass
class Findings:
    """What was seen: outcomes by format, faults, and losses by pair of formats."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    losses: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)


def files(folder: Path) -> Iterator[Path]:
    """Every file of a folder, in order."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def classify(path: Path, findings: Findings, *, losses: bool = True) -> str:
    """Try one file; the outcome, which is counted too."""
    body = path.read_bytes()
    name, outcome = "none", "fault"
    try:
        header = codec.read_header(body, LIMITS)
        name = header.format
        image = codec.decode(body, LIMITS, header)
        outcome = "read"
    except codec.CodecError as error:
        outcome = ERRORS[type(error)]
        name = sniffed(body)
        if outcome == "unsupported" and name != "none" and (reason := read_by_pillow(body)):
            findings.faults.append(f"{path}: refused ({error}), but {reason}")
            outcome = "fault"
    except Exception as error:  # noqa: BLE001 - whatever is raised is a fault
        findings.faults.append(f"{path}: {type(error).__name__}: {error}")
    else:
        if (image.width, image.height) != (header.upright_width, header.upright_height):
            findings.faults.append(f"{path}: the header says another size than the picture has")
            outcome = "fault"
        elif difference := another_picture(body, image):
            findings.faults.append(f"{path}: {difference}")
            outcome = "fault"
        if losses:
            findings.faults.extend(f"{path}: {text}" for text in find_losses(image, findings))
    findings.outcomes[name, outcome] += 1
    return outcome


def sniffed(body: bytes) -> str:
    """The format of a file, or ``none``."""
    try:
        return codec.sniff(body)
    except codec.CodecError:
        return "none"


def opened(body: bytes) -> PIL.Image.Image | None:
    """Pillow's upright picture; None where it has none, several, or an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = PIL.Image.open(BytesIO(body))
            if getattr(picture, "n_frames", 1) > 1:
                return None
            picture.load()
            return ImageOps.exif_transpose(picture)
        except Exception:  # noqa: BLE001 - Pillow raises nearly anything
            return None


def read_by_pillow(body: bytes) -> str | None:
    """A sentence if Pillow reads a file as a plain picture of 8 bits."""
    picture = opened(body)
    return f"Pillow reads it as {picture.mode}" if picture is not None and picture.mode in PLAIN_MODES else None


def another_picture(body: bytes, image: codec.Image) -> str | None:
    """A sentence if size or pixels are not Pillow's."""
    picture = opened(body)
    if picture is None or picture.mode not in PLAIN_MODES or image.deep:  # Pillow has 8 bits, and reads few deep files
        return None
    if picture.size != (image.width, image.height):
        return f"{image.width}x{image.height}, and Pillow's is {picture.width}x{picture.height}"
    expected, seen = (small(each) for each in (picture.convert("RGBA"), as_pillow(image)))
    difference = float(np.abs(expected - seen).mean())
    return f"differs from Pillow's by {difference:.1f} levels" if difference > LEVELS else None


def as_pillow(image: codec.Image) -> PIL.Image.Image:
    """An image with 8 bits and alpha."""
    pixels, alpha = (
        None if plane is None else (plane >> 8 if plane.dtype == np.uint16 else plane).astype(np.uint8)
        for plane in (image.pixels, image.alpha)
    )
    assert pixels is not None
    colors = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    alpha = np.full(pixels.shape[:2], 255, np.uint8) if alpha is None else alpha
    return PIL.Image.fromarray(np.dstack((colors, alpha)))


def small(picture: PIL.Image.Image) -> np.ndarray:
    """On white, and small enough to compare."""
    flat = PIL.Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    return np.asarray(flat.convert("RGB").resize((SIDE, SIDE), PIL.Image.Resampling.BOX), np.float64)


def find_losses(image: codec.Image, findings: Findings) -> Iterator[str]:
    """What each output format loses of an image without a notice: transparency, depth, and each kind of metadata."""
    held = kept_by(image)
    for name in codec.WRITABLE:
        findings.pairs[image.format, name] += 1
        try:
            encoded = codec.encode(image, codec.EncodeOptions(name))
            after = kept_by(codec.decode(encoded.body, LIMITS))
        except codec.TooLargeForFormat:
            continue
        except Exception as error:  # noqa: BLE001 - whatever is raised is a fault
            yield f"to {name}: {type(error).__name__}: {error}"
            continue
        lost = held - after - ({"profile"} if "description" in after else set())
        if encoded.notices[len(image.notices) :]:
            continue
        for what in lost - {"description"}:
            findings.losses[image.format, name, what] += 1
            yield f"to {name}: {what} is lost without a notice"


def kept_by(image: codec.Image) -> set[str]:
    """What an image has that a format may lose; an alpha plane that is opaque everywhere is nothing."""
    metadata, alpha = image.metadata, image.alpha
    stated = metadata.exif is not None and exif.read_resolution(metadata.exif) is not None
    have = {
        "transparency": alpha is not None and bool((alpha != np.iinfo(alpha.dtype).max).any()),
        "16 bits": image.deep,
        "profile": metadata.icc is not None,
        "description": bool(metadata.png_color),
        "EXIF": metadata.exif is not None,
        "XMP": metadata.xmp is not None,
        "IPTC": metadata.photoshop is not None,
        "resolution": metadata.resolution is not None or stated,
        "texts": bool(metadata.texts),
    }
    return {name for name, there in have.items() if there}


def table(findings: Findings) -> str:
    """Outcomes by format, and losses by pair of formats."""
    outcomes = ("read", "broken", "unsupported", "too large", "fault")
    lost: Counter[tuple[str, str]] = Counter()
    for (source, target, _), count in findings.losses.items():
        lost[source, target] += count
    rows: list[tuple[str, ...]] = [
        ("format", *outcomes),
        *(
            (source, *(str(findings.outcomes[source, outcome]) for outcome in outcomes))
            for source in sorted({source for source, _ in findings.outcomes})
        ),
        (),
        ("losses without a notice, of the pictures that were read",),
        ("from, to", *codec.WRITABLE),
        *(
            (source, *(f"{lost[source, to]}/{findings.pairs[source, to]}" for to in codec.WRITABLE))
            for source in sorted({source for source, _ in findings.pairs})
        ),
    ]
    return "\n".join(row[0].ljust(10) + "".join(cell.rjust(12) for cell in row[1:]) if row else "" for row in rows)


def main(arguments: list[str]) -> int:
    """Run over a folder; 1 if there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of files, searched with its subfolders")
    parser.add_argument("--no-losses", action="store_true", help="do not encode; much faster")
    options = parser.parse_args(arguments)
    findings = Findings()
    for path in files(options.folder):
        before = len(findings.faults)
        classify(path, findings, losses=not options.no_losses)
        for fault in findings.faults[before:]:
            print(fault, flush=True)
    print(table(findings))
    print(f"{sum(findings.outcomes.values())} files, {len(findings.faults)} faults")
    return 1 if findings.faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
