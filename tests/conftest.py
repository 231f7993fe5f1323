"""What every test may rely on: the folder beside the project, and a machine that looks the same everywhere."""

import os
from pathlib import Path

import pytest

from app.quota import usable_cpus

SHARED = Path(__file__).parents[1].parent / "shared"
REASON = "the folder ../shared with real weights and photographs is not here"


def pytest_configure():
    """Take away what a person's shell, or the make that runs this, says; bound torch's threads, not chosen yet."""
    for name in [name for name in os.environ if name.startswith(("SWIN2SR_", "MAKE", "MFLAGS"))]:
        del os.environ[name]
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cpus()))


def pytest_collection_modifyitems(items):
    """Skip what needs ``../shared`` where it is missing; using the fixture is saying so."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
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
