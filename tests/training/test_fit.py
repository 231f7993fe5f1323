"""Fitting what lies behind the body to a fixed set of crops."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import load_network, write_official
from model.network import Swin2SR
from model.training import __main__ as command
from model.training.crops import Crops
from model.training.fit import BodyFeatures, fit_behind_body, is_behind_body
from model.training.pairs import Batch, Photo
from tests.tiny_training import draw, tiny

HEADS = [(2, "pixelshuffledirect"), (4, "pixelshuffledirect"), (1, None), (4, "pixelshuffle_aux")]


def scrambled(upscale: int, upsampler: str | None) -> Swin2SR:
    """A network with large random weights."""
    torch.manual_seed(0)
    network = Swin2SR(tiny(upscale, upsampler))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def draw_batches(scale: int, count: int = 2) -> list[Batch]:
    """Cut stripes and draw graphics, two crops a batch."""
    photo = Photo("", np.ascontiguousarray(draw(48, 48).repeat(scale, 0).repeat(scale, 1)), draw(48, 48))
    crops = Crops([photo], crop=32, batch=2, graphics=0.5, window=8)
    return [crops.batch(-1 - number) for number in range(count)]


@pytest.mark.parametrize(("upscale", "upsampler"), HEADS)
def test_features_behind_which_the_head_computes_the_same(upscale: int, upsampler: str | None) -> None:
    """Body and head apart compute what the network computes, auxiliary image included."""
    network = scrambled(upscale, upsampler)
    images = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        whole = network(images)
        parts = BodyFeatures.compute(network, images).reconstruct(network)
    assert torch.allclose(whole.image, parts.image, atol=1e-4)
    assert (whole.aux is None) == (parts.aux is None)
    assert whole.aux is None or torch.allclose(whole.aux, parts.aux, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("upscale", "upsampler"), HEADS)
def test_the_head_is_fitted_and_the_body_stays(upscale: int, upsampler: str | None) -> None:
    """The loss falls by a tenth and more."""
    network = scrambled(upscale, upsampler)
    before = copy.deepcopy(network.state_dict())
    losses: list[float] = []
    fit_behind_body(network, draw_batches(upscale), iterations=10, on_loss=losses.append)
    assert losses[-1] < 0.9 * losses[0]
    assert len(losses) >= 10
    for key, tensor in network.state_dict().items():
        if not is_behind_body(key):
            assert torch.equal(tensor, before[key]), key
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_body_with_several_last_convolutions_is_fitted_too() -> None:
    """With resi_connection 3conv the last three convolutions of the body count as behind it."""
    torch.manual_seed(0)
    network = Swin2SR(dataclasses.replace(tiny(), resi_connection="3conv"))
    losses: list[float] = []
    fit_behind_body(network, draw_batches(2), iterations=3, on_loss=losses.append)
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_fits_and_then_trains(folder: Path, tmp_path: Path) -> None:
    """--fit alone writes weights and a checkpoint to resume from, and the gain is counted from the given weights."""
    torch.manual_seed(0)
    given = scrambled(2, "pixelshuffledirect")
    write_official(given, tmp_path / "given.safetensors")
    out = tmp_path / "run"
    run = ["--variant", "small-x2", "--photos", str(folder), "--out", str(out), "--device", "cpu", "--loaders", "1"]
    fit = ["--init", str(tmp_path / "given.safetensors"), "--fit", "2", "--fit-iterations", "20"]
    assert command.main([*run, *fit]) == 0
    fitted = load_network(out / "small-x2.safetensors")
    assert torch.equal(
        fitted.swin2sr.encoder.stages[0].conv.weight, given.swin2sr.encoder.stages[0].conv.weight.bfloat16().float()
    )
    assert command.main([*run, "--steps", "1", "--resume"]) == 0
    history = [json.loads(line) for line in (out / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in history] == [0, 0, 1]
    assert history[1]["photos"]["psnr"] > history[0]["photos"]["psnr"]
    assert history[2]["start"][0] == history[0]["photos"]["psnr"]
