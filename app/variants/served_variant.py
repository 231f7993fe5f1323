"""A variant on this server: where its weights are, whether they are loaded, and its description for clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.errors import NotReady
from app.schemas import State, VariantDescription
from app.variants.loaded_model import LoadedModel
from model.variants import Variant


@dataclass(eq=False)
class ServedVariant:
    """A variant on this server. Written by the thread that loads or downloads it, read by all.

    Attributes:
        name: as in requests.
        row: in the table of variants; None for an own checkpoint.
        path: of its weights; None if they are missing.
        origin: of its weights: MODEL_DIR, the package, or the authors.
        digest: expected SHA-256 of the weights if it is known; the actual one of embedded weights.
        state, reason: as clients see them.
        loaded: the model while it is loaded.
        withdrawn: whether an administrator unloaded it. Requests do not load it again then.
    """

    name: str
    row: Variant | None
    path: Path | None
    origin: Literal["own", "embedded", "official"]
    digest: str | None = None
    state: State = "absent"
    reason: str | None = "present; loaded at the first request"
    loaded: LoadedModel | None = None
    withdrawn: bool = False

    @property
    def replaces(self) -> Literal["official", "embedded"] | None:
        """Which weights of the same name an own file overrides."""
        if self.origin != "own" or self.row is None:
            return None
        return "embedded" if self.row.embedded else "official"

    @property
    def is_available(self) -> bool:
        """Whether requests for it succeed, after loading it if necessary."""
        return self.loaded is not None or (self.path is not None and self.state != "failed" and not self.withdrawn)

    @property
    def scale(self) -> int | None:
        """Scale of the loaded weights, else that of the table; None for an own checkpoint that is not loaded."""
        if self.loaded is not None:
            return self.loaded.upscaler.scale
        return self.row.scale if self.row else None

    @property
    def downloadable(self) -> Variant:
        """Its row, if its weights can be downloaded.

        Raises:
            NotReady: if not, because they are part of the package or an own checkpoint.
        """
        if self.row is None or self.row.embedded:
            raise self.absent()
        return self.row

    def absent(self, requested: str = "", *, serves: bool = True) -> NotReady:
        """The error for missing weights, which says how to get them.

        Args:
            requested: the alias that was requested, if it was one.
            serves: whether a server needs them, not a command.
        """
        advice = (
            f"Run `swin2sr fetch {self.name}` on the server and restart it, or ask its administrator to POST "
            f"/v1/variants/{self.name}/load."
        )
        if self.row is not None and self.row.embedded:
            advice = "They should be part of the package, but are missing from this installation. Reinstall it."
        elif not serves:
            advice = f"Download them with: swin2sr fetch {self.name}"
        place = "server" if serves else "machine"
        text = f"The weights of {requested or self.name!r} are not on this {place}. {advice}"
        return NotReady(text, retry_after=60, variant=self.name)

    def describe(self, aliases: list[str]) -> VariantDescription:
        """The description in ``GET /v1/variants``. What is known of the authors' weights is not claimed of own ones."""
        row, loaded = self.row, self.loaded
        theirs = row if self.origin != "own" else None
        upscaler = loaded and loaded.upscaler
        is_missing = self.path is None and self.state == "absent"
        return VariantDescription(
            name=self.name,
            task=row.task if row else "custom",
            scale=row.scale if row else self.scale,
            summary=row.summary if row else "Own weights, from MODEL_DIR.",
            channels=row.channels if row else upscaler and upscaler.channels,
            parameters=(loaded and loaded.parameters) or (theirs and theirs.parameters) or None,
            license=theirs.license if theirs else None,
            source=theirs.source if theirs else "MODEL_DIR",
            digest=(loaded and loaded.digest) or self.digest,
            state=self.state,
            available=self.is_available,
            reason=self.absent().detail if is_missing else self.reason,
            device=str(upscaler.device) if upscaler else None,
            precision=loaded.precision if loaded else None,
            pixels_per_second=loaded.throughput.pixels_per_second if loaded else None,
            aliases=aliases,
            replaces=self.replaces,
        )
