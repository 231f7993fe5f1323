"""Packages of npm that tests use, kept in ``build`` from one run to the next."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build"


def install(package: str) -> Path:
    """The folder with a package, as ``name@version``, installed there if it is not yet."""
    folder = BUILD / "npm" / package
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as partial:
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", partial, package]
            subprocess.run(command, check=True, timeout=240)
            with suppress(OSError):  # another process was faster
                Path(partial).rename(folder)
            Path(partial).mkdir(exist_ok=True)
    return folder
