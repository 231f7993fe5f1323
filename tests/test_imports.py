"""The direction of imports, as CONTRIBUTING's picture of the house draws it, and that importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {
    "model": [
        {"download", "windows", "processor", "variants", "degradations", "hooks"},
        {"hub"},
        {"config", "fetch"},
        {"packing", "scratch", "fused", "tiling", "image_processor", "keys"},
        {"attention"},
        {"reconstruction"},
        {"network"},
        {"checkpoints", "observed", "gpu"},
        {"upscaler", "pretrained"},
        {"evaluate"},
        {"training", "bench", "seams"},
    ],
    "app": [
        {"errors", "settings", "schemas", "metrics", "logs", "quota", "fairness", "supervision", "passes", "sample"}
        | {"address", "budget", "folders", "spool"},
        {"catalogue", "deliveries", "device", "replicas", "weights"},
        {"conditions", "jobs", "sizes", "uploads", "middleware"},
        {"admission", "batch"},
        {"codec", "batcher", "registry", "handlers", "client"},
        {"pipeline", "errand", "fetching"},
        {"service"},
        {"routes", "local", "remote"},
        {"main", "orders", "ray_proxy", "ray_metrics"},
        {"serving", "ray", "bench"},
        {"cli"},
        {"__main__"},
    ],
}
"""Rooms from the ground up; each may use those below it, and a folder is one room."""

FRAMEWORK_ROOMS = {
    *{"app.main", "app.routes", "app.handlers", "app.middleware", "app.uploads"},
    *{"app.ray_proxy", "app.ray_metrics"},
}
"""Where FastAPI and Starlette may be imported."""

THREAD_ROOMS = {
    *{"app.batcher", "app.admission", "app.jobs", "app.supervision"},
    *{"app.registry", "app.deliveries", "app.pipeline", "app.spool"},
}
"""Where threads and their futures may be imported: the batcher with its parts, the loaders, the codec's pool."""

EDGE = {"app.__main__", "app.cli", "app.ray", "app.logs"}
"""Rooms that import what is heavy inside their commands."""


def modules():
    """Every module's dotted name with its syntax tree."""
    found = {}
    for package in FLOORS:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(file.read_text("utf-8"))
    return found


MODULES = modules()


def imported(tree):
    """Dotted names that a tree imports when it runs, inside functions too; what types alone need is left out."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Relative imports are the client's alone, which is installed under another name too.
            above = {0: "", 1: "app.client.", 2: "app."}[node.level]
            names |= {f"{above}{node.module}.{alias.name}" for alias in node.names} | {f"{above}{node.module}"}
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            names |= imported(node)
    return names


def rooms(names):
    """The rooms of this project among dotted names, as ``app.codec``."""
    known = {".".join(name.split(".")[:2]) for name in MODULES}
    return {".".join(name.split(".")[:2]) for name in names} & known - set(FLOORS)


def floor(room):
    """A room's package and number of floor."""
    package, name = room.split(".")
    for number, names in enumerate(FLOORS[package]):
        if name in names:
            return package, number
    raise AssertionError(f"{room} has no place in the house yet: give it one in FLOORS, and in CONTRIBUTING's picture")


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_imports_go_down(name):
    """A module imports only rooms on lower floors; ``app`` stands on ``model``, never the reverse."""
    room = ".".join(name.split(".")[:2])
    package, number = floor(room)
    for other in sorted(rooms(imported(MODULES[name])) - {room}):
        their_package, their_number = floor(other)
        if package == "app" and their_package == "model":
            continue
        assert their_package == package, f"{name} imports {other}"
        assert their_number < number, f"{name} imports {other}, which does not lie below it"


def test_model_knows_no_web():
    """``model`` imports no web framework, no asyncio, no configuration from the environment, and nothing of ``app``."""
    banned = {"app", "fastapi", "starlette", "uvicorn", "httpx", "asyncio", "pydantic", "pydantic_settings"}
    for name, tree in MODULES.items():
        if name.split(".")[0] == "model":
            assert not {top.split(".")[0] for top in imported(tree)} & banned, name


def test_the_framework_appears_in_its_rooms_only():
    """FastAPI and Starlette are imported where requests are, and nowhere else."""
    users = {
        ".".join(name.split(".")[:2])
        for name, tree in MODULES.items()
        if {top.split(".")[0] for top in imported(tree)} & {"fastapi", "starlette"}
    }
    assert users <= FRAMEWORK_ROOMS


def test_threads_appear_in_their_rooms_only():
    """Threads and their futures are imported by the batcher with its parts, the loaders and the codec's pool."""
    users = {
        ".".join(name.split(".")[:2])
        for name, tree in MODULES.items()
        if any(top.split(".")[0] in {"threading", "concurrent", "multiprocessing"} for top in imported(tree))
    }
    assert {room for room in users if room.startswith("app.")} <= THREAD_ROOMS


@pytest.mark.parametrize("room", sorted(EDGE & set(MODULES)))
def test_the_edge_imports_inside_its_commands(room):
    """What stands at the edge loads neither torch nor FastAPI when it is imported: ``--help`` is quick."""
    program = (
        f"import sys, {room}; print([name for name in ('torch', 'fastapi', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def acts(statement):
    """Whether a statement at a module's top does more than define."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)
    return isinstance(statement, (ast.For, ast.While, ast.With, ast.Delete, ast.Assert, ast.Raise))


@pytest.mark.parametrize("name", MODULES)
def test_modules_only_define(name):
    """No module calls, loops or opens anything at its top."""
    actions = [ast.unparse(statement) for statement in MODULES[name].body if acts(statement)]
    assert actions == []


def test_nothing_imports_everything():
    """There is no ``import *``, which would hide where a name comes from."""
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"), name


WATCH = """
import sys, threading, logging, signal
import torch, fastapi, uvicorn, prometheus_client, imagecodecs, PIL.Image  # others' doings are theirs
state = lambda: (
    threading.active_count(), torch.get_num_threads(), list(logging.root.handlers), logging.root.level,
    signal.getsignal(signal.SIGTERM), len(list(prometheus_client.REGISTRY.collect())),
)
before, deeds = state(), []
def watch(event, arguments):
    writing = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writing or event.startswith(("socket.", "subprocess.", "os.mkdir", "os.remove", "os.putenv", "_thread.start")):
        deeds.append((event, arguments))
sys.addaudithook(watch)
import app.main
assert deeds == [], deeds
assert state() == before
"""


def test_importing_the_application_does_nothing():
    """``import app.main`` reads no settings, starts no thread, opens no socket, writes no file and prints nothing."""
    environment = {"PATH": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1", "SWIN2SR_PORT": "nonsense"}
    result = subprocess.run(
        [sys.executable, "-c", WATCH], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_picture_shows_every_room():
    """CONTRIBUTING's picture of the house names every room that there is."""
    picture = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## The picture", 1)[1].split("\n## ", 1)[0]
    for room in sorted({".".join(name.split(".")[:2]) for name in MODULES} - set(FLOORS)):
        path = ROOT.joinpath(*room.split("."))
        name = f"{path.name}/" if path.is_dir() else f"{path.name}.py"
        assert f" {name}" in picture, f"{room} is missing in CONTRIBUTING's picture"
