"""What the transformer needs of an image tokenizer, and the model that joins the two."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
from torch import Tensor, nn

from models.dalle import Dalle


class ImageTokenizer(nn.Module):
    """A model that turns pictures into a grid of codes and back.

    Attributes:
        kind: its name in checkpoints.
        image_size: side of the pictures in pixels.
        channels: channels of the pictures.
        num_tokens: number of codes.
        grid: rows and columns of codes.
        arguments: what it was constructed with, in plain containers.
    """

    kind: str
    image_size: int
    channels: int
    num_tokens: int
    grid: Tuple[int, int]
    arguments: Dict[str, Any]

    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, C, image_size, image_size), in 0..1 or bytes, to codes (B, I) in reading order."""
        raise NotImplementedError

    def decode(self, tokens: Tensor) -> Tensor:
        """Codes (B, I) to pictures (B, C, image_size, image_size) in 0..1."""
        raise NotImplementedError


def as_unit_range(images: Tensor) -> Tensor:
    """Pictures in bytes to 0..1; those in 0..1 unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class TextToImage(nn.Module):
    """A transformer with the image tokenizer it was trained on.

    Args:
        dalle: the transformer, which learns.
        image_tokenizer: which does not.
    """

    def __init__(self, dalle: Dalle, image_tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.image_tokenizer = image_tokenizer.requires_grad_(False).eval()
        self.dalle = dalle

    def train(self, mode: bool = True) -> TextToImage:
        """Put the transformer into training mode; the tokenizer stays as it is evaluated."""
        super().train(mode)
        self.image_tokenizer.eval()
        return self

    def forward(self, text: Tensor, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Losses of captions (B, T) and pictures (B, C, H, W), or their codes (B, I); see `Dalle.forward`."""
        return self.dalle(text, self.encode(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to codes (B, I); codes stay as they are."""
        return self.image_tokenizer.encode(images) if images.dim() == 4 else images
