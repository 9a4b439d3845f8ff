"""Other programs' checkpoints as ours, and ours as DALLE-pytorch's.

What is read holds weights alone: drawing needs no more, and training begins anew from them. The formats themselves are
in `models/dalle_pytorch_format.py` and `models/graphcore_format.py`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional

import torch
from torch import Tensor, nn

from bpe.tokenizer import Tokenizer
from checkpoint import (
    FORMAT,
    describe_text_to_image,
    describe_vae,
    inference_weights,
    load_text_to_image,
)
from models import dalle_pytorch_format, graphcore_format
from models.build import build_image_tokenizer
from models.dalle import Dalle
from models.dalle_pytorch_format import DalleParts, FormatError
from models.foreign import ForeignFileError, read_foreign
from models.image_tokenizer import ImageTokenizer, TextToImage
from models.options import TransformerOptions
from models.pretrained import weight_faults
from options import UserError, plain_values

_ENOUGH_TEXT = 120  # of what is wrong with a file
_WITHOUT_TRAINING: Dict[str, Any] = {
    "format": FORMAT,
    "optimizer": None,
    "average": None,
    "scaler": None,
    "random": None,
    "schedule": None,
    "epoch_loss": None,
    "step": 0,
    "samples": 0,
    "config": {},
}


def convert_dalle(
    contents: Any,
    tokenizer: Tokenizer,
    image_tokenizer: Optional[ImageTokenizer] = None,
    conv_window: Optional[str] = None,
) -> Dict[str, Any]:
    """A checkpoint of kind "dalle" of what another program saved; see `is_dalle`.

    Args:
        contents: of the file.
        tokenizer: of the text.
        image_tokenizer: the model's, where it is named; needed for a file that holds none.
        conv_window: the window of conv_like attention, where the release does not tell.

    Raises:
        FormatError: it is no model that we have, or the vocabulary is another one.
    """
    reader = graphcore_format if graphcore_format.is_dalle(contents) else dalle_pytorch_format
    parts = reader.read_dalle(contents)
    if tokenizer.vocab_size != parts.text_vocab_size:
        raise FormatError(
            f"the file's model was trained with {parts.text_vocab_size} text ids (num_text_tokens), and the vocabulary "
            f"has {tokenizer.vocab_size}; give the one it was trained with, with --bpe-path or --chinese"
        )
    if conv_window:
        parts.options["conv_window"] = conv_window
    model = _build_text_to_image(parts, image_tokenizer)
    description = describe_text_to_image(model, plain_values(model.dalle.options), tokenizer)
    return {**_WITHOUT_TRAINING, "kind": "dalle", "weights": model.state_dict(), **description}


def convert_vae(contents: Any) -> Dict[str, Any]:
    """A checkpoint of kind "vae" of what another program saved in one file.

    Raises:
        FormatError: it is no image tokenizer that we have.
    """
    if dalle_pytorch_format.is_vae(contents):
        arguments, weights = dalle_pytorch_format.read_vae(contents)
        return vae_state(rebuild_image_tokenizer({"kind": "DiscreteVAE", "arguments": arguments}, weights))
    if isinstance(contents, Mapping) and isinstance(contents.get("state_dict"), Mapping):
        weights = dalle_pytorch_format.vqgan_weights(dalle_pytorch_format.plain_weights(contents["state_dict"]))
        if "encoder.conv_in.weight" in weights:
            arguments = dalle_pytorch_format.vqgan_arguments(weights)
            return vae_state(rebuild_image_tokenizer({"kind": "VQGan", "arguments": arguments}, weights))
    raise FormatError(
        "the file is none that can be converted; give a dalle.pt or vae.pt of DALLE-pytorch, a dalle_<epoch>.pt of "
        "Graphcore, a .ckpt of taming, or encoder.pkl and decoder.pkl of OpenAI"
    )


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Within a `with` block, let every error name the file whose contents are converted; they may be anything.

    Raises:
        FormatError: in place of whatever they lead to.
    """
    try:
        yield
    except UserError as error:
        raise FormatError(f"{path}: {error}") from None
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:_ENOUGH_TEXT]}"
        raise FormatError(f"{path} looks like a checkpoint, and cannot be read as one ({what}); get it anew") from None


