"""CLIP: texts and pictures as vectors whose product says how well they go together (Radford et al. 2021).

Layers, pooling and loss are those of DALLE-pytorch's CLIP, so that its weights give the same numbers.
Legend: B batch, T text tokens, P patches, D width, L width of a latent, C channels, H W picture.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.attention import Attention
from models.image_tokenizer import as_unit_range
from models.options import ClipOptions
from models.transformer import FeedForward, Layer

DIM_HEAD = 64
PADDING = 0


class Encoder(nn.Module):
    """Layers in which everything sees everything, the mean of what comes out, and its latent.

    Args:
        hidden_size: D.
        depth: layers.
        heads: of each attention.
        dim_latent: L.
    """

    def __init__(self, hidden_size: int, depth: int, heads: int, dim_latent: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(hidden_size, index + 1, Attention(hidden_size, heads, DIM_HEAD, None), FeedForward(hidden_size))
            for index in range(depth)
        )
        self.to_latent = nn.Linear(hidden_size, dim_latent, bias=False)

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Embedded positions (B, n, D), those that count (B, n), to latents of length 1, (B, L)."""
        for layer in self.layers:
            x = layer(x, mask=mask)
        if mask is None:
            pooled = x.mean(dim=1)
        else:
            pooled = x.masked_fill(~mask[:, :, None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return F.normalize(self.to_latent(pooled), dim=-1)


class Clip(nn.Module):
    """Similarity of texts and pictures.

    Args:
        options: of the model.
        text_vocab_size: ids of the text tokenizer.
    """

    def __init__(self, options: ClipOptions, text_vocab_size: int) -> None:
        super().__init__()
        self.options, self.text_vocab_size = options, text_vocab_size
        patch = options.visual_patch_size
        self.text_embedding = nn.Embedding(text_vocab_size, options.dim_text)
        self.text_position = nn.Embedding(options.text_seq_len, options.dim_text)
        self.text_encoder = Encoder(options.dim_text, options.text_enc_depth, options.text_heads, options.dim_latent)
        self.patch_embedding = nn.Linear(options.channels * patch**2, options.dim_image)
        self.patch_position = nn.Embedding((options.visual_image_size // patch) ** 2, options.dim_image)
        self.image_encoder = Encoder(
            options.dim_image, options.visual_enc_depth, options.visual_heads, options.dim_latent
        )
        self.temperature = nn.Parameter(torch.tensor(1.0))  # exponential; factor of the similarities

    def forward(self, text: Tensor, images: Tensor) -> Tuple[Tensor, Tensor]:
        """The contrastive loss of texts (B, T), 0 is padding, and their pictures (B, C, H, W), in 0..1 or bytes.

        Returns:
            The loss to minimise, in nats, and the share of the texts whose own picture is the nearest; scalars.
        """
        return self.loss(self.encode_text(text), self.encode_images(images))

    def loss(self, text_latents: Tensor, image_latents: Tensor) -> Tuple[Tensor, Tensor]:
        """As `forward`, of latents (B, L)."""
        similarity = text_latents @ image_latents.t() * self.temperature.exp()  # (texts, pictures)
        own = torch.arange(len(similarity), device=similarity.device)
        loss = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.t(), own)) / 2
        return loss, (similarity.argmax(dim=1) == own).float().mean()

    def similarity(self, text_latents: Tensor, image_latents: Tensor) -> Tensor:
        """How well the texts and pictures of latents (B, L) go together, pair by pair: (B,)."""
        return (text_latents * image_latents).sum(dim=-1) * self.temperature.exp()

    def encode_text(self, text: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Texts (B, n), n at most T, to latents (B, L); `mask` (B, n): those that count (none: all but padding)."""
        if text.shape[1] > self.options.text_seq_len:
            raise ValueError(f"texts have {text.shape[1]} tokens, text_seq_len={self.options.text_seq_len}; cut them")
        x = self.text_embedding(text) + self.text_position.weight[: text.shape[1]]
        return self.text_encoder(x, text != PADDING if mask is None else mask)

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W), in 0..1 or bytes, to latents (B, L)."""
        channels, side, patch = self.options.channels, self.options.visual_image_size, self.options.visual_patch_size
        if images.shape[1:] != (channels, side, side):
            raise ValueError(
                f"pictures have the shape {tuple(images.shape)}; give (batch, {channels}, {side}, {side}), as channels "
                "and visual_image_size say"
            )
        patches = rearrange(as_unit_range(images), "b c (y p) (x q) -> b (y x) (p q c)", p=patch, q=patch)
        return self.image_encoder(self.patch_embedding(patches) + self.patch_position.weight)
