"""The variants of this server, the paths of their weights, and the aliases.

Read at startup. Later only downloads change it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from app.errors import NotReady, UnknownVariant
from app.variants.served_variant import ServedVariant
from model.official.fetch import FetchError, OfficialWeights, file_digest
from model.variants import ALIASES, VARIANTS, Variant, embedded_path

CHAINS: Mapping[str, tuple[str, str]] = {"small-compressed-x4": ("small-jpeg", "small-x4")}
"""For a variant that an alias resolves to: the restoring and the enlarging variant that run in its place.

From JPEG quality 30 on they are better, below as good, and four to five times as fast (model/weights/README.md).
"""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

logger = logging.getLogger(__name__)


class Catalogue:
    """Variants by name and alias.

    Args:
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        device_type: ``cpu`` or ``cuda``; decides how aliases are resolved.
        official: the authors' weights on this machine.

    Attributes:
        variants: every variant by name, in the table's order, own ones last.
        aliases: the variant of each alias; None if none of its variants is present.
    """

    def __init__(self, model_dir: Path | None, device_type: str, official: OfficialWeights) -> None:
        self._preferences = "cuda" if device_type == "cuda" else "cpu"
        self._official = official
        self.variants: Mapping[str, ServedVariant] = {each.name: each for each in _find_variants(model_dir, official)}
        self.aliases: Mapping[str, str | None] = {}
        self.bind_aliases()

    def resolve(self, name: str, *, serves: bool = True) -> ServedVariant:
        """The variant of a name or alias.

        Args:
            name: in any case.
            serves: whether a server needs it, not a command.

        Raises:
            UnknownVariant: if there is no such name.
            NotReady: if its weights are not present; the message says how to get them.
        """
        variant = self.find(name)
        if variant.path is None:
            raise variant.absent(name.lower(), serves=serves)
        return variant

    def find(self, name: str) -> ServedVariant:
        """The variant of a name or alias, present or not. For an alias without a present variant, the one to download.

        Raises:
            UnknownVariant: if there is no such name.
        """
        requested = name.lower()
        bound = self.aliases.get(requested, requested)
        variant = self.variants.get(self._to_download(requested) if bound is None else bound)
        if variant is None:
            available = [*self.aliases, *self.variants]
            raise UnknownVariant(
                f"Unknown variant {requested[:100]!r}. Available: {', '.join(available)}.", available=available
            )
        return variant

    def aliases_of(self, variant: ServedVariant) -> list[str]:
        """The aliases that resolve to a variant."""
        return [alias for alias, name in self.aliases.items() if name == variant.name]

    def chain(self, name: str) -> tuple[ServedVariant, ServedVariant] | None:
        """The restoring and the enlarging variant that run in place of the one that an alias resolves to.

        Returns:
            None if ``name`` is no alias, its variant has no entry in ``CHAINS``, or one of the three is not available
            or has own weights.
        """
        replaced = self.aliases.get(name.lower()) or ""
        if replaced not in CHAINS:
            return None
        restoring, enlarging = (self.variants[each] for each in CHAINS[replaced])
        involved = (self.variants[replaced], restoring, enlarging)
        usable = all(each.is_available and each.origin != "own" for each in involved)
        return (restoring, enlarging) if usable else None

    def choose(self, wanted: Sequence[str]) -> list[str]:
        """The names of the variants to load at startup: those that are present, or can be downloaded.

        Args:
            wanted: names and aliases. An alias without a present variant is skipped.

        Raises:
            ValueError: if a name is unknown, or the variant is neither present nor can be downloaded.
        """
        names: dict[str, None] = {}
        for name in wanted:
            if name in self.aliases and self.aliases[name] is None:
                continue
            try:
                variant = self.find(name)
                if variant.path is None:
                    self._official.check_allowed(variant.downloadable)
            except (UnknownVariant, NotReady, FetchError) as error:
                raise ValueError(f"VARIANTS names {name!r}: {error}") from error
            names.update(dict.fromkeys([variant.name, *(each.name for each in self.chain(name) or ())]))
        return list(names)

    def set_path(self, variant: ServedVariant, path: Path) -> None:
        """Note where the weights of an official variant were downloaded to."""
        variant.digest, variant.path = _find_digest(variant.downloadable, path, self._official), path

    def verify(self, variant: ServedVariant) -> None:
        """Check that the weights of an official variant are those that were downloaded.

        Raises:
            FetchError: if they are not, or cannot be read; the message says what to do.
        """
        if variant.origin == "official" and variant.row is not None and variant.path is not None:
            self._official.verify(variant.row, variant.path)

    def bind_aliases(self) -> None:
        """Resolve every alias to the first of its variants that is present now, and log changes."""
        present = {each.name for each in self.variants.values() if each.path is not None}
        bound = {alias: next((name for name in self._preference(alias) if name in present), None) for alias in ALIASES}
        before, self.aliases = self.aliases, bound
        self.log_aliases([alias for alias in before if bound[alias] != before[alias]])

    def log_aliases(self, aliases: Iterable[str] = ALIASES) -> None:
        """Log what each alias resolves to."""
        for alias in aliases:
            logger.info("alias %s -> %s", alias, self.aliases[alias] or "none: none of its variants is present")

    def _preference(self, alias: str) -> Sequence[str]:
        return ALIASES[alias][self._preferences]

    def _to_download(self, alias: str) -> str:
        """The variant to download for an alias without a present variant."""
        return next(name for name in self._preference(alias) if not VARIANTS[name].embedded)


def _find_variants(model_dir: Path | None, official: OfficialWeights) -> Iterator[ServedVariant]:
    """The variants of the table, overridden by own checkpoints of the same names, then the other own ones."""
    own = _find_own(model_dir) if model_dir else {}
    for name, row in VARIANTS.items():
        if name in own:
            variant = ServedVariant(name, row, own.pop(name), "own")
            logger.warning("%s replaces the %s variant %s", variant.path, variant.replaces, name)
            yield variant
        elif row.embedded:
            path = embedded_path(name)
            yield ServedVariant(name, row, path, "embedded", file_digest(path) if path else None)
        else:
            path = official.find(row)
            yield ServedVariant(name, row, path, "official", _find_digest(row, path, official))
    for name, path in own.items():
        yield ServedVariant(name, None, path, "own")


def _find_digest(row: Variant, path: Path | None, official: OfficialWeights) -> str | None:
    try:
        return row.digest if path is None else official.digest(row, path)
    except FetchError as error:  # loading the variant raises it again
        logger.warning("%s", error)
        return None


def _find_own(folder: Path) -> dict[str, Path]:
    """The checkpoints of a folder by the names that requests use.

    Raises:
        ValueError: if a name has characters that requests cannot use, or is an alias or used twice.
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
