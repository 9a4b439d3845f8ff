"""Drawing: from text to image tokens, one token at a time.

A picture's randomness is a row of uniform numbers, one for each of its tokens, drawn from a generator of its own; a
token is the one at which the cumulative probability passes that number. So a picture depends on its seed and its text,
never on the batch it is drawn in.

Legend: B batch, R rows that the model sees (B, or 2 B under guidance), T text tokens, I image tokens, D width, V the
vocabulary that a token is drawn from.
"""

from __future__ import annotations

from typing import List, Optional

import torch
from torch import Tensor

from models.dalle import PADDING, Dalle
from models.options import SamplingOptions

TO_DRAW = -1  # in place of a token that is not known
PRIMED_SHARE = 14 / 32  # of a picture that drawing begins with, as Ramesh et al. 2021 primed


def filter_top_k(logits: Tensor, dropped_share: float, vocab_size: int) -> Tensor:
    """Drop this share of all tokens, the least likely of the logits (B, V) first, but one.

    The share is of `vocab_size`, text and image tokens, as DALLE-pytorch and Graphcore count: those that cannot be
    drawn anyway go first.
    """
    kept = min(max(int((1 - dropped_share) * vocab_size), 1), logits.shape[-1])
    least = logits.topk(kept, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def filter_top_p(logits: Tensor, probability: float) -> Tensor:
    """Keep the likeliest of the logits (B, V) that together reach `probability` (Holtzman et al. 2020)."""
    ranked, order = logits.sort(dim=-1, descending=True)
    shares = ranked.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares  # what the likelier ones reach: the first is always kept
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= probability)
    return logits.masked_fill(dropped, float("-inf"))


def draw_token(logits: Tensor, uniform: Tensor, sampling: SamplingOptions, vocab_size: int) -> Tensor:
    """Draw one token a row: logits (B, V), uniform numbers (B,) in 0..1, to ids (B,); `vocab_size` for top-k."""
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / sampling.temperature
    if sampling.top_k > 0:
        logits = filter_top_k(logits, sampling.top_k, vocab_size)
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
    dalle: Dalle,
    text: Tensor,
    uniform: Tensor,
    sampling: SamplingOptions,
    known: Optional[Tensor] = None,
    use_cache: Optional[bool] = None,
) -> Tensor:
    """Draw the image tokens of each text.

    Args:
        dalle: in evaluation mode.
        text: (B, T) ids, 0 is padding.
        uniform: (B, I) numbers in 0..1, one a token.
        sampling: how a token is drawn.
        known: (B, I) tokens that are given, `TO_DRAW` elsewhere; None: all are drawn.
        use_cache: keep what later positions need of earlier ones; off: compute it anew at every token. None: as the
            model can.

    Returns:
        (B, I) codes in reading order.
    """
    if known is None:
        known = text.new_full((len(text), dalle.layout.image_len), TO_DRAW)
    cached = dalle.keeps_caches if use_cache is None else use_cache
    draw = _draw_cached if cached else _draw_uncached
    return draw(dalle, _prompts(dalle, text, sampling), uniform.to(text.device), sampling, known)


@torch.no_grad()
def log_likelihood(dalle: Dalle, text: Tensor, image_tokens: Tensor) -> Tensor:
    """Mean log-probability of the image tokens (B, I) after the texts (B, T), in nats a token: (B,)."""
    _, logits = dalle.logits(dalle.number_padding(text), image_tokens)
    chosen = logits.float().log_softmax(dim=-1).gather(-1, image_tokens[..., None])  # (B, I, 1)
    return chosen.mean(dim=(1, 2))


def _prompts(dalle: Dalle, text: Tensor, sampling: SamplingOptions) -> Tensor:
    """The texts, padding numbered; under guidance those without a word after them: (R, T)."""
    if sampling.cond_scale != 1:
        text = torch.cat((text, torch.full_like(text, PADDING)))
    return dalle.number_padding(text)


def _guide(logits: Tensor, sampling: SamplingOptions) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2021): logits (R, V) to (B, V)."""
    if sampling.cond_scale == 1:
        return logits
    with_text, without = logits.chunk(2)
    return without + (with_text - without) * sampling.cond_scale


def _draw_cached(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions, known: Tensor) -> Tensor:
    tokens, repeats = known.clone(), len(text) // len(known)
    given = int((known != TO_DRAW).all(dim=0).long().cumprod(dim=0).sum())  # how many the texts begin with
    if given == known.shape[1]:
        return tokens
    caches = dalle.new_caches()
    start = torch.cat((dalle.embed_text(text), dalle.embed_image(tokens[:, :given].repeat(repeats, 1))), dim=1)
    x = dalle.run(start, caches)[:, -1:]  # (R, 1, D)
    for index in range(given, known.shape[1]):
        if index > given:
            embedded = dalle.embed_image(tokens[:, index - 1 : index].repeat(repeats, 1), start=index - 1)
            x = dalle.run(embedded, caches, dalle.text_seq_len + index)
        _draw_one(dalle, tokens, index, dalle.image_logits(x)[:, 0], uniform, sampling)
    return tokens


def _draw_uncached(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions, known: Tensor) -> Tensor:
    tokens, repeats = known.clone(), len(text) // len(known)
    for index in range(known.shape[1]):
        _, logits = dalle.logits(text, tokens.clamp(min=0).repeat(repeats, 1))
        _draw_one(dalle, tokens, index, logits[:, index], uniform, sampling)
    return tokens


def _draw_one(
    dalle: Dalle, tokens: Tensor, index: int, logits: Tensor, uniform: Tensor, sampling: SamplingOptions
) -> None:
    """Draw the tokens (B, I) of one place from logits (R, V), where they are not known."""
    vocab_size = dalle.text_vocab_size + dalle.image_vocab_size
    drawn = draw_token(_guide(logits, sampling), uniform[:, index], sampling, vocab_size)
    tokens[:, index] = torch.where(tokens[:, index] == TO_DRAW, drawn, tokens[:, index])


@torch.no_grad()
def complete_text(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions) -> Tensor:
    """Continue texts that share their first tokens' count, to the end that the model gives them.

    Args:
        dalle: in evaluation mode.
        text: (B, n) ids without padding, n < T.
        uniform: (B, T) numbers in 0..1, one a token.
        sampling: how a token is drawn; guidance does not apply.

    Returns:
        (B, T) ids; from the first padding on, all 0.
    """
    caches = dalle.new_caches()
    start, vocab_size = text.shape[1], dalle.text_vocab_size + dalle.image_vocab_size
    x = dalle.run(dalle.embed_text(text), caches)[:, -1:]  # (B, 1, D)
    for index in range(start, dalle.text_seq_len):
        if index > start:
            x = dalle.run(dalle.embed_text(text)[:, -1:], caches, index)
        token = draw_token(dalle.text_logits(x)[:, 0], uniform[:, index].to(text.device), sampling, vocab_size)
        text = torch.cat((text, token[:, None]), dim=1)
    ended = ((text == PADDING) | (text >= dalle.padding_start)).cumsum(dim=1) > 0
    return text.masked_fill(ended, PADDING)
