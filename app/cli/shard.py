"""Shards: which images of a list belong to one of several machines, for ``swin2sr upscale --shard K/N``."""

from __future__ import annotations

import hashlib
import re
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

    def has(self, file: InputFile) -> bool:
        """Whether a file is of this shard: a stable hash of its name decides, so that no two shards share one."""
        name = file.relative.as_posix()
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return 1 + int.from_bytes(digest[:8]) % self.count == self.index
