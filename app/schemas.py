"""Request options and response bodies of the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SMALLEST_TILE = 64
"""Lower limit of the option ``tile`` in pixels. With smaller tiles, overlap is most of the work."""

LOSSLESS = frozenset(("png", "tiff"))
"""Output formats whose size does not depend on a quality."""

LONGEST_SENTENCE = 300
"""Characters of a sentence about an invalid option."""

State = Literal["absent", "loading", "ready", "failed"]


class UpscaleOptions(BaseModel):
    """The options of ``POST /v1/upscale``, all of them query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str | None = Field(
        None, max_length=100, description="Variant or task alias; default: the first of VARIANTS."
    )
    width: int | None = Field(None, ge=1, description="Width of the result in pixels.")
    height: int | None = Field(None, ge=1, description="Height of the result in pixels.")
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Side of the result over side of the input."
    )
    megapixels: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Size of the result in millions of pixels."
    )
    fit: Literal["inside", "cover", "exact"] = Field(
        "inside",
        description="With width and height: inside keeps the aspect ratio, cover keeps it and crops, exact stretches.",
    )
    enlarge: bool = Field(
        False, description="If the network passes do not reach the size, resize further with a Lanczos filter."
    )
    restore: Literal["auto", "always", "never"] | None = Field(
        None,
        description=(
            "Remove compression artefacts first; auto does so for strongly compressed JPEG and WebP. Default: auto if "
            "the request names an alias or no variant, else never."
        ),
    )
    strength: float = Field(
        1, ge=0, le=1, description="Blend of the result (1) with the input resized by a bicubic filter (0)."
    )
    ensemble: bool = Field(
        False, description="Average over eight flips and rotations: better quality, eight times slower."
    )
    format: Literal["png", "jpeg", "webp", "tiff", "avif", "jxl", "same"] = Field(
        "png", description="Output format; same: the input's format, or PNG for BMP, GIF and HEIF."
    )
    quality: int = Field(95, ge=1, le=100, description="Quality for lossy formats, 1 to 100.")
    max_bytes: int | None = Field(
        None, ge=1, description="Largest response in bytes for lossy formats: the best quality that fits is used."
    )
    metadata: Literal["keep", "strip"] = Field(
        "keep", description="keep: keep EXIF, ICC profile and XMP; strip: convert to sRGB and remove all metadata."
    )
    tile: int | Literal["auto"] = Field(
        "auto",
        description="Largest side of a tile in pixels, or auto.",
        json_schema_extra={
            "anyOf": [{"type": "integer", "minimum": SMALLEST_TILE}, {"type": "string", "const": "auto"}]
        },
    )
    timeout_ms: int | None = Field(None, ge=1, description="Client deadline in milliseconds.")

    @field_validator("tile")
    @classmethod
    def _large_enough(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < SMALLEST_TILE:
            raise ValueError(f"must be auto or at least {SMALLEST_TILE}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        box = [name for name in ("width", "height") if getattr(self, name) is not None]
        sizes = [
            *(["width or height"] if box else []),
            *(name for name in ("factor", "megapixels") if getattr(self, name) is not None),
        ]
        if len(sizes) > 1:
            raise ValueError(f"give one size only, not {' and '.join(sizes)}")
        if self.fit != "inside" and len(box) < 2:
            raise ValueError(f"fit={self.fit} needs both width and height")
        if self.max_bytes is not None and self.format in LOSSLESS:
            raise ValueError(f"max_bytes needs a lossy format, not {self.format}; use format=jpeg, webp or avif")
        return self


def option_fault(fault: Mapping[str, object]) -> str:
    """A sentence of limited length on an invalid option, from pydantic's fault."""
    location = fault.get("loc")
    parts = [str(part) for part in location if part != "query"] if isinstance(location, tuple | list) else []
    name = ".".join(parts)[:100] or "options"
    if fault.get("type") == "extra_forbidden":
        return f"{name}: unknown option; valid options: {', '.join(UpscaleOptions.model_fields)}"
    return f"{name}: {str(fault.get('msg')).removeprefix('Value error, ')[:LONGEST_SENTENCE]}"


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
                    "parameters": 164504,
                    "license": "Apache-2.0",
                    "source": "trained by this project on CC0 photographs",
                    "digest": "6912009753c57901615862b10a3dd373a5aa383422a795beb3ca3d425a60d257",
                    "state": "ready",
                    "available": True,
                    "reason": None,
                    "device": "cpu",
                    "precision": "high",
                    "pixels_per_second": 214000.0,
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
    pixels_per_second: float | None = Field(
        None, description="Measured speed in input pixels, of recent requests; null before the first one."
    )
    aliases: list[str] = Field(description="Aliases that resolve to this variant on this server.")
    replaces: Literal["official", "embedded"] | None = Field(
        None, description="Which weights of this name a file in MODEL_DIR overrides; null if none."
    )


class VariantList(BaseModel):
    """All variants of this server."""

    default: str = Field(description="Default variant.", examples=["x2"])
    variants: list[VariantDescription]
    formats: list[str] = Field(
        default_factory=list,
        description="Output formats; jxl needs the extra [jxl].",
        examples=[["png", "jpeg", "webp", "tiff", "avif"]],
    )


class Problem(BaseModel):
    """A problem document (RFC 9457), with further members such as ``limit`` and ``actual``."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str


class Health(BaseModel):
    """The response of a successful health probe."""

    status: Literal["ok"] = "ok"


class Readiness(Health):
    """The service accepts requests."""

    version: str = Field(description="Version of the service.", examples=["0.2.0"])
