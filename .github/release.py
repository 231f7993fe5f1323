"""The version of the source tree and its release notes.

python3 .github/release.py version       print the version in pyproject.toml
python3 .github/release.py notes TAG     print the changelog's section of the version; fails unless TAG is its tag
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(pyproject: str) -> str:
    """The version that the text of ``pyproject.toml`` states."""
    return str(tomllib.loads(pyproject)["project"]["version"])


def notes(changelog: str, release: str) -> str:
    """The section of a dated release in a changelog in the format of Keep a Changelog.

    Raises:
        ValueError: if there is no such section, or it is not dated, or empty.
    """
    found = re.search(rf"^## \[{re.escape(release)}\](.*)\n((?s:.*?))(?=^## \[|^\[|\Z)", changelog, re.M)
    if not found:
        raise ValueError(f"CHANGELOG.md has no section [{release}].")
    if not re.fullmatch(r" - \d{4}-\d{2}-\d{2}", found[1]):
        raise ValueError(f"The section [{release}] of CHANGELOG.md has no date: write `## [{release}] - YYYY-MM-DD`.")
    if not found[2].strip():
        raise ValueError(f"The section [{release}] of CHANGELOG.md is empty.")
    return found[2].strip() + "\n"


def main(arguments: list[str]) -> str:
    """What the command prints.

    Raises:
        ValueError: if the tag, the version and the changelog do not agree.
    """
    release = version((ROOT / "pyproject.toml").read_text("utf-8"))
    match arguments:
        case ["version"]:
            return f"{release}\n"
        case ["notes", tag]:
            if tag != f"v{release}":
                raise ValueError(f"The tag {tag} is not v{release}, the version in pyproject.toml.")
            return notes((ROOT / "CHANGELOG.md").read_text("utf-8"), release)
    raise ValueError(str(__doc__))


if __name__ == "__main__":
    try:
        sys.stdout.write(main(sys.argv[1:]))
    except ValueError as error:
        sys.exit(str(error))
