"""Drawing: from text to image tokens, one token at a time.

A picture's randomness is a row of uniform numbers, one for each of its tokens, drawn from a generator of its own; a
token is the one at which the cumulative probability passes that number. So a picture depends on its seed and its text,
never on the batch it is drawn in.

Legend: B batch, T text tokens, I image tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import List

import torch
from torch import Tensor

from models.dalle import PADDING, Dalle
from options import Options, option


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    """How a token is drawn from its logits."""

    top_k: float = option(
        0.9,
        "share of the vocabulary dropped before drawing a token, the least likely first (0: none)",
        minimum=0,
        maximum=1,
    )
    top_p: float = option(
        1.0, "keep the likeliest tokens that together reach this probability (1: all)", minimum=1e-6, maximum=1
    )
    temperature: float = option(1.0, "divides the logits; below 1 draws the likelier ones; 0 the likeliest", minimum=0)


def filter_top_k(logits: Tensor, dropped_share: float) -> Tensor:
    """Drop this share of the logits (B, V), the least first, but one (top-k as DALLE-pytorch and Graphcore have it)."""
    kept = max(int((1 - dropped_share) * logits.shape[-1]), 1)
    least = logits.topk(kept, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def filter_top_p(logits: Tensor, probability: float) -> Tensor:
    """Keep the likeliest of the logits (B, V) that together reach `probability` (Holtzman et al. 2020)."""
    ranked, order = logits.sort(dim=-1, descending=True)
    shares = ranked.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares  # what the likelier ones reach: the first is always kept
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= probability)
    return logits.masked_fill(dropped, float("-inf"))


def draw_token(logits: Tensor, uniform: Tensor, sampling: SamplingOptions) -> Tensor:
    """Draw one token a row: logits (B, V), uniform numbers (B,) in 0..1, to ids (B,)."""
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if sampling.top_k > 0:
        logits = filter_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = filter_top_p(logits, sampling.top_p)
    reached = logits.softmax(dim=-1).cumsum(dim=-1)
    # Rounding may leave the sum short of 1: scale the number, so that it always falls on a token with a share.
    return torch.searchsorted(reached, (uniform[:, None] * reached[:, -1:]).contiguous(), right=True)[:, 0].clamp(
        max=logits.shape[-1] - 1
    )


def uniform_numbers(seeds: List[int], count: int) -> Tensor:
    """The random numbers of one picture a row, (len(seeds), count), the same on every device."""
    rows = [torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def draw_image_tokens(
    dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions, use_cache: bool = True
) -> Tensor:
    """Draw the image tokens of each text.

    Args:
        dalle: in evaluation mode.
        text: (B, T) ids, 0 is padding.
        uniform: (B, I) numbers in 0..1, one a token.
        sampling: how a token is drawn.
        use_cache: keep keys and values of earlier positions; off: recompute them at every token, for comparison.

    Returns:
        (B, I) codes in reading order.
    """
    text, uniform = dalle.number_padding(text), uniform.to(text.device)
    draw = _draw_cached if use_cache else _draw_uncached
    return draw(dalle, text, uniform, sampling)


def _draw_cached(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions) -> Tensor:
    caches = dalle.new_caches()
    x = dalle.prefill(dalle.embed_text(text), caches)[:, -1:]  # (B, 1, D)
    tokens = text.new_empty(len(text), dalle.layout.image_len)
    for index in range(dalle.layout.image_len):
        if index:
            embedded = dalle.embed_image(tokens[:, index - 1 : index], start=index - 1)
            x = dalle.decode(embedded, dalle.text_seq_len + index, caches)
        tokens[:, index] = draw_token(dalle.image_logits(x)[:, 0], uniform[:, index], sampling)
    return tokens


def _draw_uncached(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions) -> Tensor:
    tokens = text.new_zeros(len(text), dalle.layout.image_len)
    for index in range(dalle.layout.image_len):
        _, logits = dalle.logits(text, tokens)
        tokens[:, index] = draw_token(logits[:, index], uniform[:, index], sampling)
    return tokens


@torch.no_grad()
def complete_text(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions) -> Tensor:
    """Continue texts that share their first tokens' count, to the end that the model gives them.

    Args:
        dalle: in evaluation mode.
        text: (B, n) ids without padding, n < T.
        uniform: (B, T) numbers in 0..1, one a token.
        sampling: how a token is drawn.

    Returns:
        (B, T) ids; from the first padding on, all 0.
    """
    caches = dalle.new_caches()
    start = text.shape[1]
    x = dalle.prefill(dalle.embed_text(text), caches)[:, -1:]  # (B, 1, D)
    for index in range(start, dalle.text_seq_len):
        if index > start:
            x = dalle.decode(dalle.embed_text(text)[:, -1:], index, caches)
        token = draw_token(dalle.text_logits(x)[:, 0], uniform[:, index].to(text.device), sampling)
        text = torch.cat((text, token[:, None]), dim=1)
    ended = ((text == PADDING) | (text >= dalle.padding_start)).cumsum(dim=1) > 0
    return text.masked_fill(ended, PADDING)
