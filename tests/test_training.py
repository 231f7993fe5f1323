"""How the embedded variants are made."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from app.cli import commands
from model.checkpoints import load_network, write_pretrained
from model.config import Swin2SRConfig
from model.degradations import compress, resize_bicubic
from model.network import Swin2SR
from model.reconstruction import Reconstruction
from model.training import __main__ as command
from model.training import held_out
from model.training.crops import Crops
from model.training.held_out import HeldOut
from model.training.initialise import interpolation_kernels, solve_second, start_at_interpolation
from model.training.loop import Limits, Report, Trainer, learning_rate, parameter_groups, train
from model.training.losses import reconstruction_loss
from model.training.pairs import Batch, Photo, Sample, cut, stack, turn
from model.training.photos import learned_from, read_photos, split, with_smaller
from model.training.recipe import RECIPES, Recipe
from model.upscaler import Upscaler


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


# Photos


def test_crops_overlap(photos: list[Photo]) -> None:
    """Input and output of a sample are the same place, turned the same way."""
    generator = np.random.default_rng(0)
    photo = dataclasses.replace(photos[0], sharp=photos[0].reduced.repeat(2, 0).repeat(2, 1))
    for _ in range(20):
        sample = cut(photo, 16, None, generator)
        assert sample.degraded is sample.clean
        assert np.array_equal(sample.degraded.repeat(2, 0).repeat(2, 1), sample.sharp)


def test_eight_ways_to_turn_are_eight() -> None:
    """Flips and quarter turns of an image without symmetry all differ."""
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert len({turn(image, way).tobytes() for way in range(8)}) == 8


def test_compressed_crops_keep_their_clean_side() -> None:
    """JPEG reaches the input alone, and an offset crop is cut out of whole blocks."""
    sharp = draw(64, 64)
    photo = Photo("", sharp, sharp)
    generator = np.random.default_rng(1)
    samples = [cut(photo, 24, (10, 10), generator) for _ in range(40)]
    aligned = 0
    for sample in samples:
        assert np.array_equal(sample.clean, sample.sharp)
        assert sample.degraded.shape == (24, 24, 3)
        assert not np.array_equal(sample.degraded, sample.clean)
        kinds = (compress(sample.clean, 10, "4:2:0"), compress(sample.clean, 10, "4:4:4"))
        aligned += any(np.array_equal(sample.degraded, kind) for kind in kinds)
    assert 20 <= aligned < 40


def test_strong_compression_is_as_likely_as_weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qualities fill their range to its ends, and half of them lie below the geometric mean of both."""
    levels: list[int] = []

    def compress(pixels: np.ndarray, level: int, _: str) -> np.ndarray:
        levels.append(level)
        return pixels

    monkeypatch.setattr("model.training.pairs.compress", compress)
    generator = np.random.default_rng(0)
    photo = Photo("", draw(24, 24), draw(24, 24))
    for _ in range(2000):
        cut(photo, 8, (10, 90), generator)
    assert (min(levels), max(levels)) == (10, 90)
    assert 0.45 < sum(level < 30 for level in levels) / len(levels) < 0.55


def test_batches_depend_on_seed_and_step_alone(photos: list[Photo]) -> None:
    """However many threads prepare them and wherever a run begins, batch n is batch n."""
    one = Crops(photos, crop=16, batch=2, quality=(10, 95), seed=3)
    many = Crops(photos, crop=16, batch=2, quality=(10, 95), seed=3, threads=3)
    expected = [one.batch(step) for step in range(6)]
    for first in (0, 2):
        for wanted, batch in zip(expected[first:], many.batches(first), strict=False):
            assert torch.equal(wanted.degraded, batch.degraded)
            assert torch.equal(wanted.sharp, batch.sharp)
    other = Crops(photos, crop=16, batch=2, seed=4).batch(0)
    assert not torch.equal(other.sharp, expected[0].sharp)


