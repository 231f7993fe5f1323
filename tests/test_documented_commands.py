"""The commands in the documents that no other test runs: their programs, targets, files and options exist."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
import typer

from app.cli.commands import build
from model.training.__main__ import main as train
from tests.documents import DOCUMENTS, ROOT, blocks

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
GROUP = typer.main.get_command(build())
PLAIN = {"export", "mkdir", "cp", "pytest"}
"""Programs of the system and pytest: nothing of this project can be wrong in how they are called."""

STARTS = re.compile(r"(?:\w+=\S+ )?(?:python|make|swin2sr|docker|kubectl|pip|pytest) ")
"""How the text of a code span begins if it is a command with arguments."""


def commands(document):
    """Lines of console blocks, and code spans that are commands."""
    for block in blocks(document):
        if block.language == "console":
            yield from (line[2:] for line in block.text.splitlines() if line.startswith("$ "))
    text = re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.M | re.S)
    yield from (span for span in re.findall(r"`([^`\n]+)`", text) if STARTS.match(span))


def flags(words):
    """The names of the options among the arguments."""
    return {word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word)}


def check_docker(words):
    """Docker's own help names the options; files and folders that are mounted or built exist."""
    if words[0] == "compose":
        return [] if (ROOT / words[words.index("-f") + 1]).is_file() else [f"no such file: {words}"]
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    text = subprocess.run(["docker", words[0], "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    return [f"docker {words[0]} has no option {name}" for name in flags(words[1:]) - known]


def check_kubectl(words):
    """The folder is one that kustomize can build; the manifests are validated in tests/test_kubernetes*.py."""
    assert words[:2] == ["apply", "--kustomize"]
    return [] if (ROOT / words[2] / "kustomization.yaml").is_file() else [f"no kustomization in {words[2]}"]


def check_pip(words):
    """A folder of the source tree that can be installed, and an extra that exists."""
    assert words[0] == "install"
    place, extra = re.fullmatch(r"(\.[\w./]*)(?:\[(\w+)\])?", words[1]).groups()
    wrong = [] if (ROOT / place / "pyproject.toml").is_file() else [f"{place} is no project"]
    return wrong + ([] if extra is None or extra in EXTRAS else [f"no extra {extra}"])


def check_make(words):
    """A target of the Makefile."""
    return [] if words[0] in TARGETS else [f"no target {words[0]}"]


def check_python(words):
    """A module or a script of the source tree."""
    if words[0] == "-m":
        return [] if importlib.util.find_spec(words[1]) else [f"no module {words[1]}"]
    return [] if (ROOT / words[0]).is_file() else [f"no file {words[0]}"]


def check_swin2sr(words):
    """A command of the program, with options that it has."""
    context = typer.Context(GROUP)
    command = None if words[0].startswith("-") else GROUP.get_command(context, words[0])
    if command is None and not words[0].startswith("-"):
        return [f"no command {words[0]}"]
    parameters = (command or GROUP).get_params(context)
    known = {name for each in parameters for name in each.opts + each.secondary_opts}
    known |= options_of_training() if words[0] == "train" else set()
    return [f"swin2sr {words[0]} has no option {name}" for name in flags(words) - known]


def options_of_training():
    """The options that ``swin2sr train --help`` names."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        train(["--help"])
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", printed.getvalue()))


CHECKS = {
    "docker": check_docker,
    "kubectl": check_kubectl,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "swin2sr": check_swin2sr,
}


def faults(command):
    """What is wrong with a command, without running it."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z0-9_]+=", word)]
    if words[0] in PLAIN:
        return []
    return CHECKS[words[0]](words[1:])


FOUND = [
    pytest.param(command, id=f"{document.stem}: {command[:60]}")
    for document in (*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md")
    for command in dict.fromkeys(commands(document))
]


@pytest.mark.parametrize("command", FOUND)
def test_a_documented_command_exists(command):
    """Its program, and what it names of this project."""
    assert faults(command) == []


@pytest.mark.parametrize(
    "command",
    [
        "docker run --read-onli swin2sr",
        "docker compose -f docker/missing.yaml up",
        "kubectl apply --kustomize docker/kubernetes/missing",
        "make missing",
        "pip install '.[missing]'",
        "pip install ./missing",
        "python -m tests.missing",
        "python docker/missing.py",
        "swin2sr missing",
        "swin2sr serve --missing",
        "swin2sr train --missing",
        "swin2sr --missing",
    ],
)
def test_a_wrong_command_would_be_seen(command):
    """The check above can fail."""
    assert faults(command) != []


def test_commands_of_every_kind_are_found():
    """The documents show each program; a program that is not known here would fail above."""
    shown = {word for parameter in FOUND for word in parameter.values[0].split() if word in CHECKS}
    assert shown == CHECKS.keys()
