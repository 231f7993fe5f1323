"""EXIF, XMP, IPTC, ICC, resolution and PNG's texts: kept to the byte, and read by a second tool."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app import codec
from app.codec import exif
from app.codec.errors import BrokenImage
from tests.pictures import (
    LIMITS,
    ORIENTED_EXIF,
    adobe_rgb,
    gray_profile,
    image,
    photograph,
    png_with,
    samples,
    saved,
    tiff,
    written,
)

XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
xmlns:xmp="http://ns.adobe.com/xap/1.0/" tiff:Orientation="6" tiff:ImageWidth="56" exif:PixelXDimension="56"
xmp:Rating="4"><tiff:ImageLength>40</tiff:ImageLength></rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
IPTC = b"8BIM\x04\x04\0\0" + struct.pack(">I", 12) + b"\x1c\x02\x78\0\x07caption"


def full_exif(orientation=1):
    """A block as cameras write it: maker, sizes, a maker's note, a place on earth."""
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "Maker"
    block[0x0100], block[0x0101] = 56, 40
    inner = block.get_ifd(0x8769)
    inner[0xA002], inner[0xA003] = 56, 40
    inner[0x9003] = "2024:05:06 07:08:09"
    inner[0x927C] = b"MakerNote with \0 bytes"
    place = block.get_ifd(0x8825)
    place[1], place[2], place[3], place[4] = "N", (48.0, 51.0, 30.0), "E", (2.0, 17.0, 40.0)
    return block.tobytes()[6:]


def tagged(**more):
    """An image with all kinds of metadata."""
    return image(
        metadata=codec.Metadata(
            icc=adobe_rgb(),
            exif=exif.remove_orientation(full_exif()),
            xmp=XMP,
            photoshop=IPTC,
            resolution=codec.Resolution(11811, 11811),
        ),
        **more,
    )


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "avif"])
def test_packets_are_kept_to_the_byte(name):
    """EXIF with its maker's note, XMP and ICC; only what states the size differs, and here it does not."""
    before = tagged()
    after = codec.decode(written(before, name), LIMITS)
    assert after.metadata.exif is not None
    assert exif.resize(after.metadata.exif, 56, 40) == exif.resize(before.metadata.exif, 56, 40)
    assert after.metadata.xmp == XMP.replace(b'Orientation="6"', b'Orientation="1"')
    assert after.metadata.icc == adobe_rgb()
    if name in ("png", "jpeg"):
        assert after.metadata.photoshop == IPTC


@pytest.mark.parametrize("name", codec.WRITABLE)
def test_exiftool_reads_everything_in_every_format(name, exiftool):
    """A second tool finds maker, place, date, note, rating, caption and resolution, and nothing to warn of."""
    encoded = codec.encode(tagged(), codec.EncodeOptions(name))
    facts = exiftool.read(encoded.body)
    assert not [key for key in facts if "Error" in key]
    assert facts.get("ExifTool:Warning", "") in ("", "[minor] Unrecognized MakerNotes"), "our maker is unknown, no more"
    assert facts["IFD0:Make"] == "Maker"
    assert facts["ExifIFD:DateTimeOriginal"] == "2024:05:06 07:08:09"
    assert facts["GPS:GPSLatitudeRef"] == "N"
    assert facts["Composite:GPSLatitude"] == pytest.approx(48.858333, abs=1e-5)
    assert facts["XMP-xmp:Rating"] == 4
    if name != "jxl":  # whose profile is inside the compressed codestream
        assert facts["ICC_Profile:ProfileDescription"]
    if name in ("png", "jpeg", "tiff"):
        assert "caption" in [value for key, value in facts.items() if key.endswith(":Caption-Abstract")]
        resolution = {"png": "PNG-pHYs:PixelsPerUnitX", "jpeg": "JFIF:XResolution", "tiff": "IFD0:XResolution"}[name]
        assert facts[resolution] == pytest.approx({"png": 11811, "jpeg": 300, "tiff": 299.9994}[name])
    else:
        assert encoded.notices == (
            f"{name} cannot hold IPTC: it was left out",
            f"{name} cannot hold a resolution that EXIF does not state: it was left out",
        )


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("tag", ["icc_profile", "xmp"])
def test_exiftool_extracts_the_same_bytes(name, tag, exiftool, tmp_path):
    """Profile and packet, taken out by a second tool, are those that were put in."""
    file = tmp_path / "picture"
    file.write_bytes(written(tagged(), name))
    raw = exiftool("-b", f"-{tag}", str(file))
    assert raw == {"icc_profile": adobe_rgb(), "xmp": XMP}[tag]


