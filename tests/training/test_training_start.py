"""What a training run begins with: recipes, the schedule, and a network that interpolates."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.config import Swin2SRConfig
from model.degradations import resize_bicubic
from model.network import Swin2SR
from model.training.initialise import interpolation_kernels, solve_second, start_at_interpolation
from model.training.loop import Limits, learning_rate, parameter_groups
from model.training.recipe import RECIPES, Recipe
from tests.tiny_training import draw, tiny


@pytest.mark.parametrize("scale", [2, 4])
def test_kernels_are_bicubic_enlargement(scale: int) -> None:
    """The 5x5 filters and a pixel shuffle enlarge as MATLAB does, away from the border."""
    photo = draw(20, 24)
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].double()
    enlarged = F.pixel_shuffle(F.conv2d(pixels, interpolation_kernels(scale, 3), padding=2), scale)
    ours = enlarged[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    inner = slice(2 * scale, -2 * scale)
    expected = resize_bicubic(photo, 20 * scale, 24 * scale).astype(float)
    # MATLAB rounds to 8 bit between its two directions, which costs a level here and there.
    assert np.abs(ours - expected)[inner, inner].max() <= 1


def test_second_convolution_completes_the_first() -> None:
    """Whatever the first convolution is, both together are the wanted filters."""
    torch.manual_seed(0)
    first = torch.randn(16, 3, 3, 3)
    wanted = torch.randn(5, 3, 5, 5, dtype=torch.float64)
    second = solve_second(first, wanted)
    image = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    both = F.conv2d(F.conv2d(image, first.double()), second)
    assert torch.allclose(both, F.conv2d(image, wanted), atol=1e-9)


@pytest.mark.parametrize(
    ("upscale", "upsampler"), [(2, "pixelshuffledirect"), (4, "pixelshuffledirect"), (4, "pixelshuffle_aux"), (1, None)]
)
def test_network_starts_near_interpolation(upscale: int, upsampler: str | None) -> None:
    """Before the first step the output is interpolation, and the auxiliary image is the input, up to a small body."""
    torch.manual_seed(0)
    network = Swin2SR(tiny(upscale, upsampler))
    start_at_interpolation(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            silenced = ("swin2sr.conv_after_body", "upsample.upsample.convolution_1")
            if name.startswith(silenced) or (upsampler is None and name == "final_convolution.weight"):
                parameter.zero_()  # silences the body; the skip path is left
    pixels = torch.rand(1, 3, 24, 24)
    with torch.inference_mode():
        result = network.eval()(pixels)
    expected = pixels if upscale == 1 else F.interpolate(pixels, scale_factor=upscale, mode="bicubic")
    if upsampler == "pixelshuffledirect":  # torch's bicubic has a = -0.75
        expected = F.pixel_shuffle(F.conv2d(pixels, interpolation_kernels(upscale, 3).float(), padding=2), upscale)
    inner = slice(3 * upscale, -3 * upscale)
    assert (result.image - expected)[..., inner, inner].abs().max() < 1e-4
    if result.aux is not None:
        assert (result.aux - pixels)[..., 3:-3, 3:-3].abs().max() < 0.02


def test_heads_with_activations_keep_their_start() -> None:
    """The classical head is left as the network made it."""
    torch.manual_seed(0)
    network = Swin2SR(tiny(2, "pixelshuffle"))
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    start_at_interpolation(network)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_rate_warms_up_and_falls_to_its_floor() -> None:
    """Linear up, cosine down, never zero."""
    recipe = Recipe(config=tiny(), crop=16, learning_rate=1.0, warmup=10, floor=0.01)
    assert learning_rate(recipe, 0, 0) == pytest.approx(0.1)
    assert learning_rate(recipe, 9, 0) == pytest.approx(1)
    assert learning_rate(recipe, 500, 0.5) == pytest.approx(0.505)
    assert learning_rate(recipe, 500, 1) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 20},
        {"batch": 0},
        {"ema_decay": 1.0},
        {"quality": (90, 10)},
        {"graphics": 1.5},
        {"continued_rate": 0.0},
        {"smaller": (1.0,)},
    ],
)
def test_impossible_recipes_are_refused(wrong: dict[str, object]) -> None:
    """A crop off the grid, no crops, a fixed average, falling qualities, a share above 1, no rate, a copy as large."""
    with pytest.raises(ValueError, match="must"):
        Recipe(**{"config": tiny(), "crop": 16, **wrong})


def test_a_run_ends_by_steps_or_by_minutes() -> None:
    """Progress is whichever is further, and one of both must be given."""
    both = Limits(steps=100, minutes=1)
    assert both.progress(50, 6) == 0.5
    assert both.progress(10, 30) == 0.5
    assert both.progress(10, 600) == 1
    for wrong in ({}, {"steps": 0}, {"minutes": -1.0}):
        with pytest.raises(ValueError, match="positive"):
            Limits(**wrong)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("small-")])
def test_embedded_variants_are_small(name: str) -> None:
    """Every embedded network fits 1.5 MB in bfloat16, and its body is a sixth of lightweight's."""
    config = RECIPES[name].config
    network = Swin2SR(config)
    assert 2 * sum(parameter.numel() for parameter in network.parameters()) < 1_500_000
    lightweight = RECIPES["lightweight-x2"].config
    assert operations(lightweight) / operations(config) > 5.5


def operations(config: Swin2SRConfig) -> float:
    """Count the multiply-adds of a body for each pixel."""
    dim, stages, blocks = config.embed_dim, len(config.depths), sum(config.depths)
    block = (4 + 2 * config.mlp_ratio) * dim**2 + 2 * config.window_size**2 * dim
    return blocks * block + (stages + 1) * (9 + 1) * dim**2 + 9 * config.num_channels * dim


def test_vectors_do_not_decay() -> None:
    """Biases, norms and logit scales are left out of weight decay; every parameter is in one group."""
    network = Swin2SR(tiny())
    decayed, others = (group["params"] for group in parameter_groups(network, 0.1))
    assert all(parameter.ndim > 1 for parameter in decayed)
    assert len(decayed) + len(others) == len(list(network.parameters()))
    scales = {id(p) for name, p in network.named_parameters() if name.endswith("logit_scale")}
    assert scales <= {id(parameter) for parameter in others}
