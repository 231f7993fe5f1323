"""What crosses HTTP: options in, descriptions out."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SMALLEST_TILE = 64
"""The smallest largest tile that a request may ask for, pixels: below, overlap is most of the work."""

State = Literal["absent", "loading", "ready", "failed"]


class UpscaleOptions(BaseModel):
    """The options of ``POST /v1/upscale``, all of them query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str | None = Field(
        None, max_length=100, description="A variant's name or a task alias; the server's first variant by default."
    )
    width: int | None = Field(None, ge=1, description="Reduce the upscaled image to this width, aspect kept.")
    height: int | None = Field(None, ge=1, description="Reduce the upscaled image to this height, aspect kept.")
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Reduce the upscaled image to this multiple of the input's size."
    )
    ensemble: bool = Field(False, description="Average over eight flips and rotations: better, eight times slower.")
    format: Literal["png", "jpeg", "webp", "tiff", "avif", "same"] = Field(
        "png", description="Format of the answer; same: the input's, and PNG for BMP, GIF and HEIF."
    )
    quality: int = Field(95, ge=1, le=100, description="Quality of lossy formats.")
    metadata: Literal["keep", "strip"] = Field(
        "keep", description="keep: EXIF, ICC profile and XMP stay; strip: sRGB pixels and nothing else."
    )
    tile: int | Literal["auto"] = Field("auto", description="Largest side of a tile in pixels.")
    timeout_ms: int | None = Field(None, ge=1, description="Milliseconds after which the caller gives up.")

    @field_validator("tile")
    @classmethod
    def _large_enough(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < SMALLEST_TILE:
            raise ValueError(f"must be auto, or at least {SMALLEST_TILE}")
        return value

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if self.factor is not None and (self.width is not None or self.height is not None):
            raise ValueError("give either factor, or width and height")
        return self


class VariantDescription(BaseModel):
    """A variant as ``GET /v1/variants`` shows it."""

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
                    "dtype": "float32",
                    "aliases": ["x2"],
                    "replaces": None,
                }
            ]
        }
    )

    name: str
    task: str
    scale: int | None = Field(description="Output over input side; unknown for own weights that were not loaded yet.")
    summary: str = Field(description="What it is for.")
    channels: int | None
    parameters: int | None
    license: str | None
    source: str
    digest: str | None = Field(description="SHA-256 of the weights' file, where it is known.")
    state: State
    available: bool = Field(description="Whether it can be asked for: its weights are here, and loaded if need be.")
    reason: str | None = Field(None, description="Why it is absent or failed, or how far its weights have come.")
    device: str | None = None
    dtype: str | None = None
    aliases: list[str] = Field(description="Aliases that stand for it on this server.")
    replaces: Literal["official", "embedded"] | None = Field(
        None, description="The weights of this name that an own file in MODEL_DIR replaces; null if it replaces none."
    )


class VariantList(BaseModel):
    """All variants that this server knows."""

    default: str = Field(description="What a request without a variant gets.", examples=["x2"])
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
    """A good answer to a health question."""

    status: Literal["ok"] = "ok"


class Readiness(Health):
    """The service accepts requests."""

    version: str = Field(description="Version of the service.", examples=["0.2.0"])
