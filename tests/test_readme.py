"""README.md is true: its commands run as written, its tables are the code's, its links lead somewhere."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from app import errors
from app.imaging.sample import SIZE
from app.ray.settings import RaySettings
from app.schemas import UpscaleOptions
from app.settings import Settings
from model.variants import VARIANTS, embedded_path
from tests.server import ServerProcess

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
MAKE = "import os, sys; os.execvp('make', ['make', *sys.argv[1:]])"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and what stands in it."""

    language: str
    text: str


BLOCKS = [Block(language, text) for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)]
STARTS = Block("sh", "make serve\n")
TESTS = Block("sh", "make test\n")
OTHERS = [block for block in BLOCKS if block not in (STARTS, TESTS)]


def make_arguments(*targets):
    """Arguments of make that let it take this environment as the installed ``.venv``, without further options."""
    return [
        *targets,
        "SERVE=",
        "TEST=",
        f"VENV={sys.prefix}",
        "-o",
        f"{sys.prefix}/.installed",
        "-o",
        f"{sys.prefix}/.installed-dev",
        "-o",
        f"{sys.prefix}/.installed-ray",
    ]


@pytest.fixture(scope="module")
def server():
    """The service as README's first command starts it, on a free port."""
    with ServerProcess(program=("-c", MAKE, *make_arguments("serve")), device="cpu") as process:
        yield process


@pytest.fixture(scope="module")
def workplace(server, tmp_path_factory):
    """A folder that looks like the project's to the commands, with a photo and a folder of photos."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(sys.prefix)
    sample = Path(re.search(r"file=@(\S+)", "".join(server.output))[1])
    (folder / sample.parent).mkdir()
    shutil.copy(ROOT / sample, folder / sample)
    (folder / "photos").mkdir()
    with Image.open(folder / sample) as image:
        for name in ("photo.jpg", "photos/one.jpg", "photos/two.webp"):
            image.save(folder / name)
    return folder


def run(block, workplace, url):
    """Run a block in the workplace against the server at a URL."""
    text = block.text.replace(ADDRESS, url)
    command = ["bash", "-euc", text] if block.language == "sh" else [sys.executable, "-c", text]
    environment = {**os.environ, "SWIN2SR_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)


def images(folder):
    """The images in a folder and those below, without the inputs' own."""
    found = {file for file in folder.rglob("*") if file.suffix in {".png", ".jpg", ".webp", ".tiff", ".avif"}}
    return {file for file in found if ".venv" not in file.relative_to(folder).parts}


def test_there_are_commands_of_every_kind():
    """The two commands, curl, httpx, Python and the command line are all shown, in languages that are run here."""
    assert STARTS in BLOCKS
    assert TESTS in BLOCKS
    assert {block.language for block in BLOCKS} == {"sh", "python"}
    for word in ("curl ", "httpx.post(", "Upscaler.from_pretrained(", "swin2sr upscale ", "swin2sr evaluate "):
        assert any(word in block.text for block in OTHERS), word


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.text.split("\n")[0][:40])
def test_the_block_runs_as_written(block, workplace, server):
    """Every command succeeds against the started service, and what it calls upscaled is twice as large."""
    before = images(workplace)
    result = run(block, workplace, server.url)
    assert result.returncode == 0, result.stdout + result.stderr
    made = images(workplace) - before
    assert bool(made) == ("upscaled" in block.text), made
    for file in made:
        with Image.open(file) as image:
            assert image.size == (2 * SIZE[0], 2 * SIZE[1]), file


def test_what_the_server_offers_to_try_works(workplace, server):
    """``make serve`` prints its address and a curl line; the line upscales the sample that a script here drew."""
    ready = next(line for line in server.output if line.startswith("Ready."))
    line = ready.partition("Try: ")[2].strip()
    assert line.startswith("curl ")
    assert server.url in line
    result = run(Block("sh", f"{line} && echo done"), workplace, server.url)
    assert result.stdout.endswith("done\n"), result.stderr
    with Image.open(workplace / "upscaled.png") as image:
        assert image.size == (2 * SIZE[0], 2 * SIZE[1])


def test_make_test_runs_the_tests():
    """``make test``, which cannot run inside itself, is pytest in the environment of ``.venv``."""
    command = ["make", "-n", *make_arguments("test")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.strip() for line in result.stdout.splitlines() if "make" not in line] == [
        f"{sys.prefix}/bin/python -m pytest"
    ]


def test_make_serve_hands_options_on():
    """``SERVE`` takes options of ``swin2sr serve``, as README shows it."""
    assert 'make serve SERVE="--port 9000"' in README
    command = ["make", "-n", *make_arguments("serve"), "SERVE=--port 9000"]  # the later one counts
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{sys.prefix}/bin/swin2sr serve --sample build/sample.png --port 9000\n" in result.stdout


def rows(heading):
    """The body of the table below a heading, as README has it."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("| ")][2:]


def shown(value):
    """A default as README shows it."""
    if value in (None, ()):
        return ""
    text = ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value
    return f"`{text}`"


def leaves(error):
    """The errors that reach callers."""
    if not error.__name__.endswith(("ServiceError", "RequestError", "ServerError")):
        yield error
    for child in error.__subclasses__():
        yield from leaves(child)


def test_the_options_are_those_of_the_code():
    """Every option of a request is in the table, with its default and description."""
    fields = UpscaleOptions.model_fields.items()
    expected = [f"| `{name}` | {shown(field.default)} | {field.description} |" for name, field in fields]
    assert rows("Options of `POST /v1/upscale`") == expected


def test_the_settings_are_those_of_the_code():
    """Every setting is in the table, with its default and description."""
    fields = Settings.model_fields.items()
    expected = [f"| `{name.upper()}` | {shown(field.default)} | {field.description} |" for name, field in fields]
    assert rows("Settings") == expected


def test_the_settings_of_ray_are_those_of_the_code():
    """Every setting that only Ray's replicas have is in a table of its own."""
    fields = [(name, field) for name, field in RaySettings.model_fields.items() if name not in Settings.model_fields]
    expected = [f"| `{name.upper()}` | {shown(field.default)} | {field.description} |" for name, field in fields]
    assert rows("Replicas on Ray") == expected


def test_the_variants_are_those_of_the_code():
    """Every variant is in the table, with what it is for and where its weights are."""
    homes = {True: "in the package", False: "official"}
    expected = [
        f"| `{each.name}` | {each.scale} | "
        f"{'to come' if each.embedded and not embedded_path(each.name) else homes[each.embedded]} | {each.summary} |"
        for each in VARIANTS.values()
    ]
    assert rows("Variants") == expected


def test_the_errors_are_those_of_the_code():
    """Every error's status and code is in the table, with its meaning."""
    expected = [
        f"| {error.status} | `{error.code}` | {' '.join(inspect.getdoc(error).split()).replace('``', '`')} |"
        for error in sorted(leaves(errors.ServiceError), key=lambda error: error.status)
    ]
    assert rows("Errors") == expected


def test_links_lead_somewhere():
    """Every file that README links to or names as a path is there."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    named = re.findall(r"`((?:app|model|tests|docker)/[\w/.]+)`", README)
    assert links
    assert [path for path in links + named if not (ROOT / path).exists()] == []
