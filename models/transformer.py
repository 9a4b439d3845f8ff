"""The transformer's layers: pre-normalised attention and gated feed-forward, each scaled before it is added.

Layer scale from Touvron et al. 2021, "Going deeper with Image Transformers"; gated feed-forward (GEGLU) from Shazeer
2020, "GLU Variants Improve Transformer"; sandwich normalisation from Ding et al. 2021, "CogView".
Legend: B batch, S positions, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, KeyValueCache
from models.options import TransformerOptions
from models.patterns import Layout, Pattern

FEED_FORWARD_FACTOR = 4


class FeedForward(nn.Module):
    """Gated feed-forward: half of a widened projection, times the GELU of the other half, projected back."""

    def __init__(self, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        inner_size = FEED_FORWARD_FACTOR * hidden_size
        self.to_inner = nn.Linear(hidden_size, 2 * inner_size)
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Linear(inner_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        values, gates = self.to_inner(x).chunk(2, dim=-1)
        return self.to_out(self.dropout(values * F.gelu(gates)))


class LayerScale(nn.Module):
    """A learned factor for every channel, starting small, and smaller the deeper the layer."""

    def __init__(self, hidden_size: int, depth: int) -> None:
        """Start at 0.1 down to layer 18, 1e-5 down to layer 24, 1e-6 below; `depth` counts from 1."""
        super().__init__()
        initial = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((hidden_size,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        return x * self.scale


class Layer(nn.Module):
    """One layer: attention, then feed-forward, each normalised, scaled and added to what came in.

    Args:
        options: of the transformer.
        pattern: what each position may look at.
        depth: the layer's number, from 1.
    """

    def __init__(self, options: TransformerOptions, pattern: Pattern, depth: int) -> None:
        super().__init__()
        size = options.hidden_size
        self.attention_norm = nn.LayerNorm(size)
        self.attention = Attention(
            size, options.num_attention_heads, options.dim_head, pattern, dropout=options.attn_dropout
        )
        self.attention_out_norm = nn.LayerNorm(size) if options.sandwich_norm else nn.Identity()
        self.attention_scale = LayerScale(size, depth)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.feed_forward = FeedForward(size, dropout=options.ff_dropout)
        self.feed_forward_out_norm = nn.LayerNorm(size) if options.sandwich_norm else nn.Identity()
        self.feed_forward_scale = LayerScale(size, depth)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        return self._add(x, self.attention(self.attention_norm(x)))

    def prefill(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """As `forward`, leaving keys and values in the cache."""
        return self._add(x, self.attention.prefill(self.attention_norm(x), cache))

    def decode(self, x: Tensor, position: int, cache: KeyValueCache) -> Tensor:
        """One position, (B, 1, D) to (B, 1, D), after all earlier ones went through the same cache."""
        return self._add(x, self.attention.decode(self.attention_norm(x), position, cache))

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attention_scale(self.attention_out_norm(attended))
        return x + self.feed_forward_scale(self.feed_forward_out_norm(self.feed_forward(self.feed_forward_norm(x))))


def make_layers(options: TransformerOptions, layout: Layout) -> nn.ModuleList:
    """The stack of layers, cycling through `attn_types`."""
    layers = nn.ModuleList()
    for index in range(options.num_hidden_layers):
        kind = options.attn_types[index % len(options.attn_types)]
        pattern = Pattern(kind, layout, options.conv_kernel_size, options.conv_dilation, options.conv_window)
        layers.append(Layer(options, pattern, depth=index + 1))
    return layers
