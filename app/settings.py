"""The settings of the service, read once when it is built.

Each setting is an environment variable with the prefix ``SWIN2SR_`` and an option of ``swin2sr serve``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from app.http.settings import PREFIX, AutoOrPositive, HttpSettings, split
from model.official.fetch import OfficialWeights
from model.variants import RELEASE

MEBIBYTE = 1024 * 1024
WINDOWS = (7, 8)
"""Sides of the attention windows of the known variants, pixels: tiles are whole windows."""


class Settings(HttpSettings):
    """The settings of one service. Immutable.

    Raises:
        pydantic.ValidationError: if a value is invalid, or two values contradict each other; the message names them.
    """

    variants: Annotated[tuple[str, ...], NoDecode] = Field(
        ("x2", "x4", "jpeg-restore", "compressed"),
        description="names and aliases loaded and warmed before ready; the first is the default of requests",
    )
    model_dir: Path | None = Field(None, description="folder of checkpoints, each served under its own name")
    cache_dir: Path | None = Field(None, description="weights cache folder; default: the Hugging Face cache")
    offline: bool = Field(False, description="never download; startup fails if a variant in VARIANTS is missing")
    release_url: str = Field(
        RELEASE, pattern=r"^https?://\S+$", description="URL of the authors' release, or of a mirror"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto uses a GPU if available")
    precision: Literal["auto", "exact", "high", "fast"] = Field(
        "auto", description="exact (float32), high or fast (bfloat16); auto: fast on a GPU, high on a CPU with AMX"
    )
    threads: AutoOrPositive = Field("auto", description="threads of the forward pass; auto: the CPU quota")
    max_body_bytes: int = Field(64 * MEBIBYTE, ge=1, description="largest upload, bytes; bounds memory per request")
    max_inflight_bytes: int = Field(
        512 * MEBIBYTE, ge=1, description="bytes of all uploads held at once; more is refused with 429"
    )
    max_response_bytes: int = Field(
        512 * MEBIBYTE, ge=1, description="bytes of encoded responses held while they are sent; further requests wait"
    )
    max_memory_bytes: AutoOrPositive = Field(
        "auto",
        description=(
            "bytes of decoded images, results and encoders; auto: the memory limit of the container, else half of the "
            "machine's memory, minus that of the variants"
        ),
    )
    max_input_pixels: int = Field(50_000_000, ge=1, description="largest image, pixels, checked before decoding")
    max_output_pixels: int = Field(200_000_000, ge=1, description="largest upscaled image, pixels")
    tile_size: int = Field(544, ge=16, description="largest side computed at once, pixels; more memory, fewer seams")
    tile_overlap: int = Field(64, ge=0, description="pixels shared by neighbouring tiles; more work, fainter seams")
    max_batch_pixels: AutoOrPositive = Field(
        "auto", description="pixels of one forward pass; larger batches are faster up to a point and need more memory"
    )
    max_queue_delay_ms: int = Field(0, ge=0, le=10_000, description="time that an idle worker waits for a fuller batch")
    max_queue_pixels: int = Field(100_000_000, ge=1, description="pixels that may wait; more is refused with 429")
    max_queue_requests: int = Field(256, ge=1, description="requests that may wait; more are refused with 429")
    request_timeout_ms: int = Field(600_000, ge=1, description="maximum time per request before 504")
    upload_timeout_ms: int = Field(30_000, ge=1, description="maximum time for a body to arrive before 408")
    drain_delay_ms: int = Field(
        5_000, ge=0, description="after SIGTERM, keep accepting requests for this long while reporting not ready"
    )
    drain_timeout_ms: int = Field(
        600_000, ge=0, description="after SIGTERM, maximum wait for accepted requests to finish"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of the log: text for people, json for machines"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_dtype(cls, values: object) -> object:
        """Refuse DTYPE, which PRECISION has replaced: if it were ignored, results would silently differ."""
        dtype = next((value for name, value in os.environ.items() if name.upper() == f"{PREFIX}DTYPE" and value), None)
        if dtype is not None:
            precision = {"float32": "exact", "bfloat16": "fast"}.get(dtype.lower(), "auto")
            raise ValueError(f"{PREFIX}DTYPE={dtype} is no longer a setting; set {PREFIX}PRECISION={precision} instead")
        return values

    @field_validator("variants", mode="before")
    @classmethod
    def _split_variants(cls, value: object) -> object:
        return split(value)

    @field_validator("variants")
    @classmethod
    def _name_variants(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.lower() for name in value))
        if not names:
            raise ValueError("at least one variant or alias is needed")
        return names

    @field_validator("device")
    @classmethod
    def _name_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return value

    @field_validator("cache_dir")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    @field_validator("model_dir")
    @classmethod
    def _find_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"{value} is not a folder")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if any(self.tile_size // window <= -(-self.tile_overlap // window) for window in WINDOWS):
            raise ValueError(
                f"TILE_OVERLAP ({self.tile_overlap}) must be smaller than TILE_SIZE ({self.tile_size}), both in whole "
                "windows of 8 and 7 pixels"
            )
        if isinstance(self.max_batch_pixels, int) and self.max_batch_pixels < self.tile_size**2:
            raise ValueError(
                f"MAX_BATCH_PIXELS ({self.max_batch_pixels}) must be at least the {self.tile_size**2} pixels of one "
                f"tile of TILE_SIZE ({self.tile_size})"
            )
        if self.max_body_bytes > self.max_inflight_bytes:
            raise ValueError(
                f"MAX_INFLIGHT_BYTES ({self.max_inflight_bytes}) must be at least MAX_BODY_BYTES "
                f"({self.max_body_bytes})"
            )
        if self.largest_work > self.max_queue_pixels:
            raise ValueError(
                f"MAX_QUEUE_PIXELS ({self.max_queue_pixels}) must be at least {self.largest_work}, the pixels of an "
                f"image of MAX_INPUT_PIXELS ({self.max_input_pixels}) with the overlap of its tiles"
            )
        if self.drain_delay_ms > self.drain_timeout_ms:
            raise ValueError(
                f"DRAIN_DELAY_MS ({self.drain_delay_ms}) must not be longer than DRAIN_TIMEOUT_MS "
                f"({self.drain_timeout_ms})"
            )
        return self

    @property
    def largest_work(self) -> int:
        """Pixels that the network computes for a square image of ``max_input_pixels``, tiles' overlap included."""
        if self.max_input_pixels <= self.tile_size**2:
            return self.max_input_pixels
        return int(self.max_input_pixels * (self.tile_size / (self.tile_size - self.tile_overlap)) ** 2)

    def official_weights(self) -> OfficialWeights:
        """The authors' weights: their cache and their download."""
        return OfficialWeights(self.cache_dir, self.offline, self.release_url)
