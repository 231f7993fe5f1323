"""Networks that keep flat areas and the mean of an image by construction, in training and in their bfloat16 files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoints import load_network
from model.network import Swin2SR
from model.training.crops import Crops
from model.training.flat_areas import can_keep_flat, keep_flat, round_to_bfloat16, round_zero_sum
from model.training.loop import Trainer, export
from model.training.pairs import Photo
from model.training.recipe import Recipe
from tests.test_training import draw, tiny

HEADS = [(2, "pixelshuffledirect"), (4, "pixelshuffledirect"), (1, None), (4, "pixelshuffle_aux")]
COLOURS = ((255, 0, 255), (0, 0, 255), (0, 255, 0), (10, 200, 120), (255, 255, 255), (0, 0, 0))
MARGIN = 24
"""Pixels from the border that a stage of two blocks and the convolutions around it reach at most."""


def scrambled(upscale: int, upsampler: str | None, seed: int = 0) -> Swin2SR:
    """Return a network with large random weights, which changes every colour."""
    torch.manual_seed(seed)
    network = Swin2SR(tiny(upscale, upsampler))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


@torch.inference_mode()
def off(network: Swin2SR, colour: tuple[int, ...]) -> float:
    """Levels by which a flat image changes away from its border."""
    flat = torch.tensor(colour).view(1, 3, 1, 1) / 255
    margin = MARGIN * network.config.upscale
    image = network(flat.expand(1, 3, 72, 72)).image
    return float((255 * (image - flat)).abs()[..., margin:-margin, margin:-margin].max())


@pytest.mark.slow
@pytest.mark.parametrize(("upscale", "upsampler"), HEADS)
def test_flat_areas_keep_their_value(upscale: int, upsampler: str | None) -> None:
    """Moving its weights makes any network fulfil it, and rounding them to bfloat16 costs less than half a level."""
    network = scrambled(upscale, upsampler)
    assert max(off(network, colour) for colour in COLOURS) > 1
    keep_flat(network)
    assert max(off(network, colour) for colour in COLOURS) < 0.02
    round_to_bfloat16(network)
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in network.parameters())
    network.train().eval()  # position biases are computed again
    assert max(off(network, colour) for colour in COLOURS) < 0.45


@pytest.mark.parametrize(("upscale", "upsampler"), HEADS)
def test_the_mean_of_an_image_is_kept(upscale: int, upsampler: str | None) -> None:
    """Away from the border the mean of a one-pixel checkerboard stays, whatever the weights are."""
    network = scrambled(upscale, upsampler, seed=1)
    board = (torch.arange(96)[:, None] + torch.arange(96)) % 2
    image = (0.2 + 0.5 * board).expand(1, 3, 96, 96)
    margin = MARGIN * upscale

    def mean_error() -> float:
        with torch.inference_mode():
            inner = network(image).image[..., margin:-margin, margin:-margin]
        return float((255 * (inner.mean((2, 3)) - 0.45)).abs().max())

    assert mean_error() > 1
    keep_flat(network)
    assert mean_error() < 0.5


@pytest.mark.parametrize(("upscale", "upsampler"), HEADS)
def test_weights_that_keep_flat_areas_stay_where_they_are(upscale: int, upsampler: str | None) -> None:
    """The second time nothing moves."""
    network = scrambled(upscale, upsampler)
    keep_flat(network)
    before = [parameter.clone() for parameter in network.parameters()]
    keep_flat(network)
    for was, parameter in zip(before, network.parameters(), strict=True):
        assert torch.allclose(was, parameter, atol=1e-6)


@pytest.mark.parametrize(("upscale", "upsampler"), [(2, "pixelshuffle"), (4, "nearest+conv")])
def test_heads_without_a_linear_path_are_refused(upscale: int, upsampler: str) -> None:
    """The message names the head."""
    network = Swin2SR(tiny(upscale, upsampler))
    assert not can_keep_flat(network.config)
    with pytest.raises(ValueError, match=upsampler.replace("+", r"\+")):
        keep_flat(network)
    with pytest.raises(ValueError, match="flat areas"):
        Trainer(network, Recipe(config=network.config, crop=16), flat=True)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
def test_kernels_are_rounded_without_changing_their_sum(scale: float) -> None:
    """Sums stay zero to the bit, and no value moves by more than two steps of the kernel's largest one."""
    torch.manual_seed(0)
    kernels = scale * torch.randn(500, 3, 3)
    kernels -= kernels.mean((1, 2), keepdim=True)
    rounded = round_zero_sum(kernels)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert torch.equal(rounded.double().sum((1, 2)), torch.zeros(500, dtype=torch.float64))
    largest = kernels.abs().amax((1, 2), keepdim=True)
    assert ((rounded - kernels).abs() <= largest / 64).all()
    assert torch.equal(round_zero_sum(torch.zeros(2, 3, 3)), torch.zeros(2, 3, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("upscale", "upsampler"), HEADS)
def test_training_keeps_flat_areas(upscale: int, upsampler: str | None, tmp_path: Path) -> None:
    """After steps at a high rate, the network in training and the exported average both keep them."""
    network = scrambled(upscale, upsampler)
    sharp = draw(24 * upscale, 24 * upscale)
    photo = Photo("", sharp, np.ascontiguousarray(sharp[::upscale, ::upscale]))
    recipe = Recipe(config=network.config, crop=16, batch=2, warmup=1, learning_rate=0.01)
    trainer = Trainer(network, recipe, flat=True)
    before = trainer.network.swin2sr.first_convolution.weight.clone()
    crops = Crops([photo], crop=16, batch=2, graphics=0.5, window=8)
    for step in range(6):
        trainer.learn(crops.batch(step), 0)
    assert not torch.allclose(before, trainer.network.swin2sr.first_convolution.weight)
    file = tmp_path / "flat.safetensors"
    export(trainer.finish(), file)
    for found in (trainer.network, load_network(file)):
        assert max(off(found.eval(), colour) for colour in COLOURS) < 0.45


def test_what_is_measured_is_what_is_written(tmp_path: Path) -> None:
    """The finished network has the weights of its file, rounding included."""
    trainer = Trainer(scrambled(2, "pixelshuffledirect"), Recipe(config=tiny(), crop=16), flat=True)
    finished = trainer.finish()
    export(finished, tmp_path / "w.safetensors")
    written: dict[str, Tensor] = load_network(tmp_path / "w.safetensors").state_dict()
    for key, tensor in finished.state_dict().items():
        assert torch.equal(tensor, written[key]), key
