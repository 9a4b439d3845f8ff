"""Multi-head attention over text and image tokens, in the form each pattern allows.

Legend: B batch, S positions, D width, H heads, K head width, T text positions with <bos>, Y rows and X columns of the
image grid, N keys that are looked at.
"""

from __future__ import annotations

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.cache import LayerCache
from models.patterns import Pattern
from models.rotary import rotary_angles, rotate

AttentionKernel = Callable[[Tensor, Pattern], Tensor]
"""Computes the attention of a pattern over first positions: q, k, v side by side (B, n, 3, H, K) to (B, n, H, K)."""
STABLE_FACTOR = 32.0  # what scores are divided by before they are taken from their maximum


def score_scale(q: Tensor) -> float:
    """What products of queries (..., K) and keys are multiplied by to be scores."""
    return float(q.shape[-1] ** -0.5)


def scale_queries(q: Tensor, stable: bool) -> Tensor:
    """Queries (..., K) whose products with keys are scores; divided by `STABLE_FACTOR` for the stable softmax."""
    scale = score_scale(q)
    return q * (scale / STABLE_FACTOR if stable else scale)


def weigh(scores: Tensor, stable: bool) -> Tensor:
    """Softmax over the last axis of the scores of `scale_queries`.

    The stable form (Ding et al. 2021, "CogView", section 2.4) never holds a score in full, so that half precision does
    not overflow; it is equal in exact arithmetic.
    """
    if stable:
        scores = (scores - scores.amax(dim=-1, keepdim=True).detach()) * STABLE_FACTOR
    return scores.softmax(dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], stable: bool = False) -> Tensor:
    """Softmax attention where `mask` (n, N) is true: q (B, H, n, K), k and v (B, H, N, K) to (B, H, n, K).

    On GPUs torch's fused kernel, which holds scores in single precision and so is stable; elsewhere plain products,
    which IPUs take too. With torch's fused kernel for CPUs a training step at 80 positions took 1.9 times as long.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _attend_scaled(scale_queries(q, stable), k, v, mask, stable)


def _attend_scaled(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], stable: bool) -> Tensor:
    """As `attend`, for queries of `scale_queries`."""
    scores = q @ k.transpose(-1, -2)  # (B, H, n, N)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return weigh(scores, stable).to(v.dtype) @ v


class Attention(nn.Module):
    """Attention of one pattern.

    Attributes:
        kernel: computes it from queries, keys and values; None: the form that suits the pattern, below. An engine sets
            it to an operator of its machine.

    Args:
        hidden_size: width D of input and output.
        num_attention_heads: H.
        dim_head: K.
        pattern: what each position may look at; None: at all of them.
        dropout: probability of dropping an output value.
        stable: softmax in the form that half precision cannot overflow.
        rotary_emb: turn queries, keys and values by their position; needs a pattern.
    """

    mask: Tensor
    line_mask: Tensor
    cosines: Tensor
    sines: Tensor

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        dim_head: int,
        pattern: Optional[Pattern],
        dropout: float = 0.0,
        stable: bool = False,
        rotary_emb: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.pattern, self.stable, self.rotary_emb = num_attention_heads, pattern, stable, rotary_emb
        self.kernel: Optional[AttentionKernel] = None
        inner_size = num_attention_heads * dim_head
        self.to_qkv = nn.Linear(hidden_size, 3 * inner_size, bias=False)
        self.to_out = nn.Linear(inner_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        if pattern is not None:
            self._add_tables(pattern, dim_head)

    def forward(self, x: Tensor, cache: Optional[LayerCache] = None, mask: Optional[Tensor] = None) -> Tensor:
        """Attend from the first positions of a sequence: (B, n, D) to (B, n, D).

        Args:
            x: the positions.
            cache: is given their keys and values, for later positions.
            mask: without a pattern, the positions that may be looked at, (B, n).
        """
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, n, 3, H, K)
        if self.rotary_emb:
            qkv = rotate(qkv, *(table[: x.shape[1], None, None] for table in (self.cosines, self.sines)))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, n, K)
        if cache is not None:
            cache.keys.fill(k, v)
        if self.kernel is not None and self.pattern is not None:
            out = self.kernel(qkv, self.pattern)
        elif self.pattern is not None:
            out = self._attend(q, k, v, self.pattern).transpose(1, 2)
        else:
            out = attend(q, k, v, None if mask is None else mask[:, None, None], self.stable).transpose(1, 2)
        return self.dropout(self.to_out(out.flatten(2)))

    def _add_tables(self, pattern: Pattern, dim_head: int) -> None:
        layout = pattern.layout
        # axial attention sees a dense mask over the text only
        dense = layout.text_len if is_axial(pattern) else layout.sequence_len
        tables = {"mask": pattern.mask(dense)}
        if is_axial(pattern):
            line = layout.columns if pattern.kind == "axial_row" else layout.rows
            tables["line_mask"] = torch.ones(line, line, dtype=torch.bool).tril()
        if self.rotary_emb:
            angles = rotary_angles(layout, dim_head)[: layout.sequence_len]
            tables["cosines"], tables["sines"] = angles.cos(), angles.sin()
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        length = q.shape[2]
        if is_axial(pattern) and length > pattern.layout.text_len:
            return axial_attention(q, k, v, pattern, self.mask, self.line_mask, self.stable)
        return attend(q, k, v, self.mask[:length, :length], self.stable)


def is_axial(pattern: Pattern) -> bool:
    """Whether pixels see only their own row or column."""
    return pattern.kind in ("axial_row", "axial_col")


def axial_attention(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, text_mask: Tensor, line_mask: Tensor, stable: bool = False
) -> Tensor:
    """Attention along rows or columns without the scores that the pattern forbids.

    A pixel's scores are those against the text and those against its own line: T + X of them (T + Y along columns)
    where the dense form has S.

    Args:
        q, k, v: (B, H, S, K); S at least the text positions. What the sequence lacks of the picture is padded.
        pattern: of kind `axial_row` or `axial_col`.
        text_mask: (T, T), what text positions see.
        line_mask: (X, X), or (Y, Y) along columns: what the pixels of a line see of it.
        stable: as for `weigh`.
    """
    layout, length = pattern.layout, q.shape[2]
    sizes = [layout.text_len, layout.image_len]
    missing = sum(sizes) - length
    parts = [F.pad(t, (0, 0, 0, missing)).split(sizes, dim=2) for t in (scale_queries(q, stable), k, v)]
    (q_text, q_image), (k_text, k_image), (v_text, v_image) = parts
    lines = "b h (y x) k -> b h y x k" if pattern.kind == "axial_row" else "b h (y x) k -> b h x y k"
    q_line, k_line, v_line = (rearrange(t, lines, x=layout.columns) for t in (q_image, k_image, v_image))
    grid = q_line.shape[2:4]

    out_text = _attend_scaled(q_text, k_text, v_text, text_mask, stable)  # (B, H, T, K)
    # all lines at once: a product for each of them would copy the text's keys and values for each
    on_text = (q_line.flatten(2, 3) @ k_text.transpose(-1, -2)).unflatten(2, grid)  # (B, H, Y, X, T)
    on_line = (q_line @ k_line.transpose(-1, -2)).masked_fill(~line_mask, float("-inf"))  # (B, H, Y, X, X)
    weights = weigh(torch.cat((on_text, on_line), dim=-1), stable).to(v.dtype)  # (B, H, Y, X, T + X)
    of_text, of_line = weights.split([sizes[0], weights.shape[-1] - sizes[0]], dim=-1)
    out_line = (of_text.flatten(2, 3) @ v_text).unflatten(2, grid) + of_line @ v_line  # (B, H, Y, X, K)
    back = "b h y x k -> b h (y x) k" if pattern.kind == "axial_row" else "b h x y k -> b h (y x) k"
    return torch.cat((out_text, rearrange(out_line, back)), dim=2)[:, :, :length]
