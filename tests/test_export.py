"""Networks for other programs: torch.export, ONNX, tracing, compilation, and files of the official layout."""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from model import Swin2SRForImageSuperResolution
from model.checkpoints import load_network, write_pretrained
from model.export import export
from model.network import Swin2SR
from tests.networks import HEADS, random_image, tiny_network

SMALL = {"embed_dim": 12, "depths": (2,), "num_heads": (2,)}
EXPORTED = [head for head in HEADS if head not in ("classical_x8", "realworld_x4_3conv")]


def public(head: str, **fields: object) -> Swin2SRForImageSuperResolution:
    network = tiny_network(head, **{**SMALL, **fields})
    model = Swin2SRForImageSuperResolution(network.config).eval()
    model.load_state_dict(network.state_dict())
    return model


class Alone(nn.Module):
    """The image alone, for exporters that want tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).reconstruction


def batch(model: nn.Module, rows: int, columns: int) -> torch.Tensor:
    return random_image(model, rows, columns)[None]


@pytest.mark.slow
@pytest.mark.parametrize("head", EXPORTED)
@torch.no_grad()
def test_torch_export_takes_every_head(head: str):
    """With static sizes, and with dynamic ones in windows; a shifted block for each size of window is enough."""
    model = public(head, depths=(2,) if head in ("classical_x2", "jpeg") else (1,))
    window, pixels = model.config.window_size, batch(model, 2, 3)
    static = torch.export.export(model, (pixels,))
    assert (static.module()(pixels).reconstruction - model(pixels).reconstruction).abs().max() < 1e-5
    sizes = {2: window * torch.export.Dim("rows", max=64), 3: window * torch.export.Dim("columns", max=64)}
    dynamic = torch.export.export(model, (pixels,), dynamic_shapes={"pixel_values": sizes}).module()
    other = batch(model, 4, 2)
    assert (dynamic(other).reconstruction - model(other).reconstruction).abs().max() < 1e-5
    with pytest.raises(AssertionError, match="Guard failed"):  # two windows at least, as README says
        dynamic(batch(model, 1, 2))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("head", EXPORTED)
@torch.no_grad()
def test_tracing_and_compiling_take_every_head(head: str):
    """A trace serves other sizes too; the compiled graph is one."""
    model = public(head)
    traced = torch.jit.trace(Alone(model), batch(model, 2, 3), check_trace=False)
    for rows, columns in ((2, 3), (1, 2), (3, 1)):
        pixels = batch(model, rows, columns)
        assert (traced(pixels) - model(pixels).reconstruction).abs().max() < 1e-5
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert (compiled(pixels).reconstruction - model(pixels).reconstruction).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("head", EXPORTED)
def test_onnx_files_of_every_head_run_elsewhere(head: str, tmp_path):
    """In ONNX Runtime and OpenVINO, at several sizes and batches, within 1e-4; for one head with several stages."""
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    network = tiny_network(head, **({} if head == "classical_x2" else SMALL))
    export(network, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    model = openvino.Core().compile_model(tmp_path / "network.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [each.name for each in session.get_inputs()] == ["pixel_values"]
    assert [each.name for each in session.get_outputs()] == ["reconstruction"]
    for count, rows, columns in ((1, 2, 2), (2, 1, 3), (1, 1, 1)):
        pixels = batch(network, rows, columns).repeat(count, 1, 1, 1)
        with torch.no_grad():
            expected = network(pixels).image.numpy()
        [found] = session.run(None, {"pixel_values": pixels.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(model([pixels.numpy()])[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_files_load_again(suffix: str, tmp_path):
    """The same weights and configuration."""
    network = tiny_network("lightweight_x4")
    export(network, tmp_path / f"network{suffix}")
    loaded = load_network(tmp_path / f"network{suffix}")
    assert loaded.config == network.config
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


def test_a_pth_has_a_mask_for_every_shifted_block(tmp_path):
    """Of the training size, as the official code expects; programs that find none do not shift."""
    network = tiny_network("lightweight_x4", image_size=32)
    export(network, tmp_path / "network.pth")
    state = torch.load(tmp_path / "network.pth", weights_only=True)
    masks = {key: tensor for key, tensor in state.items() if key.endswith("attn_mask")}
    assert sorted(masks) == [f"layers.{stage}.residual_group.blocks.1.attn_mask" for stage in (0, 1)]
    assert all(mask.shape == (16, 64, 64) for mask in masks.values())
    assert all(set(mask.unique().tolist()) == {-100.0, 0.0} for mask in masks.values())


@pytest.mark.filterwarnings("ignore::UserWarning")  # spandrel's
@torch.no_grad()
def test_a_pth_gives_the_same_pixels_in_spandrel(tmp_path):
    """All but rounding: without the masks spandrel shifts no window, and a third of the samples differ."""
    unused = ("", ".ops", ".models", ".transforms", ".transforms.functional", ".models.feature_extraction", ".utils")
    shells = {f"torchvision{name}": mock.MagicMock(__spec__=None) for name in unused}  # which other networks use
    with mock.patch.dict(sys.modules, shells):
        spandrel = pytest.importorskip("spandrel", reason="spandrel cannot be a dependency: it needs torchvision")
    network = tiny_network("lightweight_x4", image_size=32)
    export(network, tmp_path / "network.pth")
    loaded = spandrel.ModelLoader().load_from_file(tmp_path / "network.pth").eval()
    for rows, columns in ((4, 4), (2, 3)):
        pixels = batch(network, rows, columns)
        found, expected = ((image.clamp(0, 1) * 255).round() for image in (loaded(pixels), network(pixels).image))
        assert (found - expected).abs().max() <= 1
        assert (found != expected).float().mean() <= 1e-3


def test_another_ending_is_refused(tmp_path):
    """By its name and the ones that there are."""
    with pytest.raises(ValueError, match=r"network\.pt' must end in \.onnx, \.pth or \.safetensors"):
        export(tiny_network(), tmp_path / "network.pt")


def test_the_command_writes_embedded_and_own_networks(tmp_path):
    """By the name of a variant, or of a folder of MODEL_DIR; a fault is one line."""
    from typer.testing import CliRunner

    from app.cli.commands import build

    app, runner, models = build(), CliRunner(), tmp_path / "models"
    write_pretrained(Swin2SR(tiny_network().config), models / "mine")
    for name, file in (("small-x2", "small.pth"), ("mine", "mine.safetensors")):
        done = runner.invoke(app, ["export", name, str(tmp_path / file), "--model-dir", str(models)])
        assert done.exit_code == 0, done.output
        assert ("no back-projection" in done.output) == (name == "small-x2")
        assert load_network(tmp_path / file).config.upscale in (2, 4)
    done = runner.invoke(app, ["export", "small-x2", str(tmp_path / "small.bin")])
    assert done.exit_code == 1
    assert "must end in" in done.output
