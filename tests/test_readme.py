"""README.md and docs/: the commands run as written, the tables are the code's, and the links lead to files."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.browser import SAMPLE_SIZE
from tests.documents import DOCUMENTS, README, ROOT, RUN, SHOWN, Block, blocks, rows, tables
from tests.objects import s3_server
from tests.server import ServerProcess

ADDRESS = "http://127.0.0.1:8000"
MAKE = "import os, sys; os.execvp('make', ['make', *sys.argv[1:]])"
STARTS = Block("sh", "make serve\n")
TESTS = Block("sh", "make test\n")
BLOCKS = [(document, block) for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [(file, block) for file, block in BLOCKS if block.language in RUN and block not in (STARTS, TESTS)]


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


def test_readme_shows_commands_of_every_kind():
    """README shows the two make commands, curl, httpx, Python and the command line."""
    shown = blocks(README)
    assert STARTS in shown
    assert TESTS in shown
    for word in ("curl ", "httpx.post(", "Upscaler.from_pretrained(", "swin2sr upscale ", "swin2sr evaluate "):
        assert any(word in block.text for block in shown), word


def test_every_block_is_run_or_says_why_not():
    """A block has the language sh or python, which a test runs, or one that is known to need something else."""
    assert [(file.name, block.language) for file, block in BLOCKS if block.language not in RUN | SHOWN] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "block"), COMMANDS, ids=[f"{file.stem}: {block.text.splitlines()[0][:40]}" for file, block in COMMANDS]
)
def test_a_block_runs_as_written(document, block, workplace, server):
    """Each command succeeds against the started service, and each image called upscaled is twice as large."""
    before = images(workplace)
    result = run(block, workplace, server.url)
    assert result.returncode == 0, f"{document.name}: {result.stdout}{result.stderr}"
    made = images(workplace) - before
    assert bool(made) == ("upscaled" in block.text), made
    for file in made:
        with Image.open(file) as image:
            assert image.size == (2 * SAMPLE_SIZE[0], 2 * SAMPLE_SIZE[1]), file


@pytest.mark.long
def test_the_guide_to_fine_tuning_runs_as_written(workplace, tmp_path):
    """Each command up to the last, for a few steps; the last one serves what the others made."""
    [text] = [block.text for block in blocks(ROOT / "docs" / "fine-tuning.md")]
    *commands, last = [line.removeprefix("$ ") for line in text.splitlines()]
    assert len(commands) == 4
    for name in ("photos", "held-out"):
        (tmp_path / name).mkdir()
        shutil.copy(workplace / "photo.jpg", tmp_path / name)
    short = "\n".join(commands).replace("--minutes 30", "--steps 2 --crop 8 --batch 1")
    environment = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-euc", short]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "pages-x2 on held-out" in result.stdout
    program, *options = last.split()
    assert program == "swin2sr"
    options[options.index("models")] = str(tmp_path / "models")
    with ServerProcess(program=("-m", "app", *options)) as own:
        assert httpx.get(f"{own.url}/v1/variants/pages-x2").json()["state"] == "ready"


@pytest.mark.slow
def test_the_guide_to_object_storage_runs_as_written(server, workplace, tmp_path):
    """All but the installation and the credentials: the first command upscales the bucket, the second skips it."""
    [text] = [block.text for block in blocks(ROOT / "docs" / "operations.md")]
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("swin2sr ")]
    assert [line for line in lines if not line.startswith(("pip install ", "export AWS_"))] == commands
    assert len(commands) == 2
    with s3_server() as (bucket, storage):
        bucket.upload_file(workplace / "photo.jpg", "in/one.jpg")
        bucket.upload_file(workplace / "photo.jpg", "in/below/two.jpg")
        environment = {**os.environ, **storage, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
        environment |= {"PYTHONPATH": str(ROOT), "SWIN2SR_DEVICE": "cpu"}
        for line in commands:
            written = line.replace("https://upscaler.example", server.url).replace("s3://bucket", f"s3://{bucket.name}")
            command = ["bash", "-euc", written]
            result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
            made = sorted(each.key for each in bucket.objects.filter(Prefix="out/"))
            assert made == ["out/below/two-small-x2.png", "out/one-small-x2.png"]


def test_what_the_server_offers_to_try_works(workplace, server):
    """``make serve`` prints its address and a curl line; the line upscales the sample that a script here drew."""
    ready = next(line for line in server.output if line.startswith("Ready."))
    line = ready.partition("Try: ")[2].strip()
    assert line.startswith("curl ")
    assert server.url in line
    result = run(Block("sh", f"{line} && echo done"), workplace, server.url)
    assert result.stdout.endswith("done\n"), result.stderr
    with Image.open(workplace / "upscaled.png") as image:
        assert image.size == (2 * SAMPLE_SIZE[0], 2 * SAMPLE_SIZE[1])


def test_make_test_runs_the_tests():
    """``make test``, which cannot run inside itself, is pytest in the environment of ``.venv``."""
    command = ["make", "-n", *make_arguments("test")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.strip() for line in result.stdout.splitlines() if "make" not in line] == [
        f"{sys.prefix}/bin/python -m pytest --numprocesses auto --dist worksteal"
    ]


def test_make_serve_hands_options_on():
    """``SERVE`` takes options of ``swin2sr serve``, as the documents show it."""
    assert any('make serve SERVE="--port 9000"' in document.read_text("utf-8") for document in DOCUMENTS)
    command = ["make", "-n", *make_arguments("serve"), "SERVE=--port 9000"]  # the later one counts
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{sys.prefix}/bin/swin2sr serve --sample build/sample.png --port 9000\n" in result.stdout


@pytest.mark.parametrize(
    ("place", "expected"), tables().items(), ids=[f"{document.stem} {heading}" for document, heading in tables()]
)
def test_a_table_is_the_codes(place, expected):
    """Options, variants, settings and errors are in their tables, with their defaults and descriptions.

    ``python -m tests.documents`` writes the tables anew.
    """
    assert rows(*place) == expected


def anchors(document):
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files_and_headings(document):
    """Each file that a document links to or names as a path exists, and each anchor is a heading."""
    text = document.read_text("utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    for named in re.findall(r"`((?:app|model|tests|docker)/[\w/.]+)`", text):
        assert (ROOT / named).exists(), named


def test_nothing_is_installed_from_where_it_is_not():
    """There is no release yet: packages are installed from the source tree, and no image is pulled."""
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        assert "docker pull" not in text, document.name
        for target in re.findall(r"pip install (\S+)", text):
            assert target.strip("'\"`").startswith("."), f"{document.name}: {target}"
