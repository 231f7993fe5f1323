"""Shards: which images of a list belong to one of several machines, for ``swin2sr upscale --shard K/N``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from app.cli.files import InputFile


@dataclass(frozen=True)
class Shard:
    """The ``index``-th of ``count`` shards, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``K/N``.

        Raises:
            ValueError: if it is not of this form, or K is not from 1 to N.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError(f"--shard {text} is not K/N with K from 1 to N, for example 2/5.")
        return cls(int(match[1]), int(match[2]))

    def select(self, files: Sequence[InputFile]) -> list[InputFile]:
        """The files of this shard: a stable hash of the name decides, so that no two shards share a file."""
        return [file for file in files if self._of(file.relative.as_posix()) == self.index]

    def _of(self, name: str) -> int:
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return 1 + int.from_bytes(digest[:8]) % self.count
