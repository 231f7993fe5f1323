"""Back-projection and the range limit: what they are and guarantee, and that every way to compute them agrees."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model import Swin2SRForImageSuperResolution, cpu_kernel
from model.checkpoints import load_network, write_official
from model.config import Swin2SRConfig
from model.export import export
from model.inference.cpu import Inference
from model.kernels import weights as kernel_weights
from model.refinement import FAR, NEAR, enlarge, reduce, refine
from model.upscaler import Upscaler
from tests.networks import HEADS, needs_kernel, random_image, tiny_config, tiny_network
from tests.windowed_network import run_windowed

REFINED = [
    ("lightweight_x4", {"back_projection": True}),
    ("lightweight_x4", {"range_slack": 0.0}),
    ("lightweight_x4", {"back_projection": True, "range_slack": 0.02, "upscale": 2}),
    ("lightweight_x4", {"back_projection": True, "range_slack": 0.0, "upscale": 3, "num_channels": 1}),
    ("lightweight_x4", {"back_projection": True, "range_slack": 0.02, "upscale": 8, "num_channels": 2}),
    ("compressed_x4", {"back_projection": True, "range_slack": 0.0}),
    ("compressed_x4", {"back_projection": True, "back_projection_blur": 2.0, "range_slack": 0.0}),
    ("lightweight_x4", {"back_projection": True, "back_projection_blur": 0.7, "range_slack": 0.0}),
    ("realworld_x4", {"back_projection": True, "range_slack": 0.1}),
    ("jpeg", {"range_slack": 0.02}),
    ("jpeg", {"range_slack": 0.0, "num_channels": 3}),
]
SIZES = ((1, 1), (2, 3), (2, 3), (5, 1))


def by_pillow(plane: Tensor, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane.float().numpy()).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_both_ways_are_the_bicubic_of_pillow(scale: int) -> None:
    """Away from the border, where Pillow leaves out what lies outside, both are Pillow's resize."""
    small, large = torch.rand(1, 1, 14, 18), torch.rand(1, 1, 14 * scale, 18 * scale)
    reduced, enlarged = reduce(large, scale)[0, 0], enlarge(small, scale)[0, 0]
    margin = 3 * scale
    assert np.abs(by_pillow(large[0, 0], 18, 14) - reduced.numpy())[3:-3, 3:-3].max() < 1e-6
    difference = np.abs(by_pillow(small[0, 0], 18 * scale, 14 * scale) - enlarged.numpy())
    assert difference[margin:-margin, margin:-margin].max() < 1e-6


@pytest.mark.parametrize(("head", "fields"), REFINED)
def test_every_way_computes_the_same(head: str, fields: dict[str, object]) -> None:
    """A mixed pack by the fast pass, and windows alone as on a GPU, give the images of the network."""
    network = tiny_network(head, **fields)
    images = [random_image(network, *size) for size in SIZES]
    with torch.inference_mode():
        wanted = [network(image[None]).image[0] for image in images]
        found = Inference(network).reconstruct(images)
    for image, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(image.image, expected, rtol=0, atol=1e-5)
    network, images = network.double(), [image.double() for image in images]
    windows = run_windowed(network, images, torch.float64, torch.float64, fill=2)
    for image, single in zip(windows, images, strict=True):
        torch.testing.assert_close(image, network(single[None]).image[0], rtol=0, atol=1e-12)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 3])
