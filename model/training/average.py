"""Average the weights of a network before and after it was trained further.

``python -m model.training.average BEFORE AFTER OUT --share 0.5``. Training on new kinds of images costs a network some
of what it did well before. The average keeps most of both and is often better than either (Wortsman et al., CVPR 2022,
arXiv 2109.01903).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoints import load_network
from model.checkpoints.write import decisive_fields
from model.network import Swin2SR
from model.training.loop import export


@torch.no_grad()
def average(before: Swin2SR, after: Swin2SR, share: float) -> Swin2SR:
    """The network ``after`` with weights a share of the way from those of ``before`` to its own; changed in place.

    Raises:
        ValueError: if the share is not within [0, 1], or the networks are not of one form.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share must lie in [0, 1], not {share}")
    if decisive_fields(before.config) != decisive_fields(after.config):
        raise ValueError("the networks have different configurations")
    old = before.state_dict()
    for key, tensor in after.state_dict().items():
        tensor.copy_(torch.lerp(old[key], tensor, share))
    return after


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the process's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m model.training.average", description="Average the weights of two networks of one form."
    )
    parser.add_argument("before", type=Path, help="weights before training")
    parser.add_argument("after", type=Path, help="weights after it, whose configuration is written")
    parser.add_argument("out", type=Path, help="file to write, ending in .safetensors")
    parser.add_argument("--share", type=float, default=0.5, help="of the weights after it, 0 to 1 (0.5)")
    options = parser.parse_args(arguments)
    try:
        export(average(load_network(options.before), load_network(options.after), options.share), options.out)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
