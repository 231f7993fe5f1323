"""Request options and response bodies of the HTTP API."""

from __future__ import annotations

import reprlib
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

SMALLEST_TILE = 64
"""Lower limit of the option ``tile`` in pixels. With smaller tiles, overlap is most of the work."""

LARGEST = 10**9
"""Upper limit of sizes and factors, because their products must fit into floating point."""

LOSSLESS = frozenset(("png", "tiff"))
"""Output formats whose size does not depend on a quality."""

LONGEST_SENTENCE = 300
"""Characters of a sentence about an invalid option."""

MOST_SENTENCES = 20
"""Maximum number of faults of one request that are described."""

LONGEST_VALUE = 50
"""Characters of a value in a sentence."""

_NUMBERS = ("width", "height", "factor", "megapixels", "strength", "quality", "max_bytes", "tile", "timeout_ms")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = LONGEST_VALUE
_BOUNDS = {
    "gt": "above {}",
    "ge": "of at least {}",
    "le": "up to {}",
    "max_length": "of at most {} characters",
    "pattern": "that matches {}",
}

State = Literal["absent", "loading", "ready", "failed"]


class UpscaleOptions(BaseModel):
    """The options of ``POST /v1/upscale``, all of them query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: str | None = Field(
        None, max_length=100, description="Variant or task alias; default: the first of VARIANTS."
    )
    width: int | None = Field(None, ge=1, le=LARGEST, description="Width of the result in pixels.")
    height: int | None = Field(None, ge=1, le=LARGEST, description="Height of the result in pixels.")
    factor: Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)] | None = Field(
        None, description="Side of the result over side of the input."
    )
    megapixels: Annotated[float, Field(gt=0, le=LARGEST, allow_inf_nan=False)] | None = Field(
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
        None,
        ge=1,
        le=LARGEST**2,
        description="Largest response in bytes for lossy formats: the best quality that fits is used.",
    )
    metadata: Literal["keep", "strip"] = Field(
        "keep", description="keep: keep EXIF, ICC profile and XMP; strip: convert to sRGB and remove all metadata."
    )
    tile: Annotated[int, Field(ge=SMALLEST_TILE)] | Literal["auto"] = Field(
        "auto", description="Largest side of a tile in pixels, or auto."
    )
    timeout_ms: int | None = Field(None, ge=1, le=LARGEST**2, description="Client deadline in milliseconds.")

    @field_validator(*_NUMBERS, mode="before")
    @classmethod
    def _is_number(cls, value: object) -> object:
        """Refuse true and false, which pydantic takes for 1 and 0."""
        if isinstance(value, bool):
            raise ValueError(f"{value} is not a number")  # noqa: TRY004 - pydantic reports a ValueError only
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


def option_faults(faults: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence of limited length on each invalid option, from pydantic's faults; at most ``MOST_SENTENCES``."""
    sentences = list(dict.fromkeys(map(_option_fault, faults[:MOST_SENTENCES])))
    return [*sentences, f"and {len(faults) - MOST_SENTENCES} more"] if len(faults) > MOST_SENTENCES else sentences


def _option_fault(fault: Mapping[str, Any]) -> str:
    parts = [str(part) for part in fault["loc"] if part not in ("query", "header")]
    name = parts[0][:100] if parts else "options"
    if fault["type"] == "extra_forbidden":
        return f"{name}: unknown option; valid options: {', '.join(UpscaleOptions.model_fields)}"
    return f"{name}: {describe_fault(fault, UpscaleOptions.model_fields.get(name))[:LONGEST_SENTENCE]}"


def describe_fault(fault: Mapping[str, Any], field: FieldInfo | None) -> str:
    """What is wrong with a value: the value, shortened, and what is allowed. Secrets are never shown.

    Args:
        fault: of pydantic.
        field: that the value is for, if it is known.
    """
    accepted = "" if field is None or fault["type"] == "value_error" else allowed(field)
    if field is None and fault["type"] != "value_error":
        return f"{fault['msg']}, not {shown(fault['input'])}"
    if not accepted:
        return str(fault["msg"]).removeprefix("Value error, ")
    return f"{shown(fault['input'])} is not {accepted}"


def shown(value: object) -> str:
    """A value as printable ASCII, shortened."""
    if isinstance(value, int) and value.bit_length() > LONGEST_VALUE:
        return "a number of many digits"
    return _SHORT.repr(value).encode("ascii", "backslashreplace").decode()


def allowed(field: FieldInfo) -> str:
    """The values that a field accepts, for example ``an integer from 1 to 100``; empty if that cannot be said."""
    return " or ".join(filter(None, _kinds(field.annotation, field.metadata)))


def _kinds(annotation: Any, bounds: Sequence[object]) -> list[str]:  # noqa: ANN401 - a type
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(parts[0], [*bounds, *(each for part in parts[1:] for each in getattr(part, "metadata", []))])
    if origin in (Union, types.UnionType):
        return [kind for part in parts if part is not types.NoneType for kind in _kinds(part, bounds)]
    if origin is Literal:
        return [", ".join(parts[:-1]), parts[-1]]
    limits = {name: getattr(each, name) for each in bounds for name in _BOUNDS if hasattr(each, name)}
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    if {"ge", "le"} <= limits.keys():
        return [f"{names[annotation]} from {limits['ge']} to {limits['le']}"]
    words = [_BOUNDS[name].format(limit) for name, limit in limits.items()]
    return [f"{names[annotation]} {' and '.join(words)}".rstrip()] if annotation in names else []


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
                    "source": "trained by this project on CC0 photographs, "
                    "and on the authors' lightweight-x2 network's images of them",
                    "digest": "bab712c47dbd3f1312fe6eec21766b145ac00d23043fb1a74891e90cc17bd78a",
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
