"""The command line, as a person types it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from app.cli import local_backend
from app.cli.commands import build
from app.cli.files import InputFile
from app.cli.shard import Shard
from app.cli.upscale import UpscaleArgs
from app.cli.upscale import run as run_upscale
from app.client import AsyncClient
from app.schemas import UpscaleOptions
from app.service import build_service
from app.settings import Settings
from model.variants import VARIANTS, embedded_path
from tests.listening import listening
from tests.scripted import ScriptedUpscaler, loading, model_dir
from tests.service import SMALL, enlarged, noise, pixels_of, png, scripted_app

ROOT = Path(__file__).parents[1]

needs_weights = pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here")


@pytest.fixture
def run():
    """Runs a command in this process."""

    def invoke(*arguments):
        return CliRunner().invoke(build(), [str(argument) for argument in arguments], env={"COLUMNS": "200"})

    return invoke


@pytest.fixture
def upscaler(tmp_path, monkeypatch):
    """The network of commands that compute in this process."""
    upscaler = ScriptedUpscaler()
    folder = model_dir(tmp_path / "models", "lightweight-x2")

    def build(settings):
        chosen = {**settings.model_dump(), **SMALL, "variants": "x2", "model_dir": folder, "device": "cpu"}
        return build_service(Settings(**chosen), loading(lightweight_x2=upscaler))

    monkeypatch.setattr(local_backend, "build_service", build)
    return upscaler


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with a folder, a broken image and a text in it; the current folder is its parent."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, seed in (("a.png", 1), ("sub/b.JPG", 2)):
        (folder / name).write_bytes(png(noise(8, 8, seed=seed)))
    (folder / "bad.png").write_bytes(b"nonsense")
    (folder / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return folder


def test_every_setting_is_an_option_of_serve(run):
    """``serve --help`` shows each setting with its type or choices, default, and environment variable."""
    text = re.sub(r"[\s│]+", " ", run("serve", "--help").output)
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
        assert f"[env var: SWIN2SR_{name.upper()}]" in text
    for part in ("INTEGER", "text|json", "0..65535", "[default: 544]", "[default: 0]", "SECRET"):
        assert part in text
    assert "<str>" not in text


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--port", "many"), {}, "--port: 'many' is not an integer from 0 to 65535"),
        ((), {"SWIN2SR_PORT": "many"}, "SWIN2SR_PORT: 'many' is not an integer from 0 to 65535"),
        (("--port", "many"), {"SWIN2SR_PORT": "8000"}, "--port: 'many' is not an integer from 0 to 65535"),
        (("--tile-overlap", "544"), {}, "--tile-overlap"),
        (("--tile-overlap", "544"), {"SWIN2SR_TILE_SIZE": "500"}, "SWIN2SR_TILE_SIZE"),
    ],
)
def test_a_wrong_setting_is_named_as_it_was_given(run, monkeypatch, arguments, environment, message):
    """A fault names the option that was typed, or the environment variable that was set."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = run("serve", *arguments)
    assert answer.exit_code == 1
    assert message in answer.stderr
    assert not (set(re.findall("SWIN2SR_[A-Z_]+", answer.stderr)) - set(environment))


def test_a_misspelt_variable_is_reported(run, monkeypatch):
    """A misspelt variable is reported; those of other programs and of the client are not."""
    for name in ("SWIN2SR_TILESIZE", "SWIN2SR_RAY_MIN_REPLICA", "SWIN2SR_API_KEY", "TILE_SIZ"):
        monkeypatch.setenv(name, "70")
    lines = run("serve", "--port", "many").stderr.splitlines()
    assert "swin2sr: Unknown setting SWIN2SR_TILESIZE (ignored). Did you mean SWIN2SR_TILE_SIZE?" in lines
    assert [line.split()[3] for line in lines if "Unknown setting" in line] == [
        "SWIN2SR_TILESIZE",
        "SWIN2SR_RAY_MIN_REPLICA",
    ]


def test_the_variants_are_listed(run):
    """Every one of them, whether it is here, and what it is for."""
    answer = run("variants", "--device", "cpu")
    assert answer.exit_code == 0
    for name in VARIANTS:
        assert name in answer.output


