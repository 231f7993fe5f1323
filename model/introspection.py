"""The body of the network run so that it can be watched: hidden states, attentions, heads left out.

What a request needs goes through ``Swin2SR.forward`` alone. This slower way is for people who study the network, and
gives what the Transformers port gives: the tokens after the embedding and after every stage, and the attention of the
last block of every stage.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model import windows
from model.attention import WindowAttention
from model.network import ResidualGroup, ResidualSwinTransformerBlock, Swin2SR, SwinTransformerBlock, convolve
from model.packing import PackedLayout


class Observation(NamedTuple):
    """What the body computed on the way.

    Attributes:
        features: (B, C, H, W), the last stage's tokens after the norm.
        hidden_states: tokens (B, H * W, C) in reading order, after the embedding and after every stage.
        attentions: (B * nW, nH, N, N) of the last block of every stage, windows in reading order of their own grid.
    """

    features: Tensor
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]


def observe(
    network: Swin2SR, features: Tensor, layout: PackedLayout, head_masks: Sequence[Tensor | None]
) -> Observation:
    """Run the body as ``Swin2SR.deepen`` does and note what passes.

    Args:
        network: whose body runs.
        features: (B, C, H, W), after ``conv_first``.
        layout: of B images of one size.
        head_masks: for every stage None, or a factor (nH,) on the attention of each head in all its blocks.
    """
    tokens = network.patch_embed(layout.to_windows(features))
    hidden_states, attentions = [_in_reading_order(tokens, layout)], []
    stages = cast("Sequence[ResidualSwinTransformerBlock]", network.layers)
    for stage, head_mask in zip(stages, head_masks, strict=True):
        canvas, attention = _run_blocks(stage.residual_group, tokens, layout, head_mask)
        tokens = tokens + stage.patch_embed(layout.to_windows(convolve(stage.conv, canvas, layout)))
        hidden_states.append(_in_reading_order(tokens, layout))
        attentions.append(attention)
    features = layout.to_canvas(network.norm(tokens), shifted=False)
    return Observation(features, tuple(hidden_states), tuple(attentions))


def _run_blocks(
    group: ResidualGroup, tokens: Tensor, layout: PackedLayout, head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens (T, C) in window order through all blocks to a canvas, and the last block's attention."""
    length, channels, shifted = layout.window**2, tokens.shape[1], False
    for block in cast("Sequence[SwinTransformerBlock]", group.blocks):
        if bool(block.shift) != shifted:
            shifted = not shifted
            table = layout.shifted_from_windows if shifted else layout.windows_from_shifted
            tokens = tokens.index_select(0, table)
        counts = layout.counts if shifted else (layout.windows_count,)
        tokens, attention = _run_block(block, tokens.view(-1, length, channels), counts, head_mask)
        tokens = tokens.view(-1, channels)
    return layout.to_canvas(tokens, shifted=shifted), _sort_windows(attention, layout) if shifted else attention


def _run_block(
    block: SwinTransformerBlock, tokens: Tensor, counts: tuple[int, ...], head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    attended, attention = _attend(block.attn, tokens, counts, head_mask)
    tokens = tokens + block.stochastic_depth(block.norm1(F.dropout(attended, block.dropout, block.training)))
    branch = F.dropout(block.mlp(tokens), block.dropout, block.training)
    return tokens + block.stochastic_depth(block.norm2(branch)), attention


def _attend(
    attn: WindowAttention, tokens: Tensor, counts: tuple[int, ...], head_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    query, key, value = attn.project(tokens)
    attention = F.dropout(attn.probabilities(query, key, counts), attn.dropout, attn.training)
    if head_mask is not None:
        attention = attention * head_mask[:, None, None]
    return attn.proj((attention @ value).transpose(1, 2).reshape(tokens.shape)), attention


def _in_reading_order(tokens: Tensor, layout: PackedLayout) -> Tensor:
    """Tokens (T, C) in window order to (B, H * W, C)."""
    return layout.to_canvas(tokens, shifted=False).flatten(2).transpose(1, 2)


def _sort_windows(attention: Tensor, layout: PackedLayout) -> Tensor:
    """Put shifted windows, which a pack sorts by the kind of their mask, back into reading order."""
    kinds = torch.cat([windows.mask_kinds(height, width, layout.window) for height, width in layout.sizes])
    place = torch.argsort(torch.argsort(kinds, stable=True))
    return attention[place.to(attention.device)]
