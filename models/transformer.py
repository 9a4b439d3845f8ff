"""The transformer's layers: pre-normalised attention and gated feed-forward, each scaled before it is added.

Layer scale from Touvron et al. 2021, "Going deeper with Image Transformers"; gated feed-forward (GEGLU) from Shazeer
2020, "GLU Variants Improve Transformer"; sandwich normalisation from Ding et al. 2021, "CogView".
Legend: B batch, n positions, D width.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention
from models.cache import LayerCache
from models.options import TransformerOptions
from models.patterns import Layout, Pattern
from models.reversible import Branch, run_reversibly
from models.shift import TokenShift
from options import OptionError

FEED_FORWARD_FACTOR = 4
GateKernel = Callable[[Tensor], Tensor]
ResidualKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
NormKernel = Callable[..., Tensor]


def gate(inner: Tensor) -> Tensor:
    """One half of the channels times the GELU of the other: (B, S, 2 D) to (B, S, D)."""
    values, gates = inner.chunk(2, dim=-1)
    return values * F.gelu(gates)


class FeedForward(nn.Module):
    """Gated feed-forward: half of a widened projection, times the GELU of the other half, projected back.

    Attributes:
        kernel: computes what `gate` does; an engine sets it to an operator of its machine.
    """

    def __init__(self, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        inner_size = FEED_FORWARD_FACTOR * hidden_size
        self.to_inner = nn.Linear(hidden_size, 2 * inner_size)
        self.dropout = nn.Dropout(dropout)
        self.to_out = nn.Linear(inner_size, hidden_size)
        self.kernel: GateKernel = gate

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        return self.to_out(self.dropout(self.kernel(self.to_inner(x))))


def add_scaled(x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
    """x and branch (B, S, D), the second times scale (D,): (B, S, D)."""
    return x + branch * scale


class Norm(nn.LayerNorm):
    """Layer normalisation.

    Attributes:
        kernel: computes what `torch.nn.functional.layer_norm` does, perhaps in the type that products are computed in;
            an engine sets it to its own.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.kernel: NormKernel = F.layer_norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) to (B, S, D)."""
        return self.kernel(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerScale(nn.Module):
    """A learned factor for every channel, starting small, and smaller the deeper the layer.

    Attributes:
        kernel: computes what `add_scaled` does; an engine sets it to its own.
    """

    def __init__(self, hidden_size: int, depth: int) -> None:
        """Start at 0.1 down to layer 18, 1e-5 down to layer 24, 1e-6 below; `depth` counts from 1."""
        super().__init__()
        initial = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
        self.scale = nn.Parameter(torch.full((hidden_size,), initial))
        self.kernel: ResidualKernel = add_scaled

    def forward(self, branch: Tensor, x: Optional[Tensor] = None) -> Tensor:
        """(B, S, D) to (B, S, D): a branch scaled, and added to x where that is given."""
        return branch * self.scale if x is None else self.kernel(x, branch, self.scale)


class Layer(nn.Module):
    """One layer: attention, then feed-forward, each normalised, scaled and added to what came in.

    Args:
        hidden_size: D.
        depth: the layer's number, from 1.
        attention, feed_forward: what it computes with.
        sandwich_norm: normalise what they give, too.
        shift: between normalisation and either; None: none.
        borrowed: "attention" or "feed_forward", where an earlier layer has it already. It is registered there alone,
            so that it is saved, counted and moved once.
    """

    attention: Attention
    feed_forward: FeedForward

    def __init__(
        self,
        hidden_size: int,
        depth: int,
        attention: Attention,
        feed_forward: FeedForward,
        sandwich_norm: bool = False,
        shift: Optional[TokenShift] = None,
        borrowed: Sequence[str] = (),
    ) -> None:
        super().__init__()
        for name, module in (("attention", attention), ("feed_forward", feed_forward)):
            (object.__setattr__ if name in borrowed else setattr)(self, name, module)
        self.attention_norm = Norm(hidden_size)
        self.attention_out_norm = nn.LayerNorm(hidden_size) if sandwich_norm else nn.Identity()
        self.attention_scale = LayerScale(hidden_size, depth)
        self.feed_forward_norm = Norm(hidden_size)
        self.feed_forward_out_norm = nn.LayerNorm(hidden_size) if sandwich_norm else nn.Identity()
        self.feed_forward_scale = LayerScale(hidden_size, depth)
        self.shift = shift

    def forward(self, x: Tensor, cache: Optional[LayerCache] = None, mask: Optional[Tensor] = None) -> Tensor:
        """(B, n, D) to (B, n, D); the arguments are those of `Attention.forward`."""
        x = self.attention_scale(self.attend(x, cache, mask), x)
        return self.feed_forward_scale(self.feed(x, cache), x)

    def attend(self, x: Tensor, cache: Optional[LayerCache] = None, mask: Optional[Tensor] = None) -> Tensor:
        """What attention adds when it is scaled."""
        x = self.attention_norm(x)
        if self.shift is not None:
            x = self.shift(x, cache.attention_inputs if cache else None)
        return self.attention_out_norm(self.attention(x, cache, mask))

    def feed(self, x: Tensor, cache: Optional[LayerCache] = None) -> Tensor:
        """What the feed-forward layer adds when it is scaled."""
        x = self.feed_forward_norm(x)
        if self.shift is not None:
            x = self.shift(x, cache.feed_forward_inputs if cache else None)
        return self.feed_forward_out_norm(self.feed_forward(x))

    def branches(self) -> Tuple[Branch, Branch]:
        """The two residual branches, for `run_reversibly`."""
        norms = (self.attention_norm, self.attention_out_norm, self.attention_scale)
        others = (self.feed_forward_norm, self.feed_forward_out_norm, self.feed_forward_scale)
        return (
            Branch(lambda x: self.attention_scale(self.attend(x)), (*norms, self.attention)),
            Branch(lambda x: self.feed_forward_scale(self.feed(x)), (*others, self.feed_forward)),
        )


class ReversibleLayer(Layer):
    """A layer of two streams: attention on the second is added to the first, feed-forward on that to the second."""

    def forward(self, x: Tensor, cache: Optional[LayerCache] = None, mask: Optional[Tensor] = None) -> Tensor:
        """Both streams, (2, B, n, D) to the same; the arguments are those of `Attention.forward`."""
        first, second = x.unbind()
        first = self.attention_scale(self.attend(second, cache, mask), first)
        return torch.stack((first, self.feed_forward_scale(self.feed(first, cache), second)))


def make_layers(options: TransformerOptions, layout: Layout) -> nn.ModuleList:
    """The stack of layers, cycling through `attn_types`, `shared_attn_ids` and `shared_ff_ids`.

    Raises:
        OptionError: layers that share their attention are of different kinds.
    """
    attentions: Dict[str, Attention] = {}
    feed_forwards: Dict[str, FeedForward] = {}
    layers = nn.ModuleList()
    for index in range(options.num_hidden_layers):
        attn_id, ff_id = _cycle(options.shared_attn_ids, index), _cycle(options.shared_ff_ids, index)
        borrowed = [attn_id in attentions and "attention", ff_id in feed_forwards and "feed_forward"]
        if attn_id not in attentions:
            attentions[attn_id] = _make_attention(options, layout, index)
        if ff_id not in feed_forwards:
            feed_forwards[ff_id] = FeedForward(options.hidden_size, dropout=options.ff_dropout)
        _check_kind(options, index, attn_id, attentions[attn_id])
        layers.append(
            (ReversibleLayer if options.reversible else Layer)(
                options.hidden_size,
                index + 1,
                attentions[attn_id],
                feed_forwards[ff_id],
                options.sandwich_norm,
                TokenShift(options.hidden_size, layout) if options.shift_tokens else None,
                [name for name in borrowed if name],
            )
        )
    return layers


def run_layers(
    layers: nn.ModuleList, x: Tensor, caches: Optional[List[LayerCache]] = None, invert: bool = True
) -> Tensor:
    """Run a stack over the first positions of a sequence: (B, n, D) to (B, n, D).

    Args:
        layers, x: the stack, and what it runs over.
        caches: one a layer, which are given what later positions need.
        invert: let the backward pass compute the activations of reversible layers from their results.
    """
    reversible = isinstance(layers[0], ReversibleLayer)
    if invert and reversible and caches is None and torch.is_grad_enabled():
        return run_reversibly(x, [branch for layer in layers for branch in layer.branches()])
    if reversible:
        x = torch.stack((x, x))
    for index, layer in enumerate(layers):
        x = layer(x, caches[index] if caches else None)
    return x.mean(dim=0) if reversible else x


def _make_attention(options: TransformerOptions, layout: Layout, index: int) -> Attention:
    pattern = Pattern(
        options.attn_types[index % len(options.attn_types)],
        layout,
        options.conv_kernel_size,
        options.conv_dilation,
        options.conv_window,
        options.sparse_block_size,
        options.sparse_random_blocks,
        options.sparse_seed + index,
    )
    return Attention(
        options.hidden_size,
        options.num_attention_heads,
        options.dim_head,
        pattern,
        options.attn_dropout,
        options.stable,
        options.rotary_emb,
    )


def _check_kind(options: TransformerOptions, index: int, attn_id: str, attention: Attention) -> None:
    kind = options.attn_types[index % len(options.attn_types)]
    if attention.pattern is not None and attention.pattern.kind != kind:
        raise OptionError(
            f"shared_attn_ids gives layer {index + 1} the id {attn_id} of a layer with {attention.pattern.kind} "
            f"attention, and attn_types gives it {kind}; let only layers of one kind share an id"
        )


def _cycle(ids: Optional[Tuple[str, ...]], index: int) -> str:
    """The id of a layer; without ids each layer has its own."""
    return str(index) if ids is None else ids[index % len(ids)]