@pytest.mark.parametrize("name", codec.WRITABLE)
def test_exiftool_reads_the_new_size(name, exiftool):
    """EXIF and XMP state the size of what they travel with, in every place where they stated one."""
    before = tagged()
    larger = codec.Image(before.pixels.repeat(2, 0).repeat(2, 1), metadata=before.metadata)
    facts = exiftool.read(written(larger, name))
    assert (facts["ExifIFD:ExifImageWidth"], facts["ExifIFD:ExifImageHeight"]) == (112, 80)
    assert (facts["XMP-tiff:ImageWidth"], facts["XMP-tiff:ImageHeight"]) == (112, 80)
    assert facts["XMP-exif:ExifImageWidth"] == 112


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("name", codec.WRITABLE)
def test_exiftool_finds_no_orientation_after_it_was_applied(source, name, exiftool):
    """Neither in EXIF nor in XMP, from any format to any other."""
    options = {"xmp": XMP} if source != "TIFF" else {"tiffinfo": {700: XMP, 0x0112: 6, 0x010F: "Maker"}}
    if source == "TIFF":
        body = saved(photograph(), source, **options)
    elif source == "PNG":
        body = png_with(saved(photograph(), source, exif=full_exif(6)), (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))
    else:
        body = saved(photograph(), source, exif=b"Exif\0\0" + full_exif(6), **options)
    decoded = codec.decode(body, LIMITS)
    assert decoded.pixels.shape == (56, 40, 3)
    facts = exiftool.read(written(decoded, name))
    assert facts.get("IFD0:Orientation", 1) == 1
    assert facts["XMP-tiff:Orientation"] == 1
    assert facts["IFD0:Make"] == "Maker"


@pytest.mark.parametrize("name", codec.WRITABLE)
@pytest.mark.parametrize("channels", [1, 3])
def test_exiftool_finds_nothing_after_strip(name, channels, exiftool):
    """No EXIF, no XMP, no IPTC, no profile, no text, no resolution but the format's own default."""
    icc = gray_profile() if channels == 1 else adobe_rgb()
    metadata = codec.Metadata(
        icc, full_exif(), XMP, IPTC, codec.Resolution(11811, 11811), texts=((b"tEXt", b"Author\0Me"),)
    )
    encoded = codec.encode(image(channels, metadata=metadata), codec.EncodeOptions(name, metadata="strip"))
    facts = exiftool.read(encoded.body)
    groups = {key.partition(":")[0] for key in facts}
    assert not groups & {"ExifIFD", "GPS", "XMP-xmp", "XMP-tiff", "IPTC", "ICC_Profile", "ICC-header", "PNG-pHYs"}
    assert "PNG:Author" not in facts
    assert "IFD0:Make" not in facts
    assert encoded.notices == ()


