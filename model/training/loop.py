"""The training loop: AdamW, warm-up and cosine, an average of weights, checkpoints that a stopped run goes on from."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints import write_official
from model.degradations import resize_bicubic
from model.evaluate import measure
from model.network import Swin2SR
from model.packing import PackedLayout
from model.reconstruction import Reconstruction
from model.training.photos import Batch, Crops, Photo, cut, stack
from model.training.recipe import Recipe

CHECKPOINT_NAME = "training.pt"
HISTORY_NAME = "history.jsonl"
HELD_OUT_CROP = 96
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
    """How a run stands: PSNR on Y in dB over held-out crops, of the averaged weights and of plain interpolation."""

    step: int
    seconds: float
    progress: float
    learning_rate: float
    loss: float
    psnr: float
    baseline: float


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Return the rate of a step: linear warm-up, then a cosine from the peak to the floor."""
    cosine = recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup) * cosine


def reconstruction_loss(result: Reconstruction, sharp: Tensor, clean: Tensor, aux_weight: float) -> Tensor:
    """Return the L1 distance to the wanted image, plus that of the auxiliary image to the uncompressed input.

    Source: Swin2SR, the auxiliary loss of compressed super-resolution.
    """
    loss = F.l1_loss(result.image.float(), sharp)
    if result.aux is not None:
        loss = loss + aux_weight * F.l1_loss(result.aux.float(), clean)
    return loss


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

    def __init__(self, network: Swin2SR, recipe: Recipe, *, bfloat16: bool = False, compiled: bool = False) -> None:
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

    def learn(self, batch: Batch, progress: float) -> Tensor:
        """Take one step and return its loss, a scalar tensor left on the device."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, progress)
        degraded, clean, sharp = (self._to_unit(image) for image in (batch.degraded, batch.clean, batch.sharp))
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            result = self._forward(degraded, self._layout(degraded))
        loss = reconstruction_loss(result, sharp, clean, self.recipe.aux_weight)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip, foreach=True)
        self._optimiser.step()
        self._follow()
        self.step += 1
        return loss.detach()

    def _layout(self, images: Tensor) -> PackedLayout:
        count, _, height, width = images.shape
        return self.network.layouts([(height, width)] * count, images.device)

    def _to_unit(self, images: Tensor) -> Tensor:
        unit: Tensor = images.to(self._device, non_blocking=True).float() / 255
        return unit

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.ema_decay, (1 + self.step) / (AVERAGE_RAMP + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)

    @torch.inference_mode()
    def reconstruct(self, degraded: Tensor) -> Tensor:
        """Return what the averaged weights make of (B, C, h, w) uint8, as uint8."""
        self.average.train().eval()  # position biases are computed again from the weights of now
        image: Tensor = self.average(self._to_unit(degraded)).image
        return (image * 255).round().clamp(0, 255).to(torch.uint8).cpu()

    def save(self, folder: Path) -> None:
        """Write the checkpoint, replacing the one before only when it is complete."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        unfinished = folder / f"{CHECKPOINT_NAME}.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(folder / CHECKPOINT_NAME)

    def resume(self, folder: Path) -> None:
        """Go on from a folder's checkpoint.

        Raises:
            FileNotFoundError: if there is none.
        """
        state = torch.load(folder / CHECKPOINT_NAME, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, file: Path) -> None:
        """Write the averaged weights in bfloat16 with official names, the configuration in the file's metadata."""
        unfinished = file.with_name(f"unfinished-{file.name}")
        write_official(copy.deepcopy(self.average).to(torch.bfloat16), unfinished)
        unfinished.chmod(0o644)  # safetensors writes for its owner alone
        unfinished.replace(file)


class HeldOut:
    """Crops of photos that are never trained on, always the same."""

    def __init__(self, photos: Sequence[Photo], quality: tuple[int, int] | None, window: int) -> None:
        self._batches = []
        baseline = []
        for n, photo in enumerate(photos):
            crop = min(HELD_OUT_CROP, *photo.reduced.shape[:2]) // window * window
            sample = cut(photo, crop, quality, np.random.default_rng(n))
            self._batches.append(stack([sample]))
            height, width = sample.sharp.shape[:2]
            self._border = height // crop if height > crop else 0
            plain = resize_bicubic(np.ascontiguousarray(sample.degraded), height, width)
            baseline.append(measure(plain, sample.sharp, self._border).psnr_y)
        self.baseline = float(np.mean(baseline))

    def psnr(self, reconstruct: Callable[[Tensor], Tensor]) -> float:
        """Return the mean PSNR on Y in dB over the crops."""
        scores = []
        for batch in self._batches:
            image, sharp = (i[0].permute(1, 2, 0).numpy() for i in (reconstruct(batch.degraded), batch.sharp))
            scores.append(measure(image, sharp, self._border).psnr_y)
        return float(np.mean(scores))


def train(
    trainer: Trainer,
    crops: Crops,
    held_out: HeldOut,
    limits: Limits,
    *,
    folder: Path,
    weights: str,
    every: int,
    on_report: Callable[[Report], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train until the limits, reporting, saving and exporting every so many steps and at the end.

    Args:
        trainer: fresh or resumed.
        crops: what it learns from.
        held_out: what progress is measured on.
        limits: when it ends.
        folder: where checkpoint, history and weights go; created if absent.
        weights: file name of the exported weights.
        every: steps between reports.
        on_report: called with each report.
        clock: seconds that only grow.

    Raises:
        ValueError: if the loss is no longer finite; the checkpoint before is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = clock() - trainer.seconds
    losses: list[Tensor] = []
    for batch in crops.batches(trainer.step):
        progress = limits.progress(trainer.step, trainer.seconds)
        if progress >= 1:
            return
        losses.append(trainer.learn(batch, progress))
        trainer.seconds = clock() - began
        progress = limits.progress(trainer.step, trainer.seconds)
        if progress >= 1 or trainer.step % every == 0:
            report = _stand(trainer, held_out, progress, float(torch.stack(losses).mean()))
            losses.clear()
            trainer.save(folder)
            trainer.export(folder / weights)
            with (folder / HISTORY_NAME).open("a", encoding="utf-8") as history:
                history.write(json.dumps(asdict(report)) + "\n")
            on_report(report)


def _stand(trainer: Trainer, held_out: HeldOut, progress: float, loss: float) -> Report:
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at step {trainer.step}: lower the learning rate")
    return Report(
        trainer.step,
        trainer.seconds,
        progress,
        learning_rate(trainer.recipe, trainer.step, progress),
        loss,
        held_out.psnr(trainer.reconstruct),
        held_out.baseline,
    )
