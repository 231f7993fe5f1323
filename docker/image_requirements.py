"""Print what the container image installs beside PyTorch: the project's dependencies and PyTorch's own, without CUDA.

``make lock`` resolves this list with ``constraints.txt`` into ``docker/requirements.txt``, with a hash for every file.
"""

import re
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CUDA = re.compile(r"nvidia|cuda|triton")


def name_of(requirement: str) -> str:
    """The name of a distribution, without version, extras and marker."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def image_requirements(pyproject: str, of_torch: list[str]) -> list[str]:
    """Dependencies of the service without torch, and those of torch that every build of it has.

    Args:
        pyproject: text of ``pyproject.toml``.
        of_torch: the requirements in the metadata of the installed torch.
    """
    own = tomllib.loads(pyproject)["project"]["dependencies"]
    plain = [each for each in of_torch if "extra ==" not in each and not CUDA.search(name_of(each))]
    return [
        "setuptools>=77",  # builds the project
        *(each for each in own if name_of(each) != "torch"),
        *(each.partition(";")[0].strip() for each in plain),
    ]


if __name__ == "__main__":
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    print("\n".join(image_requirements(text, metadata.requires("torch") or [])))
