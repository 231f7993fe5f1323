"""The versions of this installation, from the metadata of installed packages."""

from importlib import metadata

DISTRIBUTION = "swin2sr-serve"


def service_version() -> str:
    """The version of the installed distribution, as ``pyproject.toml`` states it: ``0.2.0``."""
    return metadata.version(DISTRIBUTION)


def torch_version() -> str:
    """The version of the installed PyTorch with its build, such as ``2.13.0+cpu``; does not import it."""
    return metadata.version("torch")