def test_batches_are_channels_first() -> None:
    """Stacked samples are (B, C, h, w) bytes."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    batch = stack([Sample(image, image, image, (2, 2))] * 2)
    assert batch.sharp.shape == (2, 3, 2, 2)
    assert batch.sharp[1, 2, 0, 1] == image[0, 1, 2]


def test_small_photos_are_passed_over_and_none_is_refused(folder: Path) -> None:
    """A photo without room for a crop is of no use; a folder of such photos is an error that says so."""
    Image.fromarray(draw(20, 200)).save(folder / "thin.png")
    assert [photo.name for photo in read_photos(folder, 2, 3, 16, 2)] == ["0", "1", "2"]
    with pytest.raises(ValueError, match="400x400"):
        read_photos(folder, 2, 3, 200, 1)


def test_held_out_photos_are_not_trained_on() -> None:
    """Every fortieth photo is set aside, one at least; a single photo must do for both."""
    image = np.zeros((8, 8, 3), np.uint8)
    photos = [Photo(str(n), image, image) for n in range(100)]
    training, held_out = split(photos)
    assert {photo.name for photo in held_out} == {"20", "60"}
    assert len(training) == 98
    assert not {photo.name for photo in training} & {photo.name for photo in held_out}
    assert [len(part) for part in split(photos[:3])] == [2, 1]
    assert [len(part) for part in split(photos[:1])] == [1, 1]


def test_smaller_copies_are_reduced_as_their_photos_are(photos: list[Photo]) -> None:
    """A copy is the photo at another size with its own low-resolution version; one without room for a crop is none."""
    first, copy = with_smaller(photos[:1], [0.75, 0.25], 2, 16)
    assert first is photos[0]
    assert copy.sharp.shape == (48, 54, 3)
    assert np.array_equal(copy.sharp, resize_bicubic(first.sharp, 48, 54))
    assert np.array_equal(copy.reduced, resize_bicubic(copy.sharp, 24, 27))


def test_a_teacher_gives_the_wanted_images(photos: list[Photo], folder: Path) -> None:
    """Its images of the low-resolution versions replace the photos; one that doubles teaches x4 by two passes."""
    torch.manual_seed(0)
    teacher = Upscaler(Swin2SR(tiny()), device="cpu")
    taught = learned_from(teacher, photos)
    assert [photo.name for photo in taught] == [photo.name for photo in photos]
    for photo, original in zip(taught, photos, strict=True):
        assert np.array_equal(photo.reduced, original.reduced)
        assert np.array_equal(photo.sharp, teacher([original.reduced])[0])
    (quarter, *_) = read_photos(folder, 4, 3, 16, 1)
    (taught_twice,) = learned_from(teacher, [quarter])
    assert np.array_equal(taught_twice.sharp, teacher(teacher([quarter.reduced]))[0])


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (4, 2, "4 times and cannot"),
        (2, 3, "that enlarges 3"),
        (3, 4, "or by 2"),
        (2, 1, "a restoring variant has none"),
    ],
)
def test_a_teacher_of_another_scale_is_refused(folder: Path, teacher: int, student: int, message: str) -> None:
    """The message names both scales and what to use; a variant that only restores has no teacher."""
    upscaler = Upscaler(Swin2SR(tiny(teacher)), device="cpu")
    with pytest.raises(ValueError, match=message):
        learned_from(upscaler, read_photos(folder, student, 3, 8, 1))


# Initialisation


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


# Recipes and schedule


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


# The loop


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


def test_bfloat16_trains_too(photos: list[Photo]) -> None:
    """Forward passes in bfloat16 leave weights in float32 and a loss near float32's."""
    losses = []
    for bfloat16 in (False, True):
        trainer, crops, _ = start(photos)
        trainer = Trainer(trainer.network, trainer.recipe, bfloat16=bfloat16)
        losses.append(float(trainer.learn(crops.batch(0), 0)))
        assert trainer.network.swin2sr.first_convolution.weight.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# The command


