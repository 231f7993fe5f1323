"""Fixtures of the training tests: photos, and tiny networks in place of the real ones."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from model.training import __main__ as command
from model.training import held_out
from model.training.pairs import Photo
from model.training.photos import read_photos
from model.training.recipe import Recipe
from tests.tiny_training import draw, tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(3):
        Image.fromarray(draw(64, 72, n)).save(photos / f"{n}.png")
    return photos


@pytest.fixture
def photos(folder: Path) -> list[Photo]:
    return read_photos(folder, 2, 3, 16, 1)


@pytest.fixture
def tiny_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put tiny networks in the place of the real ones, and measure them on a few graphics."""
    recipes = {
        "small-x2": Recipe(config=tiny(), crop=16, batch=1, warmup=2),
        "small-x4": Recipe(config=tiny(4), crop=16, batch=1, warmup=2),
        "small-jpeg": Recipe(config=tiny(1, None), crop=16, batch=1, warmup=2, quality=(10, 95)),
        "small-compressed-x4": Recipe(config=tiny(4), crop=16, batch=1, warmup=2, quality=(10, 95)),
    }
    monkeypatch.setattr(command, "RECIPES", recipes)
    monkeypatch.setattr(held_out, "GRAPHICS", 4)


@pytest.fixture
def threads() -> object:
    """Put torch's settings back that the command changes."""
    deterministic, count = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(count)
