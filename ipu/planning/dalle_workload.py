"""What training DALL-E computes: the image tokenizer's encoder, the embeddings, the layers, the logits.

Legend: B micro batch, T text tokens, I image tokens, S = T + I positions, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ipu.planning.counting import count
from ipu.planning.workload import (
    EMBEDDING,
    HEAD,
    LAYER,
    TOKENIZER,
    FusedAttention,
    Layer,
    Operation,
    Product,
    Workload,
)
from models.build import build_image_tokenizer
from models.dalle import Dalle
from models.image_tokenizer import ImageTokenizer
from models.options import TransformerOptions
from models.patterns import Pattern

TOKEN_BYTES = 4  # IPUs know no wider integers

RELEASED_VQGAN: Dict[str, Any] = {"kind": "VQGan", "arguments": {}}
"""The VQGAN that halves the side four times and has 1,024 codes."""


def workload_of_dalle(
    transformer: TransformerOptions,
    text_vocab_size: int,
    image_vocab_size: int,
    image_grid: Tuple[int, int],
    batch_size: int,
    image_tokenizer: Optional[Dict[str, Any]] = None,
    number_bytes: int = 1,
    embedding_serialization_factor: int = 1,
    attention_chunks: Optional[int] = None,
) -> Workload:
    """The workload of one micro batch.

    Args:
        transformer: its options.
        text_vocab_size, image_vocab_size, image_grid: as `Dalle` takes them.
        batch_size: samples of the micro batch, B.
        image_tokenizer: what `describe_image_tokenizer` says of it; None: pictures come as tokens.
        number_bytes: of a channel of a pixel on its way from the host: 1 for `byteio`, else 2 or 4.
        embedding_serialization_factor: parts of the product that gives the logits.
        attention_chunks: parts of the queries of fused attention; None: attention is not fused.
    """
    dalle = _without_numbers(transformer, text_vocab_size, image_vocab_size, image_grid)
    text, tokens = _integers(batch_size, transformer.text_seq_len), _integers(batch_size, dalle.layout.image_len)
    sample_bytes = TOKEN_BYTES * transformer.text_seq_len
    layers: List[Layer] = []
    if image_tokenizer is None:
        sample_bytes += TOKEN_BYTES * dalle.layout.image_len
    else:
        layer, numbers = tokenizer_layer(image_tokenizer, batch_size)
        layers.append(layer)
        sample_bytes += number_bytes * numbers
    layers += _dalle_layers(dalle, text, tokens, embedding_serialization_factor, attention_chunks)
    return Workload(tuple(layers), batch_size, sample_bytes)


def tokenizer_layer(description: Dict[str, Any], batch_size: int) -> Tuple[Layer, int]:
    """The encoder of an image tokenizer as a layer that does not learn, and the numbers of a picture."""
    with torch.device("meta"):
        tokenizer = build_image_tokenizer(description)
        pictures = torch.empty(batch_size, tokenizer.channels, tokenizer.image_size, tokenizer.image_size)
    operations = count(tokenizer.eval().encode, pictures)
    layer = Layer(TOKENIZER, operations, _encoder_parameters(tokenizer), 0, learns=False, repeats=False)
    return layer, pictures[0].numel()


def _encoder_parameters(tokenizer: ImageTokenizer) -> int:
    """All but the decoder's: only the encoder goes onto the IPU."""
    decoding = ("decoder", "post_quant_conv")
    return sum(_size(module) for name, module in tokenizer.named_children() if name not in decoding)


class _WeightsWithoutNumbers(TorchFunctionMode):
    """Weights, which modules make by `torch.empty`, are on the meta device; tables that are computed are computed.

    Under the whole of torch's meta device the rotary embedding's table fails with torch 2.0.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _without_numbers(
    transformer: TransformerOptions, text_vocab_size: int, image_vocab_size: int, image_grid: Tuple[int, int]
) -> Dalle:
    # `sparse` computes all scores and masks them, as `full` does
    kinds = tuple("full" if kind == "sparse" else kind for kind in transformer.attn_types)
    plain = dataclasses.replace(transformer, attn_types=kinds)
    with _WeightsWithoutNumbers():
        dalle = Dalle(plain, text_vocab_size, image_vocab_size, image_grid)
    return dalle.to("meta")


def _dalle_layers(dalle: Dalle, text: Tensor, tokens: Tensor, parts: int, chunks: Optional[int]) -> List[Layer]:
    options, positions = dalle.options, dalle.layout.sequence_len
    x = torch.empty(len(text), positions, options.hidden_size, device="meta")
    streams = torch.stack((x, x)) if options.reversible else x
    fused: Tuple[Operation, ...] = ()
    if chunks is not None:
        fused = (FusedAttention(len(text) * options.num_attention_heads, positions, options.dim_head, chunks),)
        for layer in dalle.layers:
            layer.attention.kernel = _shape_of_attention

    def embed() -> None:
        torch.cat((dalle.embed_text(text), dalle.embed_image(tokens[:, :-1])), dim=1)

    def head() -> None:
        texts, images = (
            dalle.text_logits(x[:, : options.text_seq_len]),
            dalle.image_logits(x[:, options.text_seq_len :]),
        )
        F.cross_entropy(texts.flatten(0, 1), text.flatten())
        F.cross_entropy(images.flatten(0, 1), tokens.flatten())

    head_parameters = _size(dalle.norm) + _size(dalle.to_logits)
    layer_parameters = _size(dalle.layers)
    embedded = _size(dalle) - head_parameters - layer_parameters
    layers = [Layer(EMBEDDING, count(embed), embedded, 0)]
    layers += [Layer(LAYER, count(layer, streams) + fused, _size(layer), streams.numel()) for layer in dalle.layers]
    return [*layers, Layer(HEAD, _in_parts(count(head), parts), head_parameters, x.numel(), repeats=False)]


def _shape_of_attention(qkv: Tensor, pattern: Pattern) -> Tensor:
    """In place of an operator that is counted as a whole."""
    return qkv[:, :, 0]


def _in_parts(operations: Tuple[Operation, ...], parts: int) -> Tuple[Operation, ...]:
    split: List[Operation] = []
    for operation in operations:
        if isinstance(operation, Product):
            split += [dataclasses.replace(operation, columns=-(-operation.columns // parts))] * parts
        else:
            split.append(operation)
    return tuple(split)


def _integers(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.long, device="meta")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
