"""Image tokenizers by name, so that a checkpoint can say which one to build."""

from __future__ import annotations

from typing import Any, Callable, Dict

from models.image_tokenizer import ImageTokenizer
from models.vae import DiscreteVAE

IMAGE_TOKENIZERS: Dict[str, Callable[..., ImageTokenizer]] = {"DiscreteVAE": DiscreteVAE}


def describe_image_tokenizer(image_tokenizer: ImageTokenizer) -> Dict[str, Any]:
    """What `build_image_tokenizer` needs to build the same again, in plain containers."""
    return {"kind": type(image_tokenizer).__name__, "arguments": image_tokenizer.arguments}


def build_image_tokenizer(description: Dict[str, Any]) -> ImageTokenizer:
    """The image tokenizer that `describe_image_tokenizer` described, with fresh weights.

    Raises:
        ValueError: no image tokenizer of that kind is known.
    """
    kind = description["kind"]
    if kind not in IMAGE_TOKENIZERS:
        raise ValueError(f"image tokenizer {kind!r} is none of {', '.join(IMAGE_TOKENIZERS)}; use a newer program")
    return IMAGE_TOKENIZERS[kind](**description["arguments"])