def test_texts_of_png_are_kept_and_other_formats_give_a_notice():
    """Author, prompts and comments in all three kinds of chunks."""
    texts = (
        (b"tEXt", b"Author\0Me"),
        (b"zTXt", b"parameters\0\0" + zlib.compress(b"a prompt")),
        (b"iTXt", "Title\0\0\0de\0Titel\0Schön".encode()),
    )
    decoded = codec.decode(png_with(written(image()), *texts), LIMITS)
    assert decoded.metadata.texts == texts
    assert codec.decode(written(decoded), LIMITS).metadata.texts == texts
    notices = codec.encode(decoded, codec.EncodeOptions("jpeg")).notices
    assert notices == ("jpeg cannot hold texts and comments: they were left out",)


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"by me", (b"tEXt", b"Comment\0by me")),
        ("für dich".encode(), (b"iTXt", "Comment\0\0\0\0\0für dich".encode())),
        (b"f\xfcr dich", (b"tEXt", b"Comment\0f\xfcr dich")),
        (b"two\0words\0", (b"tEXt", b"Comment\0two words")),
    ],
)
def test_a_comment_is_a_text_in_png_and_a_comment_again_in_jpeg(comment, text):
    """Of a JPEG and of a GIF, in any encoding; other formats have no place for it."""
    for name in ("JPEG", "GIF"):
        decoded = codec.decode(saved(photograph(), name, comment=comment), LIMITS)
        assert decoded.metadata.texts == (text,)
        assert codec.decode(written(decoded), LIMITS).metadata.texts == (text,)
        again = codec.encode(decoded, codec.EncodeOptions("jpeg"))
        assert again.notices == ()
        with Image.open(BytesIO(again.body)) as opened:
            assert opened.info["comment"] == text[1].replace(b"Comment\0", b"").lstrip(b"\0")
        assert codec.encode(decoded, codec.EncodeOptions("webp")).notices == (
            "webp cannot hold texts and comments: they were left out",
        )


def test_a_comment_too_long_for_jpeg_is_missed_with_a_notice():
    """It is not cut in silence."""
    long = image(metadata=codec.Metadata(texts=((b"tEXt", b"Comment\0" + b"x" * 70_000),)))
    notices = codec.encode(long, codec.EncodeOptions("jpeg")).notices
    assert notices == ("a comment was left out: JPEG holds at most 64 KiB of it",)


@pytest.mark.slow
def test_xmp_that_exiftool_puts_into_a_gif_is_kept(exiftool, tmp_path):
    """A packet of any length is found, and so is the comment next to it."""
    for length in range(0, 300, 13):
        file = tmp_path / f"{length}.gif"
        file.write_bytes(saved(photograph(), "GIF"))
        title = "t" * (length + 1)
        exiftool.change(file, "-Comment=by me", f"-XMP-dc:Title={title}")
        facts = exiftool.read(written(codec.decode(file.read_bytes(), LIMITS)))
        assert (facts["XMP-dc:Title"], facts["PNG:Comment"]) == (title, "by me")


def test_the_profile_of_a_gif_is_kept():
    """In the blocks that carry one."""
    profile = adobe_rgb()
    parts = [profile[at : at + 255] for at in range(0, len(profile), 255)]
    extension = b"!\xff\x0bICCRGBG1012" + b"".join(bytes((len(part),)) + part for part in parts) + b"\0"
    body = saved(photograph(), "GIF")
    at = body.index(b",\0\0\0\0")
    assert codec.decode(body[:at] + extension + body[at:], LIMITS).metadata.icc == profile


def test_iptc_that_exiftool_puts_into_a_png_is_kept(exiftool, tmp_path):
    """The name of its text has two words."""
    file = tmp_path / "captioned.png"
    file.write_bytes(written(image()))
    exiftool.change(file, "-IPTC:Keywords=here")
    decoded = codec.decode(file.read_bytes(), LIMITS)
    for name in ("png", "jpeg", "tiff"):
        facts = exiftool.read(written(decoded, name))
        assert [value for key, value in facts.items() if key.endswith(":Keywords")] == ["here"]
        assert "ExifTool:Warning" not in facts


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("keyword", [b"exif", b"APP1"])
def test_exif_in_the_text_that_imagemagick_writes_is_exif(prefix, keyword):
    """It is applied, and written as a chunk of its own."""
    raw = prefix + ORIENTED_EXIF
    if keyword == b"APP1" and not prefix:
        raw = b"Exif\0\0" + raw
    text = (
        b"Raw profile type "
        + keyword
        + b"\0\0"
        + zlib.compress(b"\n%s\n%8d\n%s\n" % (keyword, len(raw), raw.hex().encode()))
    )
    decoded = codec.decode(png_with(written(image()), (b"zTXt", text)), LIMITS)
    assert decoded.pixels.shape == (56, 40, 3)
    with Image.open(BytesIO(written(decoded))) as opened:
        assert opened.getexif()[0x010F] == "GAS"


