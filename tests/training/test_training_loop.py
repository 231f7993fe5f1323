"""The training loop: steps, checkpoints, limits, and the weights that it writes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from model.checkpoints import load_network
from model.training.held_out import HeldOut
from model.training.loop import Limits, Report, Trainer, train
from model.training.pairs import Photo
from tests.tiny_training import go, start


@pytest.mark.slow
def test_training_improves_on_interpolation(photos: list[Photo], tmp_path: Path) -> None:
    """150 steps on stripes are worth half a decibel over bicubic, and progress is reported."""
    trainer, crops, _ = start(photos)
    held_out = HeldOut(photos, [], None, 8)
    trainer.recipe = dataclasses.replace(trainer.recipe, ema_decay=0.98)
    reports = go(trainer, crops, held_out, tmp_path / "run", 150)
    assert [report.step for report in reports] == [0, 50, 100, 150]
    assert reports[-1].photos.psnr > reports[-1].photos.baseline + 0.5
    assert reports[0].loss is None
    assert reports[-1].loss < reports[1].loss
    assert {report.start for report in reports} == {(reports[0].photos.psnr, reports[0].graphics.psnr)}


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(photos: list[Photo], tmp_path: Path) -> None:
    """Two runs by steps agree to the bit, and another seed does not."""
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trainer, crops, held_out = start(photos, seed)
        go(trainer, crops, held_out, tmp_path / name, 4)
        weights.append(trainer.average.swin2sr.first_convolution.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.slow
def test_a_stopped_run_continues_as_if_it_had_not_stopped(photos: list[Photo], tmp_path: Path) -> None:
    """Stopped after a checkpoint and resumed in a new process's place, the weights come out the same."""
    whole, crops, held_out = start(photos)
    go(whole, crops, held_out, tmp_path / "whole", 6)

    def stop(report: Report) -> None:
        if report.step == 4:
            raise InterruptedError

    half, crops, held_out = start(photos)
    limits = Limits(steps=6)
    kept = {"folder": tmp_path / "half", "weights": "tiny.safetensors", "every": 2}
    with pytest.raises(InterruptedError):
        train(half, crops, held_out, limits, on_report=stop, **kept)
    again, crops, held_out = start(photos, seed=0)
    again.resume(tmp_path / "half")
    assert again.step == 4
    train(again, crops, held_out, limits, on_report=lambda _: None, **kept)
    for key, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, again.average.state_dict()[key]), key
    history = (tmp_path / "half" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in history] == [0, 2, 4, 6]


def test_the_clock_ends_a_run(photos: list[Photo], tmp_path: Path) -> None:
    """With a limit in minutes the cosine follows the clock, and time spent before a resumption counts."""
    trainer, crops, held_out = start(photos)
    trainer.seconds = 30.0
    ticks = iter(range(0, 1000, 10))
    reports: list[Report] = []
    train(
        trainer,
        crops,
        held_out,
        Limits(minutes=1),
        folder=tmp_path,
        weights="w.safetensors",
        every=1000,
        on_report=reports.append,
        clock=lambda: float(next(ticks)),
    )
    assert [(report.step, report.seconds, report.progress) for report in reports] == [(0, 30.0, 0.0), (3, 60.0, 1.0)]


def test_exported_weights_are_the_average_in_bfloat16(photos: list[Photo], tmp_path: Path) -> None:
    """The file loads by itself, configuration included, can be read by everyone, and leaves nothing unfinished."""
    trainer, crops, held_out = start(photos)
    go(trainer, crops, held_out, tmp_path, 2)
    file = tmp_path / "tiny.safetensors"
    network = load_network(file)
    assert network.config == trainer.average.config
    for key, tensor in trainer.average.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor.bfloat16().float()), key
    assert file.stat().st_mode & 0o044 == 0o044
    assert {path.name for path in tmp_path.iterdir()} >= {"tiny.safetensors", "training.pt", "history.jsonl"}
    assert not list(tmp_path.glob("*unfinished*"))


def test_a_loss_that_is_no_number_ends_the_run(photos: list[Photo], tmp_path: Path) -> None:
    """The last good checkpoint stays; weights that are not finite are never written."""
    trainer, crops, held_out = start(photos)
    with torch.no_grad():
        trainer.network.swin2sr.first_convolution.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="lower the learning rate"):
        go(trainer, crops, held_out, tmp_path, 4)
    assert not list(tmp_path.glob("*.safetensors"))


def test_bfloat16_trains_too(photos: list[Photo]) -> None:
    """Forward passes in bfloat16 leave weights in float32 and a loss near float32's."""
    losses = []
    for bfloat16 in (False, True):
        trainer, crops, _ = start(photos)
        trainer = Trainer(trainer.network, trainer.recipe, bfloat16=bfloat16)
        losses.append(float(trainer.learn(crops.batch(0), 0)))
        assert trainer.network.swin2sr.first_convolution.weight.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
