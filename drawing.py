"""From prompts to pictures, with a model and its text tokenizer."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from bpe.tokenizer import Tokenizer
from large_pages import use_large_pages
from models.dalle import Dalle
from models.decoding import TO_DRAW, TokenDrawer, complete_text, draw_image_tokens, uniform_numbers
from models.image_tokenizer import TextToImage
from models.options import SamplingOptions
from options import UserError

_TEXT_SEED = 1 << 32  # keeps the numbers that complete a text apart from those that draw its picture


class Drawn(NamedTuple):
    """Pictures (n, C, H, W) in 0..1, and the image tokens (n, I) that they were decoded from; on the CPU."""

    pictures: Tensor
    tokens: Tensor


def encode_prompt(tokenizer: Tokenizer, prompt: str, text_seq_len: int) -> Tensor:
    """The ids of a prompt, (n,), at most `text_seq_len` of them.

    Raises:
        UserError: nothing of it is left.
    """
    ids = tokenizer.encode(prompt)[:text_seq_len]
    if not ids:
        raise UserError(f"prompt {prompt!r} holds no word; write what to draw")
    return torch.tensor(ids)


@torch.no_grad()
def draw_pictures(
    model: TextToImage,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingOptions,
    batch_size: int,
    progress: Optional[Any] = None,
    known: Optional[Tensor] = None,
) -> Drawn:
    """Draw one picture a prompt.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompts: what to draw.
        seeds: one a picture; with its prompt it decides the picture.
        sampling: how tokens are drawn.
        batch_size: pictures drawn at once; fewer where a GPU's memory does not hold as many.
        progress: called with the number of pictures after each batch.
        known: image tokens (I,) that every picture shares, `TO_DRAW` where they differ; see `priming.py`.
    """
    device = next(model.parameters()).device
    text = _pad([encode_prompt(tokenizer, prompt, model.dalle.text_seq_len) for prompt in prompts], model).to(device)
    uniform = uniform_numbers(list(seeds), model.dalle.layout.image_len)
    if known is None:
        known = torch.full((model.dalle.layout.image_len,), TO_DRAW)
    shared = known.to(device).expand(len(text), -1)
    drawers, decoding = _Drawers(model.dalle, sampling), FittingBatch(batch_size)
    pictures: List[Tensor] = []
    codes: List[Tensor] = []

    def draw(chosen: slice) -> Tensor:
        return drawers.draw(text[chosen], uniform[chosen], shared[chosen])

    def decode(tokens: Tensor) -> List[Tensor]:
        return list(
            decoding.split(len(tokens), lambda chosen: model.image_tokenizer.decode(tokens[chosen]).float().cpu())
        )

    for tokens in FittingBatch(batch_size).split(len(text), draw):
        pictures += decode(tokens)
        codes.append(tokens.cpu())
        if progress:
            progress(len(tokens))
    return Drawn(torch.cat(pictures), torch.cat(codes))


class FittingBatch:
    """Work on a batch, in halves when a GPU's memory runs out.

    Args:
        size: rows at once, to begin with.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def split(self, count: int, work: Callable[[slice], Tensor]) -> Iterator[Tensor]:
        """What `work` makes of `count` rows, part by part.

        Raises:
            UserError: there is not room for one.
        """
        start = 0
        while start < count:
            chosen = slice(start, min(start + self.size, count))
            done = _fits(work, chosen)
            if done is None:
                self._halve(chosen.stop - start)
                continue
            yield done
            start = chosen.stop

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise UserError("the GPU's memory does not hold what one picture takes; use --device cpu")
        self.size = -(-tried // 2)
        torch.cuda.empty_cache()


def _fits(work: Callable[[slice], Tensor], chosen: slice) -> Optional[Tensor]:
    """What `work` makes of some rows; None: memory ran out, and what it held is free again."""
    try:
        return work(chosen)
    except torch.cuda.OutOfMemoryError:
        return None


class _Drawers:
    """Draws batches of any size; what one size needs is prepared when the size changes."""

    def __init__(self, dalle: Dalle, sampling: SamplingOptions) -> None:
        self.dalle, self.sampling = dalle, sampling
        self._drawer: Optional[TokenDrawer] = None
        self._pictures = 0

    def draw(self, text: Tensor, uniform: Tensor, known: Tensor) -> Tensor:
        """See `models.decoding.draw_image_tokens`."""
        if not self.dalle.keeps_caches:
            return draw_image_tokens(self.dalle, text, uniform, self.sampling, known)
        if self._drawer is None or self._pictures != len(text):
            self._drawer = None  # before there is another: two may not fit
            if text.device.type == "cpu":
                use_large_pages()
            self._drawer, self._pictures = TokenDrawer(self.dalle, len(text), self.sampling), len(text)
        return self._drawer.draw(text, uniform, known)


def complete_prompt(
    model: TextToImage, tokenizer: Tokenizer, prompt: str, seeds: Sequence[int], sampling: SamplingOptions
) -> List[str]:
    """Let the model go on with a prompt: one text a seed."""
    ids = encode_prompt(tokenizer, prompt, model.dalle.text_seq_len)
    if len(ids) == model.dalle.text_seq_len:
        return [prompt] * len(seeds)
    device = next(model.parameters()).device
    text = ids.repeat(len(seeds), 1).to(device)
    uniform = uniform_numbers([seed + _TEXT_SEED for seed in seeds], model.dalle.text_seq_len)
    return [tokenizer.decode(row).strip() for row in complete_text(model.dalle, text, uniform, sampling).tolist()]


def _pad(rows: List[Tensor], model: TextToImage) -> Tensor:
    text = torch.zeros(len(rows), model.dalle.text_seq_len, dtype=torch.long)
    for row, ids in zip(text, rows):
        row[: len(ids)] = ids
    return text