def test_the_thumbnail_is_kept_unless_the_picture_is_rotated():
    """IFD1 is linked if the picture was not rotated, and unlinked if it was."""
    entry = struct.pack("<HHII", 0x0201, 4, 1, 60)

    def block(orientation):
        first = struct.pack("<HHHIIHHII", 2, 0x0112, 3, 1, orientation, 0x010F, 2, 4, 0x474153)
        return b"II*\0\x08\0\0\0" + first + struct.pack("<I", 38) + b"\x01\0" + entry + bytes(4)

    kept, turned = (exif.remove_orientation(block(orientation)) for orientation in (1, 6))
    assert struct.unpack_from("<I", kept, 8 + 2 + 12)[0] == 38
    assert struct.unpack_from("<I", turned, 8 + 2 + 12)[0] == 0
    assert len(kept) == len(turned) == len(block(1))


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"]),
)
def test_any_bytes_as_exif_are_edited_or_left_out_and_never_crash(content, head):
    """Whatever stands where EXIF should be, an image is written, and Pillow reads it without a warning."""
    block = head + content
    body = png_with(written(image()), (b"eXIf", block))
    decoded = codec.decode(body, LIMITS)
    for name in ("png", "tiff", "avif"):
        with Image.open(BytesIO(written(decoded, name))) as opened:
            assert opened.size == (decoded.width, decoded.height)


def test_broken_packets_are_left_out_with_a_notice():
    """EXIF that is none, a profile that is none, a profile of another kind of image."""
    body = png_with(written(image()), (b"eXIf", b"not exif at all"), (b"iCCP", b"x\0\0" + zlib.compress(bytes(200))))
    decoded = codec.decode(body, LIMITS)
    assert decoded.metadata == codec.Metadata()
    assert len(decoded.notices) == 2
    assert codec.encode(decoded, codec.EncodeOptions()).notices == decoded.notices
    other = codec.decode(png_with(written(image()), (b"iCCP", b"x\0\0" + zlib.compress(gray_profile()))), LIMITS)
    assert other.metadata.icc is None
    assert len(other.notices) == 1


def test_packets_too_large_for_jpeg_are_missed_with_a_notice():
    """JPEG's segments end at 64 KiB; a large profile is split, the rest cannot be."""
    large = codec.Metadata(exif=full_exif() + bytes(70_000), xmp=XMP + bytes(70_000), icc=adobe_rgb() + bytes(200_000))
    encoded = codec.encode(image(metadata=large), codec.EncodeOptions("jpeg"))
    assert encoded.notices == tuple(f"{name} was left out: JPEG holds at most 64 KiB of it" for name in ("EXIF", "XMP"))
    assert codec.decode(encoded.body, LIMITS).metadata.icc == large.icc


@pytest.mark.parametrize("name", ["png", "jpeg", "tiff"])
@pytest.mark.parametrize("resolution", [codec.Resolution(2, 1, per_metre=False), codec.Resolution(7874, 3937)])
def test_resolution_is_kept(name, resolution):
    """Of both kinds: pixels for each metre (200 and 100 dpi, as near as the format can say), and a pixel's shape."""
    again = codec.decode(
        written(image(metadata=codec.Metadata(resolution=resolution)), name), LIMITS
    ).metadata.resolution
    assert again.per_metre == resolution.per_metre
    assert (again.x, again.y) == pytest.approx((resolution.x, resolution.y), rel=1e-3)


