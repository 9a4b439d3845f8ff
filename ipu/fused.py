"""The fused operators of `custom_ops` in the places that a model has for them."""

from __future__ import annotations

import dataclasses
from typing import Optional, Sequence

from torch import Tensor

from custom_ops import fused_attention, fused_embedding, open_operators
from ipu import PopTorch
from models.attention import AttentionKernel
from models.dalle import Dalle, EmbeddingKernel
from models.patterns import Pattern
from options import OptionError

LARGEST_CHUNKS = 4  # unless told otherwise: of a float32 softmax four parts need less than all of a half precision one


@dataclasses.dataclass(frozen=True)
class FusedOptions:
    """What of a model is computed by operators of our own; shares are of an IPU's memory, for plans of products.

    Args:
        attention_chunks: parts of the queries that attention computes one after the other; None: it is not fused.
        embedding: whether the embeddings of tokens are fused.
        layer_memory: the share of each layer's IPU.
        embedding_memory: the share of the embeddings' IPU.
        partials_type: "float" or "half", what products are summed in.
    """

    attention_chunks: Optional[int] = None
    embedding: bool = False
    layer_memory: Sequence[float] = ()
    embedding_memory: float = 0.6
    partials_type: str = "float"


def chunks_of(positions: int, asked: Optional[int] = None) -> int:
    """The parts that fused attention computes one after the other.

    Args:
        positions: of a sequence.
        asked: `attention_chunks`; None: the largest number up to `LARGEST_CHUNKS` that divides the positions.

    Raises:
        OptionError: the number asked for does not.
    """
    divisors = [number for number in range(1, positions + 1) if positions % number == 0]
    if asked is None:
        return max(number for number in divisors if number <= LARGEST_CHUNKS)
    if asked not in divisors:
        raise OptionError(
            f"attention_chunks={asked} does not divide the {positions} positions of a sequence; take one of "
            f"{', '.join(map(str, divisors))}"
        )
    return asked


def fuse(dalle: Dalle, options: FusedOptions, splits: int, poptorch: PopTorch) -> None:
    """Let a model compute with the operators.

    Args:
        dalle: is changed; its parameters stay as they are.
        options: which ones.
        splits: parts of the vocabularies whose gradients are computed one after the other; divides both.
        poptorch: runs the model.

    Raises:
        OptionError: the embeddings are tied to the output projection, or the operators have not been compiled.
    """
    if options.attention_chunks is None and not options.embedding:
        return
    if options.embedding and dalle.options.share_input_output_emb:
        raise OptionError(
            "fused_embedding=true and share_input_output_emb=true: of tied embeddings PopART adds the lookup's "
            "gradient to the projection's by itself, and to no operator of ours; leave one of the two out"
        )
    operators = open_operators(poptorch)
    if options.attention_chunks is not None:
        for layer, share in zip(dalle.layers, options.layer_memory):
            layer.attention.kernel = _attention(operators, options.attention_chunks, share, options.partials_type)
    if options.embedding:
        for embedding in (dalle.text_embedding, dalle.image_embedding):
            embedding.kernel = _embedding(operators, splits, options.embedding_memory)


# Functions, which are copied with their model as themselves: a module, such as PopTorch, cannot be copied.


def _attention(operators: Optional[PopTorch], chunks: int, share: float, partials_type: str) -> AttentionKernel:
    def kernel(qkv: Tensor, pattern: Pattern) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return fused_attention(q, k, v, pattern, operators, chunks, share, partials_type).transpose(1, 2)

    return kernel


def _embedding(operators: Optional[PopTorch], splits: int, share: float) -> EmbeddingKernel:
    def kernel(table: Tensor, ids: Tensor, position: Optional[Tensor] = None) -> Tensor:
        return fused_embedding(table, ids, position, poptorch=operators, splits=splits, available_memory=share)

    return kernel