@pytest.fixture
def tiny_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put tiny networks in the place of the real ones, and measure them on a few graphics."""
    recipes = {
        "small-x2": Recipe(config=tiny(), crop=16, batch=1, warmup=2),
        "small-x4": Recipe(config=tiny(4), crop=16, batch=1, warmup=2),
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


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_trains_resumes_and_hands_a_body_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command trains x2, resumes it, refuses to overwrite it, and starts x4 from its body."""
    out = tmp_path / "x2"
    run = ["--variant", "small-x2", "--photos", str(folder), "--out", str(out), "--device", "cpu", "--loaders", "1"]
    assert command.main([*run, "--steps", "2"]) == 0
    capsys.readouterr()
    assert command.main([*run, "--steps", "2"]) == 1
    assert "--resume" in capsys.readouterr().err
    assert command.main([*run, "--steps", "4", "--resume"]) == 0
    assert "step       4" in capsys.readouterr().out
    trained = load_network(out / "small-x2.safetensors")
    bigger, whole = command.build(command.RECIPES["small-x4"], out / "small-x2.safetensors")
    assert torch.equal(bigger.swin2sr.encoder.stages[0].conv.weight, trained.swin2sr.encoder.stages[0].conv.weight)
    assert bigger.upsample.conv.weight.shape[0] == 48
    assert not whole


@pytest.mark.usefixtures("tiny_recipes")
def test_command_starts_from_any_layout_and_refuses_another_body(tmp_path: Path) -> None:
    """A Hugging Face folder fits as well as an official file; weights of other dimensions are refused by name."""
    torch.manual_seed(1)
    network = Swin2SR(tiny())
    write_pretrained(network, tmp_path / "same")
    built, whole = command.build(command.RECIPES["small-x2"], tmp_path / "same")
    assert torch.equal(built.upsample.conv.weight, network.upsample.conv.weight)
    assert whole
    write_pretrained(Swin2SR(dataclasses.replace(tiny(), embed_dim=32)), tmp_path / "other")
    with pytest.raises(ValueError, match="body"):
        command.build(command.RECIPES["small-x2"], tmp_path / "other")


def test_swin2sr_train_is_the_same_command(tmp_path: Path) -> None:
    """Options and exit codes are those of python -m model.training, and messages name the command."""
    runner, cli = CliRunner(), commands.build()
    listed = runner.invoke(cli, ["train", "--help"])
    assert listed.exit_code == 0
    assert "usage: swin2sr train" in listed.output
    assert "--held-out" in listed.output
    refused = runner.invoke(cli, ["train", "--variant", "small-x2", "--photos", str(tmp_path), "--steps", "1"])
    assert refused.exit_code == 1
    assert refused.output == f"swin2sr train: no images in {tmp_path}\n"
    assert runner.invoke(cli, ["train", "--variant", "none"]).exit_code == 2


