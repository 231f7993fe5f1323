"""Which variants there are on this server, where their weights lie, and what aliases stand for; fixed at the start."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import NotReady, UnknownVariant
from model.variants import ALIASES, VARIANTS, Variant, embedded_path

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A variant on this server: its row in the table, unless it is this server's own, and its weights' place."""

    name: str
    variant: Variant | None
    path: Path | None


class Catalogue:
    """Variants by name and alias.

    Args:
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        device_type: ``cpu`` or ``cuda``; decides what aliases stand for.
    """

    def __init__(self, model_dir: Path | None, device_type: str) -> None:
        self._preferences = "cuda" if device_type == "cuda" else "cpu"
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in _find_entries(model_dir)}
        self.aliases: Mapping[str, str | None] = self._bind_aliases()

    def resolve(self, name: str) -> Entry:
        """The entry of a variant or alias.

        Raises:
            UnknownVariant: if there is no such name.
            NotReady: if its weights are not present; the text says how to get them.
        """
        wish = name.lower()
        entry = self.find(wish)
        if entry.path is None:
            raise absent(wish, entry.name)
        return entry

    def find(self, name: str) -> Entry:
        """The entry of a variant or alias, present or not; for an alias without any, the one to fetch.

        Raises:
            UnknownVariant: if there is no such name.
        """
        wish = name.lower()
        bound = self.aliases.get(wish, wish)
        entry = self.entries.get(self._official(wish) if bound is None else bound)
        if entry is None:
            raise UnknownVariant(
                f"There is no variant {wish[:100]!r}. GET /v1/variants lists what there is.",
                available=[*self.aliases, *self.entries],
            )
        return entry

    def aliases_of(self, entry: Entry) -> list[str]:
        """Aliases that stand for a variant."""
        return [alias for alias, name in self.aliases.items() if name == entry.name]

    def _preference(self, alias: str) -> Sequence[str]:
        return ALIASES[alias][self._preferences]

    def _official(self, alias: str) -> str:
        """The variant to fetch where nothing is present for an alias."""
        return next(name for name in self._preference(alias) if not VARIANTS[name].embedded)

    def _bind_aliases(self) -> dict[str, str | None]:
        present = {name for name, entry in self.entries.items() if entry.path is not None}
        bound = {alias: next((name for name in self._preference(alias) if name in present), None) for alias in ALIASES}
        for alias, name in bound.items():
            logger.info("%s stands for %s", alias, name or "nothing yet: none of its variants is present")
        return bound


def absent(wish: str, name: str) -> NotReady:
    """What to do about weights that are not here."""
    if VARIANTS[name].embedded:
        advice = "They belong into the package, and this installation lacks them: install it again."
    else:
        advice = (
            f"On the server, run `swin2sr fetch {name}`, or put the checkpoint into SWIN2SR_MODEL_DIR as {name!r}, and "
            "start it again."
        )
    return NotReady(f"The weights of {wish!r} are not on this server. {advice}", retry_after=60, variant=name)


def _find_entries(model_dir: Path | None) -> Iterator[Entry]:
    """The table's variants, with own checkpoints of the same names in their places, then the other own ones."""
    own = _own(model_dir) if model_dir else {}
    for name, variant in VARIANTS.items():
        yield Entry(name, variant, own.pop(name, None) or embedded_path(name))
    for name, path in own.items():
        yield Entry(name, None, path)


def _own(folder: Path) -> dict[str, Path]:
    """The checkpoints of a folder under the names that requests use.

    Raises:
        ValueError: if a name could not be asked for, or means something else already.
    """
    found: dict[str, Path] = {}
    for name, path in _checkpoints(folder):
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{path} cannot be a variant: its name must be letters, digits, '.', '_' and '-' of ASCII."
            )
        if name in ALIASES:
            raise ValueError(f"{path} cannot be a variant: {name!r} is an alias. Give it another name.")
        if name in found:
            raise ValueError(f"{found[name]} and {path} are both the variant {name!r}: rename one.")
        found[name] = path
    return found


def _checkpoints(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "config.json").is_file():
            yield path.name.lower(), path
        elif path.is_file() and path.suffix in (".pth", ".safetensors"):
            yield path.stem.lower(), path
