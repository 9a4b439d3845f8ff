"""Multi-head attention over text and image tokens, in the form each pattern allows.

Legend: B batch, S positions, D width, H heads, K head width, T text positions with <bos>, Y rows and X columns of the
image grid, N keys read by one decoding step.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.patterns import Pattern


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention where `mask` (n, N) is true: q (B, H, n, K), k and v (B, H, N, K) to (B, H, n, K).

    On GPUs torch's fused kernel; elsewhere plain products, which IPUs take too. With torch's fused kernel for CPUs a
    training step at 80 positions took 1.9 times as long.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, n, N)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(v.dtype) @ v


class KeyValueCache:
    """Keys and values of one attention layer for every position of a batch.

    Room for all positions is made once, at the first write, in the type that the layer computes in.

    Args:
        length: positions of a sequence.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.keys: Optional[Tensor] = None
        self.values: Optional[Tensor] = None

    def write(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Store (B, H, n, K) keys and values at positions `start` and after."""
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.length, keys.shape[3])
            self.keys, self.values = keys.new_zeros(shape), values.new_zeros(shape)
        self.keys[:, :, start : start + keys.shape[2]] = keys
        self.values[:, :, start : start + values.shape[2]] = values

    def read(self, positions: Tensor) -> Tuple[Tensor, Tensor]:
        """Keys and values (B, H, N, K) at `positions`, N ascending numbers, all written before."""
        assert self.keys is not None and self.values is not None, "nothing was written yet"
        first, count = int(positions[0]), len(positions)
        if int(positions[-1]) - first + 1 == count:  # a run of positions needs no copy
            return self.keys.narrow(2, first, count), self.values.narrow(2, first, count)
        places = positions.to(self.keys.device)
        return self.keys.index_select(2, places), self.values.index_select(2, places)


class Attention(nn.Module):
    """Attention of one pattern.

    Args:
        hidden_size: width D of input and output.
        num_attention_heads: H.
        dim_head: K.
        pattern: what each position may look at.
        dropout: probability of dropping an output value.
    """

    mask: Tensor

    def __init__(
        self, hidden_size: int, num_attention_heads: int, dim_head: int, pattern: Pattern, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.pattern = num_attention_heads, pattern
        inner_size = num_attention_heads * dim_head
        self.to_qkv = nn.Linear(hidden_size, 3 * inner_size, bias=False)
        self.to_out = nn.Linear(inner_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        # axial attention sees a dense mask over the text only
        dense = pattern.layout.text_len if is_axial(pattern) else pattern.layout.sequence_len
        self.register_buffer("mask", pattern.mask(dense), persistent=False)
        self._keys: List[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Attend within the first positions of a sequence: (B, S, D) to (B, S, D)."""
        return self._output(self._attend(*self._project(x)))

    def prefill(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """As `forward`, leaving keys and values in the cache."""
        q, k, v = self._project(x)
        cache.write(0, k, v)
        return self._output(self._attend(q, k, v))

    def decode(self, x: Tensor, position: int, cache: KeyValueCache) -> Tensor:
        """Attend from one position, (B, 1, D) to (B, 1, D), reading only the keys that the pattern allows it."""
        q, k, v = self._project(x)
        cache.write(position, k, v)
        keys, values = cache.read(self._keys_of(position))  # (B, H, N, K)
        return self._output(F.scaled_dot_product_attention(q, keys, values))

    def _keys_of(self, position: int) -> Tensor:
        if not self._keys:
            self._keys = [self.pattern.keys(i) for i in range(self.pattern.layout.sequence_len)]
        return self._keys[position]

    def _project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        q, k, v = rearrange(self.to_qkv(x), "b s (three h k) -> three b h s k", three=3, h=self.heads)
        return q, k, v

    def _output(self, out: Tensor) -> Tensor:
        return self.dropout(self.to_out(rearrange(out, "b h s k -> b s (h k)")))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        if is_axial(self.pattern) and length > self.pattern.layout.text_len:
            return axial_attention(q, k, v, self.pattern, self.mask)
        return attend(q, k, v, self.mask[:length, :length])


def is_axial(pattern: Pattern) -> bool:
    """Whether pixels see only their own row or column."""
    return pattern.kind in ("axial_row", "axial_col")


def axial_attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, text_mask: Tensor) -> Tensor:
    """Attention along rows or columns without the scores that the pattern forbids.

    A pixel's scores are those against the text and those against its own line: T + X of them (T + Y along columns)
    where the dense form has S.

    Args:
        q, k, v: (B, H, S, K); S at least the text positions. What the sequence lacks of the picture is padded.
        pattern: of kind `axial_row` or `axial_col`.
        text_mask: (T, T), what text positions see.
    """
    layout, length = pattern.layout, q.shape[2]
    text_len = layout.text_len
    out_text = attend(q[:, :, :text_len], k[:, :, :text_len], v[:, :, :text_len], text_mask)
    missing = text_len + layout.image_len - length
    lines = "b h (y x) k -> b h y x k" if pattern.kind == "axial_row" else "b h (y x) k -> b h x y k"
    q_line, k_line, v_line = (
        rearrange(F.pad(t[:, :, text_len:], (0, 0, 0, missing)), lines, x=layout.columns) for t in (q, k, v)
    )
    q_line = q_line * q.shape[-1] ** -0.5
    keys_text, values_text = k[:, :, None, :text_len], v[:, :, None, :text_len]  # (B, H, 1, T, K)

    line_len = q_line.shape[3]
    later = torch.ones(line_len, line_len, dtype=torch.bool, device=q.device).triu(1)
    on_text = q_line @ keys_text.transpose(-1, -2)  # (B, H, Y, X, T)
    on_line = (q_line @ k_line.transpose(-1, -2)).masked_fill(later, float("-inf"))  # (B, H, Y, X, X)
    weights = torch.cat((on_text, on_line), dim=-1).softmax(dim=-1).to(v.dtype)  # (B, H, Y, X, T + X)
    out_line = weights[..., :text_len] @ values_text + weights[..., text_len:] @ v_line  # (B, H, Y, X, K)
    back = "b h y x k -> b h (y x) k" if pattern.kind == "axial_row" else "b h x y k -> b h (y x) k"
    out_image = rearrange(out_line, back)[:, :, : length - text_len]
    return torch.cat((out_text, out_image), dim=2)
