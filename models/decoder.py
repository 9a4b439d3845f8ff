"""The transformer at one position at a time, with what it keeps of the earlier ones.

The same mathematics as `transformer.py`, which runs over the first positions and hands its keys and values over; here
it is written for the cost of one position: weights laid out as the machine reads them fastest, no position computed
twice, the part of the vocabulary alone that a token is drawn from.

Legend: R rows of a batch, T text positions with <bos>, I image tokens, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cache import KeyWindow, LayerCache, Neighbours, Place, WindowTables
from models.dalle import Dalle
from models.patterns import Pattern
from models.precision import autocast_dtype
from models.products import added_product, gated_product, product
from models.transformer import Layer, LayerScale

Prepare = Callable[..., Callable[..., Tensor]]
"""Prepares one of the products of `models.products` with a weight and a bias, for a decoder's type and rows."""


class Decoder:
    """A transformer that is given a sequence's beginning, then token after token.

    It computes in the type that autocast has when it is made, and holds for the weights of that moment.

    Args:
        dalle: in evaluation mode.
        rows: R.
    """

    def __init__(self, dalle: Dalle, rows: int) -> None:
        self.dalle, self.layout, self.rows = dalle, dalle.layout, rows
        weight = dalle.to_logits.weight
        self.device, self.dtype = weight.device, autocast_dtype(weight.device.type) or weight.dtype
        # what several layers share is prepared once
        self._prepare = functools.lru_cache(maxsize=None)(functools.partial(_prepare, self.dtype, rows))
        tables = functools.lru_cache(maxsize=None)(functools.partial(_make_tables, self.device, self.dtype))
        self._layers = [_LayerStep(layer, tables, rows, self._prepare) for layer in dalle.layers]
        self._positions = torch.arange(self.layout.sequence_len, device=self.device)
        self._image_table, self._image_position = _image_embedding(dalle)

    def begin(self, text: Tensor, image_tokens: Tensor) -> Tensor:
        """Take the first text tokens (R, n), padding numbered, and image tokens (R, m); m above 0 wants the whole text.

        Returns:
            What the last of these positions gives, (R, D), for `text_logits` or `image_logits`.
        """
        start = self.dalle.embed_text(text)  # (R, n + 1, D)
        if image_tokens.shape[1]:
            start = torch.cat((start, self.dalle.embed_image(image_tokens)), dim=1)
        return self.dalle.run(start, [layer.cache for layer in self._layers])[:, -1]

    def place(self, position: int) -> Place:
        """A position of the sequence."""
        return Place(self._positions[position : position + 1], position)

    def take_text(self, tokens: Tensor, place: Place) -> Tensor:
        """Take the text tokens (R,) that lie at `place`, and give what `text_logits` needs: (R, D)."""
        dalle = self.dalle
        table = dalle.to_logits if dalle.options.share_input_output_emb else dalle.text_embedding
        x = F.embedding(tokens, table.weight)
        if not dalle.options.rotary_emb:
            x = x + dalle.text_position.weight.index_select(0, place.tensor)
        return self._run(x, place, is_pixel=False)

    def take_image(self, tokens: Tensor, place: Place) -> Tensor:
        """Take the image tokens (R,) that lie at `place`, and give what `image_logits` needs: (R, D)."""
        x = F.embedding(tokens, self._image_table)
        if self._image_position is not None:
            x = x + self._image_position.index_select(0, place.tensor - self.layout.text_len)
        return self._run(x, place, is_pixel=True)

    def text_logits(self, x: Tensor) -> Tensor:
        """(R, D) to (R, V text)."""
        return self._to_text(self._normalised(x))

    def image_logits(self, x: Tensor) -> Tensor:
        """(R, D) to (R, V image)."""
        return self._to_image(self._normalised(x))

    def _run(self, x: Tensor, place: Place, is_pixel: bool) -> Tensor:
        if len(x) != self.rows:
            raise ValueError(
                f"{len(x)} rows for a decoder of {self.rows}; make one of as many rows as there are tokens"
            )
        if not self.dalle.options.reversible:
            for layer in self._layers:
                x = layer.add_attention(x, x, place, is_pixel)
                x = layer.add_feed_forward(x, x, place, is_pixel)
            return x
        first = second = x
        for layer in self._layers:
            first = layer.add_attention(first, second, place, is_pixel)
            second = layer.add_feed_forward(second, first, place, is_pixel)
        return (first + second) / 2

    def _normalised(self, x: Tensor) -> Tensor:
        if self.dalle.options.stable:
            x = x / x.amax(dim=-1, keepdim=True)
        return self.dalle.norm(x)

    @functools.cached_property
    def _to_text(self) -> Callable[..., Tensor]:
        segment, to_logits = slice(0, self.dalle.text_vocab_size), self.dalle.to_logits
        return self._prepare(product, to_logits.weight[segment], to_logits.bias[segment])

    @functools.cached_property
    def _to_image(self) -> Callable[..., Tensor]:
        segment, to_logits = slice(self.dalle.text_vocab_size, None), self.dalle.to_logits
        return self._prepare(product, to_logits.weight[segment], to_logits.bias[segment])


