"""Loads, warms, reloads and unloads variants, one at a time, while requests run."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.errors import NotReady
from app.schemas import VariantDescription
from app.variants.catalogue import Catalogue
from app.variants.device import release_memory, use_threads
from app.variants.downloads import Downloads
from app.variants.loaded_model import Load, LoadedModel, TileUpscaler, count_parameters, warm_up, weights_digest
from app.variants.served_variant import ServedVariant
from model.official.fetch import FetchError, OfficialWeights, Step
from model.upscaler import Upscaler, find_device

logger = logging.getLogger(__name__)


class ModelRegistry:
    """The variants of this server, and what is loaded.

    Args:
        wanted: names and aliases to load at startup; the first is the default.
        model_dir: folder of checkpoints, each a variant under its own name in lower case.
        official: the authors' weights on this machine, and their download.
        device, precision: as in ``Upscaler``; the device decides how aliases are resolved.
        threads: of a forward pass on a CPU.
        tile_size: largest side of a tile in pixels, which a device is warmed up for.
        load: loads the weights of a variant; a stand-in for tests.
        heartbeat: called before each block while a network computes.

    Raises:
        ValueError: if a variant in ``wanted`` is unknown or cannot be found or downloaded, or the device is missing.
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
        tile_size: int = 0,
        load: Load | None = None,
        heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = find_device(device)
        self._precision = precision
        self._threads = threads
        self._tile_size = tile_size
        self._load = load or self._load_upscaler
        self._heartbeat = heartbeat
        self._loader = ThreadPoolExecutor(1, "swin2sr-loader")
        official = official or OfficialWeights()
        self._downloads = Downloads(official)
        self._catalogue = Catalogue(model_dir, self.device.type, official)
        self._catalogue.log_aliases()
        self._versions = itertools.count(1)
        self._boot = self._catalogue.choose(wanted)
        self.default = wanted[0]
        self.booted = False

    def resolve(self, name: str | None) -> ServedVariant:
        """The variant of a name or alias, the default for None.

        Raises:
            UnknownVariant: if there is no such name.
            NotReady: if its weights are missing; the message says how to get them, or the progress of the download.
        """
        variant = self._catalogue.find(name or self.default)
        if variant.path is None and variant.state != "absent":
            verb, retry_after = ("is ", 10) if variant.state == "loading" else ("", 60)
            raise NotReady(f"The variant {variant.name!r} {verb}{variant.reason}", retry_after=retry_after)
        return self._catalogue.resolve(name or self.default)

    def find(self, name: str) -> ServedVariant:
        """The variant of a name or alias, present or not.

        Raises:
            UnknownVariant: if there is no such name.
        """
        return self._catalogue.find(name)

    @property
    def precision(self) -> str:
        """What the loaded variants compute in, comma-separated if they differ; the setting before one is loaded."""
        return ",".join(sorted({loaded.precision for loaded in self._loaded})) or self._precision

    def is_alias(self, name: str | None) -> bool:
        """Whether a name, or the default for None, is an alias."""
        return (name or self.default).lower() in self._catalogue.aliases

    def chain(self, name: str | None) -> tuple[ServedVariant, ServedVariant] | None:
        """As ``Catalogue.chain``, for a name or alias, the default for None."""
        return self._catalogue.chain(name or self.default)

    def available(self) -> list[ServedVariant]:
        """Variants for which requests succeed, after loading if necessary."""
        return [each for each in self._catalogue.variants.values() if each.is_available]

    def describe(self, name: str) -> VariantDescription:
        """A variant, by its name or an alias.

        Raises:
            UnknownVariant: if there is no such name.
        """
        variant = self.find(name)
        return variant.describe(self._catalogue.aliases_of(variant))

    def describe_all(self) -> list[VariantDescription]:
        """Every variant, in the table's order, own ones last."""
        return [self.describe(name) for name in self._catalogue.variants]

    async def boot(self) -> None:
        """Load and warm the wanted variants one after the other. Failures are recorded in their states.

        Those that must be downloaded come last. Then aliases are resolved again.
        """
        variants = sorted((self.find(name) for name in self._boot), key=lambda each: each.path is None)
        for variant in variants:
            if variant.path is None:
                variant.state, variant.reason = "loading", "about to be fetched"
        for variant in variants:
            (fault,) = await asyncio.gather(self._fetch_and_load(variant), return_exceptions=True)
            if isinstance(fault, Exception) and not isinstance(fault, NotReady):
                logger.error("loading %s failed unexpectedly", variant.name, exc_info=fault)
        self._catalogue.bind_aliases()
        self.booted = True

    async def obtain(self, variant: ServedVariant) -> LoadedModel:
        """The model of a present variant, loaded first if necessary.

        Raises:
            NotReady: if it cannot be loaded, or an administrator unloaded it; the message has the reason.
        """
        if variant.loaded is None and variant.state != "failed" and not variant.withdrawn:
            await self._in_loader(self._make_ready, variant)
        return _model_of(variant)

    async def load(self, variant: ServedVariant) -> None:
        """Load a variant, also one that failed before or was unloaded. Download its weights first if they are missing.

        Raises:
            NotReady: if it cannot be downloaded or loaded.
        """
        variant.withdrawn = False
        await self._fetch_and_load(variant)
        _model_of(variant)

    async def reload(self, variant: ServedVariant) -> None:
        """Replace the weights of a variant by those at its path. The old ones are used until then, and if that fails.

        Raises:
            NotReady: if it cannot be loaded.
        """
        variant.withdrawn = False
        reason = await self._in_loader(self._replace, variant)
        if reason is not None:
            kept = "; the old weights are kept" if variant.loaded else ""
            raise NotReady(f"The variant {variant.name!r} could not be loaded: {reason}{kept}", retry_after=60)

    async def unload(self, variant: ServedVariant) -> None:
        """Unload a variant: new requests are refused, admitted ones are finished first."""
        await self._in_loader(self._withdraw, variant)

    @property
    def bytes_per_pixel(self) -> int:
        """Memory for a pixel of a batch, the largest of the loaded variants; 0 if none is loaded."""
        return max((loaded.upscaler.bytes_per_pixel for loaded in self._loaded), default=0)

    def reasons_not_ready(self) -> list[str]:
        """Why the variants that are loaded at startup cannot be used yet; empty when they can."""
        reasons = [
            f"{each.name}: {each.reason or each.state}"
            for each in map(self.find, self._boot)
            if each.loaded is None and not each.withdrawn
        ]
        return reasons if self._boot else ["no variant is present"]

    def record_batch(self, key: str, pixels: int, seconds: float) -> None:
        """Add a forward pass to the measured speed of the model that ran it."""
        for loaded in self._loaded:
            if loaded.key == key:
                loaded.throughput.record(pixels, seconds)

    def close(self) -> None:
        """Stop loading. Loaded models remain usable."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    @property
    def _loaded(self) -> list[LoadedModel]:
        return [loaded for each in self._catalogue.variants.values() if (loaded := each.loaded) is not None]

    async def _fetch_and_load(self, variant: ServedVariant) -> None:
        if variant.path is None or (variant.origin == "official" and not variant.path.is_file()):
            await self._fetch(variant)
        await self._in_loader(self._make_ready, variant)

    async def _fetch(self, variant: ServedVariant) -> None:
        row = variant.downloadable

        def report(step: Step) -> None:
            variant.reason = f"being fetched: {step}"

        variant.state, variant.reason = "loading", "being fetched"
        logger.info("fetching the weights of %s", variant.name)
        try:
            path = await self._downloads.fetch(row, report)
        except FetchError as error:
            variant.state, variant.reason = "failed", f"could not be fetched: {error}"
            logger.warning("variant %s %s", variant.name, variant.reason)
            raise NotReady(f"The variant {variant.name!r} {variant.reason}", retry_after=60) from error
        self._catalogue.set_path(variant, path)

    async def _in_loader(self, work: Callable[[ServedVariant], str | None], variant: ServedVariant) -> str | None:
        return await asyncio.wrap_future(self._loader.submit(work, variant))

    # In the loading thread.

    def _make_ready(self, variant: ServedVariant) -> str | None:
        if variant.loaded is not None or variant.withdrawn:
            return None
        variant.state, variant.reason = "loading", None
        return self._replace(variant)

    def _replace(self, variant: ServedVariant) -> str | None:
        """Load and warm. Return the reason if that fails; then the old model stays in use."""
        assert variant.path is not None, "checked by resolve"
        is_reload = variant.loaded is not None
        reason: str | None = "unexpected error; see the server's log"
        try:
            use_threads(self._threads)
            digest = weights_digest(variant.path)
            upscaler = self._load(variant.name, variant.path)
            warm_up(upscaler, self._tile_size)
            key = f"{variant.name} {next(self._versions)}"
            loaded = variant.loaded = LoadedModel(key, upscaler, digest, count_parameters(upscaler))
            variant.state, variant.reason, reason = "ready", None, None
            logger.info("variant %s is ready on %s, precision %s", variant.name, upscaler.device, loaded.precision)
            if self._precision not in ("auto", loaded.precision):
                logger.warning("variant %s: precision %s is not available here", variant.name, self._precision)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            logger.warning("variant %s could not be loaded: %s", variant.name, reason)
        finally:
            if variant.loaded is None:
                variant.state, variant.reason = "failed", reason
        if is_reload:
            release_memory(self.device)
        return reason

    def _withdraw(self, variant: ServedVariant) -> None:
        variant.withdrawn = True
        variant.state, variant.loaded = "absent", None
        variant.reason = f"was unloaded; load it with POST /v1/variants/{variant.name}/load"
        release_memory(self.device)
        logger.info("variant %s was unloaded", variant.name)

    def _load_upscaler(self, name: str, path: Path) -> TileUpscaler:
        self._catalogue.verify(self.find(name))
        upscaler = Upscaler.from_pretrained(path, device=str(self.device), precision=self._precision)
        upscaler.on_progress(self._heartbeat)
        return upscaler


def _model_of(variant: ServedVariant) -> LoadedModel:
    """The loaded model of a variant.

    Raises:
        NotReady: if it is not loaded, with the reason.
    """
    if variant.loaded is None:
        outcome = f"{variant.reason}." if variant.withdrawn else f"could not be loaded: {variant.reason}"
        raise NotReady(f"The variant {variant.name!r} {outcome}", retry_after=60)
    return variant.loaded
