"""What the client sends and refuses to send, and how it reads the headers, errors and parts of an answer."""

from __future__ import annotations

import io
import sys

import httpx
import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from app import errors
from app.client import Client, ServerUnreachable
from app.client.images import encode_array, open_image
from app.client.multipart import MultipartSplitter
from tests.scripted_client import IMAGE, problem, scripted
from tests.service import noise

PICTURE = noise(150, 20)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_a_pil_image_of_every_mode_is_sent_unchanged(mode):
    """With its pixels, profile, EXIF and resolution."""
    image = Image.new("I;16", (4, 3), 40_000) if mode == "I;16" else Image.fromarray(PICTURE[:3, :4]).convert(mode)
    image.info |= {"icc_profile": b"profile", "dpi": (300, 300)}
    image.getexif()[0x010E] = "about"
    with open_image(image) as file, Image.open(file) as sent:
        assert (sent.mode, sent.size) == (mode, (4, 3))
        np.testing.assert_array_equal(np.asarray(sent.convert("RGB" if mode == "P" else mode)),
                                      np.asarray(image.convert("RGB" if mode == "P" else mode)))  # fmt: skip
        assert sent.info["icc_profile"] == b"profile"
        assert sent.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert sent.getexif()[0x010E] == "about"


@given(
    pixels=npst.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 6), st.integers(1, 6))
        | st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    )
)
def test_an_array_is_sent_as_the_same_pixels(pixels):
    """For every size, number of channels and depth; another decoder reads the same values."""
    decoded = imagecodecs.png_decode(encode_array(pixels))
    np.testing.assert_array_equal(decoded.reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((8, 8, 3)), ValueError, r"array of float64 with the shape \(8, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r"shape \(3, 8, 8\)"),
        (np.zeros((0, 8), np.uint8), ValueError, "no pixels"),
        (Image.new("I", (2, 2), 70_000), ValueError, "mode I"),
        (io.StringIO("text"), TypeError, "mode 'rb'"),
        (None, TypeError, "NoneType"),
        ("gone.png", FileNotFoundError, "gone.png"),
    ],
)
def test_what_is_no_image_is_refused_before_anything_is_sent(image, error, words):
    """With what it is, and what to give."""
    client, requests = scripted(httpx.Response(200, headers=IMAGE))
    with client, pytest.raises(error, match=words):
        client.upscale(image)
    assert requests == []


def test_an_image_that_went_into_a_file_is_not_decoded(monkeypatch):
    """The message names its place; without Pillow it says what to install."""
    client, _ = scripted(httpx.Response(200, headers=IMAGE, content=b"pixels"))
    with client:
        answer = client.upscale(b"x", into=io.BytesIO())
        kept = client.upscale(b"x")
    with pytest.raises(ValueError, match="written into a file"):
        answer.image()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        kept.image()


def test_new_headers_are_read():
    """Steps, restoration, precision and quality, if the server reports them."""
    more = {"Steps": "small-jpeg; small-x2", "Restored": "small-jpeg; quality=42", "Precision": "high", "Quality": "81"}
    headers = {**IMAGE, **{f"X-Swin2SR-{name}": value for name, value in more.items()}}
    client, _ = scripted(
        httpx.Response(200, headers=headers, content=b"x"), httpx.Response(200, headers=IMAGE, content=b"x")
    )
    with client:
        told, silent = client.upscale(b"x"), client.upscale(b"x")
    assert (told.steps, told.restored, told.precision, told.quality) == (*list(more.values())[:3], 81)
    assert (silent.steps, silent.restored, silent.precision, silent.quality) == ("", "", "", None)


