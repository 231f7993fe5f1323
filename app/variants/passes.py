"""Chooses the variants that compute a request, one for each pass, and makes sure that they are loaded."""

from __future__ import annotations

from dataclasses import dataclass

from app import codec
from app.errors import NotReady
from app.imaging.target_size import Pass, choose_passes, find_target
from app.schemas import UpscaleOptions
from app.variants.catalogue import Entry
from app.variants.loaded_model import LoadedModel
from app.variants.registry import ModelRegistry

FAMILIES = ("classical", "lightweight", "small")
"""Variants of one family differ in their scale only, and may follow each other."""

REPEATABLE = "realworld-x4"
"""The official variant without a family that may follow itself."""

RESTORE_BELOW_QUALITY = 80
"""Estimated quality of a JPEG or WebP upload below which ``restore=auto`` removes its artefacts first.

Measured on held-out photographs (model/weights/README.md): at 75 the mean gain is 1.1 dB and the worst 5 % lose
0.02 dB; at 85 the worst 5 % lose 0.55 dB.
"""

RESTORING_ALIAS = "jpeg-restore"
SUPER_RESOLUTION = "super-resolution"


@dataclass(frozen=True)
class ChosenModels:
    """The models of a request.

    Attributes:
        main: name of the variant of the first enlarging pass, which the request is counted and named by.
        names, models: of every pass, in order.
        restored: what the restoring pass was, for a response header; None without one.
        notices: sentences on what was skipped.
    """

    main: str
    names: tuple[str, ...]
    models: tuple[LoadedModel, ...]
    restored: str | None = None
    notices: tuple[str, ...] = ()


async def choose_models(
    registry: ModelRegistry, options: UpscaleOptions, header: codec.Header, *, max_pixels: int
) -> ChosenModels:
    """Choose and load the models of a request.

    Args:
        registry: the variants.
        options: of the request.
        header: of the upload.
        max_pixels: largest image at any point.

    Raises:
        UnknownVariant, NotReady: if the variant, or one that a pass needs, does not exist or cannot be loaded.
        ImageTooLarge, InvalidOption: if the size is too large, or cannot be reached.
    """
    entry = registry.resolve(options.variant)
    first = await registry.obtain(entry)
    is_alias = registry.is_alias(options.variant)
    passes = choose_passes(
        [Pass(entry.name, first.upscaler.scale), *(_family(registry, entry) if is_alias else [])],
        _family(registry, entry) or _repeated(entry, first),
        (header.upright_height, header.upright_width),
        find_target(header.upright_height, header.upright_width, options),
        max_pixels=max_pixels,
        enlarge=options.enlarge,
    )
    names = [each.variant for each in passes]
    models = [first if name == entry.name else await registry.obtain(registry.resolve(name)) for name in names]
    restoring, notices = _find_restoring(registry, options, entry, header, is_alias=is_alias)
    if restoring is None:
        return ChosenModels(names[0], tuple(names), tuple(models), None, notices)
    restorer = await registry.obtain(restoring)
    restored = restoring.name if header.quality is None else f"{restoring.name}; quality={header.quality}"
    return ChosenModels(names[0], (restoring.name, *names), (restorer, *models), restored)


def _family(registry: ModelRegistry, entry: Entry) -> list[Pass]:
    """The available super-resolution variants of an official variant's family."""
    family = entry.name.partition("-")[0]
    if entry.origin == "own" or family not in FAMILIES:
        return []
    return [
        Pass(each.name, registry.scale_of(each))
        for each in registry.available()
        if each.origin != "own"
        and each.variant is not None
        and each.variant.task == SUPER_RESOLUTION
        and each.name.startswith(f"{family}-")
    ]


def _repeated(entry: Entry, model: LoadedModel) -> list[Pass]:
    """A variant that may follow itself: an own checkpoint, or the official one without a family."""
    repeats = entry.origin == "own" or entry.name == REPEATABLE
    return [Pass(entry.name, model.upscaler.scale)] if repeats and model.upscaler.scale > 1 else []


def _find_restoring(
    registry: ModelRegistry, options: UpscaleOptions, entry: Entry, header: codec.Header, *, is_alias: bool
) -> tuple[Entry | None, tuple[str, ...]]:
    """The restoring variant to run first, or None, and notices.

    Raises:
        NotReady: if ``restore=always`` and it is not loaded.
    """
    wish = options.restore or ("auto" if is_alias else "never")
    is_enlarging = entry.origin != "own" and entry.variant is not None and entry.variant.task == SUPER_RESOLUTION
    if wish == "never" or not is_enlarging:
        return None, ()
    if wish == "auto" and (header.quality is None or header.quality >= RESTORE_BELOW_QUALITY):
        return None, ()
    restoring = registry.find(RESTORING_ALIAS)
    if registry.is_loaded(restoring):
        return restoring, ()
    if wish == "always":
        raise NotReady(
            f"restore=always needs the variant {restoring.name!r}, which is not loaded. Add it to VARIANTS, or use "
            "restore=auto or never.",
            retry_after=60,
            variant=restoring.name,
        )
    return None, (f"compression artefacts were not removed first: {restoring.name} is not loaded",)
