"""Drawing: from text to image tokens, one token at a time.

A picture's randomness is a row of uniform numbers, one for each of its tokens, drawn from a generator of its own; a
token is the one at which the cumulative probability passes that number. So a picture depends on its seed and its text,
never on the batch it is drawn in.

Legend: B batch, R rows that the model sees (B, or 2 B under guidance), T text tokens, I image tokens, D width, V the
vocabulary that a token is drawn from.
"""

from __future__ import annotations

from typing import Callable, List, Optional

import torch
from torch import Tensor

from models.cache import Place
from models.dalle import PADDING, Dalle
from models.decoder import Decoder
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


class TokenDrawer:
    """Draws the image tokens of one batch after the other, with what it prepared once.

    On a GPU one token's work is recorded when the first is drawn, and replayed for the others: so many small operations
    take longer to ask for than to do.

    Args:
        dalle: in evaluation mode; what is drawn holds for the weights of this moment.
        pictures: B.
        sampling: how a token is drawn.
        fixed_shapes: do the same work for every token, whatever there is to look at, which recording wants; None: as
            suits the device.
    """

    def __init__(
        self, dalle: Dalle, pictures: int, sampling: SamplingOptions, fixed_shapes: Optional[bool] = None
    ) -> None:
        self.dalle, self.sampling = dalle, sampling
        self.repeats = 1 if sampling.cond_scale == 1 else 2
        with torch.no_grad():
            self.decoder = Decoder(dalle, self.repeats * pictures)
        device, size = self.decoder.device, (pictures, dalle.layout.image_len)
        self.fixed_shapes = device.type == "cuda" if fixed_shapes is None else fixed_shapes
        self.tokens = torch.zeros(size, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(size, device=device)
        self.indices = torch.arange(size[1], device=device)
        self.index = torch.zeros(1, dtype=torch.int64, device=device)  # of the token that is taken, in fixed shapes
        self._replay: Optional[Callable[[], None]] = None

    @torch.no_grad()
    def draw(self, text: Tensor, uniform: Tensor, known: Tensor) -> Tensor:
        """Draw as `draw_image_tokens` does: texts (B, T), uniform numbers (B, I) and known tokens (B, I) to (B, I)."""
        self.tokens.copy_(known)
        self.uniform.copy_(uniform)
        given = int((known != TO_DRAW).all(dim=0).long().cumprod(dim=0).sum())  # how many the texts begin with
        if given == known.shape[1]:
            return known.clone()
        prompts = _prompts(self.dalle, text, self.sampling)
        x = self.decoder.begin(prompts, self.tokens[:, :given].repeat(self.repeats, 1))
        with torch.inference_mode(), torch.autocast(text.device.type, enabled=False):
            self._draw_from(x, self._index_at(given))
            for index in range(given, known.shape[1] - 1):
                self._take_and_draw(index)
        return self.tokens.clone()

    def _take_and_draw(self, index: int) -> None:
        """Take the token of an index, and draw the next."""
        if not self.fixed_shapes:
            return self._step(self._index_at(index), self.decoder.place(self.dalle.layout.text_len + index))
        self.index.fill_(index)
        if self._replay is None:
            self._replay = record(self._step_in_fixed_shapes, self.index.device)
        return self._replay()

    def _step_in_fixed_shapes(self) -> None:
        self._step(self.index, Place(self.index + self.dalle.layout.text_len))

    def _step(self, index: Tensor, place: Place) -> None:
        tokens = self.tokens.index_select(1, index)[:, 0].repeat(self.repeats)  # (R,)
        self._draw_from(self.decoder.take_image(tokens, place), index + 1)

    def _draw_from(self, x: Tensor, index: Tensor) -> None:
        """Draw the tokens of an index (1,) from what the position before gives, (R, D), where they are not known."""
        vocab_size = self.dalle.text_vocab_size + self.dalle.image_vocab_size
        logits = _guide(self.decoder.image_logits(x), self.sampling)
        uniform, known = self.uniform.index_select(1, index)[:, 0], self.tokens.index_select(1, index)[:, 0]
        drawn = draw_token(logits, uniform, self.sampling, vocab_size)
        self.tokens.index_copy_(1, index, torch.where(known == TO_DRAW, drawn, known)[:, None])

    def _index_at(self, index: int) -> Tensor:
        return self.indices[index : index + 1]


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that does what `step` does; on a GPU it replays a recording of it.

    Recording runs the step, so that to run it once more must change nothing.
    """
    if device.type != "cuda":
        return step
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):  # whatever a first call prepares cannot be recorded
        step()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def draw_image_tokens(
    dalle: Dalle,
    text: Tensor,
    uniform: Tensor,
    sampling: SamplingOptions,
    known: Optional[Tensor] = None,
    use_cache: Optional[bool] = None,
) -> Tensor:
    """Draw the image tokens of each text; a `TokenDrawer` saves preparing what it does not change from batch to batch.

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
    if dalle.keeps_caches if use_cache is None else use_cache:
        return TokenDrawer(dalle, len(text), sampling).draw(text, uniform, known)
    return _draw_uncached(dalle, text, uniform.to(text.device), sampling, known)


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


@torch.no_grad()
def _draw_uncached(dalle: Dalle, text: Tensor, uniform: Tensor, sampling: SamplingOptions, known: Tensor) -> Tensor:
    prompts, tokens = _prompts(dalle, text, sampling), known.clone()
    vocab_size = dalle.text_vocab_size + dalle.image_vocab_size
    for index in range(known.shape[1]):
        _, logits = dalle.logits(prompts, tokens.clamp(min=0).repeat(len(prompts) // len(text), 1))
        drawn = draw_token(_guide(logits[:, index], sampling), uniform[:, index], sampling, vocab_size)
        tokens[:, index] = torch.where(known[:, index] == TO_DRAW, drawn, known[:, index])
    return tokens


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
    decoder = Decoder(dalle, len(text))
    start, vocab_size = text.shape[1], dalle.text_vocab_size + dalle.image_vocab_size
    x = decoder.begin(text, text[:, :0])  # (B, D)
    for index in range(start, dalle.text_seq_len):
        if index > start:
            x = decoder.take_text(text[:, -1], decoder.place(index))
        token = draw_token(decoder.text_logits(x), uniform[:, index].to(text.device), sampling, vocab_size)
        text = torch.cat((text, token[:, None]), dim=1)
    ended = ((text == PADDING) | (text >= dalle.padding_start)).cumsum(dim=1) > 0
    return text.masked_fill(ended, PADDING)
