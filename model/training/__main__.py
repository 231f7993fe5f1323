"""``swin2sr train``, or ``python -m model.training``: train an embedded variant, or fine-tune a released one."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoints import read_checkpoint
from model.checkpoints.state_dict_keys import is_head, is_huggingface, to_huggingface
from model.network import Swin2SR
from model.training.crops import Crops
from model.training.fonts import find_fonts
from model.training.held_out import HeldOut, Score, draw_held_out
from model.training.initialise import start_at_interpolation
from model.training.loop import CHECKPOINT_NAME, Limits, Report, Trainer, train
from model.training.pairs import Photo
from model.training.photos import learned_from, read_photos, split, with_restored, with_smaller
from model.training.recipe import RECIPES, Recipe
from model.upscaler import Upscaler


def main(arguments: Sequence[str] | None = None, program: str = "python -m model.training") -> int:
    """Run the command, which messages call ``program``; returns the process's exit code."""
    options = _parse(arguments, program)
    try:
        _run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    device = _prepare_torch(options)
    network, continued = build(RECIPES[options.variant], options.init)
    recipe = _override(RECIPES[options.variant], options, continued=continued)
    bfloat16 = device.type == "cuda" if options.bfloat16 is None else options.bfloat16
    trainer = Trainer(network.to(device), recipe, bfloat16=bfloat16, compiled=options.compile)
    folder = options.out or Path("build") / "training" / options.variant
    if options.resume:
        trainer.resume(folder)
    elif (folder / CHECKPOINT_NAME).exists():
        raise ValueError(f"{folder} holds a run already: --resume it, or choose another --out")
    teacher = None if options.teacher is None else Upscaler.from_pretrained(options.teacher, str(device), "fast")
    restorer = None if options.restorer is None else _restorer(options, recipe, device)
    threads = options.loaders or min(8, os.cpu_count() or 1)
    photos, held_out = _read(options, recipe, threads)
    fonts = find_fonts() if options.fonts is None else find_fonts([options.fonts])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    _print(
        f"{options.variant}: {parameters:,} parameters on {device}, {len(photos)} photos, {len(held_out)} held out, "
        f"graphics {recipe.graphics:.0%} with {len(fonts)} fonts"
    )
    photos = with_smaller(photos, recipe.smaller, recipe.config.upscale, recipe.crop)
    if teacher is not None:
        _print(f"{options.teacher} enlarges {len(photos)} photos and smaller copies")
        photos = learned_from(teacher, photos)
    if restorer is not None:
        _print(f"{options.restorer} restores {len(photos)} photos and smaller copies")
        photos = with_restored(photos, restorer, options.seed)
    window = recipe.config.window_size
    train(
        trainer,
        Crops(
            photos, crop=recipe.crop, batch=recipe.batch, quality=recipe.quality, graphics=recipe.graphics, fonts=fonts,
            window=window, seed=options.seed, threads=threads,
        ),
        HeldOut(
            held_out, draw_held_out(recipe.config.upscale, recipe.config.num_channels), recipe.quality, window
        ),
        None if options.steps is options.minutes is None else Limits(steps=options.steps, minutes=options.minutes),
        folder=folder,
        weights=f"{options.variant}.safetensors",
        every=options.every,
        fit_batches=options.fit,
        fit_iterations=options.fit_iterations,
        on_report=_print_report,
    )  # fmt: skip


