"""The table of variants: what a user can pick, what each is for, and where its weights come from.

Figures and file names: github.com/mv-lab/swin2sr, release v0.0.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

RELEASE = "https://github.com/mv-lab/swin2sr/releases/download/v0.0.1"
_OFFICIAL = "https://github.com/mv-lab/swin2sr"
_TRAINED_HERE = "trained by this project on CC0 photographs"
_TAUGHT = f"{_TRAINED_HERE}, and on the authors' lightweight-x2 network's images of them"
_LICENSE = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One entry of the table.

    Attributes:
        name: as in requests.
        task: ``super-resolution``, ``compressed super-resolution`` or ``restoration``.
        scale: width of the output over width of the input.
        channels: 3 for colour, 1 for luma.
        summary: what it is for, in one sentence.
        parameters: number of weights; None if only the embedded file has it.
        license, source: of the weights.
        digests: SHA-256 by file name, for files whose digest was published.
        config: the fields in which the configuration differs from ``Swin2SRConfig``'s defaults; None if only the
            embedded file has it.
        embedded: whether the weights are part of the package.
        hub_id: repository on the Hugging Face hub, if there is one.
        release_file: file of the authors' release, under ``RELEASE``, if there is one.
    """

    name: str
    task: str
    scale: int
    channels: int = 3
    summary: str
    parameters: int | None = None
    license: str = _LICENSE
    source: str = _OFFICIAL
    digests: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, object] | None = None
    embedded: bool = False
    hub_id: str | None = None
    release_file: str | None = None

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the weights, if it was published."""
        return next(iter(self.digests.values()), None)


_LIGHTWEIGHT = {"embed_dim": 60, "depths": (6, 6, 6, 6), "num_heads": (6, 6, 6, 6), "upsampler": "pixelshuffledirect"}
_JPEG = {
    "num_channels": 1,
    "window_size": 7,
    "upscale": 1,
    "img_range": 255.0,
    "upsampler": None,
}

_TABLE = (
    Variant(
        name="classical-x2",
        task="super-resolution",
        scale=2,
        summary="Doubles a clean image with the best quality; slow without a GPU.",
        parameters=12_091_571,
        digests={"model.safetensors": "a515955815ab6dba3a9331d8c75db13a5166a5ffbcebf1a95ab676a5656ac4fb"},
        config={},
        hub_id="caidas/swin2SR-classical-sr-x2-64",
        release_file="Swin2SR_ClassicalSR_X2_64.pth",
    ),
    Variant(
        name="classical-x4",
        task="super-resolution",
        scale=4,
        summary="Enlarges a clean image four times with the best quality; slow without a GPU.",
        parameters=12_239_283,
        config={"upscale": 4},
        hub_id="caidas/swin2SR-classical-sr-x4-64",
        release_file="Swin2SR_ClassicalSR_X4_64.pth",
    ),
    Variant(
        name="lightweight-x2",
        task="super-resolution",
        scale=2,
        summary="Doubles a clean image nearly as well as classical-x2 at a twelfth of its size.",
        parameters=1_005_348,
        digests={"pytorch_model.bin": "9784753b51c4b93b87d53088b862c1961b04eaa69460463bed170d5c444b3d0b"},
        config=_LIGHTWEIGHT,
        hub_id="caidas/swin2SR-lightweight-x2-64",
        release_file="Swin2SR_Lightweight_X2_64.pth",
    ),
    Variant(
        name="realworld-x4",
        task="super-resolution",
        scale=4,
        summary="Enlarges photos with unknown blur, noise and compression four times; may smooth fine texture.",
        parameters=12_054_643,
        digests={
            "Swin2SR_RealworldSR_X4_64_BSRGAN_PSNR.pth": (
                "2b7afb6ba8c076f7a4987001c142b7bc5f23bf229125775eee599faf5bf7c40e"
            )
        },
        config={"upscale": 4, "upsampler": "nearest+conv"},
        hub_id="caidas/swin2SR-realworld-sr-x4-64-bsrgan-psnr",
        release_file="Swin2SR_RealworldSR_X4_64_BSRGAN_PSNR.pth",
    ),
    Variant(
        name="compressed-x4",
        task="compressed super-resolution",
        scale=4,
        summary="Enlarges small JPEG images four times and removes their compression artefacts; slow without a GPU.",
        parameters=12_244_598,
        config={"image_size": 48, "upscale": 4, "upsampler": "pixelshuffle_aux"},
        hub_id="caidas/swin2SR-compressed-sr-x4-48",
        release_file="Swin2SR_CompressedSR_X4_48.pth",
    ),
    Variant(
        name="jpeg",
        task="restoration",
        scale=1,
        channels=1,
        summary="Removes JPEG artefacts from the brightness of an image at its own size; slow without a GPU.",
        parameters=11_836_765,
        config=_JPEG,
        release_file="Swin2SR_Jpeg_dynamic.pth",
    ),
    Variant(
        name="small-x2",
        task="super-resolution",
        scale=2,
        summary="Doubles a clean image quickly on any machine.",
        parameters=164_504,
        source=_TAUGHT,
        embedded=True,
    ),
    Variant(
        name="small-x4",
        task="super-resolution",
        scale=4,
        summary="Enlarges a clean image four times quickly on any machine.",
        parameters=177_500,
        source=_TAUGHT,
        embedded=True,
    ),
    Variant(
        name="small-jpeg",
        task="restoration",
        scale=1,
        summary="Removes JPEG artefacts from a colour image at its own size quickly.",
        parameters=161_255,
        source=_TRAINED_HERE,
        embedded=True,
    ),
    Variant(
        name="small-compressed-x4",
        task="compressed super-resolution",
        scale=4,
        summary="Enlarges strongly compressed JPEG images four times and removes their artefacts quickly.",
        parameters=485_746,
        source=_TRAINED_HERE,
        embedded=True,
    ),
)

VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _TABLE})
"""Every official and embedded variant by name."""

ALIASES: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "x2": {
            "cpu": ("lightweight-x2", "small-x2", "classical-x2"),
            "cuda": ("classical-x2", "lightweight-x2", "small-x2"),
        },
        "x4": {"cpu": ("small-x4", "classical-x4"), "cuda": ("classical-x4", "small-x4")},
        "jpeg-restore": {"cpu": ("small-jpeg", "jpeg"), "cuda": ("jpeg", "small-jpeg")},
        "compressed": {
            "cpu": ("small-compressed-x4", "compressed-x4"),
            "cuda": ("compressed-x4", "small-compressed-x4"),
        },
    }
)
"""Task aliases: the variants that each may resolve to, by device type, the preferred one first.

A network of 12 million parameters takes minutes per megapixel on a CPU, so it is the last choice there.
"""


def embedded_path(name: str) -> Path | None:
    """Find the weights of an embedded variant inside the package.

    Returns:
        A ``.safetensors`` file with official names and the configuration in its metadata; None for a variant that is
        not embedded, or whose file this installation lacks.
    """
    variant = VARIANTS.get(name)
    if variant is None or not variant.embedded:
        return None
    file = Path(__file__).with_name("weights") / f"{name}.safetensors"
    return file if file.is_file() else None
