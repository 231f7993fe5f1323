"""Request options and response bodies of the HTTP API."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SMALLEST_TILE = 64
"""Lower limit of the option ``tile`` in pixels. With smaller tiles, overlap is most of the work."""

State = Literal["absent", "loading", "ready", "failed"]


class UpscaleOptions(BaseModel):
    """The options of ``POST /v1/upscale``, all of them query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str | None = Field(
        None, max_length=100, description="Variant or task alias; default: the first of VARIANTS."
    )
    width: int | None = Field(None, ge=1, description="Reduce the upscaled image to this width, aspect kept.")
    height: int | None = Field(None, ge=1, description="Reduce the upscaled image to this height, aspect kept.")
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Reduce the upscaled image to this multiple of the input's size."
    )
    ensemble: bool = Field(
        False, description="Average over eight flips and rotations: better quality, eight times slower."
    )
    format: Literal["png", "jpeg", "webp", "tiff", "avif", "same"] = Field(
        "png", description="Output format; same: the input's format, or PNG for BMP, GIF and HEIF."
    )
    quality: int = Field(95, ge=1, le=100, description="Quality for lossy formats, 1 to 100.")
    metadata: Literal["keep", "strip"] = Field(
        "keep", description="keep: keep EXIF, ICC profile and XMP; strip: convert to sRGB and remove all metadata."
    )
    tile: int | Literal["auto"] = Field("auto", description="Largest side of a tile in pixels, or auto.")
    timeout_ms: int | None = Field(None, ge=1, description="Client deadline in milliseconds.")

    @field_validator("tile")
    @classmethod
    def _large_enough(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < SMALLEST_TILE:
            raise ValueError(f"must be auto or at least {SMALLEST_TILE}")
        return value

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if self.factor is not None and (self.width is not None or self.height is not None):
            raise ValueError("give either factor, or width and height")
        return self


class VariantDescription(BaseModel):
    """A variant, as ``GET /v1/variants`` lists it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "small-x2",
                    "task": "super-resolution",
                    "scale": 2,
                    "summary": "Doubles a clean image quickly on any machine.",
                    "channels": 3,
                    "parameters": None,
                    "license": "Apache-2.0",
                    "source": "trained by this project on CC0 photographs",
                    "digest": "6912009753c57901615862b10a3dd373a5aa383422a795beb3ca3d425a60d257",
                    "state": "ready",
                    "available": True,
                    "reason": None,
                    "device": "cpu",
                    "precision": "high",
                    "aliases": ["x2"],
                    "replaces": None,
                }
            ]
        }
    )

    name: str
    task: str
    scale: int | None = Field(description="Upscaling factor; null for your own weights until they are loaded.")
    summary: str = Field(description="What the variant is for, in one sentence.")
    channels: int | None
    parameters: int | None
    license: str | None
    source: str
    digest: str | None = Field(description="SHA-256 of the weights file, if known.")
    state: State
    available: bool = Field(description="Whether requests for this variant succeed (weights are loaded on demand).")
    reason: str | None = Field(
        None, description="Why the variant is absent or failed, or the progress of its download."
    )
    device: str | None = None
    precision: str | None = Field(None, description="What the variant computes in: `exact`, `high` or `fast`.")
    aliases: list[str] = Field(description="Aliases that resolve to this variant on this server.")
    replaces: Literal["official", "embedded"] | None = Field(
        None, description="Which weights of this name a file in MODEL_DIR overrides; null if none."
    )


class VariantList(BaseModel):
    """All variants of this server."""

    default: str = Field(description="Default variant.", examples=["x2"])
    variants: list[VariantDescription]


class Problem(BaseModel):
    """An error (RFC 9457), with further members such as ``limit`` and ``actual``."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class Health(BaseModel):
    """The response of a health probe that succeeds."""

    status: Literal["ok"] = "ok"


class Readiness(Health):
    """The service accepts requests."""

    version: str = Field(description="Version of the service.", examples=["0.2.0"])
