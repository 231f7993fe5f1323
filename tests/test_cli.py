"""The command line, as a person types it."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from app import local
from app.cli import build
from app.schemas import UpscaleOptions
from app.settings import Settings
from model.variants import VARIANTS, embedded_path
from tests.scripted import ScriptedUpscaler, loading, model_dir
from tests.service import SMALL, enlarged, noise, pixels_of, png

needs_weights = pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here")


@pytest.fixture
def run():
    """Runs a command in this process."""

    def invoke(*arguments):
        return CliRunner().invoke(build(), [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return invoke


@pytest.fixture
def upscale(tmp_path, monkeypatch):
    """Upscales files with a scripted network."""
    upscaler = ScriptedUpscaler()
    original = local.build_service
    monkeypatch.setattr(local, "build_service", lambda settings: original(settings, loading(lightweight_x2=upscaler)))
    folder = model_dir(tmp_path / "models", "lightweight-x2")
    settings = Settings(**SMALL, variants="x2", model_dir=folder, device="cpu")

    def go(*jobs, **options):
        console = Console(record=True, width=200)
        failures = asyncio.run(local.upscale_files(jobs, UpscaleOptions(**options), settings, console))
        return failures, console.export_text()

    return go


def test_every_setting_is_an_option_of_serve(run):
    """With what it trades off, and its default."""
    text = re.sub(r"\s+", " ", run("serve", "--help").output)
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
    assert "544" in text


def test_a_wrong_setting_is_named(run):
    """One sentence on standard error, and a status that scripts notice."""
    answer = run("serve", "--port", "many")
    assert answer.exit_code != 0
    assert "SWIN2SR_PORT" in answer.stderr


def test_the_variants_are_listed(run):
    """Every one of them, whether it is here, and what it is for."""
    answer = run("variants", "--device", "cpu")
    assert answer.exit_code == 0
    for name in VARIANTS:
        assert name in answer.output


@needs_weights
def test_an_image_is_upscaled_by_the_real_network(run, tmp_path):
    """The format is the output's name."""
    (tmp_path / "in.png").write_bytes(png(noise(16, 24)))
    output = tmp_path / "out.webp"
    answer = run("upscale", tmp_path / "in.png", "-o", output, "--device", "cpu")
    assert answer.exit_code == 0, answer.output
    with Image.open(output) as image:
        assert (image.format, image.size) == ("WEBP", (48, 32))


def test_a_folder_goes_into_a_folder(upscale, tmp_path):
    """Each file under its own name, with the suffix of its format."""
    inputs, outputs = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    pixels = noise(150, 20)
    (inputs / "a.png").write_bytes(png(pixels))
    (inputs / "b.jpg").write_bytes(png(pixels))
    (inputs / "notes.txt").write_text("no image")
    images = local.find_images([inputs])
    assert [image.name for image in images] == ["a.png", "b.jpg"]
    failures, _ = upscale(*(local.Job(image, outputs / image.name, rename=True) for image in images))
    assert failures == 0
    assert sorted(file.name for file in outputs.iterdir()) == ["a.png", "b.png"]
    np.testing.assert_array_equal(pixels_of((outputs / "a.png").read_bytes()), enlarged(pixels))


def test_a_bad_file_does_not_stop_the_others(upscale, tmp_path):
    """It is named with its reason, and counted."""
    files = {"bad.png": b"nonsense", "gone.png": None, "good.png": png(noise(8, 8))}
    for name, body in files.items():
        if body is not None:
            (tmp_path / name).write_bytes(body)
    failures, text = upscale(*(local.Job(tmp_path / name, tmp_path / "out" / name, rename=True) for name in files))
    assert failures == 2
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["good.png"]
    for line in ("bad.png: This is not an image", "gone.png: ", "good.png -> "):
        assert line in text


def test_a_bad_file_makes_the_exit_status_1(run, tmp_path):
    """So that scripts notice."""
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    answer = run("upscale", tmp_path / "bad.png", "-o", tmp_path / "out.png", "--device", "cpu")
    assert answer.exit_code == 1
    assert "bad.png" in answer.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("empty", "-o", "out"), "no images"),
        (("a.png", "-o", "out.gif"), "--format"),
        (("a.png", "-o", "out.png", "--factor", "1", "--width", "3"), "factor"),
        (("a.png", "-o", "out.png", "--factor", "-1"), "--factor"),
    ],
)
def test_impossible_wishes_are_refused_in_a_sentence(run, tmp_path, arguments, sentence):
    """Before anything is loaded."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(png(noise(8, 8)))
    answer = run("upscale", tmp_path / arguments[0], "-o", tmp_path / arguments[2], *arguments[3:])
    assert answer.exit_code == 1
    assert sentence in answer.stderr


@needs_weights
def test_evaluate_prints_the_table(run, tmp_path):
    """A row for every image and their mean."""
    (tmp_path / "a.png").write_bytes(png(noise(40, 40)))
    answer = run("evaluate", tmp_path, "--variant", "small-x2", "--device", "cpu")
    assert answer.exit_code == 0, answer.output
    assert "small-x2" in answer.output
    assert "| a |" in answer.output
    assert "| mean |" in answer.output


def test_evaluate_says_what_is_missing(run, tmp_path):
    """A folder without images, and a variant without weights."""
    assert "no images" in run("evaluate", tmp_path, "--variant", "x2", "--device", "cpu").stderr
    assert "swin2sr fetch" in run("evaluate", tmp_path, "--variant", "realworld-x4", "--device", "cpu").stderr


def test_fetch_says_what_works_today(run):
    """For a variant of the hub, one of the release, one of the package, and none."""
    assert "hf download caidas/swin2SR-classical-sr-x2-64" in run("fetch", "classical-x2").stderr
    assert "Swin2SR_Jpeg_dynamic.pth" in run("fetch", "jpeg").stderr
    assert "never fetched" in run("fetch", "small-x2").stderr
    assert "no variant" in run("fetch", "x3").stderr
    assert run("fetch", "classical-x2").exit_code == 1