def test_the_kernel_does_it_for_heads_that_it_computes(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of several threads, the last one short, fit together."""
    network = tiny_network(back_projection=True, range_slack=0.01)
    assert Inference(network).refinement is not None
    assert Inference(tiny_network()).refinement is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weights, config = kernel_weights.pack_refinement(network.config), network.config
    assert weights is not None
    pixels, image = torch.rand(2, 3, 21, 5), torch.rand(2, 3, 84, 20)
    rows, given = (each.permute(0, 2, 3, 1).reshape(-1, 3) for each in (pixels, image))
    cpu_kernel.refine(weights, rows, given, [(2, 21, 5)])
    wanted = refine(image, pixels, config).permute(0, 2, 3, 1).reshape(-1, 3)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("head", "fields"), [case for case in REFINED if "range_slack" in case[1]])
@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_a_flat_image_stays_as_it_is(head: str, fields: dict[str, object], value: int) -> None:
    """Whatever the weights are, every pixel keeps its value, those at the border too."""
    upscaler = Upscaler(tiny_network(head, seed=1, **fields), device="cpu")
    flat = np.full((19, 23, upscaler.channels), value, np.uint8)
    assert (upscaler([flat])[0] == value).all()
    bare = Upscaler(tiny_network(head, seed=1, **{**fields, "range_slack": None}), device="cpu")
    assert value in (0, 255) or (bare([flat])[0] != value).any()


def test_values_keep_to_the_range_around_them() -> None:
    """Half the range of 3x3 pixels more is allowed, and the slack only where 9x9 pixels are not flat."""
    generator = torch.Generator().manual_seed(0)
    pixels, image = torch.rand(1, 1, 12, 12, generator=generator), 9 * torch.randn(1, 1, 24, 24, generator=generator)
    found = refine(image, pixels, tiny_config(upscale=2, range_slack=0.25))
    for y in range(24):
        for x in range(24):

            def seen(radius: int, row: int = y // 2, column: int = x // 2) -> Tensor:
                rows = slice(max(0, row - radius), row + radius + 1)
                return pixels[0, 0, rows, max(0, column - radius) : column + radius + 1]

            near, far = seen(NEAR), seen(FAR)
            margin = (near.max() - near.min()) / 2 + min(0.25, far.max() - far.min())
            wanted = image[0, 0, y, x].clamp(near.min() - margin, near.max() + margin)
            assert abs(found[0, 0, y, x] - wanted) < 1e-6


@pytest.mark.parametrize("scale", [2, 4])
def test_back_projection_brings_an_image_nearer_to_its_input(scale: int) -> None:
    """What the image reduces to differs less from the input, and the mean of an image is its input's."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, 24, 24, generator=generator)
    image = enlarge(pixels, scale) + 0.1 * torch.rand(1, 3, 24 * scale, 24 * scale, generator=generator)
    found = refine(image, pixels, tiny_config(upscale=scale, back_projection=True))
    before, after = (float((reduce(each, scale) - pixels).norm()) for each in (image, found))
    assert after < before / 2
    assert abs(float(found.mean() - pixels.mean())) < 1e-3


def test_blur_corrects_the_mean_and_leaves_fine_patterns() -> None:
    """A difference to the input that is the same everywhere is corrected whole; one of single pixels is not at all."""
    rows = torch.arange(32)
    pattern = ((rows[:, None] + rows) % 2).float()[None, None] - 0.5
    config = tiny_config(upscale=2, num_channels=1, back_projection=True, back_projection_blur=2.0)
    black = torch.zeros(1, 1, 64, 64)
    torch.testing.assert_close(refine(black, torch.ones(1, 1, 32, 32), config), torch.ones_like(black))
    assert refine(black, pattern, config)[..., 20:-20, 20:-20].abs().max() < 1e-3


def test_a_gaussian_smooths_the_difference() -> None:
    """Enlarging with blur is smoothing, by a Gaussian cut off at 2.5 standard deviations, and enlarging."""
    image = torch.rand(1, 1, 40, 40, dtype=torch.float64)
    distance = torch.arange(-3, 4, dtype=torch.float64)
    gaussian = torch.exp(-0.5 * (distance / 1.2) ** 2)
    kernel = torch.outer(gaussian, gaussian)[None, None] / gaussian.sum() ** 2
    wanted = enlarge(torch.nn.functional.conv2d(image, kernel, padding=3), 3)
    found = enlarge(image, 3, 1.2)
    torch.testing.assert_close(found[..., 24:-24, 24:-24], wanted[..., 24:-24, 24:-24], rtol=0, atol=1e-12)


@needs_kernel
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_stays_so(value: float) -> None:
    """A broken image does not become a plausible one by the limit; the service looks for these values."""
    pixels, image = torch.rand(16, 3), torch.full((64, 3), value)
    for fields in ({"range_slack": 0.0}, {"back_projection": True, "range_slack": 0.1}):
        config = tiny_config(upscale=2, **fields)
        weights = kernel_weights.pack_refinement(config)
        assert weights is not None
        given = image.clone()
        cpu_kernel.refine(weights, pixels, given, [(1, 4, 4)])
        assert not given.isfinite().any()
        planes = (each.view(1, side, side, 3).permute(0, 3, 1, 2) for each, side in ((image, 8), (pixels, 4)))
        assert not refine(*planes, config).isfinite().any()


@needs_kernel
def test_what_a_thread_computed_before_is_not_seen() -> None:
    """Scratch memory full of NaN, from an image of another network, leaves no trace in the next one."""
    for scale in (2, 3, 4, 8):
        config = tiny_config(upscale=scale, back_projection=True, range_slack=0.01)
        weights = kernel_weights.pack_refinement(config)
        assert weights is not None
        wide, pixels = torch.full((8 * 64, 3), math.nan), torch.rand(8 * 8, 3)
        cpu_kernel.refine(weights, wide, torch.full((8 * 64 * scale**2, 3), math.nan), [(1, 8, 64)])
        image = torch.rand(8 * 8 * scale**2, 3)
        cpu_kernel.refine(weights, pixels, image, [(1, 8, 8)])
        assert image.isfinite().all()


@needs_kernel
def test_a_head_of_another_scale_is_not_refined_by_the_kernel() -> None:
    """It is computed by its modules, which say that the sizes differ."""
    network, other = tiny_network(range_slack=0.0), tiny_network(upscale=2)
    network.upsample = other.upsample
    inference = Inference(network)
    assert inference.head is None
    with pytest.raises(RuntimeError, match="size"):
        inference.reconstruct([random_image(network, 1, 1)])


def test_autocast_does_not_round_it() -> None:
    """Under autocast, as in training, a flat image stays flat to the last bit of float32."""
    network = tiny_network(back_projection=True, range_slack=0.0)
    flat = torch.full((1, 3, 16, 16), 0.3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert (network(flat).image == flat[0, 0, 0, 0]).all()


def test_gradients_pass_through() -> None:
    """A refined network can be trained: what the limit does not cut off has a gradient."""
    network = tiny_network(back_projection=True, range_slack=0.0).train().requires_grad_()
    network(random_image(network, 1, 1)[None]).image.square().sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in network.parameters() if weight.grad is not None)
    assert network.swin2sr.conv_after_body.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"range_slack": -0.1}, "range_slack must lie in"),
        ({"range_slack": math.nan}, "range_slack must lie in"),
        ({"range_slack": 2}, "range_slack must lie in"),
        ({"range_slack": 0.0, "num_channels_out": 1}, "num_channels_out must equal"),
        ({"back_projection": True, "num_channels_out": 1}, "num_channels_out must equal"),
        ({"back_projection": True, **HEADS["jpeg"]}, "back_projection must be false"),
        ({"back_projection": "false"}, "back_projection must be true or false"),
        ({"back_projection": True, "back_projection_blur": 2.5}, "back_projection_blur must lie in"),
        ({"back_projection": True, "back_projection_blur": math.nan}, "back_projection_blur must lie in"),
        ({"back_projection_blur": -1.0}, "back_projection_blur must lie in"),
        ({"back_projection_blur": "1"}, "back_projection_blur must be a number, not '1'"),
        ({"back_projection_blur": None}, "back_projection_blur must be a number, not None"),
        ({"back_projection_blur": True}, "back_projection_blur must be a number, not True"),
        ({"range_slack": "0"}, "range_slack must be a number, not '0'"),
        ({"drop_path_rate": None}, "drop_path_rate must be a number, not None"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, object], message: str) -> None:
    """The message names the field and what is possible."""
    with pytest.raises(ValueError, match=message):
        Swin2SRConfig(**fields)


