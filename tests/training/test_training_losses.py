"""The distance between what a network returns and what it should return."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from model.network import Swin2SR
from model.reconstruction import Reconstruction
from model.training.loop import Trainer
from model.training.losses import LOGARITHM_WEIGHT, reconstruction_loss
from model.training.pairs import Batch
from model.training.recipe import Recipe
from tests.tiny_training import tiny


def test_auxiliary_image_is_compared_with_the_clean_input() -> None:
    """The compressed head's loss is that of the image plus that of its auxiliary image."""
    network = Swin2SR(tiny(4, "pixelshuffle_aux"))
    clean, sharp = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        result = network(clean)
        image, aux = F.l1_loss(result.image, sharp), F.l1_loss(result.aux, clean)
        loss = reconstruction_loss(result, sharp, clean, torch.tensor([[8, 8]]), aux_weight=0.5)
        assert loss == pytest.approx(float(image + 0.5 * aux))


def test_smoothing_squares_small_distances() -> None:
    """With it the loss is Charbonnier's, sqrt(d^2 + s^2), and a step takes it from the recipe."""
    network = Swin2SR(tiny())
    clean, sharp = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 32, 32)
    recipe = Recipe(config=tiny(), crop=16, smoothing=0.25)
    with torch.no_grad():
        wanted = ((network(clean).image - sharp).square() + 0.25**2).sqrt().mean()
    batch = Batch(*((255 * image).round().byte() for image in (clean, clean, sharp)), torch.tensor([[16, 16]]))
    assert float(Trainer(network, recipe).learn(batch, 0)) == pytest.approx(float(wanted), rel=0.01)
    with pytest.raises(ValueError, match="smoothing must lie between 0 and 1"):
        Recipe(config=tiny(), crop=16, smoothing=1.5)


def test_luma_counts_besides_the_channels() -> None:
    """An error whose luma is 0 costs what it did without the weight, a gray one more; the recipe states it."""
    sharp, sizes = torch.full((1, 3, 8, 8), 0.5), torch.tensor([[8, 8]])

    def losses(error: list[float]) -> list[float]:
        image = Reconstruction(sharp + torch.tensor(error).view(1, 3, 1, 1), None)
        return [
            float(reconstruction_loss(image, sharp, sharp, sizes, aux_weight=1, luma_weight=weight))
            for weight in (0, 2)
        ]

    without, with_weight = losses([0.1, 0.1, 0.1])
    assert with_weight == pytest.approx(without + 2 * 0.1)
    without, with_weight = losses([-0.1, 0.1 * (0.299 - 0.114) / 0.587, 0.1])
    assert with_weight == pytest.approx(without, abs=1e-6)
    with pytest.raises(ValueError, match="luma_weight must be 0 or more"):
        Recipe(config=tiny(), crop=16, luma_weight=-1)
    batch = Batch(*(torch.full((1, 3, side, side), 99, dtype=torch.uint8) for side in (16, 16, 32)), 2 * sizes)
    torch.manual_seed(0)
    network = Swin2SR(tiny())
    first, second = (
        float(Trainer(copy.deepcopy(network), Recipe(config=tiny(), crop=16, luma_weight=weight)).learn(batch, 0))
        for weight in (0, 2)
    )
    assert second > first


def test_logarithms_measure_each_image() -> None:
    """The loss is a multiple of the mean PSNR of the images, without their padding."""
    torch.manual_seed(0)
    sharp, image = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    sizes = torch.tensor([[8, 8], [5, 6]])
    found = reconstruction_loss(Reconstruction(image, None), sharp, sharp, sizes, aux_weight=1, psnr_ceiling=60)
    squared = (image - sharp).square()
    psnr = [-10 * float(torch.log10(error.mean() + 1e-6)) for error in (squared[0], squared[1, :, :5, :6])]
    assert float(found) == pytest.approx(-LOGARITHM_WEIGHT * sum(psnr) / 2 * math.log(10) / 10)
    exact = reconstruction_loss(Reconstruction(sharp, None), sharp, sharp, sizes, aux_weight=1, psnr_ceiling=60)
    assert float(exact) == pytest.approx(LOGARITHM_WEIGHT * math.log(1e-6))


def test_the_recipe_states_the_loss() -> None:
    """A step that learns the PSNR returns another loss than one that learns the distance; a ceiling is positive."""
    batch = Batch(
        *(torch.full((1, 3, side, side), 99, dtype=torch.uint8) for side in (16, 16, 32)), torch.tensor([[16, 16]])
    )
    torch.manual_seed(0)
    network = Swin2SR(tiny())
    plain, logarithmic = (
        float(Trainer(copy.deepcopy(network), Recipe(config=tiny(), crop=16, psnr_ceiling=choice)).learn(batch, 0))
        for choice in (None, 60.0)
    )
    assert logarithmic < 0 < plain
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="psnr_ceiling must be positive and finite"):
            Recipe(config=tiny(), crop=16, psnr_ceiling=wrong)
    with pytest.raises(ValueError, match="give one of both"):
        Recipe(config=tiny(), crop=16, psnr_ceiling=60, smoothing=0.1)
