"""Image tokenizers by name, so that a checkpoint can say which one to build."""

from __future__ import annotations

from typing import Any, Dict, Type

from models.image_tokenizer import ImageTokenizer
from models.openai_vae import OpenAIVAE
from models.vae import DiscreteVAE
from models.vqgan import VQGan
from options import UserError

IMAGE_TOKENIZERS: Dict[str, Type[ImageTokenizer]] = {made.kind: made for made in (DiscreteVAE, VQGan, OpenAIVAE)}


def describe_image_tokenizer(image_tokenizer: ImageTokenizer) -> Dict[str, Any]:
    """What `build_image_tokenizer` needs to build the same again, in plain containers."""
    return {"kind": image_tokenizer.kind, "arguments": image_tokenizer.arguments}


def build_image_tokenizer(description: Dict[str, Any]) -> ImageTokenizer:
    """The image tokenizer that `describe_image_tokenizer` described, with fresh weights.

    Raises:
        UserError: no image tokenizer of that kind is known.
    """
    kind = description["kind"]
    if kind not in IMAGE_TOKENIZERS:
        raise UserError(f"image tokenizer {kind!r} is none of {', '.join(IMAGE_TOKENIZERS)}; use a newer program")
    return IMAGE_TOKENIZERS[kind](**description["arguments"])
