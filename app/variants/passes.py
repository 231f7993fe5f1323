"""Chooses the variants that compute a request, one for each pass, and loads them."""

from __future__ import annotations

from dataclasses import dataclass

from app import codec
from app.errors import NotReady
from app.imaging.target_size import Pass, choose_passes, find_target
from app.schemas import UpscaleOptions
from app.variants.loaded_model import LoadedModel
from app.variants.registry import ModelRegistry
from app.variants.served_variant import ServedVariant

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
        main: name of the variant of the first enlarging pass, for metrics, log and file name.
        names, models: of every pass, in order.
        restored: the restoring variant and the estimated quality, for a response header; None without a restoring pass.
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
    variant = registry.resolve(options.variant)
    is_alias = registry.is_alias(options.variant)
    chain = registry.chain(options.variant)
    variant = chain[1] if chain else variant
    first = await registry.obtain(variant)
    passes = choose_passes(
        [Pass(variant.name, first.upscaler.scale), *(_family(registry, variant) if is_alias else [])],
        _family(registry, variant) or _repeated(variant, first),
        (header.upright_height, header.upright_width),
        find_target(header.upright_height, header.upright_width, options),
        max_pixels=max_pixels,
        enlarge=options.enlarge,
    )
    names = [each.variant for each in passes]
    models = [first if name == variant.name else await registry.obtain(registry.resolve(name)) for name in names]
    restoring, notices = (
        (chain[0], ()) if chain else _find_restoring(registry, options, variant, header, is_alias=is_alias)
    )
    if restoring is None:
        return ChosenModels(names[0], tuple(names), tuple(models), None, notices)
    restorer = await registry.obtain(restoring)
    restored = restoring.name if header.quality is None else f"{restoring.name}; quality={header.quality}"
    return ChosenModels(names[0], (restoring.name, *names), (restorer, *models), restored)


def _family(registry: ModelRegistry, variant: ServedVariant) -> list[Pass]:
    """The available super-resolution variants of an official variant's family."""
    family = variant.name.partition("-")[0]
    if variant.origin == "own" or family not in FAMILIES:
        return []
    return [
        Pass(each.name, each.scale or 1)
        for each in registry.available()
        if each.name.startswith(f"{family}-") and _is_super_resolution(each)
    ]


def _is_super_resolution(variant: ServedVariant) -> bool:
    return variant.origin != "own" and variant.row is not None and variant.row.task == SUPER_RESOLUTION


def _repeated(variant: ServedVariant, model: LoadedModel) -> list[Pass]:
    """A variant that may follow itself: an own checkpoint, or the official one without a family."""
    repeats = variant.origin == "own" or variant.name == REPEATABLE
    return [Pass(variant.name, model.upscaler.scale)] if repeats and model.upscaler.scale > 1 else []


def _find_restoring(
    registry: ModelRegistry, options: UpscaleOptions, variant: ServedVariant, header: codec.Header, *, is_alias: bool
) -> tuple[ServedVariant | None, tuple[str, ...]]:
    """The restoring variant to run first, or None, and notices.

    Raises:
        NotReady: if ``restore=always`` and it is not loaded.
    """
    restore = options.restore or ("auto" if is_alias else "never")
    if restore == "never" or not _is_super_resolution(variant):
        return None, ()
    if restore == "auto" and (header.quality is None or header.quality >= RESTORE_BELOW_QUALITY):
        return None, ()
    restoring = registry.find(RESTORING_ALIAS)
    if restoring.loaded is not None:
        return restoring, ()
    if restore == "always":
        raise NotReady(
            f"restore=always needs the variant {restoring.name!r}, which is not loaded. Add it to VARIANTS, or use "
            "restore=auto or never.",
            retry_after=60,
            variant=restoring.name,
        )
    return None, (f"compression artefacts were not removed first: {restoring.name} is not loaded",)