def _prepare_torch(options: argparse.Namespace) -> torch.device:
    """Make results depend on the seed alone, and return the device to train on."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    # No code here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module
    torch.manual_seed(options.seed)
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _restorer(options: argparse.Namespace, recipe: Recipe, device: torch.device) -> Upscaler:
    """Load the weights of ``--restorer``.

    Raises:
        ValueError: if they do not fit the variant, or the variant has no use for them.
        CheckpointError: if the file cannot be read.
    """
    if recipe.quality is not None or recipe.config.upscale == 1:
        raise ValueError(f"--restorer is for variants that enlarge images without JPEG, not for {options.variant}")
    restorer = Upscaler.from_pretrained(options.restorer, str(device), "fast")
    if (restorer.scale, restorer.channels) != (1, recipe.config.num_channels):
        raise ValueError(
            f"--restorer enlarges {restorer.scale} times and has {restorer.channels} channels: use weights that "
            f"restore images of {recipe.config.num_channels} channels, such as small-jpeg.safetensors"
        )
    return restorer


def _read(options: argparse.Namespace, recipe: Recipe, threads: int) -> tuple[list[Photo], list[Photo]]:
    def read(folder: Path) -> list[Photo]:
        return read_photos(folder, recipe.config.upscale, recipe.config.num_channels, recipe.crop, threads)

    return split(read(options.photos)) if options.held_out is None else (read(options.photos), read(options.held_out))


def build(recipe: Recipe, init: Path | None) -> tuple[Swin2SR, bool]:
    """Build the network: fresh, from all of a checkpoint that fits it, or from the body of one with another head.

    Returns:
        The network, and whether all its weights come from the checkpoint.

    Raises:
        ValueError: if the checkpoint's body is another network's.
        CheckpointError: if the file cannot be read.
    """
    network = Swin2SR(recipe.config)
    if init is None:
        start_at_interpolation(network)
        return network, False
    checkpoint = read_checkpoint(init)
    given = (
        checkpoint.state if is_huggingface(checkpoint.state) else to_huggingface(checkpoint.state, checkpoint.config)
    )
    wanted = network.state_dict()
    if given.keys() == wanted.keys() and all(given[key].shape == wanted[key].shape for key in wanted):
        network.load_state_dict(given)
        return network, True
    body = {key: tensor for key, tensor in given.items() if not is_head(key)}
    expected = {key: tensor.shape for key, tensor in wanted.items() if not is_head(key)}
    if {key: tensor.shape for key, tensor in body.items()} != expected:
        raise ValueError(f"the body in {init} is not that of this variant: it cannot be started from")
    network.load_state_dict(body, strict=False)
    start_at_interpolation(network)
    return network, False


def _parse(arguments: Sequence[str] | None, program: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program, description="Train an embedded variant on photos, or fine-tune a released one."
    )
    parser.add_argument("--variant", required=True, choices=RECIPES)
    parser.add_argument("--photos", required=True, type=Path, help="folder of sharp photos")
    parser.add_argument("--held-out", type=Path, help="folder of photos to measure on (every fortieth of --photos)")
    parser.add_argument("--graphics", type=float, help="share of drawn graphics, 0 to 1, instead of the recipe's")
    parser.add_argument("--fonts", type=Path, help="folder of fonts for graphics (those of the machine)")
    parser.add_argument(
        "--teacher", type=Path, help="weights whose images of the reduced photos are learned, instead of the photos"
    )
    parser.add_argument(
        "--restorer",
        type=Path,
        help="weights that restore JPEG, first applied to half of the photo crops",
    )
    parser.add_argument("--out", type=Path, help="checkpoints, history and weights (build/training/VARIANT)")
    parser.add_argument("--steps", type=int, help="length of the run, and of the cosine, in steps")
    parser.add_argument("--minutes", type=float, help="the same in minutes; with both, whichever ends first")
    parser.add_argument("--init", type=Path, help="checkpoint to continue from, or whose body to start from")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if available)")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--loaders", type=int, help="threads that cut and compress crops (one per core, 8 at most)")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="forward passes (on a GPU)")
    parser.add_argument("--fit", type=int, default=0, help="batches to which the head is fitted first (0: not fitted)")
    parser.add_argument("--fit-iterations", type=int, default=60, help="of that fit")
    parser.add_argument("--compile", action="store_true", help="let torch compile the network first")
    parser.add_argument("--crop", type=int, help="low-resolution pixels a side, instead of the recipe's")
    parser.add_argument("--batch", type=int, help="crops a step, instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="peak (the recipe's, which is lower with --init)")
    parser.add_argument("--smoothing", type=float, help="below this distance, 0 to 1, the loss is squared (0: L1)")
    parser.add_argument("--luma-weight", type=float, help="weight of the distance in luma, 0 or more (0: none)")
    parser.add_argument(
        "--psnr-ceiling",
        type=float,
        help="PSNR in dB, such as 60, above which crops count less; the loss is the log of the MSE (none: L1)",
    )
    parser.add_argument(
        "--smaller",
        type=float,
        nargs="*",
        help="sizes of copies of each photo, over its own (the recipe's; none: no copies)",
    )
    parser.add_argument("--every", type=int, default=500, help="steps between reports and checkpoints")
    options = parser.parse_args(arguments)
    if options.steps is None and options.minutes is None and not options.fit:
        parser.error("give --steps or --minutes, or --fit")
    return options


def _override(recipe: Recipe, options: argparse.Namespace, *, continued: bool) -> Recipe:
    if continued:
        recipe = dataclasses.replace(recipe, learning_rate=recipe.continued_rate, warmup=recipe.continued_warmup)
    given = {
        name: getattr(options, name)
        for name in (
            "crop",
            "batch",
            "learning_rate",
            "graphics",
            "smoothing",
            "luma_weight",
            "psnr_ceiling",
            "smaller",
        )
    }
    if given["smaller"] is not None:
        given["smaller"] = tuple(given["smaller"])
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _print_report(report: Report) -> None:
    def score(name: str, now: Score, start: float) -> str:
        return f"{name} {now.psnr:.3f} dB ({now.psnr - start:+.3f}, over plain {now.psnr - now.baseline:+.3f})"

    loss = "      -" if report.loss is None else f"{report.loss:.5f}"
    _print(
        f"step {report.step:7d}  {report.seconds / 60:6.1f} min  {100 * report.progress:5.1f} %  "
        f"rate {report.learning_rate:.2e}  loss {loss}  "
        f"{score('photos', report.photos, report.start[0])}  {score('graphics', report.graphics, report.start[1])}"
    )


if __name__ == "__main__":
    sys.exit(main())
