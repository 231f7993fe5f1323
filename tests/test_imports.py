"""The direction of imports, as the table of modules in CONTRIBUTING states it, and that importing does nothing."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PACKAGES = ("model", "app")

FRAMEWORK_MODULES = {"app.main", "app.routes", "app.http", "app.ray", "app.bench"}
"""Where FastAPI and Starlette may be imported; ``app.bench`` contains a LitServe server for comparison."""

THREAD_MODULES = {"app.batching", "app.variants", "app.imaging", "app.pipeline", "app.logs", "app.tracing"}
"""Where threads and their futures may be imported."""

LIGHT_MODULES = {"app.__main__", "app.cli.commands", "app.ray.deployment", "app.logs"}
"""Modules that import torch and FastAPI inside their functions only, so that ``--help`` is quick."""


def import_order():
    """The table of modules in CONTRIBUTING, as dotted names in its order."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("\n## Modules\n", 1)[1]
    names = []
    for line in section.split("```")[1].strip().splitlines():
        word = line.split()[0]
        if not line.startswith(" "):
            package = word.removesuffix("/")
        else:
            names.append(f"{package}.{word.removesuffix('/').removesuffix('.py')}")
    return names


def modules():
    """Every module's dotted name with its file; ``app/thin/setup.py`` builds a distribution and is none."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if file.name != "setup.py":
                name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                found[name] = file
    return found


MODULES = modules()


@functools.cache
def parse(name):
    """The syntax tree of a module."""
    return ast.parse(MODULES[name].read_text("utf-8"))


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


ORDER = import_order()


def top_level(name):
    """The module of the table that a dotted name belongs to: ``app.codec.png`` belongs to ``app.codec``."""
    return ".".join(name.split(".")[:2])


EXISTING = {top_level(name) for name in MODULES} - set(PACKAGES)


def test_the_table_lists_every_module_once():
    """CONTRIBUTING's table names each module or folder of both packages, and nothing else."""
    assert sorted(ORDER) == sorted(EXISTING)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_at_most_thirty_modules(package):
    """So that its part of the table is read at once; what belongs together is a folder."""
    assert sum(name.startswith(f"{package}.") for name in ORDER) <= 30


@pytest.mark.parametrize("name", [name for name in MODULES if "." in name])
def test_a_module_imports_only_modules_above_it(name):
    """Imports go up the table; ``app`` imports ``model``, never the reverse."""
    module = top_level(name)
    for other in {top_level(each) for each in imported(parse(name))} & EXISTING - {module}:
        assert ORDER.index(other) < ORDER.index(module), f"{name} imports {other}, which stands below {module}"


def test_model_knows_no_web():
    """``model`` imports no web framework, no asyncio, no configuration from the environment, and nothing of ``app``."""
    banned = {"app", "fastapi", "starlette", "uvicorn", "httpx", "asyncio", "pydantic", "pydantic_settings"}
    for name in MODULES:
        if name.split(".")[0] == "model":
            assert not {top.split(".")[0] for top in imported(parse(name))} & banned, name


def importing(packages):
    """The modules of the table that import one of some packages."""
    return {
        top_level(name) for name in MODULES if {each.split(".")[0] for each in imported(parse(name))} & set(packages)
    }


def test_the_framework_is_imported_where_requests_are():
    """FastAPI and Starlette are imported in their modules only."""
    assert importing({"fastapi", "starlette"}) <= FRAMEWORK_MODULES


@pytest.mark.slow
def test_threads_are_imported_where_work_is_divided():
    """Threads and their futures are imported in their modules only."""
    found = importing({"threading", "concurrent", "multiprocessing"})
    assert {name for name in found if name.startswith("app.")} <= THREAD_MODULES


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(LIGHT_MODULES))
def test_light_modules_import_inside_their_functions(module):
    """Importing one loads neither torch nor FastAPI."""
    program = (
        f"import sys, {module}; print([name for name in ('torch', 'fastapi', 'transformers') if name in sys.modules])"
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
    actions = [ast.unparse(statement) for statement in parse(name).body if acts(statement)]
    assert actions == []


def test_nothing_imports_everything():
    """There is no ``import *``, which would hide where a name comes from."""
    for name in MODULES:
        for node in ast.walk(parse(name)):
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


@pytest.mark.slow
def test_importing_the_application_does_nothing():
    """``import app.main`` reads no settings, starts no thread, opens no socket, writes no file and prints nothing."""
    environment = {"PATH": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1", "SWIN2SR_PORT": "nonsense"}
    result = subprocess.run(
        [sys.executable, "-c", WATCH], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
