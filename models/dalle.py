"""The DALL-E transformer: text and image tokens in one autoregressive sequence (Ramesh et al. 2021).

A sequence is <bos>, the text tokens, the image tokens; each position predicts the next token, so the last image token
is never fed. Text positions are followed by text (or the first image token) and image positions by image tokens, so
each meets only its own part of the vocabulary: equal to masking the other part, at a fraction of the work.

Legend: B batch, T text tokens, I image tokens, S = T + I positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Callable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cache import LayerCache
from models.options import TransformerOptions
from models.patterns import Layout
from models.transformer import make_layers, run_layers

BOS = 0
PADDING = 0
WHOLE_VOCABULARY = slice(None)
STABLE_GRADIENT_SHARE = 0.1  # of the embeddings' gradient, under `stable`
EmbeddingKernel = Callable[[Tensor, Tensor, Optional[Tensor]], Tensor]
LossKernel = Callable[[Tensor, nn.Linear, int, Tensor, Tensor], Tuple[Tensor, Tensor]]
"""Of normalised x (B, S, D), the projection to logits, the text ids it has before those of image tokens, the text
(B, T), padding numbered, and image tokens (B, I): the mean cross-entropies of both."""


def embed(table: Tensor, ids: Tensor, position: Optional[Tensor] = None) -> Tensor:
    """The rows of a table (V, D) for ids (B, n), each with the vector of its position (n, D) added: (B, n, D)."""
    rows = F.embedding(ids, table)
    return rows if position is None else rows + position


class TokenEmbedding(nn.Embedding):
    """The vectors of tokens.

    Attributes:
        kernel: computes what `embed` does; an engine sets it to an operator of its machine.
    """

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__(vocab_size, hidden_size)
        self.kernel: EmbeddingKernel = embed

    def forward(self, ids: Tensor, position: Optional[Tensor] = None) -> Tensor:
        """See `embed`."""
        return self.kernel(self.weight, ids, position)


class AxialPositionEmbedding(nn.Module):
    """Position of a pixel as the sum of a vector for its row and one for its column."""

    def __init__(self, rows: int, columns: int, hidden_size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(rows, 1, hidden_size))
        self.column = nn.Parameter(torch.zeros(1, columns, hidden_size))

    def forward(self, count: int) -> Tensor:
        """The first `count` pixels in reading order: (count, D)."""
        return (self.row + self.column).flatten(0, 1)[:count]


class Projection(nn.Linear):
    """To the logits of one part of the vocabulary."""

    def forward(self, x: Tensor, segment: slice = WHOLE_VOCABULARY) -> Tensor:
        """(B, n, D) to (B, n, ids of `segment`)."""
        return F.linear(x, self.weight[segment], self.bias[segment])


class Dalle(nn.Module):
    """Text-to-image transformer.

    Attributes:
        keeps_caches: whether it draws with what it kept of earlier positions; else each token takes a whole pass.
        inverts_layers: whether reversible layers are trained without holding their activations; an engine that
            computes activations again by itself switches it off.
        loss_kernel: computes the losses from what the layers give; None: from logits. An engine sets it to its own.

    Args:
        options: of the transformer.
        text_vocab_size: ids of the text tokenizer. Each text position gets a padding id of its own on top of these, so
            that the model can tell how long a caption is.
        image_vocab_size: codes of the image tokenizer.
        image_grid: rows and columns of the image tokens.
    """

    keeps_caches = True
    inverts_layers = True

    def __init__(
        self, options: TransformerOptions, text_vocab_size: int, image_vocab_size: int, image_grid: Tuple[int, int]
    ) -> None:
        super().__init__()
        self.options = options
        self.loss_kernel: Optional[LossKernel] = None
        self.text_seq_len = options.text_seq_len
        self.padding_start = text_vocab_size
        self.text_vocab_size = text_vocab_size + options.text_seq_len
        self.image_vocab_size = image_vocab_size
        self.layout = Layout(options.text_seq_len + 1, *image_grid)
        size = options.hidden_size
        if not options.share_input_output_emb:
            self.text_embedding = TokenEmbedding(self.text_vocab_size, size)
        if not options.rotary_emb:
            self.text_position = nn.Embedding(self.layout.text_len, size)
        if not options.share_input_output_emb:
            self.image_embedding = TokenEmbedding(image_vocab_size, size)
        if not options.rotary_emb:
            self.image_position = AxialPositionEmbedding(*image_grid, size)
        self.layers = make_layers(options, self.layout)
        self.norm = nn.LayerNorm(size)
        self.to_logits = Projection(size, self.text_vocab_size + image_vocab_size)
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
        tied = self.options.share_input_output_emb
        nn.init.normal_(self.to_logits.weight, std=self.options.hidden_size**-0.5 if tied else 0.02)
        tables = [] if tied else [self.text_embedding.weight, self.image_embedding.weight]
        if not self.options.rotary_emb:
            tables += [self.text_position.weight, self.image_position.row, self.image_position.column]
        for table in tables:
            nn.init.normal_(table, std=0.5)

    def forward(self, text: Tensor, image_tokens: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The training losses.

        Args:
            text: (B, T) ids, 0 is padding.
            image_tokens: (B, I) codes in reading order.

        Returns:
            The loss to minimise, (text + w * image) / (w + 1) with w = `loss_img_weight`, and the mean cross-entropies
            of text and of image tokens, in nats; all scalars.
        """
        if self.training and self.options.null_cond_prob:
            text = drop_texts(text, self.options.null_cond_prob)
        text = self.number_padding(text)
        text_loss, image_loss = self._losses(self._run_all(text, image_tokens), text, image_tokens)
        weight = self.options.loss_img_weight
        return (text_loss + weight * image_loss) / (weight + 1), text_loss, image_loss

    def logits(self, text: Tensor, image_tokens: Tensor) -> Tuple[Tensor, Tensor]:
        """Logits of the text tokens (B, T, V text) and of the image tokens (B, I, V image); padding numbered."""
        return self._segments(self._run_all(text, image_tokens))

    def run(self, x: Tensor, caches: Optional[List[LayerCache]] = None) -> Tensor:
        """Run the layers over the embedded first positions of a sequence, (B, n, D) to (B, n, D).

        Args:
            x: the positions.
            caches: one a layer, which are given what later positions need; see `models.decoder`.
        """
        if self.options.stable:
            x = x * STABLE_GRADIENT_SHARE + x.detach() * (1 - STABLE_GRADIENT_SHARE)
        return run_layers(self.layers, x, caches, self.inverts_layers)

    def number_padding(self, text: Tensor) -> Tensor:
        """Replace the padding id 0 by an id that is the position's own; (B, T) to (B, T)."""
        own = torch.arange(text.shape[1], device=text.device) + self.padding_start
        return torch.where(text == PADDING, own, text)

    def embed_text(self, text: Tensor) -> Tensor:
        """<bos> and the first text tokens, padding numbered: (B, n) to (B, n + 1, D)."""
        text = F.pad(text, (1, 0), value=BOS)
        position = None if self.options.rotary_emb else self.text_position.weight[: text.shape[1]]
        if self.options.share_input_output_emb:
            return embed(self.to_logits.weight[: self.text_vocab_size], text, position)
        return self.text_embedding(text, position)

    def embed_image(self, image_tokens: Tensor) -> Tensor:
        """The first image tokens: (B, n) to (B, n, D)."""
        position = None if self.options.rotary_emb else self.image_position(image_tokens.shape[1])
        if self.options.share_input_output_emb:
            return embed(self.to_logits.weight[self.text_vocab_size :], image_tokens, position)
        return self.image_embedding(image_tokens, position)

    def text_logits(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, n, V text)."""
        return self._segment_logits(x, slice(0, self.text_vocab_size))

    def image_logits(self, x: Tensor) -> Tensor:
        """(B, n, D) to (B, n, V image)."""
        return self._segment_logits(x, slice(self.text_vocab_size, None))

    def _run_all(self, text: Tensor, image_tokens: Tensor) -> Tensor:
        """What the layers give for a whole sequence: (B, S, D)."""
        return self.run(torch.cat((self.embed_text(text), self.embed_image(image_tokens[:, :-1])), dim=1))

    def _segments(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return self.text_logits(x[:, : self.text_seq_len]), self.image_logits(x[:, self.text_seq_len :])

    def _losses(self, x: Tensor, text: Tensor, image_tokens: Tensor) -> Tuple[Tensor, Tensor]:
        if self.loss_kernel is not None:
            return self.loss_kernel(self._normalize(x), self.to_logits, self.text_vocab_size, text, image_tokens)
        text_logits, image_logits = self._segments(x)
        text_loss = F.cross_entropy(text_logits.flatten(0, 1), text.flatten())
        return text_loss, F.cross_entropy(image_logits.flatten(0, 1), image_tokens.flatten())

    def _segment_logits(self, x: Tensor, segment: slice) -> Tensor:
        return self.to_logits(self._normalize(x), segment)

    def _normalize(self, x: Tensor) -> Tensor:
        if self.options.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        return self.norm(x)


def drop_texts(text: Tensor, share: float) -> Tensor:
    """Leave out about this share of the texts (B, T) altogether, so that the model learns pictures without text, too.

    Classifier-free guidance (Ho and Salimans 2021) needs it.
    """
    dropped = torch.rand(len(text), 1, device=text.device) < share
    return text.masked_fill(dropped, PADDING)
