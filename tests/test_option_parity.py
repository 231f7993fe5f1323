"""Each option of ``POST /v1/upscale`` gives the same image, and the same refusal, whichever way it is sent."""

from __future__ import annotations

import base64

import httpx
import pytest
from typer.testing import CliRunner

from app.cli.commands import build
from app.client import Client
from app.errors import InvalidOption, ServiceError
from app.main import create_app
from app.schemas import UpscaleOptions
from app.settings import Settings
from tests.listening import listening
from tests.scripted import ScriptedUpscaler
from tests.service import SMALL, noise, png

SCALES = {"small-x2": 2, "small-x4": 4, "small-jpeg": 1}
PHOTO = png(noise(20, 30))
ACCEPTED = [
    {"variant": "small-x4"},
    {"width": 45},
    {"height": 10},
    {"factor": 3.5},
    {"megapixels": 0.006},
    {"width": 50, "height": 50, "fit": "cover"},
    {"width": 1000, "enlarge": True},
    {"restore": "always"},
    {"strength": 0.25},
    {"ensemble": True},
    {"format": "tiff"},
    {"format": "webp", "quality": 40},
    {"format": "jpeg", "max_bytes": 2000},
    {"metadata": "strip"},
    {"tile": "auto"},
    {"tile": 64},
    {"timeout_ms": 60_000},
]
REFUSED = [
    {"variant": "small-x3"},
    {"width": 0},
    {"height": -1},
    {"width": 10, "factor": 2},
    {"megapixels": 0},
    {"fit": "cover", "width": 10},
    {"fit": "fill"},
    {"width": 100_000},
    {"height": 10**400},
    {"factor": 1.7e308},
    {"megapixels": 1e300},
    {"restore": "sometimes"},
    {"strength": 1.5},
    {"format": "gif"},
    {"quality": 101},
    {"quality": 9.5},
    {"factor": "nan"},
    {"tile": "AUTO"},
    {"max_bytes": 2000},
    {"metadata": "some"},
    {"tile": 1},
    {"timeout_ms": 0},
]


@pytest.fixture(scope="module")
def url():
    """The address of a service with embedded variants whose networks repeat pixels."""
    settings = Settings(**{**SMALL, "variants": "small-x2,small-x4,small-jpeg", "device": "cpu"})
    app = create_app(settings, load=lambda name, _path: ScriptedUpscaler(SCALES[name]))
    with listening(app) as url:
        yield url


def text(options):
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}


def by_query(url, options, _folder):
    response = httpx.post(f"{url}/v1/upscale", params=text(options), content=PHOTO)
    return response.content if response.is_success else response.json()["code"]


def by_form(url, options, _folder):
    response = httpx.post(f"{url}/v1/upscale", data=text(options), files={"file": PHOTO})
    return response.content if response.is_success else response.json()["code"]


def by_open_inference(url, options, _folder):
    name = options.get("variant", "small-x2")
    others = {name: value for name, value in options.items() if name != "variant"}
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PHOTO).decode()]}
    image["parameters"] = {"content_type": "base64"}
    response = httpx.post(f"{url}/v2/models/{name}/infer", json={"inputs": [image], "parameters": others})
    if response.is_success:
        return base64.b64decode(response.json()["outputs"][0]["data"][0])
    assert response.json()["error"]
    return {404: "unknown_variant", 422: "invalid_option"}[response.status_code]


def by_client(url, options, _folder):
    with Client(url) as client:
        try:
            return client.upscale(PHOTO, **options).content
        except ServiceError as error:
            return error.code


def by_command(url, options, folder):
    source, result = folder / "photo.png", folder / "result"
    source.write_bytes(PHOTO)
    words = []
    for name, value in options.items():
        if name == "timeout_ms":
            words += ["--timeout", str(value / 1000)]  # the command counts in seconds
        else:
            words += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    words = ["upscale", str(source), "-o", str(result), "--url", url, "--variant", "small-x2", *words]
    done = CliRunner().invoke(build(), words)
    if done.exit_code == 0:
        [file] = [result] if result.is_file() else list(result.iterdir())
        return file.read_bytes()
    return "unknown_variant" if "small-x3" in done.output else "invalid_option"


WAYS = [by_form, by_open_inference, by_client, by_command]


def test_the_tables_hold_every_option():
    """An option without a row here would not be compared."""
    assert {name for options in ACCEPTED for name in options} == set(UpscaleOptions.model_fields)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", ACCEPTED, ids=str)
def test_every_way_gives_the_same_bytes(url, tmp_path, way, options):
    """The query is what the others are compared with."""
    wanted = by_query(url, options, tmp_path)
    assert isinstance(wanted, bytes)
    assert way(url, options, tmp_path) == wanted


@pytest.mark.parametrize("way", [by_query, *WAYS])
@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_every_way_refuses_the_same(url, tmp_path, way, options):
    """With ``unknown_variant`` for a variant, and ``invalid_option`` for everything else."""
    assert way(url, options, tmp_path) == ("unknown_variant" if "variant" in options else "invalid_option")


def test_the_client_raises_the_error_of_an_option(url):
    """A value outside its range is an InvalidOption that names the option."""
    with Client(url) as client, pytest.raises(InvalidOption, match="strength"):
        client.upscale(PHOTO, strength=2)
