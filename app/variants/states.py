"""The state of a variant, and its description for clients."""

from __future__ import annotations

from dataclasses import dataclass

from app.schemas import State, VariantDescription
from app.variants.catalogue import Entry, absent
from app.variants.loaded_model import LoadedModel


@dataclass
class VariantState:
    """The state of a variant. Written by the thread that loads or downloads it, read by all."""

    state: State = "absent"
    reason: str | None = "present; loaded at the first request"
    loaded: LoadedModel | None = None
    withdrawn: bool = False
    """Whether it was unloaded on purpose. It is loaded again on request of an administrator only."""

    def serves(self, entry: Entry) -> bool:
        """Whether requests for it are served, after loading it if necessary."""
        present = entry.path is not None
        return self.loaded is not None or (present and self.state != "failed" and not self.withdrawn)


def describe(entry: Entry, status: VariantState, aliases: list[str]) -> VariantDescription:
    """A variant as ``GET /v1/variants`` shows it; of own weights, nothing is claimed that only the authors' have."""
    variant = entry.variant
    theirs = variant if entry.origin != "own" else None
    loaded = status.loaded
    upscaler = loaded and loaded.upscaler
    lacking = entry.path is None and status.state == "absent"
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
        state=status.state,
        available=status.serves(entry),
        reason=absent(entry.name, entry.name).detail if lacking else status.reason,
        device=str(upscaler.device) if upscaler else None,
        precision=loaded.precision if loaded else None,
        pixels_per_second=loaded.throughput.pixels_per_second if loaded else None,
        aliases=aliases,
        replaces=entry.replaces,
    )
