"""Scoring drawn pictures, so that of many the best can be kept.

Pictures of a prompt are scored one by one, in batches: by a CLIP of train_clip.py, by a pretrained one of `open_clip`,
or by the model that drew them.

Legend: n pictures, I image tokens, C channels, H W picture.
"""

from __future__ import annotations

import inspect
import pickle
from typing import Any, Callable, List, Optional, Protocol, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bpe.tokenizer import Tokenizer
from checkpoint import load_clip
from commands.options import RankingOptions
from drawing import encode_prompt
from models.clip import Clip
from models.decoding import log_likelihood
from models.image_tokenizer import TextToImage
from options import OptionError
from pictures import to_images

_ENOUGH_TEXT = 200  # of what open_clip says went wrong


class Ranker(Protocol):
    """Says how well pictures go with a prompt."""

    def scores(self, prompt: str, pictures: Tensor, tokens: Tensor) -> Tensor:
        """The scores of pictures, the higher the better.

        Args:
            prompt: what was drawn.
            pictures: (n, C, H, W) in 0..1.
            tokens: (n, I), what they were decoded from.

        Returns:
            (n,), on the CPU.
        """


class LikelihoodRanker:
    """The model's own opinion: the mean log-probability of a picture's tokens after the prompt, in nats a token.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        batch_size: pictures at once.
    """

    def __init__(self, model: TextToImage, tokenizer: Tokenizer, batch_size: int) -> None:
        self.dalle, self.tokenizer, self.batch_size = model.dalle, tokenizer, batch_size

    def scores(self, prompt: str, pictures: Tensor, tokens: Tensor) -> Tensor:
        """See `Ranker`."""
        device = next(self.dalle.parameters()).device
        ids = encode_prompt(self.tokenizer, prompt, self.dalle.text_seq_len)
        text = F.pad(ids, (0, self.dalle.text_seq_len - len(ids))).to(device)
        batches = (chosen.to(device) for chosen in tokens.split(self.batch_size))
        return torch.cat([log_likelihood(self.dalle, text.expand(len(b), -1), b).cpu() for b in batches])


class ClipRanker:
    """The similarity of prompt and picture under a CLIP of train_clip.py.

    Args:
        clip: in evaluation mode.
        tokenizer: CLIP's.
        batch_size: pictures at once.
    """

    def __init__(self, clip: Clip, tokenizer: Tokenizer, batch_size: int) -> None:
        self.clip, self.tokenizer, self.batch_size = clip, tokenizer, batch_size

    @torch.no_grad()
    def scores(self, prompt: str, pictures: Tensor, tokens: Tensor) -> Tensor:
        """See `Ranker`; `tokens` are not looked at."""
        device, options = self.clip.temperature.device, self.clip.options
        text = self.clip.encode_text(encode_prompt(self.tokenizer, prompt, options.text_seq_len)[None].to(device))
        found = []
        for batch in pictures.split(self.batch_size):
            images = self.clip.encode_images(resize(batch.to(device), options.visual_image_size))
            found.append(self.clip.similarity(text, images).cpu())
        return torch.cat(found)


class OpenClipRanker:
    """The cosine of the angle between prompt and picture under a pretrained CLIP of `open_clip`.

    Args:
        model: in evaluation mode.
        preprocess: makes its input (C, H, W) of a Pillow image.
        tokenize: makes its input (1, T) of a list of one text.
        device: the model's.
        batch_size: pictures at once.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Any], Tensor],
        tokenize: Callable[[List[str]], Tensor],
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.model, self.preprocess, self.tokenize = model, preprocess, tokenize
        self.device, self.batch_size = device, batch_size

    @torch.no_grad()
    def scores(self, prompt: str, pictures: Tensor, tokens: Tensor) -> Tensor:
        """See `Ranker`; `tokens` are not looked at."""
        text = F.normalize(self.model.encode_text(self.tokenize([prompt]).to(self.device)), dim=-1)  # (1, L)
        found = []
        for batch in pictures.split(self.batch_size):
            inputs = torch.stack([self.preprocess(image) for image in to_images(batch)]).to(self.device)
            images = F.normalize(self.model.encode_image(inputs), dim=-1)  # (n, L)
            found.append((images * text).sum(dim=-1).float().cpu())
        return torch.cat(found)


def open_ranker(
    options: RankingOptions, model: TextToImage, tokenizer: Tokenizer, device: torch.device, batch_size: int = 16
) -> Optional[Ranker]:
    """The ranker that the options name; None for "none".

    Args:
        options: name it.
        model: what draws, in evaluation mode.
        tokenizer: the model's.
        device: to score on; that of the model.
        batch_size: pictures scored at once.

    Raises:
        OptionError: it cannot be had, or takes other pictures than the model draws.
        CheckpointError: `clip_path` cannot be read.
    """
    if options.ranker == "likelihood":
        return LikelihoodRanker(model, tokenizer, batch_size)
    if options.ranker == "clip":
        assert options.clip_path is not None
        clip, words = load_clip(options.clip_path)
        if clip.options.channels != model.image_tokenizer.channels:
            raise OptionError(
                f"clip_path={options.clip_path} takes pictures of {clip.options.channels} channels, and the model "
                f"draws {model.image_tokenizer.channels}; take another CLIP, or another ranker"
            )
        return ClipRanker(clip.to(device), words, batch_size)
    if options.ranker == "open_clip":
        return OpenClipRanker(*_load_open_clip(options, device), device, batch_size)
    return None


def best(scores: Tensor, keep: Optional[int] = None) -> Tensor:
    """The indices of the `keep` highest of scores (n,), the highest first (None: of all of them): (k,).

    Equal scores keep their order; one that is no number comes last.
    """
    return scores.masked_fill(scores.isnan(), float("-inf")).sort(descending=True, stable=True).indices[:keep]


def resize(pictures: Tensor, side: int) -> Tensor:
    """Pictures (n, C, H, W) to `side` pixels a side, as smooth as they are after scaling."""
    if pictures.shape[-2:] == (side, side):
        return pictures
    return F.interpolate(pictures, size=(side, side), mode="bilinear", antialias=True)


def _load_open_clip(options: RankingOptions, device: torch.device) -> Tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer of `open_clip`.

    Raises:
        OptionError: the package, the model or its weights are not there.
    """
    try:
        import open_clip
    except ImportError as error:
        raise OptionError(
            f"ranker=open_clip needs a package that is not here ({error}); pip install open_clip_torch, or take "
            "another ranker"
        ) from None
    create = open_clip.create_model_from_pretrained
    if not any(name.endswith("weights_only") for name in inspect.signature(create).parameters):
        raise OptionError(
            "ranker=open_clip: this version of open_clip would run what a file of weights names; "
            "pip install -U open_clip_torch"
        )
    try:
        model, preprocess = create(options.open_clip_model, options.open_clip_pretrained, device=device)
        return model.eval(), preprocess, open_clip.get_tokenizer(options.open_clip_model)
    except pickle.UnpicklingError:  # torch's own text advises to run it all the same
        raise OptionError(
            f"open_clip_pretrained={options.open_clip_pretrained} is torn, or names something which is no tensor or "
            "plain container; nothing of it was run; give another file"
        ) from None
    except Exception as error:  # whatever names, files and the network lead it to
        raise OptionError(
            f"open_clip_model={options.open_clip_model}, open_clip_pretrained={options.open_clip_pretrained}: "
            f"open_clip cannot open it ({' '.join(str(error).split())[:_ENOUGH_TEXT]}); check both names, or give a "
            "file of weights with --open-clip-pretrained"
        ) from None
