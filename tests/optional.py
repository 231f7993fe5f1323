"""Packages that some tests need, imported when a test first uses one: collecting tests would take seconds more."""

from __future__ import annotations

from typing import Any

import pytest


class Package:
    """Stands for a package; a test that uses it where it is not installed is skipped."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        """What the package has under this name, but for names that pytest looks for when it collects tests."""
        if name == "pytestmark" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(pytest.importorskip(self.__name__), name)


peft = Package("peft")
transformers = Package("transformers")
