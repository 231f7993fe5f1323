"""Bodies as common clients send them: their default types, forms with further fields, preambles, odd file names."""

from __future__ import annotations

import asyncio
import gzip
import io

import pytest
from PIL import Image

from tests.scripted import ScriptedUpscaler
from tests.service import noise, pixels_of, png, running, scripted_app

IMAGE = png(noise(8, 8))
FILE = b'Content-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + IMAGE


@pytest.fixture
def post(tmp_path):
    """Sends one body with these headers."""

    def send(content, headers, query=""):
        app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())

        async def exchange():
            async with running(app) as client:
                return await client.post(f"/v1/upscale{query}", content=content, headers=headers)

        return asyncio.run(exchange())

    return send


def text(name, value):
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def form(*parts, preamble=b"", epilogue=b""):
    return preamble + b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n" + epilogue


@pytest.fixture
def send_form(post):
    """Sends a form of these parts."""

    def send(*parts, query="", **around):
        return post(form(*parts, **around), {"content-type": "multipart/form-data; boundary=XX"}, query)

    return send


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "binary/octet-stream", "application/octet-stream", "image/png", None]
)
def test_an_image_under_a_clients_default_type_is_an_image(post, kind):
    """Clients do not choose these types: the bytes decide."""
    answer = post(IMAGE, {"content-type": kind} if kind else {})
    assert answer.status_code == 200
    assert pixels_of(answer.content).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "binary/octet-stream", "text/plain", "image"])
