"""Softmax of scores where a row sees no column after its own, for training on a CPU; in place, forward and backward.

Legend: G groups of rows, N rows and columns of a group, S columns before, which every row sees.
"""

from __future__ import annotations

import functools
from typing import Tuple

import torch
from torch import Tensor

import native

Weights = Tuple[Tensor, Tensor]
"""Scores or weights of columns before, G N rows in any shape (..., S), and of the own columns of groups (G, N, N)."""


def causal_softmax(before: Tensor, scores: Tensor, scale: float) -> None:
    """Scores, times `scale`, become the weights of their softmax; those of what a row does not see are 0.

    Args:
        before, scores: contiguous, see `Weights`.
        scale: above 0.
    """
    if native.is_for(scores):
        native.run("causal_softmax", scores.dtype, before, scores, *_sizes(before, scores), scale)
        return
    scores.masked_fill_(_later(scores.shape[-1]), float("-inf"))
    weights = _joined(before, scores).mul_(scale)
    _part(torch.softmax(weights, dim=-1, out=weights), before, scores)


def causal_softmax_gradient(weights: Weights, gradients: Weights, scale: float) -> None:
    """Gradients of what `causal_softmax` gave become those of the scores that it was given."""
    scores = weights[1]
    if native.is_for(scores):
        native.run("causal_softmax_gradient", scores.dtype, *weights, *gradients, *_sizes(*weights), scale)
        return
    joined, gradient = _joined(*weights), _joined(*gradients)
    softmax_gradient(gradient, joined)
    _part(gradient.mul_(scale), *gradients)


def softmax_gradient(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the scores, in place of that of the weights."""
    return torch.ops.aten._softmax_backward_data.out(gradient, weights, -1, weights.dtype, grad_input=gradient)


def _joined(before: Tensor, scores: Tensor) -> Tensor:
    """(G N, S + N)."""
    return torch.cat((before.flatten(0, -2), scores.flatten(0, -2)), dim=1)


def _part(joined: Tensor, before: Tensor, scores: Tensor) -> None:
    """(G N, S + N) into its two parts."""
    for part, values in zip((before, scores), joined.split([before.shape[-1], scores.shape[-1]], dim=1)):
        part.copy_(values.view(part.shape))


def _sizes(before: Tensor, scores: Tensor) -> Tuple[int, int, int]:
    return scores.numel() // scores.shape[-1], before.shape[-1], scores.shape[-1]


@functools.lru_cache(maxsize=None)
def _later(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)
