"""Every promise has tests that bear its number, in the files that CONTRIBUTING names."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Promises", 1)[1].split("\n## ", 1)[0]
ROWS = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", SECTION, re.M)


def test_the_promises_are_numbered():
    """From the first to the last that is proved here, each once."""
    assert [int(number) for number, _ in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize(("number", "files"), ROWS)
def test_a_promise_has_a_test(number, files):
    """Its first file has a test of that number, and the others exist."""
    paths = [ROOT / file for file in re.findall(r"`([^`]+)`", files)]
    assert re.search(rf"^def test_promise_{number}_\w+\(", paths[0].read_text("utf-8"), re.M)
    assert all(path.is_file() for path in paths)


@pytest.mark.parametrize("patch", sorted((ROOT / "tests" / "broken").glob("*.patch")), ids=lambda patch: patch.stem)
def test_a_promise_can_still_be_broken(patch):
    """The patches of `make prove` apply to the current code."""
    subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, check=True)
