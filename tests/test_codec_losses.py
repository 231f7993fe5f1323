"""What an answer cannot hold is named, and what is gone is no longer claimed."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np
import pytest

from app import codec
from tests.boxes import coded, container, photo
from tests.pictures import LIMITS, image, photograph, png_with, samples, saved, tiff, written

RARE = (
    *((4, 13, 0, 1), (8, 1, 0, 1), (10, 8, 0, 1), (22, 1, 0, 1), (1, 17, 0, 1), (1, 9, 0, 1)),
    *((1, 13, 0, 0), (9, 16, 0, 1)),
)
FORMATS = [name for name in codec.WRITABLE if name not in ("png", "avif")]
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:h="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    b'xmlns:G="http://ns.google.com/photos/1.0/camera/" xmlns:C="http://ns.google.com/photos/1.0/container/" '
    b'xmlns:I="http://ns.google.com/photos/1.0/container/item/" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" '
    b'xmpNote:HasExtendedXMP="AB" h:Version="1.0" G:MotionPhoto="1" G:MicroVideoOffset=\'120\' G:Rating="x" '
    b'xmp:Rating="4"><h:GainMapMax><rdf:Seq><rdf:li>1.2</rdf:li></rdf:Seq></h:GainMapMax><G:MicroVideo>1'
    b'</G:MicroVideo><C:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><C:Item I:Semantic="GainMap" '
    b'I:Length="999"/></rdf:li></rdf:Seq></C:Directory></rdf:Description></rdf:RDF></x:xmpmeta>'
)


def tagged(*numbers):
    """A decoded PNG with a cICP."""
    return codec.decode(png_with(written(image()), (b"cICP", bytes(numbers))), LIMITS)


@pytest.mark.parametrize(
    "numbers",
    [
        (4, 13, 0, 1),
        (8, 1, 0, 1),
        (10, 8, 0, 1),
        (22, 1, 0, 1),
        (1, 17, 0, 1),
        (1, 9, 0, 1),
        (1, 13, 0, 0),
        (9, 16, 0, 1),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_description_of_colours_is_kept_as_a_profile_or_named(numbers, name):
    """Rare primaries and transfers, narrow range and PQ are never dropped in silence."""
    encoded = codec.encode(tagged(*numbers), codec.EncodeOptions(name))
    assert [notice for notice in encoded.notices if "cICP" in notice]


@pytest.mark.parametrize("numbers", [(9, 16), (9, 18), (2, 16), (12, 16)])
def test_an_avif_of_high_dynamic_range_stays_one(numbers):
    """Primaries and transfer of an AVIF are kept in the AVIF of the answer, and in a PNG as cICP."""
    pixels = np.full((64, 64, 3), 500, np.uint16)
    body = imagecodecs.avif_encode(pixels, level=90, bitspersample=10, primaries=numbers[0], transfer=numbers[1])
    decoded = codec.decode(body, LIMITS)
    answer = written(decoded, "avif")
    assert struct.pack(">HH", *numbers) in answer[answer.index(b"nclx") :][:12]
    assert codec.decode(answer, LIMITS).metadata.png_color == ((b"cICP", bytes((*numbers, 0, 1))),)
    assert codec.decode(written(decoded), LIMITS).metadata.png_color == ((b"cICP", bytes((*numbers, 0, 1))),)


def test_light_levels_are_named():
    """MDCV and cLLI have a place in PNG only."""
    decoded = codec.decode(png_with(written(image()), (b"cLLI", bytes(8))), LIMITS)
    assert codec.encode(decoded, codec.EncodeOptions()).notices == ()
    assert "light levels" in codec.encode(decoded, codec.EncodeOptions("tiff")).notices[0]


@pytest.mark.parametrize("name", codec.WRITABLE)
def test_xmp_claims_nothing_that_is_gone(name):
    """Gain maps, videos, and a further part of XMP, as attributes and elements of any prefix; the rest stays."""
    decoded = codec.decode(saved(photograph(), "JPEG", xmp=XMP), LIMITS)
    body = written(decoded, name)
    for gone in (b'h:Version="', b"GainMapMax", b"MotionPhoto", b"MicroVideo", b"GainMap", b"HasExtendedXMP"):
        assert gone not in body.replace(b"hdr-gain-map", b"")
    assert b'xmp:Rating="4"' in body
    assert b'G:Rating="x"' in body


def note_in_tiff(note):
    """A TIFF whose EXIF holds a maker's note."""
    body = tiff(samples(channels=1))
    start = struct.unpack_from("<I", body, 4)[0]
    count = struct.unpack_from("<H", body, start)[0]
    at = len(body) + len(body) % 2
    inner = struct.pack("<HHHII", 1, 37500, 7, len(note), at + 18) + bytes(4) + note + bytes(len(note) % 2)
    table = body[start + 2 : start + 2 + 12 * count] + struct.pack("<HHII", 34665, 4, 1, at)
    first = at + len(inner)
    directory = struct.pack("<H", count + 1) + table + bytes(4)
    return body[:4] + struct.pack("<I", first) + body[8:] + bytes(len(body) % 2) + inner + directory


@pytest.mark.parametrize(
    ("note", "kept"),
    [(b"OLYMP\0\1\0" + bytes(30), False), (b"FUJIFILM" + bytes(30), True), (b"Nikon\0\2" + bytes(30), True)],
)
def test_a_makers_note_of_a_tiff_is_kept_whole_or_named(note, kept):
    """One that counts offsets from the file's start would point anywhere; one that counts from itself moves well."""
    decoded = codec.decode(note_in_tiff(note), LIMITS)
    assert any("maker note" in notice for notice in decoded.notices) == (not kept)
    for name in ("tiff", "png", "jpeg"):
        assert (note in written(decoded, name)) == kept


def test_a_gain_map_of_a_heic_is_named_in_every_format():
    """The notice travels with the image."""
    auxiliary = coded(photo(64, 64)) | {"references": {"auxl": [1]}}
    auxiliary["properties"] = [
        *auxiliary["properties"],
        (b"auxC", bytes(4) + b"urn:com:apple:photo:2020:aux:hdrgainmap\0"),
    ]
    decoded = codec.decode(container([coded(photo()), auxiliary]), LIMITS)
    for name in codec.WRITABLE:
        assert "a gain map (HDR) was left out" in codec.encode(decoded, codec.EncodeOptions(name)).notices
