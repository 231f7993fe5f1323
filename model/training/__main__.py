"""``python -m model.training``: train an embedded variant, or fine-tune a released one."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoints import read_checkpoint
from model.network import Swin2SR
from model.state_dict_keys import is_huggingface, to_official
from model.training.initialise import start_at_interpolation
from model.training.loop import CHECKPOINT_NAME, HeldOut, Limits, Report, Trainer, train
from model.training.photos import Crops, read_photos, split
from model.training.recipe import RECIPES, Recipe

HEAD = ("upsample.", "conv_last.", "conv_before_upsample.", "conv_bicubic.", "conv_aux.", "conv_after_aux.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the process's exit code."""
    options = _parse(arguments)
    recipe = _override(RECIPES[options.variant], options)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    torch.manual_seed(options.seed)
    network = build(recipe, options.init).to(device)
    bfloat16 = device.type == "cuda" if options.bfloat16 is None else options.bfloat16
    trainer = Trainer(network, recipe, bfloat16=bfloat16, compiled=options.compile)
    folder = options.out or Path("build") / "training" / options.variant
    if options.resume:
        trainer.resume(folder)
    elif (folder / CHECKPOINT_NAME).exists():
        raise ValueError(f"{folder} holds a run already: --resume it, or choose another --out")
    threads = options.loaders or min(8, os.cpu_count() or 1)
    config = recipe.config
    photos, held_out = split(read_photos(options.photos, config.upscale, config.num_channels, recipe.crop, threads))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    _print(f"{options.variant}: {parameters:,} parameters on {device}, {len(photos)} photos, {len(held_out)} held out")
    train(
        trainer,
        Crops(photos, crop=recipe.crop, batch=recipe.batch, quality=recipe.quality, seed=options.seed, threads=threads),
        HeldOut(held_out, recipe.quality, config.window_size),
        Limits(steps=options.steps, minutes=options.minutes),
        folder=folder,
        weights=f"{options.variant}.safetensors",
        every=options.every,
        on_report=_print_report,
    )
    return 0


def build(recipe: Recipe, init: Path | None) -> Swin2SR:
    """Build the network: fresh, from all of a checkpoint that fits it, or from the body of one with another head.

    Raises:
        ValueError: if the checkpoint's body is another network's.
        CheckpointError: if the file cannot be read.
    """
    network = Swin2SR(recipe.config)
    if init is None:
        start_at_interpolation(network)
        return network
    checkpoint = read_checkpoint(init)
    given = to_official(checkpoint.state) if is_huggingface(checkpoint.state) else checkpoint.state
    wanted = network.state_dict()
    if given.keys() == wanted.keys() and all(given[key].shape == wanted[key].shape for key in wanted):
        network.load_state_dict(given)
        return network
    body = {key: tensor for key, tensor in given.items() if not key.startswith(HEAD)}
    expected = {key: tensor.shape for key, tensor in wanted.items() if not key.startswith(HEAD)}
    if {key: tensor.shape for key, tensor in body.items()} != expected:
        raise ValueError(f"the body in {init} is not that of this variant: it cannot be started from")
    network.load_state_dict(body, strict=False)
    start_at_interpolation(network)
    return network


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    parser.add_argument("--variant", required=True, choices=RECIPES)
    parser.add_argument("--photos", required=True, type=Path, help="folder of sharp photos")
    parser.add_argument("--out", type=Path, help="checkpoints, history and weights (build/training/VARIANT)")
    parser.add_argument("--steps", type=int, help="length of the run, and of the cosine, in steps")
    parser.add_argument("--minutes", type=float, help="the same in minutes; with both, whichever ends first")
    parser.add_argument("--init", type=Path, help="checkpoint to go on from, or whose body to start from")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (cuda where there is one)")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--loaders", type=int, help="threads that cut and compress crops (one per core, 8 at most)")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="forward passes (on a GPU)")
    parser.add_argument("--compile", action="store_true", help="let torch compile the network first")
    parser.add_argument("--crop", type=int, help="low-resolution pixels a side, instead of the recipe's")
    parser.add_argument("--batch", type=int, help="crops a step, instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="peak, instead of the recipe's")
    parser.add_argument("--every", type=int, default=500, help="steps between reports and checkpoints")
    options = parser.parse_args(arguments)
    if options.steps is None and options.minutes is None:
        parser.error("give --steps or --minutes")
    return options


def _override(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    given = {name: getattr(options, name) for name in ("crop", "batch", "learning_rate")}
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _print_report(report: Report) -> None:
    _print(
        f"step {report.step:7d}  {report.seconds / 60:6.1f} min  {100 * report.progress:5.1f} %  "
        f"rate {report.learning_rate:.2e}  loss {report.loss:.5f}  "
        f"held out {report.psnr:.3f} dB ({report.psnr - report.baseline:+.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
