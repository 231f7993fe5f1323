"""Which variants there are, where their weights lie, and which are ready; one is loaded at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.errors import NotReady, OutOfMemory, UnknownVariant
from app.schemas import State, VariantDescription
from model.upscaler import Upscaler, find_device
from model.variants import ALIASES, VARIANTS, Variant, embedded_path

WARM_UP_SIDES = (64, 48)
"""Sides in windows' multiples of the images that are computed before a variant is ready, pixels."""

logger = logging.getLogger(__name__)


class TileUpscaler(Protocol):
    """What the service needs of ``model.upscaler.Upscaler``."""

    scale: int
    window_size: int
    channels: int
    device: Any
    dtype: Any

    def forward(self, tiles: Sequence[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Reconstruct tiles (H,W,C) on the window grid in one forward pass: (s H, s W, C) in about [0,1]."""


Load = Callable[[str, Path], TileUpscaler]
"""Makes the weights of a variant, found at a path, ready to call; raises ValueError if they are no use."""


@dataclass
class Entry:
    """A variant on this server; its state is changed by the loading thread and read by everybody."""

    name: str
    variant: Variant | None
    path: Path | None
    state: State = "absent"
    reason: str | None = None
    upscaler: TileUpscaler | None = None


class ModelRegistry:
    """Variants by name and alias.

    Args:
        wanted: names and aliases to load at boot; the first is the default.
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        device, dtype: as in ``Upscaler``; the device decides what aliases stand for.
        threads: of a forward pass on a CPU.
        load: makes weights ready to call.

    Raises:
        ValueError: if a wanted variant is unknown or not present, or the device is not there.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        *,
        model_dir: Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 1,
        load: Load | None = None,
    ) -> None:
        self.device = find_device(device)
        self._dtype = dtype
        self._threads = threads
        self._load = load or self._load_upscaler
        self._loader = ThreadPoolExecutor(1, "swin2sr-loader")
        self._entries = {entry.name: entry for entry in _find_entries(model_dir)}
        self._aliases = self._bind_aliases()
        self._boot = self._find_wanted(wanted)
        self.default = wanted[0]
        self.booted = False

    # Names.

    def resolve(self, name: str | None) -> Entry:
        """The entry of a variant or alias, the default for None.

        Raises:
            UnknownVariant: if there is no such name.
            NotReady: if its weights are not present; the text says how to get them.
        """
        wish = (name or self.default).lower()
        bound = self._aliases.get(wish, wish)
        if bound is None:
            raise _absent(wish, self._official(wish))
        entry = self._entries.get(bound)
        if entry is None:
            raise UnknownVariant(
                f"There is no variant {wish[:100]!r}. GET /v1/variants lists what there is.",
                available=[*self._aliases, *self._entries],
            )
        if entry.path is None:
            raise _absent(entry.name, entry.name)
        return entry

    def aliases(self) -> Mapping[str, str | None]:
        """What each alias stands for on this server; None where none of its variants is present."""
        return dict(self._aliases)

    def describe(self, name: str) -> VariantDescription:
        """A variant, by its name or an alias.

        Raises:
            UnknownVariant: if there is no such name.
        """
        wish = name.lower()
        entry = self._entries.get(self._aliases.get(wish) or wish)
        if entry is None and wish in self._aliases:
            entry = self._entries[self._official(wish)]
        if entry is None:
            self.resolve(name)
        assert entry is not None, "resolve refuses what is unknown"
        return self._describe(entry)

    def describe_all(self) -> list[VariantDescription]:
        """Every variant, in the table's order, own ones last."""
        return [self._describe(entry) for entry in self._entries.values()]

    def is_present(self, name: str) -> bool:
        """Whether a variant's weights are on this server."""
        return self._entries[name].path is not None

    def names(self) -> list[str]:
        """Every variant's name."""
        return list(self._entries)

    # States.

    async def boot(self) -> None:
        """Load and warm the wanted variants, one after the other; failures are kept in their states."""
        for entry in self._boot:
            await asyncio.wrap_future(self._loader.submit(self._make_ready, entry))
        self.booted = True

    async def upscaler(self, entry: Entry) -> TileUpscaler:
        """The upscaler of a present variant, loaded first if nobody has asked for it yet.

        Raises:
            NotReady: if it cannot be loaded; the text has the reason.
        """
        if entry.upscaler is None and entry.state != "failed":
            await asyncio.wrap_future(self._loader.submit(self._make_ready, entry))
        if entry.upscaler is None:
            raise NotReady(f"The variant {entry.name!r} could not be loaded: {entry.reason}", retry_after=60)
        return entry.upscaler

    def forward(self, name: str, tiles: list[NDArray[Any]]) -> list[NDArray[np.float32]]:
        """Run a batch of one variant: what the batcher's worker calls."""
        upscaler = self._entries[name].upscaler
        assert upscaler is not None, "only what is ready is admitted"
        self._set_threads()
        try:
            return upscaler.forward(tiles)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise OutOfMemory("There is not enough memory now. Send the request later, or a smaller tile.") from error

    def reasons_not_ready(self) -> list[str]:
        """Why requests for what was wanted at boot cannot be served yet; empty when they can."""
        reasons = [f"{entry.name}: {entry.reason or entry.state}" for entry in self._boot if entry.upscaler is None]
        return reasons if self._boot else ["no variant is present"]

    def close(self) -> None:
        """Stop loading; what is loaded stays usable."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _make_ready(self, entry: Entry) -> None:
        """Load and warm one variant; runs in the loading thread."""
        if entry.upscaler is not None:
            return
        assert entry.path is not None, "resolve refuses what is absent"
        entry.state, entry.reason = "loading", None
        try:
            self._set_threads()
            upscaler = self._load(entry.name, entry.path)
            _warm_up(upscaler)
        except (ValueError, OSError, RuntimeError) as error:
            logger.warning("variant %s could not be loaded: %s", entry.name, error)
            entry.state, entry.reason = "failed", str(error)
            return
        entry.upscaler = upscaler
        entry.state = "ready"
        logger.info("variant %s is ready on %s in %s", entry.name, upscaler.device, upscaler.dtype)

    def _load_upscaler(self, _name: str, path: Path) -> TileUpscaler:
        return Upscaler.from_pretrained(path, device=str(self.device), dtype=self._dtype)

    def _set_threads(self) -> None:
        # The number is the calling thread's own, so every thread that computes sets it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def _preference(self, alias: str) -> Sequence[str]:
        return ALIASES[alias]["cuda" if self.device.type == "cuda" else "cpu"]

    def _official(self, alias: str) -> str:
        """The variant to fetch where nothing is present for an alias."""
        return next(name for name in self._preference(alias) if not VARIANTS[name].embedded)

    def _bind_aliases(self) -> dict[str, str | None]:
        present = {name for name, entry in self._entries.items() if entry.path is not None}
        bound = {alias: next((name for name in self._preference(alias) if name in present), None) for alias in ALIASES}
        for alias, name in bound.items():
            logger.info("%s stands for %s", alias, name or "nothing yet: none of its variants is present")
        return bound

    def _find_wanted(self, wanted: Sequence[str]) -> list[Entry]:
        entries: dict[str, Entry] = {}
        for wish in wanted:
            if wish in self._aliases and self._aliases[wish] is None:
                continue
            try:
                entry = self.resolve(wish)
            except (UnknownVariant, NotReady) as error:
                raise ValueError(f"VARIANTS names {wish!r}: {error.detail}") from error
            entries[entry.name] = entry
        return list(entries.values())

    def _describe(self, entry: Entry) -> VariantDescription:
        upscaler, variant = entry.upscaler, entry.variant
        aliases = [alias for alias, name in self._aliases.items() if name == entry.name]
        reason = entry.reason
        if entry.path is None:
            reason = _absent(entry.name, entry.name).detail
        elif entry.state == "absent":
            reason = "present, and loaded when it is first asked for"
        return VariantDescription(
            name=entry.name,
            task=variant.task if variant else "custom",
            scale=variant.scale if variant else upscaler and upscaler.scale,
            summary=variant.summary if variant else "Weights of this server's own, from its MODEL_DIR.",
            channels=variant.channels if variant else upscaler and upscaler.channels,
            parameters=variant.parameters if variant else None,
            licence=variant.licence if variant else None,
            source=variant.source if variant else "MODEL_DIR",
            digest=variant.digest if variant else None,
            state=entry.state,
            reason=reason,
            device=str(upscaler.device) if upscaler else None,
            dtype=str(upscaler.dtype).removeprefix("torch.") if upscaler else None,
            aliases=aliases,
        )


def _absent(wish: str, name: str) -> NotReady:
    if VARIANTS[name].embedded:
        advice = "They belong into the package, and this installation lacks them: install it again."
    else:
        advice = (
            f"On the server, run `swin2sr fetch {name}`, or put the checkpoint into SWIN2SR_MODEL_DIR as {name!r}, and "
            "start it again."
        )
    return NotReady(f"The weights of {wish!r} are not on this server. {advice}", retry_after=60, variant=name)


def _warm_up(upscaler: TileUpscaler) -> None:
    """Compute what every first forward pass would compute once, and find out whether the weights work at all."""
    sides = [-(-side // upscaler.window_size) * upscaler.window_size for side in WARM_UP_SIDES]
    tiles = [np.full((side, side, upscaler.channels), 128, np.uint8) for side in sides]
    for batch in (tiles[:1], tiles):
        outputs = upscaler.forward(batch)
        if not all(np.isfinite(output).all() for output in outputs):
            raise ValueError("the network's answer to a gray image is not finite")


def _find_entries(model_dir: Path | None) -> Iterator[Entry]:
    """The table's variants, with own checkpoints of the same names in their places, then the other own ones."""
    own = dict(_checkpoints(model_dir)) if model_dir else {}
    for name, variant in VARIANTS.items():
        yield Entry(name, variant, own.pop(name, None) or embedded_path(name))
    for name, path in own.items():
        yield Entry(name, None, path)


def _checkpoints(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / "config.json").is_file():
            yield path.name.lower(), path
        elif path.is_file() and path.suffix in (".pth", ".safetensors"):
            yield path.stem.lower(), path
