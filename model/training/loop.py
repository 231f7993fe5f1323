"""The training loop: AdamW, warm-up and cosine, an average of weights, and checkpoints from which a run resumes."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.checkpoints import write_official
from model.network import Swin2SR
from model.reconstruction import Reconstruction
from model.training.crops import Crops
from model.training.fit import fit_behind_body
from model.training.held_out import HeldOut, Score
from model.training.losses import reconstruction_loss
from model.training.pairs import Batch
from model.training.recipe import Recipe

CHECKPOINT_NAME = "training.pt"
HISTORY_NAME = "history.jsonl"
AVERAGE_RAMP = 10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run ends, the cosine with it: after steps, after minutes, or whichever comes first.

    Runs limited by minutes are not reproducible to the bit: the learning rate follows the clock.

    Raises:
        ValueError: if neither is given, or one is not positive.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [limit for limit in (self.steps, self.minutes) if limit is not None]
        if not given or min(given) <= 0:
            raise ValueError("a run needs a positive number of steps or minutes")

    def progress(self, step: int, seconds: float) -> float:
        """Return the share of the run that is over, 0 to 1."""
        steps = step / self.steps if self.steps else 0.0
        minutes = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(steps, minutes))


@dataclass(frozen=True)
class Report:
    """The state of a run: PSNR on Y in dB over held-out images of the weights that a file would hold now.

    Attributes:
        step, seconds, progress: how far the run is; progress is 0 to 1.
        learning_rate: of the next step.
        loss: mean since the report before; None at the start.
        photos, graphics: what the weights and plain interpolation reach on held-out photographs and graphics.
        start: what the weights reached on both before the first step of the run.
    """

    step: int
    seconds: float
    progress: float
    learning_rate: float
    loss: float | None
    photos: Score
    graphics: Score
    start: tuple[float, float]


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Return the rate of a step: linear warm-up, then a cosine from the peak to the floor."""
    cosine = recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * cosine


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Part the parameters: matrices and convolutions decay, biases, norms and logit scales do not."""
    decayed = [p for name, p in network.named_parameters() if p.ndim > 1 and not name.endswith("logit_scale")]
    chosen = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


class Trainer:
    """A network in training, with everything that a checkpoint must hold.

    Args:
        network: trained in place, on its own device.
        recipe: how.
        bfloat16: whether forward passes compute in bfloat16; weights and optimiser stay in float32.
        compiled: whether torch compiles the network first: a minute, and a C++ compiler on a CPU.
    """

    def __init__(
        self,
        network: Swin2SR,
        recipe: Recipe,
        *,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        self.start: tuple[float, float] | None = None
        self.network = network.train()
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.step = 0
        self.seconds = 0.0
        self.recipe = recipe
        self._bfloat16 = bfloat16
        self._forward = torch.compile(network, dynamic=False) if compiled else network
        self._device = next(network.parameters()).device
        self._optimiser = torch.optim.AdamW(
            parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.99), foreach=True
        )

    def fit(self, batches: Iterable[Batch], iterations: int) -> None:
        """Fit ``conv_after_body`` and the head to batches, before the first step."""
        fit_behind_body(self.network, batches, iterations=iterations, aux_weight=self.recipe.aux_weight)
        self.network.train()
        self.average.load_state_dict(self.network.state_dict())

    def learn(self, batch: Batch, progress: float) -> Tensor:
        """Take one step and return its loss, a scalar tensor left on the device."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, progress)
        degraded, clean, sharp = (self._to_unit(image) for image in (batch.degraded, batch.clean, batch.sharp))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            result: Reconstruction = self._forward(degraded)
        loss = reconstruction_loss(
            result,
            sharp,
            clean,
            batch.sizes.to(self._device),
            aux_weight=self.recipe.aux_weight,
            smoothing=self.recipe.smoothing,
            luma_weight=self.recipe.luma_weight,
            psnr_ceiling=self.recipe.psnr_ceiling,
        )
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip, foreach=True)
        self._optimiser.step()
        self._follow()
        self.step += 1
        return loss.detach()

    def _to_unit(self, images: Tensor) -> Tensor:
        unit: Tensor = images.to(self._device, non_blocking=True).float() / 255
        return unit

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (AVERAGE_RAMP + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    @torch.no_grad()
    def finish(self) -> Swin2SR:
        """Return the averaged weights as a file would hold them: rounded to bfloat16, in float32."""
        return copy.deepcopy(self.average).eval().to(torch.bfloat16).float()

    def save(self, folder: Path) -> None:
        """Write the checkpoint, replacing the one before only when it is complete."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "start": self.start,
        }
        unfinished = folder / f"{CHECKPOINT_NAME}.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(folder / CHECKPOINT_NAME)

    def resume(self, folder: Path) -> None:
        """Continue from a folder's checkpoint.

        Raises:
            FileNotFoundError: if there is none.
        """
        state = torch.load(folder / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.start = state["step"], state["seconds"], state["start"]


def export(network: Swin2SR, file: Path) -> None:
    """Write weights in bfloat16 with official names, the configuration in the file's metadata."""
    unfinished = file.with_name(f"unfinished-{file.name}")
    write_official(copy.deepcopy(network).to(torch.bfloat16), unfinished)
    unfinished.chmod(0o644)  # safetensors writes for its owner alone
    unfinished.replace(file)


class _Run:
    """Measures a run, and writes its history, its checkpoint and its weights into a folder."""

    def __init__(
        self, trainer: Trainer, held_out: HeldOut, folder: Path, weights: str, on_report: Callable[[Report], None]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.losses: list[Tensor] = []  # since the last report
        self._trainer, self._held_out, self._on_report = trainer, held_out, on_report
        self._folder, self._weights = folder, folder / weights

    def report(self, progress: float, *, unchanged: bool = False) -> None:
        """Report, and save and export unless the weights are unchanged.

        Raises:
            ValueError: if the mean of ``losses`` is no longer finite.
        """
        network = self._trainer.finish()
        state = self._measure(network, progress)
        self.losses.clear()
        if not unchanged:
            self._trainer.save(self._folder)
            export(network, self._weights)
        with (self._folder / HISTORY_NAME).open("a", encoding="utf-8") as history:
            history.write(json.dumps(asdict(state)) + "\n")
        self._on_report(state)

    def _measure(self, network: Swin2SR, progress: float) -> Report:
        trainer, loss = self._trainer, float(torch.stack(self.losses).mean()) if self.losses else None
        if loss is not None and not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {trainer.step}: lower the learning rate")
        photos, graphics = self._held_out.measure(network)
        if trainer.start is None:
            trainer.start = photos.psnr, graphics.psnr
        rate = learning_rate(trainer.recipe, trainer.step, progress)
        return Report(trainer.step, trainer.seconds, progress, rate, loss, photos, graphics, trainer.start)


def train(
    trainer: Trainer,
    crops: Crops,
    held_out: HeldOut,
    limits: Limits | None,
    *,
    folder: Path,
    weights: str,
    every: int,
    fit_batches: int = 0,
    fit_iterations: int = 60,
    on_report: Callable[[Report], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train until the limits. Report before the first step; report, save and export every so many steps and at the end.

    Args:
        trainer: fresh or resumed.
        crops: training data.
        held_out: images on which progress is measured.
        limits: when the run ends; None after the fit.
        folder: where checkpoint, history and weights go; created if absent.
        weights: file name of the exported weights.
        every: steps between reports.
        fit_batches: number of batches, counted down from -1 as steps, to which the head is fitted first; 0 for none.
        fit_iterations: of that.
        on_report: called with each report.
        clock: seconds that only grow.

    Raises:
        ValueError: if the loss is no longer finite; the checkpoint before is kept.
    """
    run = _Run(trainer, held_out, folder, weights, on_report)
    if trainer.start is None:
        run.report(0.0, unchanged=True)
        if fit_batches:
            began = clock()
            trainer.fit((crops.batch(-1 - number) for number in range(fit_batches)), fit_iterations)
            trainer.seconds = clock() - began
            run.report(0.0)
    if limits is None:
        return
    began = clock() - trainer.seconds
    for batch in crops.batches(trainer.step):
        progress = limits.progress(trainer.step, trainer.seconds)
        if progress >= 1:
            return
        run.losses.append(trainer.learn(batch, progress))
        trainer.seconds = clock() - began
        progress = limits.progress(trainer.step, trainer.seconds)
        if progress >= 1 or trainer.step % every == 0:
            run.report(progress)