def is_ours(contents: Any) -> bool:
    """Whether the contents of a file are a checkpoint of this program."""
    return isinstance(contents, Mapping) and isinstance(contents.get("format"), int) and "kind" in contents


def read_others(path: str) -> Any:
    """The contents of another program's file; None: there is none, or it is ours, torn, or names something to run."""
    place = Path(path).expanduser()
    try:
        contents = read_foreign(place) if place.is_file() else None
    except ForeignFileError:
        return None
    return None if is_ours(contents) else contents


def to_dalle_pytorch(state: Mapping[str, Any], axial_package: str = "0.3") -> Dict[str, Any]:
    """The file that DALLE-pytorch has for a checkpoint of ours, to be drawn with or trained further from there.

    Raises:
        FormatError: DALLE-pytorch has no such model.
    """
    if state["kind"] == "vae":
        description = state["image_tokenizer"]
        if description["kind"] != "DiscreteVAE":
            raise FormatError(
                f"a {description['kind']} has no file in DALLE-pytorch's format; it keeps DiscreteVAE alone"
            )
        return dalle_pytorch_format.write_vae(description["arguments"], inference_weights(state))
    if state["kind"] != "dalle":
        raise FormatError(f"a {state['kind']} has no file in DALLE-pytorch's format; it keeps its dalle and vae alone")
    model, tokenizer = load_text_to_image(state)
    return dalle_pytorch_format.write_dalle(
        model.dalle.options,
        tokenizer.vocab_size,
        model.dalle.layout,
        model.dalle.state_dict(),
        state["image_tokenizer"],
        model.image_tokenizer.state_dict(),
        axial_package,
    )


def vae_state(image_tokenizer: ImageTokenizer) -> Dict[str, Any]:
    """A checkpoint of kind "vae" of an image tokenizer."""
    weights = image_tokenizer.state_dict()
    return {**_WITHOUT_TRAINING, "kind": "vae", "weights": weights, **describe_vae(image_tokenizer)}


def rebuild_image_tokenizer(description: Dict[str, Any], weights: Mapping[str, Tensor]) -> ImageTokenizer:
    """The image tokenizer of a description with these weights, in evaluation mode."""
    image_tokenizer = build_image_tokenizer(description)
    _load(image_tokenizer, weights)
    return image_tokenizer.eval()


def _build_text_to_image(parts: DalleParts, image_tokenizer: Optional[ImageTokenizer]) -> TextToImage:
    if image_tokenizer is None:
        if parts.image_tokenizer is None:
            raise FormatError("the file holds no image tokenizer; name it with --vqgan-model-path or --vae-path")
        image_tokenizer = rebuild_image_tokenizer(parts.image_tokenizer, parts.image_tokenizer_weights)
    elif parts.image_tokenizer and not _has_weights(image_tokenizer, parts.image_tokenizer_weights):
        raise FormatError("the image tokenizer that is named is not the one in the file; leave it out to use that one")
    if image_tokenizer.num_tokens != parts.image_vocab_size:
        raise FormatError(
            f"the image tokenizer has {image_tokenizer.num_tokens} codes, and the file's model was trained with "
            f"{parts.image_vocab_size}; name the one it was trained with"
        )
    options = TransformerOptions(**parts.options)
    dalle = Dalle(options, parts.text_vocab_size, image_tokenizer.num_tokens, image_tokenizer.grid)
    _load(dalle, parts.weights)
    return TextToImage(dalle, image_tokenizer).eval()


def _load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    faults = weight_faults(module, weights)
    if faults:
        raise FormatError(f"the file's weights are not those its parameters tell of: it {faults}; give a whole file")
    module.load_state_dict(dict(weights))


def _has_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether these are the module's weights, but for a rounding to half precision."""
    own = module.state_dict()
    common = [name for name in own if name in weights and name != "usage"]  # which other programs do not count
    return bool(common) and all(
        own[name].shape == weights[name].shape and torch.allclose(own[name], weights[name], rtol=1e-2, atol=1e-3)
        for name in common
    )
