"""How a variant is, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from app.schemas import State, VariantDescription
from app.variants.catalogue import Entry, absent
from app.variants.loaded_model import LoadedModel


@dataclass
class VariantState:
    """How a variant is; changed by the thread that loads it or fetches its weights, read by everybody."""

    state: State = "absent"
    reason: str | None = "present, and loaded when it is first asked for"
    loaded: LoadedModel | None = None
    withdrawn: bool = False
    """Whether it was unloaded on purpose, and is not loaded again before somebody says so."""

    def serves(self, entry: Entry) -> bool:
        """Whether a request for it gets its image, after loading if need be."""
        present = entry.path is not None
        return self.loaded is not None or (present and self.state != "failed" and not self.withdrawn)


def describe(entry: Entry, condition: VariantState, aliases: list[str]) -> VariantDescription:
    """A variant as ``GET /v1/variants`` shows it; of own weights, nothing is claimed that only the authors' have."""
    variant = entry.variant
    theirs = variant if entry.origin != "own" else None
    loaded = condition.loaded
    upscaler = loaded and loaded.upscaler
    lacking = entry.path is None and condition.state == "absent"
    return VariantDescription(
        name=entry.name,
        task=variant.task if variant else "custom",
        scale=variant.scale if variant else upscaler and upscaler.scale,
        summary=variant.summary if variant else "Weights of this server's own, from its MODEL_DIR.",
        channels=variant.channels if variant else upscaler and upscaler.channels,
        parameters=(loaded and loaded.parameters) or (theirs and theirs.parameters) or None,
        license=theirs.license if theirs else None,
        source=theirs.source if theirs else "MODEL_DIR",
        digest=(loaded and loaded.digest) or entry.digest,
        state=condition.state,
        available=condition.serves(entry),
        reason=absent(entry.name, entry.name).detail if lacking else condition.reason,
        device=str(upscaler.device) if upscaler else None,
        precision=loaded.precision if loaded else None,
        pixels_per_second=loaded.throughput.pixels_per_second if loaded else None,
        aliases=aliases,
        replaces=entry.replaces,
    )
