"""The DALL-E transformer: text and image tokens in one autoregressive sequence (Ramesh et al. 2021).

A sequence is <bos>, the text tokens, the image tokens; each position predicts the next token, so the last image token
is never fed. Text positions are followed by text (or the first image token) and image positions by image tokens, so
each meets only its own part of the vocabulary: equal to masking the other part, at a fraction of the work.

Legend: B batch, T text tokens, I image tokens, S = T + I positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import KeyValueCache
from models.options import TransformerOptions
from models.patterns import Layout
from models.transformer import make_layers

BOS = 0
PADDING = 0


class AxialPositionEmbedding(nn.Module):
    """Position of a pixel as the sum of a vector for its row and one for its column."""

    def __init__(self, rows: int, columns: int, hidden_size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(rows, 1, hidden_size))
        self.column = nn.Parameter(torch.zeros(1, columns, hidden_size))

    def forward(self) -> Tensor:
        """All positions in reading order, (I, D)."""
        return (self.row + self.column).flatten(0, 1)


class Dalle(nn.Module):
    """Text-to-image transformer.

    Args:
        options: of the transformer.
        text_vocab_size: ids of the text tokenizer. Each text position gets a padding id of its own on top of these, so
            that the model can tell how long a caption is.
        image_vocab_size: codes of the image tokenizer.
        image_grid: rows and columns of the image tokens.
    """

    def __init__(
        self, options: TransformerOptions, text_vocab_size: int, image_vocab_size: int, image_grid: Tuple[int, int]
    ) -> None:
        super().__init__()
        self.options = options
        self.text_seq_len = options.text_seq_len
        self.padding_start = text_vocab_size
        self.text_vocab_size = text_vocab_size + options.text_seq_len
        self.image_vocab_size = image_vocab_size
        self.layout = Layout(options.text_seq_len + 1, *image_grid)
        size = options.hidden_size
        self.text_embedding = nn.Embedding(self.text_vocab_size, size)
        self.text_position = nn.Embedding(self.layout.text_len, size)
        self.image_embedding = nn.Embedding(image_vocab_size, size)
        self.image_position = AxialPositionEmbedding(*image_grid, size)
        self.layers = make_layers(options, self.layout)
        self.norm = nn.LayerNorm(size)
        self.to_logits = nn.Linear(size, self.text_vocab_size + image_vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights: the only place that says how each tensor starts (layer scales apart)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.to_logits.weight, std=0.02)
        for embedding in (self.text_embedding, self.image_embedding, self.text_position):
            nn.init.normal_(embedding.weight, std=0.5)
        for position in (self.image_position.row, self.image_position.column):
            nn.init.normal_(position, std=0.5)

    def forward(self, text: Tensor, image_tokens: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The training losses.

        Args:
            text: (B, T) ids, 0 is padding.
            image_tokens: (B, I) codes in reading order.

        Returns:
            The loss to minimise, (text + w * image) / (w + 1) with w = `loss_img_weight`, and the mean cross-entropies
            of text and of image tokens, in nats; all scalars.
        """
        text = self.number_padding(text)
        text_logits, image_logits = self.logits(text, image_tokens)
        text_loss = F.cross_entropy(text_logits.flatten(0, 1), text.flatten())
        image_loss = F.cross_entropy(image_logits.flatten(0, 1), image_tokens.flatten())
        weight = self.options.loss_img_weight
        return (text_loss + weight * image_loss) / (weight + 1), text_loss, image_loss

    def logits(self, text: Tensor, image_tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """Logits of the text tokens (B, T, V text) and of the image tokens (B, I, V image); padding numbered."""
        x = torch.cat((self.embed_text(text), self.embed_image(image_tokens[:, :-1])), dim=1)  # (B, S, D)
        for layer in self.layers:
            x = layer(x)
        return self.text_logits(x[:, : self.text_seq_len]), self.image_logits(x[:, self.text_seq_len :])

    def number_padding(self, text: Tensor) -> Tensor:
        """Replace the padding id 0 by an id that is the position's own; (B, T) to (B, T)."""
        own = torch.arange(text.shape[1], device=text.device) + self.padding_start
        return torch.where(text == PADDING, own, text)

    def embed_text(self, text: Tensor) -> Tensor:
        """<bos> and the first text tokens, padding numbered: (B, n) to (B, n + 1, D)."""
        text = F.pad(text, (1, 0), value=BOS)
        return self.text_embedding(text) + self.text_position.weight[: text.shape[1]]

    def embed_image(self, image_tokens: Tensor, start: int = 0) -> Tensor:
        """Image tokens from the `start`-th on: (B, n) to (B, n, D)."""
        position = self.image_position()[start : start + image_tokens.shape[1]]
        return self.image_embedding(image_tokens) + position

    def text_logits(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, n, V text)."""
        return self._segment_logits(x, slice(0, self.text_vocab_size))

    def image_logits(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, n, V image)."""
        return self._segment_logits(x, slice(self.text_vocab_size, None))

    def _segment_logits(self, x: Tensor, segment: slice) -> Tensor:
        return F.linear(self.norm(x), self.to_logits.weight[segment], self.to_logits.bias[segment])

    def new_caches(self) -> List[KeyValueCache]:
        """Empty caches of all layers."""
        return [KeyValueCache(self.layout.sequence_len) for _ in self.layers]

    def prefill(self, x: Tensor, caches: List[KeyValueCache]) -> Tensor:
        """Run the first positions at once, (B, n, D) embedded to (B, n, D), filling the caches."""
        for layer, cache in zip(self.layers, caches):
            x = layer.prefill(x, cache)
        return x

    def decode(self, x: Tensor, position: int, caches: List[KeyValueCache]) -> Tensor:
        """Run the next position, (B, 1, D) embedded to (B, 1, D), after all earlier ones."""
        for layer, cache in zip(self.layers, caches):
            x = layer.decode(x, position, cache)
        return x