def test_the_list_of_variants_fits_80_columns(tmp_path):
    """Names of own variants are complete, however long they are."""
    name = "own-" + "abcdefghi-" * 8
    (tmp_path / f"{name}.safetensors").write_bytes(b"")
    words = ["variants", "--device", "cpu", "--model-dir", str(tmp_path)]
    lines = CliRunner().invoke(build(), words, env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert name in "".join(line.partition("│")[0].strip() for line in lines)


@pytest.mark.parametrize("command", ["evaluate", "export", "upscale"])
def test_missing_weights_are_missing_on_this_machine(run, tmp_path, command):
    """Commands mention no server, and name the command that downloads the weights."""
    (tmp_path / "in.png").write_bytes(png(noise(8, 8)))
    words = {
        "evaluate": ["evaluate", tmp_path, "--variant", "classical-x2"],
        "export": ["export", "classical-x2", tmp_path / "out.onnx"],
        "upscale": ["upscale", tmp_path / "in.png", "--variant", "classical-x2"],
    }
    answer = run(*words[command], "--cache-dir", tmp_path / "cache")
    assert answer.exit_code == 1
    assert "are not on this machine. Download them with: swin2sr fetch classical-x2" in answer.stderr
    assert "server" not in answer.stderr


@needs_weights
def test_an_image_is_upscaled_by_the_real_network(run, tmp_path):
    """The format is the output's name."""
    (tmp_path / "in.png").write_bytes(png(noise(16, 24)))
    output = tmp_path / "out.webp"
    answer = run("upscale", tmp_path / "in.png", "-o", output, "--device", "cpu")
    assert answer.exit_code == 0, answer.output
    with Image.open(output) as image:
        assert (image.format, image.size) == ("WEBP", (48, 32))


@pytest.mark.usefixtures("upscaler")
def test_a_folder_goes_into_a_folder(run, photos, tmp_path):
    """Sub-folders stay, names say the variant, a bad file is named and does not stop the others, and it exits 1."""
    answer = run("upscale", photos, "-o", "out", "--variant", "x2")
    assert answer.exit_code == 1
    out = tmp_path / "out"
    results = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert results == ["a-lightweight-x2.png", "sub/b-lightweight-x2.png"]
    np.testing.assert_array_equal(pixels_of((out / results[0]).read_bytes()), enlarged(noise(8, 8, seed=1)))
    assert "bad.png: This is not an image" in answer.stderr
    assert "2 images upscaled, 1 failed:" in answer.stderr


def test_nothing_is_overwritten_without_force(run, upscaler, photos, tmp_path):
    """Neither what was there before, nor is anything computed for it; with ``--force`` it is replaced."""
    (tmp_path / "out.png").write_bytes(b"mine")
    answer = run("upscale", photos / "a.png", "-o", "out.png")
    assert answer.exit_code == 1
    assert "--force" in answer.stderr
    assert (tmp_path / "out.png").read_bytes() == b"mine"
    assert upscaler.calls == []
    assert run("upscale", photos / "a.png", "-o", "out.png", "--force").exit_code == 0
    assert pixels_of((tmp_path / "out.png").read_bytes()).shape == (16, 16, 3)
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == []


def test_a_second_run_does_what_is_missing(run, upscaler, photos, tmp_path):
    """With ``--skip-existing`` what is there is neither read nor computed nor counted as done; it is no failure."""
    (photos / "bad.png").unlink()
    (photos / "sub" / "b.JPG").rename(tmp_path / "b.JPG")
    assert run("upscale", photos, "-o", "out").exit_code == 0
    (tmp_path / "b.JPG").rename(photos / "sub" / "b.JPG")
    (photos / "a.png").write_bytes(b"no image any more")
    upscaler.calls.clear()
    answer = run("upscale", photos, "-o", "out", "--skip-existing", "--json")
    assert answer.exit_code == 0
    assert "1 image skipped" in answer.stderr
    skipped, done = sorted(map(json.loads, answer.stdout.splitlines()), key=lambda line: "skipped" not in line)
    assert skipped == {
        "source": str(photos / "a.png"), "target": str(Path("out") / "a-lightweight-x2.png"), "skipped": True,
    }  # fmt: skip
    assert done["target"] == str(Path("out") / "sub" / "b-lightweight-x2.png")
    assert upscaler.calls.count([(8, 8)]) == 1
    answer = run("upscale", photos, "-o", "out", "--skip-existing", "--force")
    assert answer.exit_code != 0
    assert "exclude each other" in answer.stderr


@pytest.mark.usefixtures("upscaler")
def test_the_result_is_written_here_by_default(run, photos, tmp_path):
    """Under a name of its own, so that the image itself is safe."""
    assert run("upscale", photos / "a.png", "--format", "jpeg").exit_code == 0
    assert (tmp_path / "a-lightweight-x2.jpg").read_bytes().startswith(b"\xff\xd8")


@pytest.mark.usefixtures("upscaler")
def test_standard_input_goes_to_standard_output(photos):
    """Standard output contains nothing else; messages are on standard error."""
    body = (photos / "a.png").read_bytes()
    answer = CliRunner().invoke(build(), ["upscale", "-"], input=body)
    assert answer.exit_code == 0
    np.testing.assert_array_equal(pixels_of(answer.stdout_bytes), enlarged(noise(8, 8, seed=1)))
    answer = CliRunner().invoke(build(), ["upscale", str(photos / "a.png"), "-o", "-", "--format", "webp"])
    assert answer.stdout_bytes.startswith(b"RIFF")


@pytest.mark.usefixtures("upscaler")
def test_each_image_is_a_line_of_json(run, photos):
    """Good ones and bad ones, for programs."""
    answer = run("upscale", photos, "-o", "out", "--json")
    lines = {line["source"]: line for line in map(json.loads, answer.stdout.splitlines())}
    assert lines[str(photos / "a.png")] == {
        "source": str(photos / "a.png"),
        "target": "out/a-lightweight-x2.png",
        "variant": "lightweight-x2",
        "scale": 2,
        "tiles": 1,
        "seconds": lines[str(photos / "a.png")]["seconds"],
    }
    assert lines[str(photos / "bad.png")]["error"]["code"] == "unsupported_format"
    assert len(lines) == 3


@pytest.mark.usefixtures("upscaler")
def test_bars_show_the_whole_and_the_file(photos):
    """On a terminal, while an image of several tiles is computed."""
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    (photos / "large.png").write_bytes(png(noise(300, 20)))
    order = UpscaleArgs(
        ("photos/large.png",), Path("out.png"), None, None, 60, force=False, skip=False, jobs=1, as_json=False
    )
    options = order.options(variant="x2", format=None)
    assert asyncio.run(run_upscale(order, options, Settings(), console)) == 0
    text = console.file.getvalue()
    assert "1 image" in text
    assert "large.png" in text
    assert "━" in text


@pytest.mark.slow
def test_a_server_computes_where_one_is_named(run, photos, tmp_path):
    """With the same names, lines and errors as in this process."""
    with listening(scripted_app(tmp_path / "service", lightweight_x2=ScriptedUpscaler())) as url:
        answer = run("upscale", photos, "-o", "out", "--url", url, "--json", "--jobs", "2")
        missing = run("upscale", photos, "-o", "out", "--url", url, "--variant", "realworld-x4")
        listed = run("variants", "--url", url)
    assert answer.exit_code == 1
    assert sorted(file.name for file in (tmp_path / "out").rglob("*.png")) == [
        "a-lightweight-x2.png",
        "b-lightweight-x2.png",
    ]
    assert "unsupported_format" in answer.stdout
    assert "swin2sr fetch realworld-x4" in missing.stderr
    assert "lightweight-x2" in listed.output
    assert run("upscale", photos, "-o", "out", "--url", "http://127.0.0.1:1").exit_code == 1


@pytest.mark.usefixtures("upscaler")
def test_a_page_compares_before_and_after(run, photos, tmp_path):
    """``--compare`` writes one page for each image that holds both; TIFF, which browsers do not show, becomes PNG."""
    answer = run("upscale", photos / "a.png", "-o", "out", "--compare", "--json")
    assert answer.exit_code == 0, answer.output
    page = tmp_path / "out" / "a-lightweight-x2.html"
    assert json.loads(answer.stdout)["compare"] == "out/a-lightweight-x2.html"
    before, after = (base64.b64decode(each) for each in re.findall(r'data:image/png;base64,([^"]+)', page.read_text()))
    after, before = sorted((before, after), key=len, reverse=True)
    assert before == (photos / "a.png").read_bytes()
    assert after == (tmp_path / "out" / "a-lightweight-x2.png").read_bytes()
    assert run("upscale", photos / "a.png", "-o", "<b>.tiff", "--compare").exit_code == 0
    text = (tmp_path / "<b>.html").read_text()
    assert "<title>&lt;b&gt;.tiff</title>" in text
    assert text.count("data:image/png") == 2
    refused = run("upscale", photos / "a.png", "-o", "-", "--compare")
    assert (refused.exit_code, "--compare needs an output file" in refused.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.usefixtures("upscaler")
def test_shards_divide_the_work(run, photos, tmp_path):
    """Every image is in one shard, with the name that it has without shards; a shard may be empty."""
    (photos / "bad.png").unlink()
    for index in range(6):
        (photos / f"{index}.png").write_bytes(png(noise(4, 4, seed=index)))
    (photos / "0.jpg").write_bytes((photos / "0.png").read_bytes())
    assert run("upscale", photos, "-o", "whole").exit_code == 0
    found = []
    for index in (1, 2, 3):
        assert run("upscale", photos, "-o", f"shard{index}", "--shard", f"{index}/3").exit_code == 0
        found += [file.relative_to(tmp_path / f"shard{index}") for file in (tmp_path / f"shard{index}").rglob("*.png")]
    whole = [file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*.png")]
    assert sorted(found) == sorted(whole)
    assert len(whole) == 9
    empty = [run("upscale", photos / "a.png", "-o", "one", "--shard", f"{index}/9") for index in range(1, 10)]
    assert [answer.exit_code for answer in empty] == [0] * 9
    assert len(list((tmp_path / "one").iterdir())) == 1


def test_the_shard_of_a_name_is_stable():
    """Other machines and later versions choose the same."""
    files = [InputFile(Path(name), Path(name)) for name in ("a.png", "sub/b.png", "c.png", "d.png")]
    assert [[file for file in files if Shard(k, 2).has(file)] for k in (1, 2)] == [[files[0], files[3]], files[1:3]]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_a_wrong_shard_is_refused(run, photos, shard):
    """With what it must be."""
    answer = run("upscale", photos, "-o", "out", f"--shard={shard}")
    assert (answer.exit_code, "K from 1 to N" in answer.stderr) == (1, True)


def test_every_option_of_a_request_is_an_option_of_the_command(run):
    """Also of ``watch``, with its description and its choices."""
    for command in ("upscale", "watch"):
        text = re.sub(r"[\s│]+", " ", run(command, "--help").output)
        for name, field in UpscaleOptions.model_fields.items():
            if name != "timeout_ms":
                assert f"--{name.replace('_', '-')}" in text
                assert name == "variant" or field.description.split("`")[0] in text
        assert "png|jpeg|webp|tiff|avif" in text
        assert "1..100" in text


def test_options_that_were_not_typed_are_left_to_the_server(run, photos, tmp_path, monkeypatch):
    """Only those on the command line are sent, and the variant."""
    sent = []
    upscale = AsyncClient.upscale

    async def spy(self, image, **options):
        sent.append({name: value for name, value in options.items() if name != "on_progress"})
        return await upscale(self, image, **options)

    monkeypatch.setattr(AsyncClient, "upscale", spy)
    with listening(scripted_app(tmp_path / "service", lightweight_x2=ScriptedUpscaler())) as url:
        assert (
            run("upscale", photos / "a.png", "-o", "a.jpg", "--url", url, "--no-ensemble", "--width", "9").exit_code
            == 0
        )
    assert sent == [{"variant": "x2", "format": "jpeg", "ensemble": False, "width": 9}]


def test_variants_that_a_server_cannot_use_are_listed_with_the_reason(run, photos, tmp_path):
    """Running and failed downloads, in the list; failed ones also in the error of a request."""
    app = scripted_app(tmp_path / "service", lightweight_x2=ScriptedUpscaler())
    loading, failed = map(app.state.service.registry.find, ("classical-x2", "jpeg"))
    loading.state, loading.reason = "loading", "being fetched: 2.0 of 48.9 MB"
    failed.state, failed.reason = "failed", "could not be fetched: the hub answered 500"
    with listening(app) as url:
        listed = run("variants", "--url", url)
        failed = run("upscale", photos / "a.png", "-o", "out", "--url", url, "--variant", "jpeg")
    assert re.search(r"classical-x2 +│ loading +│", listed.output)
    assert re.search(r"jpeg +│ failed +│", listed.output)
    assert re.search(r"lightweight-x2 +│ yes +│", listed.output)
    assert re.search(r"realworld-x4 +│ no +│", listed.output)
    assert "\nclassical-x2: being fetched: 2.0 of 48.9 MB\njpeg: could not be fetched: " in listed.output
    assert (failed.exit_code, failed.stderr.count("could not be fetched: the hub answered 500")) == (1, 1)


def test_the_error_for_missing_weights_names_the_command_that_downloads_them(run, photos):
    """And does not mention servers and administrators."""
    answer = run("upscale", photos / "a.png", "-o", "out", "--variant", "realworld-x4", "--device", "cpu")
    assert answer.exit_code == 1
    assert "on this machine. Download them with: swin2sr fetch realworld-x4" in answer.stderr
    assert "administrator" not in answer.stderr
    assert "swin2sr fetch NAME" in run("variants", "--device", "cpu").output


def test_a_key_is_sent_to_the_server(run, photos, tmp_path):
    """Where it wants one."""
    with listening(scripted_app(tmp_path / "s", {"api_keys": "secret-key"}, lightweight_x2=ScriptedUpscaler())) as url:
        refused = run("upscale", photos / "a.png", "-o", "out", "--url", url)
        served = run("upscale", photos / "a.png", "-o", "out", "--url", url, "--api-key", "secret-key")
    assert "An API key is required" in refused.stderr
    assert (refused.exit_code, served.exit_code) == (1, 0)


@pytest.mark.slow
def test_a_shell_can_complete(run):
    """Commands and options by the shell's own means, and variants by their names."""
    assert "--install-completion" in run("--help").output
    environment = {**os.environ, "COMP_WORDS": "swin2sr upscale --variant small", "COMP_CWORD": "3"}
    environment["_SWIN2SR_COMPLETE"] = "complete_bash"
    program = "from app.cli.commands import build; build()(prog_name='swin2sr')"
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "small-x2" in result.stdout.split()


def test_a_bad_file_makes_the_exit_status_1(run, tmp_path):
    """So that scripts notice."""
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    answer = run("upscale", tmp_path / "bad.png", "-o", tmp_path / "out.png", "--device", "cpu")
    assert answer.exit_code == 1
    assert "bad.png" in answer.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("empty", "-o", "out"), "No images found in empty. Recognised extensions: .avif, "),
        (("a.png", "-o", "out.gif"), "Unsupported output extension '.gif'; use one of .png, .jpg, "),
        (("a.png", "-o", "out.jpg", "--format", "webp"), "Output extension .jpg contradicts --format webp"),
        (("a.png", "-o", "out.jpg", "--format", "jpg"), "--format: 'jpg' is not png, jpeg"),
        (("a.png", "-o", "out.jpg", "--url", "http://x", "--timeout", "nan"), "timeout=nan must be above 0 seconds"),
        (("a.png", "-o", "out.png", "--factor", "1", "--width", "3"), "factor"),
        (("a.png", "-o", "out.png", "--factor", "-1"), "--factor"),
        (("*.png", "-o", "out.png"), "need an output folder"),
        (("*.png", "-o", "-"), "one image"),
        (("a.png", "-o", "-", "--json"), "standard output"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(run, tmp_path, monkeypatch, arguments, sentence):
    """Before anything is loaded."""
    (tmp_path / "empty").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(noise(8, 8)))
    monkeypatch.chdir(tmp_path)
    answer = run("upscale", *arguments)
    assert answer.exit_code == 1
    assert sentence in answer.stderr


@needs_weights
def test_evaluate_prints_the_table(run, tmp_path):
    """A row for every image and their mean."""
    (tmp_path / "a.png").write_bytes(png(noise(40, 40)))
    answer = run("evaluate", tmp_path, "--variant", "small-x2", "--device", "cpu", "--precision", "exact")
    assert answer.exit_code == 0, answer.output
    assert "small-x2" in answer.output
    assert "| a |" in answer.output
    assert "| mean |" in answer.output
    assert "small-x2 on" in answer.stdout
    assert "precision exact" in answer.stdout


def test_evaluate_says_what_is_missing(run, tmp_path):
    """A folder without images, and a variant without weights."""
    assert "no images" in run("evaluate", tmp_path, "--variant", "x2", "--device", "cpu").stderr
    assert "swin2sr fetch" in run("evaluate", tmp_path, "--variant", "realworld-x4", "--device", "cpu").stderr


@needs_weights
def test_evaluate_names_a_photo_that_it_cannot_read(run, tmp_path):
    """One sentence on standard error, and no traceback."""
    (tmp_path / "broken.png").write_bytes(png(noise(40, 40))[:-30])
    answer = run("evaluate", tmp_path, "--variant", "small-x2", "--device", "cpu")
    assert (answer.exit_code, type(answer.exception)) == (1, SystemExit)
    assert answer.stderr.startswith("swin2sr: ")
    assert "broken.png cannot be read as an image" in answer.stderr
    assert "Traceback" not in answer.output


def test_output_that_cannot_be_written_is_one_sentence():
    """A full disk is no traceback."""
    command = [sys.executable, "-m", "app", "--version"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "swin2sr: No space left on device\n")