class _LayerStep:
    """One layer at one position; see `models.transformer.Layer`."""

    def __init__(
        self, layer: nn.Module, make_tables: Callable[[Pattern], WindowTables], rows: int, prepare: Prepare
    ) -> None:
        assert isinstance(layer, Layer) and layer.attention.pattern is not None, "the layers of a Dalle"
        attention, feed_forward, tables = layer.attention, layer.feed_forward, make_tables(layer.attention.pattern)
        self.layer, self.heads = layer, attention.heads
        self.to_qkv = prepare(product, attention.to_qkv.weight, None)
        self.add_out = _make_sum(prepare, attention.to_out, layer.attention_out_norm, layer.attention_scale)
        self.to_inner = prepare(gated_product, feed_forward.to_inner.weight, feed_forward.to_inner.bias)
        self.add_inner = _make_sum(prepare, feed_forward.to_out, layer.feed_forward_out_norm, layer.feed_forward_scale)
        width = attention.to_qkv.out_features // (3 * attention.heads)
        angles = (attention.cosines, attention.sines) if attention.rotary_emb else None
        keys = KeyWindow(tables, rows, attention.heads, width, angles)
        self.cache = LayerCache(keys)
        if layer.shift is not None:
            make = functools.partial(layer.shift.new_neighbours, rows, tables.device, layer.attention_scale.scale.dtype)
            self.cache = LayerCache(keys, make(), make())

    def add_attention(self, x: Tensor, source: Tensor, place: Place, is_pixel: bool) -> Tensor:
        """x and what attention makes of `source`, (R, D) each."""
        source = self._shifted(self.layer.attention_norm(source), self.cache.attention_inputs, place, is_pixel)
        qkv = self.to_qkv(source).unflatten(1, (3, self.heads, -1))  # (R, 3, H, K)
        return self.add_out(x, self.cache.keys.attend(qkv, place).flatten(1))

    def add_feed_forward(self, x: Tensor, source: Tensor, place: Place, is_pixel: bool) -> Tensor:
        """x and what the feed-forward layer makes of `source`, (R, D) each."""
        source = self._shifted(self.layer.feed_forward_norm(source), self.cache.feed_forward_inputs, place, is_pixel)
        return self.add_inner(x, self.to_inner(source))

    def _shifted(self, x: Tensor, earlier: Optional[Neighbours], place: Place, is_pixel: bool) -> Tensor:
        if self.layer.shift is None or earlier is None:
            return x
        return (self.layer.shift.shift_pixel if is_pixel else self.layer.shift.shift_text)(x, earlier, place)


def _make_sum(
    prepare: Prepare, linear: nn.Linear, norm: nn.Module, scale: LayerScale
) -> Callable[[Tensor, Tensor], Tensor]:
    """What adds to x (R, D) the product of `linear` with what a branch ends in, normalised and scaled."""
    if isinstance(norm, nn.Identity):
        add = prepare(added_product, linear.weight, linear.bias)
        return lambda x, inner: add(scale.scale, x, inner)
    multiply = prepare(product, linear.weight, linear.bias)
    return lambda x, inner: torch.addcmul(x, scale.scale, norm(multiply(inner).to(x.dtype)))


def _prepare(
    dtype: torch.dtype, rows: int, make: Callable[..., Any], weight: Tensor, bias: Optional[Tensor]
) -> Callable[..., Tensor]:
    prepared: Callable[..., Tensor] = make(weight, bias, dtype, rows)
    return prepared


def _make_tables(device: torch.device, dtype: torch.dtype, pattern: Pattern) -> WindowTables:
    return WindowTables(pattern, device, dtype)


def _image_embedding(dalle: Dalle) -> Tuple[Tensor, Optional[Tensor]]:
    """The vectors of all image tokens, and those of all their places (I, D)."""
    if dalle.options.share_input_output_emb:
        table = dalle.to_logits.weight[dalle.text_vocab_size :]
    else:
        table = dalle.image_embedding.weight
    return table, None if dalle.options.rotary_emb else dalle.image_position(dalle.layout.image_len)