def test_files_keep_it_and_other_configurations_do_not_mention_it(tmp_path: Path) -> None:
    """The fields are in files where they are used, so that a network is the same when it is read again."""
    for name in ("back_projection", "back_projection_blur", "range_slack"):
        assert name not in Swin2SRConfig().to_dict()
        assert name not in Swin2SRConfig().to_diff_dict()
    network = tiny_network(back_projection=True, back_projection_blur=1.5, range_slack=0.0)
    write_official(network, tmp_path / "a.safetensors")
    network.config.save_pretrained(tmp_path)
    for config in (load_network(tmp_path / "a.safetensors").config, Swin2SRConfig.from_pretrained(tmp_path)):
        assert config.back_projection is True
        assert config.back_projection_blur == 1.5
        assert config.range_slack == 0
        assert config == network.config
        assert config != tiny_config()
    write_official(network, tmp_path / "a.pth")
    assert load_network(tmp_path / "a.pth").config.range_slack is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_exports_contain_it(tmp_path: Path) -> None:
    """Programs of torch.export and ONNX files refine images of any size; torch.compile makes one graph of it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    network = tiny_network(back_projection=True, range_slack=0.01)
    rows, columns = (8 * torch.export.Dim(name, max=64) for name in ("rows", "columns"))
    shapes = {"pixel_values": {2: rows, 3: columns}}
    program = torch.export.export(network, (random_image(network, 2, 3)[None],), dynamic_shapes=shapes).module()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    export(network, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for size in ((4, 2), (2, 5)):
        pixels = random_image(network, *size)[None]
        wanted = network(pixels).image
        for found in (program(pixels), compiled(pixels)):
            torch.testing.assert_close(found.image, wanted, rtol=0, atol=1e-5)
        [found] = session.run(None, {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-4)


def test_the_python_surface_has_it_too(tmp_path: Path) -> None:
    """``Swin2SRForImageSuperResolution`` keeps a flat image too."""
    network = tiny_network(back_projection=True, range_slack=0.0)
    write_official(network, tmp_path / "a.safetensors")
    model = Swin2SRForImageSuperResolution.from_pretrained(tmp_path / "a.safetensors").eval()
    with torch.no_grad():
        flat = model(torch.full((1, 3, 16, 24), 0.7)).reconstruction
    assert (flat == torch.tensor(0.7)).all()
