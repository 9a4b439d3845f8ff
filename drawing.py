"""From prompts to pictures, with a model and its text tokenizer."""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from bpe.tokenizer import Tokenizer
from models.decoding import complete_text, draw_image_tokens, uniform_numbers
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
        batch_size: pictures drawn at once.
        progress: called with the number of pictures after each batch.
        known: image tokens (I,) that every picture shares, `TO_DRAW` where they differ; see `priming.py`.
    """
    device, pictures, codes = next(model.parameters()).device, [], []
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        text = _pad([encode_prompt(tokenizer, p, model.dalle.text_seq_len) for p in prompts[chosen]], model)
        uniform = uniform_numbers(list(seeds[chosen]), model.dalle.layout.image_len)
        given = None if known is None else known.to(device).expand(len(text), -1)
        tokens = draw_image_tokens(model.dalle, text.to(device), uniform, sampling, given)
        pictures.append(model.image_tokenizer.decode(tokens).float().cpu())
        codes.append(tokens.cpu())
        if progress:
            progress(len(text))
    return Drawn(torch.cat(pictures), torch.cat(codes))


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
