"""Attention for training on a CPU, with gradients written by hand; the numbers are those of `models.attention`.

Queries, keys and values are brought into the order of the products once, all three at a time, and kept in it for the
backward pass, which writes their gradients side by side. Scores become weights, and gradients of weights those of
scores, in place.

Legend: B batch, H heads, G = B H, n positions, K head width, T text positions with <bos>, L lines of the picture, N
pixels of a line, S tensors side by side: 3 for queries, keys and values.
"""

from __future__ import annotations

import functools
from typing import Any, Iterator, Optional, Sequence, Tuple

import torch
from torch import Tensor

from engines.kernels.softmax import causal_softmax, causal_softmax_gradient, softmax_gradient
from models.attention import is_axial, score_scale
from models.patterns import Pattern


def attention(qkv: Tensor, pattern: Pattern) -> Tensor:
    """As `models.attention.AttentionKernel`: (B, n, 3, H, K) to (B, n, H, K)."""
    length = qkv.shape[1]
    if is_axial(pattern) and length > pattern.layout.text_len:
        return _AxialAttention.apply(qkv, pattern)
    return _DenseAttention.apply(qkv, None if pattern.kind == "full" else _forbidden(pattern, length))


class _DenseAttention(torch.autograd.Function):
    """Softmax attention but where `forbidden` (n, n) is true; None: to nothing after a position."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, forbidden: Optional[Tensor]) -> Tensor:
        q, k, v = _by_heads(qkv)  # (G, n, K)
        weights = torch.bmm(q, k.transpose(1, 2))
        if forbidden is None:
            causal_softmax(_nothing_before(weights), weights, score_scale(q))
        else:
            weights.masked_fill_(forbidden, float("-inf")).mul_(score_scale(q))
            torch.softmax(weights, dim=-1, out=weights)
        ctx.is_causal = forbidden is None
        ctx.save_for_backward(q, k, v, weights)
        return _by_positions([torch.bmm(weights, v)], qkv).squeeze(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        (of_out,) = _by_heads(gradient.unsqueeze(2))
        of_v = torch.bmm(weights.transpose(1, 2), of_out)
        of_scores = torch.bmm(of_out, v.transpose(1, 2))
        if ctx.is_causal:
            nothing = _nothing_before(weights)
            causal_softmax_gradient((nothing, weights), (nothing, of_scores), score_scale(q))
        else:
            softmax_gradient(of_scores, weights).mul_(score_scale(q))  # 0 where forbidden
        of_q, of_k = torch.bmm(of_scores, k), torch.bmm(of_scores.transpose(1, 2), q)
        return _by_positions([of_q, of_k, of_v], gradient), None


class _AxialAttention(torch.autograd.Function):
    """Text looks at text, a pixel at the text and at its own line up to itself; see `models.attention`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, pattern: Pattern) -> Tensor:
        text, lines = _part(qkv, pattern)
        (q_text, k_text, v_text), (q_line, k_line, v_line) = text, lines  # (G, T, K), (G L, N, K)
        q_image = q_line.view(len(q_text), -1, q_line.shape[-1])  # (G, L N, K)

        of_text = torch.bmm(q_text, k_text.transpose(1, 2))  # (G, T, T)
        on_text = torch.bmm(q_image, k_text.transpose(1, 2))  # (G, L N, T)
        on_line = torch.bmm(q_line, k_line.transpose(1, 2))  # (G L, N, N)
        causal_softmax(_nothing_before(of_text), of_text, score_scale(qkv))
        causal_softmax(on_text, on_line, score_scale(qkv))  # by now weights

        of_image = torch.bmm(on_text, v_text)  # (G, L N, K)
        of_image.view(v_line.shape).baddbmm_(on_line, v_line)
        ctx.save_for_backward(text, lines, of_text, on_text, on_line)
        ctx.pattern = pattern
        return _whole([(torch.bmm(of_text, v_text), of_image)], qkv, pattern).squeeze(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        texts, lines, of_text, on_text, on_line = ctx.saved_tensors
        (q_text, k_text, v_text), (q_line, k_line, v_line) = texts, lines
        ((text,), (line,)) = _part(gradient.unsqueeze(2), ctx.pattern)
        images = (len(text), -1, text.shape[-1])  # (G, L N, K)
        q_image, image = q_line.view(images), line.view(images)

        of_v_text = torch.bmm(of_text.transpose(1, 2), text).baddbmm_(on_text.transpose(1, 2), image)
        of_v_line = torch.bmm(on_line.transpose(1, 2), line)
        of_text_scores = torch.bmm(text, v_text.transpose(1, 2))  # (G, T, T)
        scores = torch.bmm(image, v_text.transpose(1, 2)), torch.bmm(line, v_line.transpose(1, 2))
        nothing = _nothing_before(of_text)
        causal_softmax_gradient((nothing, of_text), (nothing, of_text_scores), score_scale(text))
        causal_softmax_gradient((on_text, on_line), scores, score_scale(text))  # by now gradients of the scores
        of_on_text, of_on_line = scores

        of_q_text = torch.bmm(of_text_scores, k_text)
        of_k_text = torch.bmm(of_text_scores.transpose(1, 2), q_text).baddbmm_(of_on_text.transpose(1, 2), q_image)
        of_q_image = torch.bmm(of_on_text, k_text)
        of_q_image.view(q_line.shape).baddbmm_(of_on_line, k_line)
        of_k_line = torch.bmm(of_on_line.transpose(1, 2), q_line)
        pairs = [(of_q_text, of_q_image), (of_k_text, of_k_line), (of_v_text, of_v_line)]
        return _whole(pairs, gradient, ctx.pattern), None


def _nothing_before(scores: Tensor) -> Tensor:
    """No columns before those of scores (G, N, N)."""
    return scores.new_empty(*scores.shape[:2], 0)


def _heads_first(t: Tensor) -> Tensor:
    """(B, n, S, H, K) as (S, B, H, n, K)."""
    return t.permute(2, 0, 3, 1, 4)


def _by_heads(t: Tensor) -> Tensor:
    """(B, n, S, H, K) to (S, G, n, K)."""
    return _heads_first(t).clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _by_positions(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """S times (G, n, K) to (B, n, S, H, K), for the B, n, H and K of a tensor (B, n, ..., H, K)."""
    whole = _empty(like, len(parts))
    for view, part in zip(_heads_first(whole), parts):
        view.copy_(part.view(view.shape))
    return whole


def _empty(like: Tensor, tensors: int) -> Tensor:
    """(B, n, S, H, K) for a tensor (B, n, ..., H, K)."""
    return like.new_empty(*like.shape[:2], tensors, *like.shape[-2:])


def _part(t: Tensor, pattern: Pattern) -> Tuple[Tensor, Tensor]:
    """(B, n, S, H, K) as text (S, G, T, K) and lines of the picture (S, G L, N, K); what the picture lacks is 0."""
    layout = pattern.layout
    batch, length, tensors, heads, width = t.shape
    lines = t.new_empty(tensors, batch, heads, *_lines(pattern), width)
    grid = _grid(lines, pattern)
    for inside, pixels in _pixels(grid, _heads_first(t)[:, :, :, layout.text_len :]):
        inside.copy_(pixels)
    rows, rest = divmod(length - layout.text_len, layout.columns)
    if rows < layout.rows:
        grid[:, :, :, rows, rest:] = 0
        grid[:, :, :, rows + 1 :] = 0
    return _by_heads(t[:, : layout.text_len]), lines.flatten(1, 3)


def _whole(pairs: Sequence[Tuple[Tensor, Tensor]], like: Tensor, pattern: Pattern) -> Tensor:
    """S times text (G, T, K) and lines, (G, L N, K) or as of `_part`, to (B, n, S, H, K); see `_by_positions`."""
    whole = _empty(like, len(pairs))
    for view, (text, lines) in zip(_heads_first(whole), pairs):  # (B, H, n, K)
        first, image = view.split([pattern.layout.text_len, view.shape[2] - pattern.layout.text_len], dim=2)
        first.copy_(text.view(first.shape))
        grid = _grid(lines.view(*view.shape[:2], *_lines(pattern), view.shape[3]), pattern)
        for inside, pixels in _pixels(grid, image):
            pixels.copy_(inside)
    return whole


def _pixels(grid: Tensor, image: Tensor) -> Iterator[Tuple[Tensor, Tensor]]:
    """The same pixels of a grid (..., rows, columns, K) and of the first n of a picture (..., n, K): rows, the rest."""
    columns = grid.shape[-2]
    rows, rest = divmod(image.shape[-2], columns)
    yield grid[..., :rows, :, :], image[..., : rows * columns, :].unflatten(-2, (rows, columns))
    if rest:
        yield grid[..., rows, :rest, :], image[..., rows * columns :, :]


def _grid(lines: Tensor, pattern: Pattern) -> Tensor:
    """(..., L, N, K) as (..., rows, columns, K)."""
    return lines if pattern.kind == "axial_row" else lines.transpose(-3, -2)


def _lines(pattern: Pattern) -> Tuple[int, int]:
    """L and N."""
    rows, columns = pattern.layout.rows, pattern.layout.columns
    return (rows, columns) if pattern.kind == "axial_row" else (columns, rows)


@functools.lru_cache(maxsize=256)
def _forbidden(pattern: Pattern, length: int) -> Tensor:
    return ~pattern.mask(length)
