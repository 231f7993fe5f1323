"""The variants of this server, the paths of their weights, and the aliases.

Read at startup. Later only downloads change it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import NotReady, UnknownVariant
from model.official.fetch import FetchError, OfficialWeights, file_digest
from model.variants import ALIASES, VARIANTS, Variant, embedded_path

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A variant on this server.

    Attributes:
        name: as in requests.
        variant: its row in the table; None for an own checkpoint.
        path: of its weights; None if they are missing.
        origin: of its weights: MODEL_DIR, the package, or the authors.
        digest: their expected SHA-256 if it is known; the actual one of embedded weights.
    """

    name: str
    variant: Variant | None
    path: Path | None
    origin: Literal["own", "embedded", "official"]
    digest: str | None = None

    @property
    def replaces(self) -> Literal["official", "embedded"] | None:
        """The weights of the same name that an own file stands in for."""
        if self.origin != "own" or self.variant is None:
            return None
        return "embedded" if self.variant.embedded else "official"


class Catalogue:
    """Variants by name and alias.

    Args:
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        device_type: ``cpu`` or ``cuda``; decides how aliases are resolved.
        official: the authors' weights on this machine.
    """

    def __init__(self, model_dir: Path | None, device_type: str, official: OfficialWeights) -> None:
        self._preferences = "cuda" if device_type == "cuda" else "cpu"
        self._official = official
        self._entries = {entry.name: entry for entry in _find_entries(model_dir, official)}
        self.aliases: Mapping[str, str | None] = {}
        self.bind_aliases()

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every variant by name, in the table's order, own ones last."""
        return self._entries

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
        entry = self.entries.get(self._to_fetch(wish) if bound is None else bound)
        if entry is None:
            available = [*self.aliases, *self.entries]
            raise UnknownVariant(
                f"There is no variant {wish[:100]!r}; there are {', '.join(available)}.", available=available
            )
        return entry

    def aliases_of(self, entry: Entry) -> list[str]:
        """Aliases that stand for a variant."""
        return [alias for alias, name in self.aliases.items() if name == entry.name]

    def choose(self, wanted: Sequence[str]) -> list[str]:
        """The names of the variants to begin with: those that are present, or may be fetched.

        Args:
            wanted: names, and aliases, which are passed over where none of their variants is present.

        Raises:
            ValueError: if a wanted variant is unknown, or neither present nor to be fetched.
        """
        names: dict[str, None] = {}
        for wish in wanted:
            if wish in self.aliases and self.aliases[wish] is None:
                continue
            try:
                entry = self.find(wish)
                if entry.path is None:
                    self._official.check_allowed(fetchable(entry))
            except (UnknownVariant, NotReady, FetchError) as error:
                raise ValueError(f"VARIANTS names {wish!r}: {error}") from error
            names[entry.name] = None
        return list(names)

    def place(self, entry: Entry, path: Path) -> Entry:
        """The entry of an official variant whose weights lie at a path from now on."""
        self._entries[entry.name] = _official_entry(fetchable(entry), path, self._official)
        return self._entries[entry.name]

    def verify(self, name: str) -> None:
        """Make sure that a variant's weights are those that were downloaded, if they were.

        Raises:
            FetchError: if they are not, or cannot be read; the text says what to do.
        """
        entry = self._entries[name]
        if entry.origin == "official" and entry.variant is not None and entry.path is not None:
            self._official.verify(entry.variant, entry.path)

    def bind_aliases(self) -> None:
        """Resolve every alias to the first of its variants that is present now, and log what changed."""
        present = {name for name, entry in self._entries.items() if entry.path is not None}
        bound = {alias: next((name for name in self._preference(alias) if name in present), None) for alias in ALIASES}
        before, self.aliases = self.aliases, bound
        self.log_aliases([alias for alias in before if bound[alias] != before[alias]])

    def log_aliases(self, aliases: Iterable[str] = ALIASES) -> None:
        """Write to the log what each alias resolves to."""
        for alias in aliases:
            logger.info("alias %s -> %s", alias, self.aliases[alias] or "none: none of its variants is present")

    def _preference(self, alias: str) -> Sequence[str]:
        return ALIASES[alias][self._preferences]

    def _to_fetch(self, alias: str) -> str:
        """The variant to fetch where nothing is present for an alias."""
        return next(name for name in self._preference(alias) if not VARIANTS[name].embedded)


def absent(wish: str, name: str) -> NotReady:
    """What to do about weights that are not here."""
    if VARIANTS[name].embedded:
        advice = "They belong into the package, and this installation lacks them: install it again."
    else:
        advice = (
            f"Run `swin2sr fetch {name}` where it runs and start it again, or let its administrator POST "
            f"/v1/variants/{name}/load."
        )
    return NotReady(f"The weights of {wish!r} are not on this server. {advice}", retry_after=60, variant=name)


def fetchable(entry: Entry) -> Variant:
    """The official variant that an entry stands for.

    Raises:
        NotReady: if nobody has its weights but the package, which lacks them.
    """
    if entry.variant is None or entry.variant.embedded:
        raise absent(entry.name, entry.name)
    return entry.variant


def _find_entries(model_dir: Path | None, official: OfficialWeights) -> Iterator[Entry]:
    """The table's variants, with own checkpoints of the same names in their places, then the other own ones."""
    own = _own(model_dir) if model_dir else {}
    for name, variant in VARIANTS.items():
        if name in own:
            entry = Entry(name, variant, own.pop(name), "own")
            logger.warning("%s replaces the %s variant %s", entry.path, entry.replaces, name)
            yield entry
        elif variant.embedded:
            path = embedded_path(name)
            yield Entry(name, variant, path, "embedded", file_digest(path) if path else None)
        else:
            yield _official_entry(variant, official.find(variant), official)
    for name, path in own.items():
        yield Entry(name, None, path, "own")


def _official_entry(variant: Variant, path: Path | None, official: OfficialWeights) -> Entry:
    try:
        digest = variant.digest if path is None else official.digest(variant, path)
    except FetchError as error:
        digest = None  # loading says the same, and fails
        logger.warning("%s", error)
    return Entry(variant.name, variant, path, "official", digest)


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
