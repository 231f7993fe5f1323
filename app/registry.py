"""Which variants are ready: their states, loading and warming, one at a time, under traffic."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from app.catalogue import Catalogue, Entry, absent
from app.errors import NotReady, OutOfMemory, UnknownVariant
from app.memory import give_back, is_out_of_memory
from app.schemas import State, VariantDescription
from app.weights import Load, Loaded, Piece, TileUpscaler, warm_up
from model.upscaler import Upscaler, find_device

logger = logging.getLogger(__name__)


@dataclass
class _Condition:
    """How a variant is; changed by the loading thread alone, read by everybody."""

    state: State = "absent"
    reason: str | None = "present, and loaded when it is first asked for"
    loaded: Loaded | None = None
    withdrawn: bool = False
    """Whether it was unloaded on purpose, and is not loaded again before somebody says so."""


class ModelRegistry:
    """The variants of a catalogue, and their states.

    Args:
        wanted: names and aliases to load at boot; the first is the default.
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        device, dtype: as in ``Upscaler``; the device decides what aliases stand for.
        threads: of a forward pass on a CPU.
        load: makes weights ready to call.
        beat: called again and again while a network computes.

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
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = find_device(device)
        self._dtype = dtype
        self._threads = threads
        self._load = load or self._load_upscaler
        self._beat = beat
        self._loader = ThreadPoolExecutor(1, "swin2sr-loader")
        self._catalogue = Catalogue(model_dir, self.device.type)
        self._conditions = {name: _Condition() for name in self._catalogue.entries}
        self._versions = itertools.count(1)
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
        return self._catalogue.resolve(name or self.default)

    def aliases(self) -> Mapping[str, str | None]:
        """What each alias stands for on this server; None where none of its variants is present."""
        return self._catalogue.aliases

    def names(self) -> list[str]:
        """Every variant's name."""
        return list(self._catalogue.entries)

    def is_present(self, name: str) -> bool:
        """Whether a variant's weights are on this server."""
        return self._catalogue.entries[name].path is not None

    def describe(self, name: str) -> VariantDescription:
        """A variant, by its name or an alias.

        Raises:
            UnknownVariant: if there is no such name.
        """
        return self._describe(self._catalogue.find(name))

    def describe_all(self) -> list[VariantDescription]:
        """Every variant, in the table's order, own ones last."""
        return [self._describe(entry) for entry in self._catalogue.entries.values()]

    # States.

    async def boot(self) -> None:
        """Load and warm the wanted variants, one after the other; failures are kept in their states."""
        for entry in self._boot:
            (fault,) = await asyncio.gather(self._in_loader(self._make_ready, entry), return_exceptions=True)
            if isinstance(fault, Exception):
                logger.error("loading %s failed unexpectedly", entry.name, exc_info=fault)
        self.booted = True

    async def obtain(self, entry: Entry) -> Loaded:
        """The weights of a present variant, loaded first if nobody has asked for them yet.

        Raises:
            NotReady: if they cannot be loaded, or were unloaded on purpose; the text has the reason.
        """
        condition = self._conditions[entry.name]
        if condition.loaded is None and condition.state != "failed" and not condition.withdrawn:
            await self._in_loader(self._make_ready, entry)
        return self._loaded(entry)

    async def load(self, entry: Entry) -> None:
        """Load a present variant, also one that failed before or was unloaded.

        Raises:
            NotReady: if it cannot be loaded.
        """
        self._conditions[entry.name].withdrawn = False
        await self._in_loader(self._make_ready, entry)
        self._loaded(entry)

    async def reload(self, entry: Entry) -> None:
        """Replace a variant's weights by what lies at its path now; until then, and if that fails, the old ones serve.

        Raises:
            NotReady: if it cannot be loaded.
        """
        self._conditions[entry.name].withdrawn = False
        reason = await self._in_loader(self._replace, entry)
        if reason is not None:
            kept = "; the weights from before stay" if self._conditions[entry.name].loaded else ""
            raise NotReady(f"The variant {entry.name!r} could not be loaded: {reason}{kept}", retry_after=60)

    async def unload(self, entry: Entry) -> None:
        """Let a variant's weights go: new requests are refused, those that were admitted are finished first."""
        await self._in_loader(self._let_go, entry)

    def forward(self, _key: str, pieces: list[Piece]) -> list[NDArray[np.float32]]:
        """Run a batch of one variant: what the batcher's worker calls.

        Raises:
            OutOfMemory: if there was not enough; what could be given back was.
        """
        self._set_threads()
        try:
            return pieces[0].upscaler.forward([piece.tile for piece in pieces])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the failed pass is over, and its tensors are gone with its traceback.
        give_back(self.device)
        raise OutOfMemory("There is not enough memory now. Send the request later, or with a smaller `tile`.")

    @property
    def bytes_per_pixel(self) -> int:
        """What a pixel of a batch takes at most, whichever of the loaded variants computes it; 0 where none is."""
        loaded = [each.loaded.upscaler for each in self._conditions.values() if each.loaded is not None]
        return max((upscaler.bytes_per_pixel for upscaler in loaded), default=0)

    def reasons_not_ready(self) -> list[str]:
        """Why requests for what was wanted at boot cannot be served yet; empty when they can."""
        conditions = [(entry.name, self._conditions[entry.name]) for entry in self._boot]
        reasons = [
            f"{name}: {each.reason or each.state}"
            for name, each in conditions
            if each.loaded is None and not each.withdrawn
        ]
        return reasons if self._boot else ["no variant is present"]

    def close(self) -> None:
        """Stop loading; what is loaded stays usable."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def _in_loader(self, work: Callable[[Entry], str | None], entry: Entry) -> str | None:
        return await asyncio.wrap_future(self._loader.submit(work, entry))

    def _loaded(self, entry: Entry) -> Loaded:
        condition = self._conditions[entry.name]
        loaded = condition.loaded
        if loaded is None and condition.withdrawn:
            raise NotReady(f"The variant {entry.name!r} {condition.reason}.", retry_after=60)
        if loaded is None:
            raise NotReady(f"The variant {entry.name!r} could not be loaded: {condition.reason}", retry_after=60)
        return loaded

    # In the loading thread.

    def _make_ready(self, entry: Entry) -> str | None:
        condition = self._conditions[entry.name]
        if condition.loaded is not None or condition.withdrawn:
            return None
        condition.state, condition.reason = "loading", None
        return self._replace(entry)

    def _replace(self, entry: Entry) -> str | None:
        """Load and warm; the reason why not, and then what served before serves on."""
        assert entry.path is not None, "resolve refuses what is absent"
        condition = self._conditions[entry.name]
        replaced = condition.loaded is not None
        reason: str | None = "something unexpected; the server's log has it"
        try:
            self._set_threads()
            upscaler = self._load(entry.name, entry.path)
            warm_up(upscaler)
            condition.loaded = Loaded(f"{entry.name} {next(self._versions)}", upscaler)
            condition.state, condition.reason, reason = "ready", None, None
            logger.info("variant %s is ready on %s in %s", entry.name, upscaler.device, upscaler.dtype)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            logger.warning("variant %s could not be loaded: %s", entry.name, reason)
        finally:
            if condition.loaded is None:
                condition.state, condition.reason = "failed", reason
        if replaced:
            give_back(self.device)
        return reason

    def _let_go(self, entry: Entry) -> str | None:
        condition = self._conditions[entry.name]
        condition.withdrawn = True
        condition.state, condition.loaded = "absent", None
        condition.reason = f"was unloaded; POST /v1/variants/{entry.name}/load brings it back"
        give_back(self.device)
        logger.info("variant %s was unloaded", entry.name)
        return None

    def _load_upscaler(self, _name: str, path: Path) -> TileUpscaler:
        upscaler = Upscaler.from_pretrained(path, device=str(self.device), dtype=self._dtype)
        if self.device.type == "cpu":  # on a GPU a pass takes moments, and hooks would hinder compilation
            for module in upscaler.network.modules():
                module.register_forward_pre_hook(lambda _module, _args: self._beat())
        return upscaler

    def _set_threads(self) -> None:
        # The number is the calling thread's own, so every thread that computes sets it.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def _find_wanted(self, wanted: Sequence[str]) -> list[Entry]:
        entries: dict[str, Entry] = {}
        for wish in wanted:
            if wish in self._catalogue.aliases and self._catalogue.aliases[wish] is None:
                continue
            try:
                entry = self.resolve(wish)
            except (UnknownVariant, NotReady) as error:
                raise ValueError(f"VARIANTS names {wish!r}: {error.detail}") from error
            entries[entry.name] = entry
        return list(entries.values())

    def _describe(self, entry: Entry) -> VariantDescription:
        condition, variant = self._conditions[entry.name], entry.variant
        upscaler = condition.loaded and condition.loaded.upscaler
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
            state=condition.state,
            reason=absent(entry.name, entry.name).detail if entry.path is None else condition.reason,
            device=str(upscaler.device) if upscaler else None,
            dtype=str(upscaler.dtype).removeprefix("torch.") if upscaler else None,
            aliases=self._catalogue.aliases_of(entry),
        )
