"""Attention for training on a CPU, with gradients written by hand; the numbers are those of `models.attention`.

Queries, keys and values are brought into the order of the products once, and kept in it for the backward pass. Scores
become weights, and gradients of weights those of scores, in place.

Legend: B batch, H heads, G = B H, n positions, K head width, T text positions with <bos>, L lines of the picture, N
pixels of a line.
"""

from __future__ import annotations

import functools
from typing import Any, Tuple

import torch
from einops import rearrange
from torch import Tensor

from models.attention import is_axial, scale_queries
from models.patterns import Pattern


def attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """As `models.attention.AttentionKernel`: q, k, v (B, H, n, K) to (B, H, n, K)."""
    length = q.shape[2]
    if is_axial(pattern) and length > pattern.layout.text_len:
        return _AxialAttention.apply(q, k, v, pattern)
    return _DenseAttention.apply(q, k, v, _forbidden(pattern, length))


class _DenseAttention(torch.autograd.Function):
    """Softmax attention but where `forbidden` (n, n) is true."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, forbidden: Tensor) -> Tensor:
        shape = q.shape
        q, k, v = (t.flatten(0, 1) for t in (scale_queries(q, stable=False), k, v))  # (G, n, K)
        weights = _softmax_(torch.bmm(q, k.transpose(1, 2)).masked_fill_(forbidden, float("-inf")))
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.flatten(0, 1)
        of_v = torch.bmm(weights.transpose(1, 2), gradient)
        of_scores = _softmax_gradient_(torch.bmm(gradient, v.transpose(1, 2)), weights)  # 0 where forbidden
        of_q, of_k = scale_queries(torch.bmm(of_scores, k), stable=False), torch.bmm(of_scores.transpose(1, 2), q)
        return of_q.view(shape), of_k.view(shape), of_v.view(shape), None


class _AxialAttention(torch.autograd.Function):
    """Text looks at text, a pixel at the text and at its own line up to itself; see `models.attention`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        shape, text_len = q.shape, pattern.layout.text_len
        parts = (_part(t, pattern) for t in (scale_queries(q, stable=False), k, v))
        (q_text, q_line), (k_text, k_line), (v_text, v_line) = parts
        q_image = q_line.view(len(q_text), -1, shape[-1])  # (G, L N, K)

        text_weights = torch.bmm(q_text, k_text.transpose(1, 2))  # (G, T, T)
        text_weights = _softmax_(text_weights.masked_fill_(_forbidden(pattern, text_len), float("-inf")))
        on_text = torch.bmm(q_image, k_text.transpose(1, 2))  # (G, L N, T)
        on_line = torch.bmm(q_line, k_line.transpose(1, 2))  # (G L, N, N)
        on_line.masked_fill_(_later(on_line.shape[1]), float("-inf"))
        weights = _softmax_(torch.cat((on_text, on_line.view(*on_text.shape[:2], -1)), dim=2))  # (G, L N, T + N)
        on_text, on_line = _split(weights, on_line)

        of_image = torch.bmm(on_text, v_text)  # (G, L N, K)
        of_image.view(v_line.shape).baddbmm_(on_line, v_line)
        ctx.save_for_backward(q_text, q_line, k_text, k_line, v_text, v_line, text_weights, weights)
        ctx.pattern = pattern
        return _whole(torch.bmm(text_weights, v_text), of_image, pattern, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        q_text, q_line, k_text, k_line, v_text, v_line, text_weights, weights = ctx.saved_tensors
        text, line = _part(gradient, ctx.pattern)
        images = (len(text), -1, text.shape[-1])  # (G, L N, K)
        q_image, image = q_line.view(images), line.view(images)

        line_products = torch.bmm(line, v_line.transpose(1, 2))  # (G L, N, N)
        on_text, on_line = _split(weights, line_products)
        of_v_text = torch.bmm(text_weights.transpose(1, 2), text).baddbmm_(on_text.transpose(1, 2), image)
        of_v_line = torch.bmm(on_line.transpose(1, 2), line)
        products = torch.bmm(image, v_text.transpose(1, 2))
        of_scores = _softmax_gradient_(torch.cat((products, line_products.view(*products.shape[:2], -1)), 2), weights)
        of_text_scores = _softmax_gradient_(torch.bmm(text, v_text.transpose(1, 2)), text_weights)  # (G, T, T)

        on_text, on_line = _split(of_scores, line_products)  # by now the gradients of the scores
        of_q_text = torch.bmm(of_text_scores, k_text)
        of_k_text = torch.bmm(of_text_scores.transpose(1, 2), q_text).baddbmm_(on_text.transpose(1, 2), q_image)
        of_q_image = torch.bmm(on_text, k_text)
        of_q_image.view(q_line.shape).baddbmm_(on_line, k_line)
        of_k_line = torch.bmm(on_line.transpose(1, 2), q_line)
        pairs = ((of_q_text, of_q_image), (of_k_text, of_k_line), (of_v_text, of_v_line))
        of_q, of_k, of_v = (_whole(*pair, ctx.pattern, gradient.shape) for pair in pairs)
        return scale_queries(of_q, stable=False), of_k, of_v, None


def _part(t: Tensor, pattern: Pattern) -> Tuple[Tensor, Tensor]:
    """(B, H, n, K) as text (G, T, K) and lines of the picture (G L, N, K); what the picture lacks is 0."""
    layout, columns = pattern.layout, pattern.layout.columns
    text, image = t.split([layout.text_len, t.shape[2] - layout.text_len], dim=2)
    lines = t.new_empty(*t.shape[:2], *_lines(pattern), t.shape[3])
    grid = lines if pattern.kind == "axial_row" else lines.transpose(2, 3)  # (B, H, rows, columns, K)
    rows, rest = divmod(image.shape[2], columns)
    grid[:, :, :rows] = image[:, :, : rows * columns].unflatten(2, (rows, columns))
    if rows < layout.rows:
        grid[:, :, rows, :rest] = image[:, :, rows * columns :]
        grid[:, :, rows, rest:] = 0
        grid[:, :, rows + 1 :] = 0
    return text.flatten(0, 1), lines.flatten(0, 2)


def _whole(text: Tensor, lines: Tensor, pattern: Pattern, shape: Tuple[int, ...]) -> Tensor:
    """What `_part` has parted, or for lines (G, L N, K), in the order of the sequence: `shape` (B, H, n, K)."""
    batch, heads, length, width = shape
    grid = "b h y x k" if pattern.kind == "axial_row" else "b h x y k"
    size = (batch, heads, *_lines(pattern), width)
    image = rearrange(lines.view(size), f"{grid} -> b h (y x) k")
    return torch.cat((text.view(batch, heads, -1, width), image[:, :, : length - pattern.layout.text_len]), dim=2)


def _lines(pattern: Pattern) -> Tuple[int, int]:
    """L and N."""
    rows, columns = pattern.layout.rows, pattern.layout.columns
    return (rows, columns) if pattern.kind == "axial_row" else (columns, rows)


def _split(weights: Tensor, lines: Tensor) -> Tuple[Tensor, Tensor]:
    """(G, L N, T + N) as views, (G, L N, T) and of the shape of `lines`, (G L, N, N)."""
    size = lines.shape[-1]
    on_text, on_line = weights.split([weights.shape[-1] - size, size], dim=2)
    return on_text, on_line.view(lines.shape)


def _softmax_(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1, out=scores)


def _softmax_gradient_(gradient: Tensor, weights: Tensor) -> Tensor:
    """The gradient of the scores, in place of that of the weights."""
    return torch.ops.aten._softmax_backward_data.out(gradient, weights, -1, weights.dtype, grad_input=gradient)


@functools.lru_cache(maxsize=256)
def _forbidden(pattern: Pattern, length: int) -> Tensor:
    return ~pattern.mask(length)


@functools.lru_cache(maxsize=None)
def _later(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)
