"""Window attention of SwinV2: cosine similarity and a continuous relative position bias.

Source: sections 3.2 and 3.3 of *Swin Transformer V2* (arXiv 2111.09883); ``WindowAttention`` of the official
``models/network_swin2sr.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import cpu_kernel, windows

# The official code clamps to the float32 logarithm, and so does a network in float64.
MAX_LOGIT_SCALE = float(torch.log(torch.tensor(100.0)))


class WindowAttention(nn.Module):
    """Attention among the tokens of a window.

    Outside training, what depends on the weights alone (``logit_bias``, ``scale``, ``kernel_tables``) is computed once:
    by ``eval()``, and again whenever weights are loaded, moved or cast; call ``refresh`` after changing them otherwise.

    Args:
        dim: C, channels.
        heads: nH; divides ``dim``.
        window: side of a window; N = window * window.
        shift: pixels by which the windows are shifted, 0 where they are not.
        qkv_bias: whether query and value have a bias.
        dropout: probability on the attention, in training.
    """

    relative_coords_table: Tensor
    relative_position_index: Tensor
    masks: Tensor

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, *, qkv_bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.window, self.dropout = dim, heads, window, dropout
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("relative_coords_table", relative_coords_table(window), persistent=False)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        masks = windows.attention_masks(window, shift) if shift else torch.zeros(1, window**2, window**2)
        self.register_buffer("masks", masks, persistent=False)
        self.logit_bias: Tensor | None = None
        self.scale: Tensor | None = None
        self.kernel_tables: cpu_kernel.KernelTables | None = None
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]  # likewise

    def position_bias(self) -> Tensor:
        """The continuous relative position bias (nH, N, N), within (0, 16)."""
        tokens = self.window**2
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.heads)
        bias = table[self.relative_position_index.view(-1)].view(tokens, tokens, self.heads)
        return 16 * torch.sigmoid(bias.permute(2, 0, 1))

    def tables(self) -> tuple[Tensor, Tensor]:
        """Bias and mask of every kind of window (kinds, nH, N, N), and the factor on cosines (nH, 1, 1)."""
        bias = self.position_bias() + self.masks[:, None]
        return bias, self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def refresh(self) -> None:
        """Compute the tables from the weights as they are now; in training mode forget them."""
        self.logit_bias = self.scale = self.kernel_tables = None
        if self.training:
            return
        with torch.inference_mode(mode=False), torch.no_grad():  # an inference tensor could not meet gradients later
            bias, self.scale = self.tables()
            self.logit_bias = bias.contiguous()
            self.kernel_tables = cpu_kernel.build_tables(self.qkv_bias(), self.scale, bias)

    def train(self, mode: bool = True) -> WindowAttention:
        """Switch between training and evaluation, which alone holds the tables."""
        super().train(mode)
        self.refresh()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WindowAttention:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch has not annotated it
        self.refresh()
        return self

    def qkv_bias(self) -> Tensor:
        """The bias (3 C) of query, key and value; the key has none."""
        if self.q_bias is None or self.v_bias is None:
            return self.qkv.weight.new_zeros(3 * self.dim)
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (nW, nH, N, C / nH), of tokens (nW, N, C)."""
        count, length, _ = tokens.shape
        qkv = F.linear(tokens, self.qkv.weight, self.qkv_bias()).view(count, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value

    def probabilities(self, query: Tensor, key: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Softmax of cosine, bias and mask.

        Args:
            query, key: (nW, nH, N, C / nH).
            counts: how many windows, in their order, are of the first, second, ... kind of attention mask.

        Returns:
            (nW, nH, N, N), rows adding up to one.
        """
        bias, scale = self.tables() if self.logit_bias is None or self.scale is None else (self.logit_bias, self.scale)
        logits = (F.normalize(query, dim=-1) * scale) @ F.normalize(key, dim=-1).transpose(-2, -1)
        if sum(count > 0 for count in counts) == 1:
            kind = next(kind for kind, count in enumerate(counts) if count)
            return torch.softmax(logits + bias[kind], dim=-1)
        kinds = torch.tensor([kind for kind, count in enumerate(counts) for _ in range(count)])
        kinds = kinds.to(bias.device, non_blocking=True)
        return torch.softmax(logits + bias[kinds], dim=-1)

    def forward(self, tokens: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Attend among the tokens of each window.

        Args:
            tokens: (nW, N, C), windows sorted by the kind of their mask.
            counts: how many windows there are of each kind.

        Returns:
            (nW, N, C).
        """
        query, key, value = self.project(tokens)
        attention = F.dropout(self.probabilities(query, key, counts), self.dropout, self.training)
        return self.proj((attention @ value).transpose(1, 2).reshape(tokens.shape))


def _refresh(module: nn.Module, _: object) -> None:
    assert isinstance(module, WindowAttention)
    module.refresh()


def relative_coords_table(window: int) -> Tensor:
    """Log-spaced offsets (2 * window - 1, 2 * window - 1, 2) between two tokens, which the bias is a function of."""
    offsets = torch.arange(-(window - 1), window, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1) / (window - 1) * 8
    return torch.sign(grid) * torch.log2(grid.abs() + 1) / math.log2(8)


def relative_position_index(window: int) -> Tensor:
    """Row (N, N) of the flattened offset table for every pair of tokens."""
    place = torch.arange(window)
    rows, columns = place.repeat_interleave(window), place.repeat(window)
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right
