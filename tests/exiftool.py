"""exiftool as one process that answers many calls: each start of its own would take a third of a second."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

END = b"{ready}\n"


class Exiftool:
    """exiftool until the end of a ``with`` block.

    Args:
        folder: for files to read.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "picture"

    def __enter__(self) -> Self:
        """Start it."""
        command = ["exiftool", "-stay_open", "True", "-@", "-"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_error: object) -> None:
        """End it."""
        self._process.communicate(b"-stay_open\nFalse\n")

    def __call__(self, *arguments: str) -> bytes:
        """What it prints on standard output for these arguments; warnings go to standard error."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n".join([*arguments, "-execute\n"]).encode())
        self._process.stdin.flush()
        printed = b""
        while not printed.endswith(END):
            line = self._process.stdout.readline()
            assert line, printed
            printed += line
        return printed.removesuffix(END)

    def read(self, body: bytes, *options: str) -> dict[str, Any]:
        """The tags of a file's bytes, by group and name."""
        self._file.write_bytes(body)
        [facts] = json.loads(self("-json", "-G1", "-n", "-a", *options, str(self._file)))
        return facts

    def change(self, file: Path, *tags: str) -> None:
        """Write tags, as ``-IPTC:Keywords=here``, into a file."""
        assert self("-overwrite_original", *tags, str(file)).strip() == b"1 image files updated"
