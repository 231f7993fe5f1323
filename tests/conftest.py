"""What every test may rely on: the folder beside the project, and a machine that looks the same everywhere."""

import functools
import gc
import os
import shutil
import ssl
import tempfile
from pathlib import Path

import pytest

from app.cgroup import usable_cpus
from tests.exiftool import Exiftool

SHARED = Path(__file__).parents[1].parent / "shared"
CACHE = pytest.StashKey[tempfile.TemporaryDirectory]()
NOWHERE = "http://127.0.0.1:1"
REASON = "the folder ../shared with real weights and photographs is not here"


def pytest_configure(config):
    """Take away what a person's shell, or the make that runs this, says; bound torch's threads, not chosen yet.

    No test finds weights that somebody downloaded, or downloads any: the Hugging Face cache is empty, and its hub and
    the authors' release are nowhere.
    """
    for name in [name for name in os.environ if name.startswith(("SWIN2SR_", "MAKE", "MFLAGS", "WORKERS"))]:
        del os.environ[name]
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_"))]:
        del os.environ[name]
    config.stash[CACHE] = tempfile.TemporaryDirectory(prefix="swin2sr-huggingface-")
    os.environ |= {"HF_HOME": config.stash[CACHE].name, "HF_ENDPOINT": NOWHERE, "SWIN2SR_RELEASE_URL": NOWHERE}
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait by spinning take other tests' processors
    # Reading the machine's certificates takes 30 ms, and every HTTP client would do it.
    ssl.create_default_context = functools.cache(ssl.create_default_context)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One process more than processors: some tests wait for servers, browsers and timers."""
    return usable_cpus() + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Collect no garbage while tests are collected, nor later among what exists then: both would take seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config):
    """Leave nothing behind."""
    if CACHE in config.stash:
        config.stash[CACHE].cleanup()


SLOW_FOLDERS = ("page", "chaos", "fuzz")
"""Folders of tests that all start a server or a browser."""

SLOW_FIXTURES = {"server", "scripted", "pair"}
"""Fixtures that start a server as a process, in whichever module."""


def pytest_collection_modifyitems(config, items):
    """Mark tests by their fixtures and folders, and leave out those that are not to run.

    - A test with the fixture ``shared`` needs ``../shared`` and is skipped where that folder is missing.
    - A test marked ``long`` runs with PROVE=1 only, which ``make prove`` sets.
    """
    if os.environ.get("PROVE") != "1":
        left_out = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if item.path.parent.name in SLOW_FOLDERS or not SLOW_FIXTURES.isdisjoint(fixtures):
            item.add_marker("slow")
        if "shared" in fixtures:
            item.add_marker("shared")
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Count a skipped ``shared`` test as failed in CI where the folder exists: there is no excuse."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and SHARED.is_dir() and item.get_closest_marker("shared"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} needs ../shared, which is here, and was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared():
    """The folder beside the project with real weights and photographs."""
    return SHARED


@pytest.fixture(scope="module")
def exiftool(tmp_path_factory):
    """exiftool, one process for the tests of a module."""
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool (libimage-exiftool-perl) is not here")
    with Exiftool(tmp_path_factory.mktemp("exiftool")) as tool:
        yield tool
