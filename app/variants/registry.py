"""Loads, warms, reloads and unloads variants, one at a time, while requests run."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.errors import NotReady
from app.schemas import VariantDescription
from app.variants.catalogue import Catalogue, Entry, fetchable
from app.variants.device import release_memory, use_threads
from app.variants.downloads import Downloads
from app.variants.loaded_model import Load, LoadedModel, TileUpscaler, count_parameters, warm_up, weights_digest
from app.variants.states import VariantState, describe
from model.official.fetch import FetchError, OfficialWeights, Step
from model.upscaler import Upscaler, find_device

logger = logging.getLogger(__name__)


class ModelRegistry:
    """The variants of a catalogue, and their states.

    Args:
        wanted: names and aliases to load at boot; the first is the default.
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        official: the authors' weights on this machine, and their download.
        device, precision: as in ``Upscaler``; the device decides what aliases stand for.
        threads: of a forward pass on a CPU.
        load: makes weights ready to call.
        heartbeat: called at each block while a network computes.

    Raises:
        ValueError: if a wanted variant is unknown, or can be neither found nor downloaded, or the device is missing.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        *,
        model_dir: Path | None = None,
        official: OfficialWeights | None = None,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 1,
        load: Load | None = None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = find_device(device)
        self._precision = precision
        self._threads = threads
        self._load = load or self._load_upscaler
        self._heartbeat = heartbeat
        self._loader = ThreadPoolExecutor(1, "swin2sr-loader")
        official = official or OfficialWeights()
        self._downloads = Downloads(official)
        self._catalogue = Catalogue(model_dir, self.device.type, official)
        self._catalogue.log_aliases()
        self._states = {name: VariantState() for name in self._catalogue.entries}
        self._versions = itertools.count(1)
        self._boot = self._catalogue.choose(wanted)
        self.default = wanted[0]
        self.booted = False

    # Names.

    def resolve(self, name: str | None) -> Entry:
        """The entry of a variant or alias, the default for None.

        Raises:
            UnknownVariant: if there is no such name.
            NotReady: if its weights are missing; the message says how to get them, or how far the download is.
        """
        entry = self._catalogue.find(name or self.default)
        status = self._states[entry.name]
        if entry.path is None and status.state != "absent":
            verb, retry_after = ("is ", 10) if status.state == "loading" else ("", 60)
            raise NotReady(f"The variant {entry.name!r} {verb}{status.reason}", retry_after=retry_after)
        return self._catalogue.resolve(name or self.default)

    def find(self, name: str) -> Entry:
        """The entry of a variant or alias, present or not.

        Raises:
            UnknownVariant: if there is no such name.
        """
        return self._catalogue.find(name)

    @property
    def precision(self) -> str:
        """What the loaded variants compute in, comma separated if they differ; the setting before one is loaded."""
        used = {each.loaded.precision for each in self._states.values() if each.loaded is not None}
        return ",".join(sorted(used)) or self._precision

    def is_alias(self, name: str | None) -> bool:
        """Whether a name, or the default for None, is a task alias."""
        return (name or self.default).lower() in self._catalogue.aliases

    def is_loaded(self, entry: Entry) -> bool:
        """Whether a variant is loaded now."""
        return self._states[entry.name].loaded is not None

    def available(self) -> list[Entry]:
        """Variants that a request gets, after loading if need be."""
        return [each for each in self._catalogue.entries.values() if self._states[each.name].serves(each)]

    def scale_of(self, entry: Entry) -> int:
        """Scale of an official variant: that of its weights if they are loaded, else that of the table."""
        loaded = self._states[entry.name].loaded
        assert loaded is not None or entry.variant is not None, "only official variants are asked for"
        return loaded.upscaler.scale if loaded is not None else entry.variant.scale  # type: ignore[union-attr]

    def aliases(self) -> Mapping[str, str | None]:
        """The variant of each alias on this server; None if none of its variants is present."""
        return self._catalogue.aliases

    def names(self) -> list[str]:
        """Every variant's name."""
        return list(self._catalogue.entries)

    def describe(self, name: str) -> VariantDescription:
        """A variant, by its name or an alias.

        Raises:
            UnknownVariant: if there is no such name.
        """
        return self._describe(self.find(name))

    def describe_all(self) -> list[VariantDescription]:
        """Every variant, in the table's order, own ones last."""
        return [self._describe(entry) for entry in self._catalogue.entries.values()]

    # States.

    async def boot(self) -> None:
        """Load and warm the wanted variants one after the other; failures are recorded in their states.

        Those that have to be downloaded come last, and aliases are resolved again after them.
        """
        entries = sorted((self._catalogue.entries[name] for name in self._boot), key=lambda entry: entry.path is None)
        for status in (self._states[entry.name] for entry in entries if entry.path is None):
            status.state, status.reason = "loading", "about to be fetched"
        for entry in entries:
            (fault,) = await asyncio.gather(self._fetch_and_load(entry), return_exceptions=True)
            if isinstance(fault, Exception) and not isinstance(fault, NotReady):
                logger.error("loading %s failed unexpectedly", entry.name, exc_info=fault)
        self._catalogue.bind_aliases()
        self.booted = True

    async def obtain(self, entry: Entry) -> LoadedModel:
        """The model of a present variant, loaded first if necessary.

        Raises:
            NotReady: if it cannot be loaded, or was unloaded on purpose; the message has the reason.
        """
        status = self._states[entry.name]
        if status.loaded is None and status.state != "failed" and not status.withdrawn:
            await self._in_loader(self._make_ready, entry)
        return self._loaded(entry)

    async def load(self, entry: Entry) -> None:
        """Load a variant, also one that failed before or was unloaded. Download its weights first if they are missing.

        Raises:
            NotReady: if it cannot be downloaded or loaded.
        """
        self._states[entry.name].withdrawn = False
        await self._fetch_and_load(entry)
        self._loaded(entry)

    async def reload(self, entry: Entry) -> None:
        """Replace the weights of a variant by those at its path. Until then, and if that fails, the old ones are used.

        Raises:
            NotReady: if it cannot be loaded.
        """
        self._states[entry.name].withdrawn = False
        reason = await self._in_loader(self._replace, entry)
        if reason is not None:
            kept = "; the weights from before stay" if self._states[entry.name].loaded else ""
            raise NotReady(f"The variant {entry.name!r} could not be loaded: {reason}{kept}", retry_after=60)

    async def unload(self, entry: Entry) -> None:
        """Unload a variant: new requests are refused, admitted ones are finished first."""
        await self._in_loader(self._withdraw, entry)

    @property
    def bytes_per_pixel(self) -> int:
        """Memory for a pixel of a batch, the largest of the loaded variants; 0 if none is loaded."""
        loaded = [each.loaded.upscaler for each in self._states.values() if each.loaded is not None]
        return max((upscaler.bytes_per_pixel for upscaler in loaded), default=0)

    def reasons_not_ready(self) -> list[str]:
        """Why the variants that are wanted at boot cannot be used yet; empty when they can."""
        states = [(name, self._states[name]) for name in self._boot]
        reasons = [
            f"{name}: {each.reason or each.state}"
            for name, each in states
            if each.loaded is None and not each.withdrawn
        ]
        return reasons if self._boot else ["no variant is present"]

    def close(self) -> None:
        """Stop loading; what is loaded stays usable."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def _fetch_and_load(self, entry: Entry) -> None:
        if entry.path is None or (entry.origin == "official" and not entry.path.is_file()):
            entry = await self._fetch(entry)
        await self._in_loader(self._make_ready, entry)

    async def _fetch(self, entry: Entry) -> Entry:
        variant = fetchable(entry)
        status = self._states[entry.name]

        def tell(step: Step) -> None:
            status.reason = f"being fetched: {step}"

        status.state, status.reason = "loading", "being fetched"
        logger.info("fetching the weights of %s", entry.name)
        try:
            path = await self._downloads.fetch(variant, tell)
        except FetchError as error:
            status.state, status.reason = "failed", f"could not be fetched: {error}"
            logger.warning("variant %s %s", entry.name, status.reason)
            raise NotReady(f"The variant {entry.name!r} {status.reason}", retry_after=60) from error
        return self._catalogue.place(entry, path)

    async def _in_loader(self, work: Callable[[Entry], str | None], entry: Entry) -> str | None:
        return await asyncio.wrap_future(self._loader.submit(work, entry))

    def _loaded(self, entry: Entry) -> LoadedModel:
        status = self._states[entry.name]
        loaded = status.loaded
        if loaded is None and status.withdrawn:
            raise NotReady(f"The variant {entry.name!r} {status.reason}.", retry_after=60)
        if loaded is None:
            raise NotReady(f"The variant {entry.name!r} could not be loaded: {status.reason}", retry_after=60)
        return loaded

    def record_batch(self, key: str, pixels: int, seconds: float) -> None:
        """Count a forward pass in the measured speed of the weights that ran it."""
        for status in self._states.values():
            if status.loaded is not None and status.loaded.key == key:
                status.loaded.throughput.record(pixels, seconds)

    # In the loading thread.

    def _make_ready(self, entry: Entry) -> str | None:
        status = self._states[entry.name]
        if status.loaded is not None or status.withdrawn:
            return None
        status.state, status.reason = "loading", None
        return self._replace(entry)

    def _replace(self, entry: Entry) -> str | None:
        """Load and warm; return why that failed, then the model from before stays in use."""
        assert entry.path is not None, "resolve refuses what is absent"
        status = self._states[entry.name]
        replaced = status.loaded is not None
        reason: str | None = "something unexpected; the server's log has it"
        try:
            use_threads(self._threads)
            digest = weights_digest(entry.path)
            upscaler = self._load(entry.name, entry.path)
            warm_up(upscaler)
            key = f"{entry.name} {next(self._versions)}"
            loaded = status.loaded = LoadedModel(key, upscaler, digest, count_parameters(upscaler))
            status.state, status.reason, reason = "ready", None, None
            logger.info("variant %s is ready on %s, precision %s", entry.name, upscaler.device, loaded.precision)
            if self._precision not in ("auto", loaded.precision):
                logger.warning("variant %s: precision %s is not available here", entry.name, self._precision)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            logger.warning("variant %s could not be loaded: %s", entry.name, reason)
        finally:
            if status.loaded is None:
                status.state, status.reason = "failed", reason
        if replaced:
            release_memory(self.device)
        return reason

    def _withdraw(self, entry: Entry) -> str | None:
        status = self._states[entry.name]
        status.withdrawn = True
        status.state, status.loaded = "absent", None
        status.reason = f"was unloaded; POST /v1/variants/{entry.name}/load brings it back"
        release_memory(self.device)
        logger.info("variant %s was unloaded", entry.name)
        return None

    def _load_upscaler(self, name: str, path: Path) -> TileUpscaler:
        self._catalogue.verify(name)
        upscaler = Upscaler.from_pretrained(path, device=str(self.device), precision=self._precision)
        upscaler.on_progress(self._heartbeat)
        return upscaler

    def _describe(self, entry: Entry) -> VariantDescription:
        return describe(entry, self._states[entry.name], self._catalogue.aliases_of(entry))
