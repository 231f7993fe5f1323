"""Fit what lies behind the body, ``conv_after_body`` and the head, to a fixed set of crops.

The body computes once for each crop, without gradients. The rest has a few thousand weights, which L-BFGS fits to all
crops at once, in minutes of one core. Use it before training the whole network, after a constraint or new kinds of
images have changed the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network import Swin2SR
from model.reconstruction import Reconstruction
from model.training.losses import reconstruction_loss
from model.training.pairs import Batch

BODY_ENDS = "swin2sr.conv_after_body."
SMOOTHING = 0.003
HISTORY = 20
"""Steps that L-BFGS remembers."""


def is_behind_body(name: str) -> bool:
    """Whether a weight with this name is fitted: that of ``conv_after_body`` or of the head."""
    return name.startswith(BODY_ENDS) or not name.startswith("swin2sr.")


@dataclass(frozen=True)
class BodyFeatures:
    """What a body makes of images.

    Attributes:
        deep: input of ``conv_after_body`` (B, embed_dim, H, W).
        shallow: what is added to its output, of the same shape.
        images: (B, C, H, W) in [0, 1].
    """

    deep: Tensor
    shallow: Tensor
    images: Tensor

    @classmethod
    @torch.no_grad()
    def compute(cls, network: Swin2SR, images: Tensor) -> BodyFeatures:
        """Run the body of a network on images (B, C, H, W) in [0, 1]."""
        body = network.swin2sr
        shallow = body.first_convolution(body.normalise(images))  # (B, embed_dim, H, W)
        tokens, size = body.embeddings(shallow)
        encoded = body.encoder(tokens, size).last_hidden_state
        return cls(body.patch_unembed(body.layernorm(encoded), size), shallow, images)

    def reconstruct(self, network: Swin2SR) -> Reconstruction:
        """Return the network's result, with gradients for the layers after the body."""
        return network.reconstruct(network.swin2sr.conv_after_body(self.deep) + self.shallow, self.images)


def fit_behind_body(
    network: Swin2SR,
    batches: Iterable[Batch],
    *,
    iterations: int,
    aux_weight: float = 1.0,
    on_loss: Callable[[float], None] = lambda _: None,
) -> None:
    """Minimise the reconstruction loss over all batches at once; the weights of the body stay.

    Args:
        network: fitted in place.
        batches: kept in memory with their features: 6 KB a low-resolution pixel of a network 40 wide in float32.
        iterations: of L-BFGS; each passes once or twice over all batches.
        aux_weight: as in ``reconstruction_loss``.
        on_loss: called with each loss.
    """
    network.eval()
    fitted = [weight for name, weight in network.named_parameters() if is_behind_body(name)]
    prepared = [_prepare(network, batch) for batch in batches]
    optimiser = torch.optim.LBFGS(
        fitted,
        max_iter=iterations,
        history_size=HISTORY,
        tolerance_grad=0,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        network.zero_grad(set_to_none=True)
        total = 0.0
        for features, clean, sharp, sizes in prepared:
            result, wanted, plain = features.reconstruct(network), sharp.float() / 255, clean.float() / 255
            loss = reconstruction_loss(result, wanted, plain, sizes, aux_weight=aux_weight, smoothing=SMOOTHING)
            loss = loss / len(prepared)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        on_loss(total)
        return total

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)


def _prepare(network: Swin2SR, batch: Batch) -> tuple[BodyFeatures, Tensor, Tensor, Tensor]:
    """What the body makes of a batch; its clean input and its wanted output, uint8 both; its sizes."""
    device = next(network.parameters()).device
    degraded, clean, sharp = (image.to(device) for image in (batch.degraded, batch.clean, batch.sharp))
    return BodyFeatures.compute(network, degraded.float() / 255), clean, sharp, batch.sizes.to(device)