def test_an_impossible_option_is_refused_before_anything_is_sent():
    """With the sentence that the server would have sent."""
    client, requests = scripted(httpx.Response(200, headers=IMAGE))
    with client, pytest.raises(errors.InvalidOption, match="quality") as refusal:
        client.upscale(b"x", quality=0)
    with pytest.raises(errors.InvalidOption, match=r"^nonsense: unknown option; valid options: variant, width"):
        client.upscale(b"x", nonsense=1)
    with pytest.raises(errors.InvalidOption, match=r"^options: max_bytes needs a lossy format"):
        client.upscale(b"x", max_bytes=1000)
    assert refusal.value.facts["errors"]
    assert requests == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("-inf")])
def test_a_timeout_that_is_none_is_refused(seconds):
    """Of the client and of one image; an infinite one is as long as sockets allow."""
    with pytest.raises(ValueError, match=r"timeout=.* must be above 0 seconds"):
        Client(timeout=seconds)
    client, requests = scripted(httpx.Response(404))
    with client:
        with pytest.raises(ValueError, match=r"timeout=.* must be above 0 seconds"):
            client.upscale(b"x", timeout=seconds)
        with pytest.raises(errors.ServiceError):
            client.upscale(b"x", timeout=float("inf"))
    assert 9e8 < int(requests[0][0].url.params["timeout_ms"]) <= 1e9


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(errors.UnknownVariant("")), errors.UnknownVariant),
        (httpx.Response(404, content=b"<html>"), errors.RequestError),
        (httpx.Response(200, headers={"Content-Type": "text/html"}, content=b"<html>"), errors.ServiceError),
    ],
)
def test_every_error_has_a_request_id(reply, kind):
    """That of the problem document; else the one that the client sent. Options that are wrong get one too."""
    client, requests = scripted(reply)
    with client:
        with pytest.raises(kind) as refused:
            client.upscale(b"x")
        with pytest.raises(errors.InvalidOption) as invalid:
            client.upscale(b"x", quality=0)
        with pytest.raises(kind) as listed:
            client.variant("x3")
    sent = [request.headers["x-request-id"] for request, _ in requests]
    named = reply.headers.get("content-type") == "application/problem+json"
    assert [refused.value.request_id, listed.value.request_id] == (["id", "id"] if named else sent)
    assert invalid.value.request_id


def test_a_key_is_sent():
    """As bearer token, with every request."""
    seen = []

    def answer(request):
        seen.append(request.headers["authorization"])
        return problem(errors.Unauthorized(""))

    with (
        Client("http://test/", api_key="secret", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(errors.Unauthorized),
    ):
        client.variants()
    assert seen == ["Bearer secret"]


def test_an_address_that_is_none_is_one_sentence():
    """The same class as for a server that is not there."""
    with Client("nonsense") as client, pytest.raises(ServerUnreachable, match="'nonsense' is not the URL of a server"):
        client.upscale(b"x")
    with pytest.raises(ValueError, match="is not a URL"):
        Client("http://127.0.0.1:many")
    with (
        Client("http://127.0.0.1:1", connect_timeout=0.5) as client,
        pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"),
    ):
        client.variants()


CONTENT = st.binary(max_size=40) | st.sampled_from([b"\r\n", b"--B", b"\r\n--A", b"\r\n\r\n", b"\r\n--", b"-"])


@given(parts=st.lists(CONTENT, min_size=1, max_size=4), size=st.integers(1, 50), preamble=st.booleans())
def test_parts_do_not_depend_on_how_they_come(parts, size, preamble):
    """Any cut of the body into chunks gives the same parts, byte by byte."""
    body = (b"ignored\r\n" if preamble else b"") + b"--B"
    for content in parts:
        body += b"\r\nContent-Type: image/png\r\n\r\n" + content.replace(b"\r\n--B", b"") + b"\r\n--B"
    body += b"--\r\n"
    splitter, found = MultipartSplitter("B"), []
    for start in range(0, len(body), size):
        for event in splitter.feed(body[start : start + size]):
            if isinstance(event, httpx.Headers):
                assert event["content-type"] == "image/png"
                found.append(b"")
            elif event is not None:
                found[-1] += event
    assert found == [content.replace(b"\r\n--B", b"") for content in parts]