def test_command_asks_for_a_limit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without steps or minutes a run would never end."""
    with pytest.raises(SystemExit):
        command.main(["--variant", "small-x2", "--photos", str(folder)])
    assert "--steps or --minutes, or --fit" in capsys.readouterr().err


@pytest.mark.slow
def test_training_needs_four_packages_alone() -> None:
    """Neither the service's dependencies nor the hub's are imported by training or evaluation."""
    code = (
        "import sys, model.training.__main__, model.evaluate\n"
        "print([n for n in ('app', 'fastapi', 'pydantic', 'httpx', 'huggingface_hub', 'transformers', 'typer', 'rich')"
        " if n in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_prints_the_start_and_the_gain(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first line of progress is step 0 with a gain of zero; a resumed run still counts from there."""
    run = [
        "--variant",
        "small-x2",
        "--photos",
        str(folder),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--loaders",
        "1",
    ]
    assert command.main([*run, "--steps", "2"]) == 0
    assert command.main([*run, "--steps", "4", "--resume"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split()[1] for line in lines] == ["0", "2", "4"]
    assert lines[0].count("(+0.000, over plain") == 2
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert history[0]["start"] == history[2]["start"] == [history[0]["photos"]["psnr"], history[0]["graphics"]["psnr"]]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_measures_on_a_given_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --held-out every photo of --photos is trained on; the score is that of the other folder."""
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(other / "gray.png")
    run = ["--variant", "small-x2", "--photos", str(folder), "--steps", "1", "--device", "cpu", "--loaders", "1"]
    assert command.main([*run, "--out", str(tmp_path / "a")]) == 0
    assert "2 photos, 1 held out" in capsys.readouterr().out
    assert command.main([*run, "--out", str(tmp_path / "b"), "--held-out", str(other)]) == 0
    assert "3 photos, 1 held out" in capsys.readouterr().out
    first = json.loads((tmp_path / "b" / "history.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["photos"]["baseline"] == 60  # a flat image


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_continues_at_a_lower_rate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is lower where all weights come from a file; a new head has the usual rate, and an option its own."""
    rates: list[float] = []
    monkeypatch.setattr(command, "train", lambda trainer, *_, **__: rates.append(trainer.recipe.learning_rate))
    torch.manual_seed(0)
    write_pretrained(Swin2SR(tiny()), tmp_path / "x2")
    common = ["--photos", str(folder), "--steps", "1", "--device", "cpu", "--loaders", "1", "--out", str(tmp_path)]
    init = ["--init", str(tmp_path / "x2")]
    command.main(["--variant", "small-x2", *common])
    command.main(["--variant", "small-x2", *common, *init])
    command.main(["--variant", "small-x4", *common, *init])
    command.main(["--variant", "small-x2", *common, *init, "--learning-rate", "0.125"])
    fresh, continued = (getattr(Recipe(config=tiny(), crop=16), name) for name in ("learning_rate", "continued_rate"))
    assert rates == [fresh, continued, fresh, 0.125]
    for recipe in RECIPES.values():
        assert recipe.continued_rate < recipe.learning_rate


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_reproduces_a_run_by_steps(folder: Path, tmp_path: Path) -> None:
    """Two runs with one seed write the same weights to the bit, graphics and padding included."""
    run = ["--variant", "small-x2", "--photos", str(folder), "--steps", "3", "--device", "cpu"]
    mixed = ["--graphics", "0.5"]
    assert command.main([*run, *mixed, "--loaders", "1", "--out", str(tmp_path / "a")]) == 0
    assert command.main([*run, *mixed, "--loaders", "3", "--out", str(tmp_path / "b")]) == 0
    assert command.main([*run, *mixed, "--loaders", "1", "--seed", "1", "--out", str(tmp_path / "c")]) == 0
    first, again, other = (load_network(tmp_path / name / "small-x2.safetensors").state_dict() for name in "abc")
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert not all(torch.equal(tensor, other[key]) for key, tensor in first.items())


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_learns_from_a_teacher(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --teacher other weights come out; a teacher that cannot be read, or of another scale, is one sentence."""
    torch.manual_seed(0)
    write_pretrained(Swin2SR(tiny()), tmp_path / "x2")
    run = ["--photos", str(folder), "--steps", "3", "--device", "cpu", "--loaders", "1"]
    taught = ["--teacher", str(tmp_path / "x2"), "--luma-weight", "1", "--smaller", "0.75", "0.5"]
    assert command.main(["--variant", "small-x2", *run, "--out", str(tmp_path / "a")]) == 0
    assert command.main(["--variant", "small-x2", *run, *taught, "--out", str(tmp_path / "b")]) == 0
    plain, other = (load_network(tmp_path / name / "small-x2.safetensors").state_dict() for name in "ab")
    assert not all(torch.equal(tensor, other[key]) for key, tensor in plain.items())
    capsys.readouterr()
    write_pretrained(Swin2SR(tiny(3)), tmp_path / "x3")
    for weights, reason in (("x3", "3 times and cannot teach"), ("missing", "missing")):
        teacher = ["--teacher", str(tmp_path / weights), "--out", str(tmp_path / f"out {weights}")]
        assert command.main(["--variant", "small-x2", *run, *teacher]) == 1
        assert reason in capsys.readouterr().err
