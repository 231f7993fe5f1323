"""The client's version is the service's; everything else is in pyproject.toml."""

import tomllib
from pathlib import Path

from setuptools import setup

SERVICE = Path(__file__).resolve().parents[2] / "pyproject.toml"

setup(version=tomllib.loads(SERVICE.read_text("utf-8"))["project"]["version"])
