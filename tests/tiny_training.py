"""A network small enough to train in a test, pictures to train on, and a run."""

from pathlib import Path

import numpy as np
import torch

from model.config import Swin2SRConfig
from model.network import Swin2SR
from model.training.crops import Crops
from model.training.held_out import HeldOut
from model.training.initialise import start_at_interpolation
from model.training.loop import Limits, Report, Trainer, train
from model.training.pairs import Photo
from model.training.recipe import Recipe


def tiny(upscale: int = 2, upsampler: str | None = "pixelshuffledirect", channels: int = 3) -> Swin2SRConfig:
    """Return a network small enough to train in a test."""
    return Swin2SRConfig(
        num_channels=channels,
        embed_dim=16,
        depths=(2,),
        num_heads=(2,),
        upscale=upscale,
        upsampler=upsampler,
        drop_path_rate=0.0,
    )


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw stripes at a random angle with a random colour."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    angle, colour = generator.uniform(0, 3), generator.uniform(0.3, 1, 3)
    stripes = np.clip(0.5 + 2 * np.sin(np.cos(angle) * rows / 2 + np.sin(angle) * columns / 2), 0, 1)
    return (40 + 180 * stripes[:, :, None] * colour).astype(np.uint8)


def start(photos: list[Photo], seed: int = 0) -> tuple[Trainer, Crops, HeldOut]:
    torch.manual_seed(seed)
    recipe = Recipe(config=tiny(), crop=16, batch=2, warmup=2)
    network = Swin2SR(recipe.config)
    start_at_interpolation(network)
    crops = Crops(photos, crop=16, batch=2, seed=seed)
    return Trainer(network, recipe), crops, HeldOut(photos[:1], [], None, 8)


def go(trainer: Trainer, crops: Crops, held_out: HeldOut, folder: Path, steps: int) -> list[Report]:
    reports: list[Report] = []
    train(
        trainer,
        crops,
        held_out,
        Limits(steps=steps),
        folder=folder,
        weights="tiny.safetensors",
        every=max(2, steps // 3),
        on_report=reports.append,
    )
    return reports