def test_what_is_no_image_is_refused(post, kind):
    """By its type, or by its bytes."""
    answer = post(b"file=photo&width=3", {"content-type": kind})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_format")


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_file_that_curl_has_damaged_is_explained(post, name):
    """``curl -d @photo`` removes line breaks and zero bytes; the error names the option that does not."""
    file = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(file, name)
    damaged = file.getvalue().translate(None, b"\r\n\0")
    answer = post(damaged, {"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code in ((413,) if name == "GIF" else (400, 415))  # without its zeros a GIF seems huge
    assert "--data-binary" in answer.json()["detail"]
    assert "--data-binary" not in post(damaged, {"content-type": "image/png"}).json()["detail"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "identity, gzip", "br", "nonsense"])
def test_an_encoding_is_refused_by_its_name(post, coding):
    """Not as a broken image."""
    answer = post(gzip.compress(IMAGE), {"content-type": "image/png", "content-encoding": coding})
    assert answer.status_code == 415
    assert "Content-Encoding" in answer.json()["detail"]
    assert coding.rpartition(" ")[2] in answer.json()["detail"]


def test_identity_is_no_encoding(post):
    """It says that there is none."""
    assert post(IMAGE, {"content-type": "image/png", "content-encoding": "Identity"}).status_code == 200


def test_text_fields_are_options(send_form):
    """Before and behind the file."""
    answer = send_form(text("format", "jpeg"), FILE, text("width", "10"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert pixels_of(answer.content).shape[1] == 10
    assert "x-swin2sr-notice" not in answer.headers


def test_the_query_counts_where_both_have_an_option(send_form):
    """The notice says so, where the values differ."""
    answer = send_form(FILE, text("format", "jpeg"), query="?format=webp")
    assert answer.headers["content-type"] == "image/webp"
    assert "format" in answer.headers["x-swin2sr-notice"]
    assert "x-swin2sr-notice" not in send_form(FILE, text("format", "webp"), query="?format=webp").headers


@pytest.mark.parametrize(
    ("fields", "query"),
    [
        ([("quality", "0")], ""),
        ([("quality", "")], ""),
        ([("ensemble", "perhaps")], ""),
        ([("factor", "0.5")], "?width=3"),
        ([("factor", "0.5"), ("height", "3")], ""),
        ([("variant", "v" * 200)], ""),
    ],
)
def test_fields_are_checked_as_a_query_is(send_form, fields, query):
    """Values, and options that contradict each other across both."""
    answer = send_form(FILE, *(text(*each) for each in fields), query=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert len(answer.json()["errors"]) == 1


def test_of_several_values_the_last_counts(send_form):
    """In the query and in a form; the notice says so, unless they are equal."""
    for answer in (
        send_form(FILE, text("format", "png"), text("format", "jpeg")),
        send_form(FILE, query="?format=png&format=jpeg"),
    ):
        assert answer.headers["content-type"] == "image/jpeg"
        assert "several values, of which the last counts: format" in answer.headers["x-swin2sr-notice"]
    same = send_form(FILE, text("format", "png"), text("format", "png"), query="?tile=auto&tile=auto")
    assert "x-swin2sr-notice" not in same.headers


def test_a_field_sets_the_deadline(send_form):
    """``timeout_ms`` counts from a form too."""
    answer = send_form(FILE, text("timeout_ms", "1"))
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_another_field_is_ignored_and_named(send_form):
    """Whatever its name is made of, it does not break the header; many are counted."""
    for name, shown in (("submit", "'submit'"), ("Knöpfe", r"Kn\xf6pfe"), ("a\x07b", r"a\x07b")):
        answer = send_form(FILE, text(name, "Go"))
        assert answer.status_code == 200
        assert shown in answer.headers["x-swin2sr-notice"]
    answer = send_form(FILE, *(text(f"csrf{number}", "x") for number in range(9)))
    assert "and 4 more" in answer.headers["x-swin2sr-notice"]


@pytest.mark.parametrize(
    ("name", "option"), [("qualty", "quality"), ("Format", "format"), ("timeout-ms", "timeout_ms")]
)
def test_a_misspelt_option_is_refused(send_form, name, option):
    """Ignoring it would answer with something else than requested."""
    answer = send_form(FILE, text(name, "80"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")
    assert repr(option) in answer.json()["detail"]


@pytest.mark.parametrize(
    "preamble", [b"This is a multipart message.\r\n", b"\r\n", b"--XY\r\n", b"x" * 70_000 + b"\r\n", b"a --XX\r\n"]
)
def test_text_around_the_parts_is_skipped(send_form, preamble):
    """A preamble of any length, and an epilogue."""
    assert send_form(FILE, preamble=preamble, epilogue=b"The end.\r\n").status_code == 200


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b"filename*=UTF-8''caf%C3%A9.png", "caf%C3%A9-lightweight-x2.png"),
        (b"filename=\"cafe.png\"; filename*=UTF-8''caf%C3%A9.png", "caf"),
        ('filename="café.png"'.encode(), "caf%C3%A9-lightweight-x2.png"),
        (b"filename*=nonsense", "-lightweight-x2.png"),
        (b'filename="..\\..\\a.png"', "a-lightweight-x2.png"),
    ],
)
def test_file_names_are_read_in_every_spelling(send_form, disposition, name):
    """The extended parameter alone, beside the plain one, and raw UTF-8."""
    part = b'Content-Disposition: form-data; name="file"; ' + disposition + b"\r\n\r\n" + IMAGE
    answer = send_form(part)
    assert answer.status_code == 200
    assert name in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    "parts",
    [
        [b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + IMAGE],
        [FILE, FILE],
        [text("format", "png")],
        [FILE, text("format", "x" * 5000)],
        [FILE, *(text(f"csrf{number}", "") for number in range(70))],
        [b'X: y\r\nContent-Disposition: form-data; name="file"\r\nLong: ' + b"x" * 20_000 + b"\r\n\r\n" + IMAGE],
        [b"X: y\r\n\r\n" + IMAGE],
    ],
    ids=["another file", "two files", "no file", "a long field", "many fields", "long headers", "no name"],
)
def test_other_forms_are_refused(send_form, parts):
    """With a sentence, and without keeping what was sent."""
    answer = send_form(*parts)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_upload")


def test_forms_arrive_in_pieces(tmp_path):
    """A byte at a time, preamble included: the result is the same."""
    app = scripted_app(tmp_path, lightweight_x2=ScriptedUpscaler())
    body = form(FILE, text("format", "jpeg"), preamble=b"Hello.\r\n--X\r\n")

    async def pieces():
        for at in range(len(body)):
            yield body[at : at + 1]

    async def exchange():
        async with running(app) as client:
            headers = {"content-type": "multipart/form-data; boundary=XX"}
            return await client.post("/v1/upscale", content=pieces(), headers=headers)

    assert asyncio.run(exchange()).headers["content-type"] == "image/jpeg"
