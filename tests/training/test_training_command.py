"""The command that trains an embedded variant or fine-tunes a released one."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from app.cli import commands
from model.checkpoints import load_network, write_pretrained
from model.network import Swin2SR
from model.training import __main__ as command
from model.training.pairs import Photo
from model.training.recipe import RECIPES, Recipe
from model.upscaler import Upscaler
from tests.tiny_training import tiny


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
    root = Path(__file__).parents[2]
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
    """With --teacher other weights come out; a teacher that is missing or of another scale is refused."""
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


@pytest.mark.usefixtures("tiny_recipes", "threads")
def test_command_restores_inputs_after_teaching(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both options the teacher enlarges the clean versions, and each photo comes again with a restored one."""
    torch.manual_seed(0)
    for scale, upsampler in ((1, None), (2, "pixelshuffledirect")):
        write_pretrained(Swin2SR(tiny(scale, upsampler)), tmp_path / f"x{scale}")
    given: list[Sequence[Photo]] = []

    def keep(photos: Sequence[Photo], **_: object) -> object:
        given.append(photos)
        return None

    monkeypatch.setattr(command, "Crops", keep)
    monkeypatch.setattr(command, "train", lambda *_, **__: None)
    run = ["--variant", "small-x2", "--photos", str(folder), "--steps", "3", "--device", "cpu", "--out", str(tmp_path)]
    helped = ["--teacher", str(tmp_path / "x2"), "--restorer", str(tmp_path / "x1"), "--smaller"]
    assert command.main([*run, *helped]) == 0
    (photos,) = given
    half = len(photos) // 2
    teacher = Upscaler.from_pretrained(tmp_path / "x2", "cpu", "fast")
    for clean, restored in zip(photos[:half], photos[half:], strict=True):
        assert np.array_equal(clean.sharp, teacher([clean.reduced])[0])
        assert np.array_equal(restored.sharp, clean.sharp)
        assert not np.array_equal(restored.reduced, clean.reduced)


@pytest.mark.usefixtures("tiny_recipes", "threads")
@pytest.mark.parametrize(
    ("variant", "weights", "reason"),
    [
        ("small-x2", "x2", "enlarges 2 times and has 3 channels: use weights that restore images of 3 channels"),
        ("small-x2", "gray", "enlarges 1 times and has 1 channels"),
        ("small-x2", "missing", "missing"),
        ("small-jpeg", "x1", "--restorer is for variants that enlarge images without JPEG, not for small-jpeg"),
        ("small-compressed-x4", "x1", "not for small-compressed-x4"),
    ],
)
def test_command_refuses_a_restorer_that_does_not_fit(
    *, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: str, weights: str, reason: str
) -> None:
    """The message names the option and what to use; nothing is trained."""
    for name, config in (("x1", tiny(1, None)), ("x2", tiny()), ("gray", tiny(1, None, channels=1))):
        write_pretrained(Swin2SR(config), tmp_path / name)
    run = ["--variant", variant, "--photos", str(folder), "--steps", "1", "--device", "cpu"]
    assert command.main([*run, "--out", str(tmp_path / "o"), "--restorer", str(tmp_path / weights)]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