@pytest.mark.parametrize("name", ["webp", "avif"])
def test_formats_without_a_resolution_get_it_in_exif(name):
    """Rather than not at all."""
    resolution = codec.Resolution(11811, 11811)
    with Image.open(BytesIO(written(image(metadata=codec.Metadata(resolution=resolution)), name))) as opened:
        assert float(opened.getexif()[0x011A]) == pytest.approx(299.9994)
        assert opened.getexif()[0x0128] == 2


def test_an_orientation_in_xmp_alone_is_reset():
    """Whatever it says, the pixels stand as every viewer showed them, and no later one should turn them."""
    body = saved(photograph(), "JPEG", xmp=XMP)
    assert b'Orientation="6"' in body
    decoded = codec.decode(body, LIMITS)
    assert decoded.pixels.shape == (40, 56, 3)
    assert b'Orientation="1"' in decoded.metadata.xmp


@pytest.mark.parametrize("name", ["webp", "avif"])
def test_a_resolution_beside_exif_that_states_none_is_missed_with_a_notice(name):
    """EXIF is edited in place, and has no space for it; EXIF that states one says it all."""
    resolution = codec.Resolution(11811, 11811)
    stated = exif.resolution_block(resolution)
    for block, count in ((full_exif(), 1), (stated, 0)):
        metadata = codec.Metadata(exif=block, resolution=resolution)
        notices = codec.encode(image(metadata=metadata), codec.EncodeOptions(name)).notices
        assert len([notice for notice in notices if "resolution" in notice]) == count


@pytest.mark.parametrize("big", [False, True])
def test_exif_of_a_tiff_moves_to_other_formats(big):
    """Its description and its nested directories, without what describes its strips; BigTIFF points with 64 bits."""
    source = saved(photograph(), "TIFF", exif=full_exif(), big_tiff=big)
    if big:  # as libtiff writes it; Pillow uses 32 bits here too
        pointer = struct.pack("<HHQ", 0x8769, 4, 1)
        assert source.count(pointer) == 1
        source = source.replace(pointer, struct.pack("<HHQ", 0x8769, 18, 1))
    with Image.open(BytesIO(written(codec.decode(source, LIMITS), "jpeg"))) as opened:
        found = opened.getexif()
        assert found[0x010F] == "Maker"
        assert 273 not in found
        assert found.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
        assert found.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("order", [b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"])
def test_a_tiff_takes_the_byte_order_of_its_exif(order):
    """The block is the beginning of the file, so both have one order, and 16-bit samples with them."""
    mark = "<" if order[:2] == b"II" else ">"
    block = order + struct.pack(mark + "HHHI", 1, 0x010F, 2, 4) + b"GAS\0" + bytes(4)
    before = image(dtype=np.uint16, metadata=codec.Metadata(exif=block))
    body = written(before, "tiff")
    assert body[:2] == order[:2]
    after = codec.decode(body, LIMITS)
    assert np.array_equal(after.pixels, before.pixels)
    with Image.open(BytesIO(body)) as opened:
        assert opened.getexif()[0x010F] == "GAS"


def test_a_directory_that_bites_its_tail_is_a_broken_tiff():
    """A chain of pages that loops ends in an error, not in a loop."""
    body = bytearray(tiff(samples(channels=1)))
    first = struct.unpack_from("<I", body, 4)[0]
    body[-4:] = struct.pack("<I", first)
    with pytest.raises(BrokenImage):
        codec.decode(bytes(body), LIMITS)


def test_what_jpeg_holds_beside_its_picture_is_named():
    """A gain map and an extended XMP are left out, with notices."""
    body = saved(photograph(), "JPEG")
    assert codec.decode(body + bytes(100), LIMITS).notices == (), "padding is nothing"
    [notice] = codec.decode(body + b"ftypmp42", LIMITS).notices
    assert "data after the picture" in notice
    segments = b""
    for marker, content in ((0xE2, b"MPF\0rest"), (0xE1, b"http://ns.adobe.com/xmp/extension/\0rest")):
        segments += struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    assert len(codec.decode(body[:2] + segments + body[2:] + body, LIMITS).notices) == 2
