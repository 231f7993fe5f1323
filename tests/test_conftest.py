"""The rules for tests that need ``../shared`` or an optional package, tried on a project of two tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.cgroup import usable_cpus

CASES = """
import pytest
from tests.optional import Package

loud = Package("loud")

def test_by_fixture(shared):
    assert (shared / "here").is_file()

@pytest.mark.shared
def test_with_an_excuse():
    pytest.skip("not wanted")
"""


@pytest.fixture
def project(tmp_path):
    """A project with this one's conftest, two tests of ``../shared``, and a package that must not be imported."""
    tests = tmp_path / "project" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conftest.py"), tests)
    (tests / "test_cases.py").write_text(CASES)
    (tests / "loud.py").write_text("raise SystemExit('it was imported')")
    settings = ["[pytest]", "markers = shared: needs ../shared", "addopts = -rs -p no:cacheprovider"]
    (tests.parent / "pytest.ini").write_text("\n".join(settings))
    return tests.parent


def run(project, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers"]
    plain = {"CI": "", "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **plain, **environment}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_one_process_more_than_processors_runs_tests(request):
    """That is what ``--numprocesses auto`` starts, within the limits of a container."""
    hook = request.config.hook.pytest_xdist_auto_num_workers
    assert hook(config=request.config) == usable_cpus() + 1


@pytest.mark.slow
@pytest.mark.parametrize("ci", ["true", ""])
def test_shared_tests_are_skipped_with_a_reason_where_the_folder_is_missing(project, ci):
    """Without ``../shared`` both tests are skipped, say why, and the run is a success, in CI too."""
    result = run(project, CI=ci)
    assert result.returncode == 0, result.stdout
    assert "2 skipped" in result.stdout
    assert "../shared" in result.stdout


@pytest.mark.slow
def test_shared_tests_run_where_the_folder_is(project):
    """With ``../shared`` the fixture is that folder, and a person may skip."""
    (project.parent / "shared").mkdir()
    (project.parent / "shared" / "here").touch()
    result = run(project)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 1 skipped" in result.stdout


@pytest.mark.slow
def test_skipping_a_shared_test_fails_in_ci(project):
    """In CI, where ``../shared`` exists, a skipped test of it is a failure that names the test and its excuse."""
    (project.parent / "shared").mkdir()
    (project.parent / "shared" / "here").touch()
    result = run(project, CI="true")
    assert result.returncode == 1, result.stdout
    assert "1 failed, 1 passed" in result.stdout
    assert "test_with_an_excuse" in result.stdout
    assert "not wanted" in result.stdout
