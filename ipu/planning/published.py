"""Published training throughput on Bow Pods, with the public configurations that were run.

Rows: the performance page of the makers of the IPU, SDK 3.0 to 3.3 (graphcore.ai/performance-results).
Configurations: graphcore/examples, `nlp/bert/pytorch/configs_pretraining.yml` and `configs_squad.yml`,
`vision/vit/pytorch/configs.yml` and `benchmarks.yml`, `multimodal/mini_dalle/pytorch/configs.yml` and `benchmarks.yml`.

Legend: B micro batch, S positions, D width, H heads, F inner width of the feed-forward layer, M masked positions.
"""

from __future__ import annotations

import dataclasses
from typing import Any, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ipu.placement import PlanOptions
from ipu.planning.counting import count
from ipu.planning.dalle_workload import RELEASED_VQGAN, workload_of_dalle
from ipu.planning.workload import EMBEDDING, HEAD, LAYER, Layer, Workload
from models.options import TransformerOptions

BERT_VOCABULARY = 30522


@dataclasses.dataclass(frozen=True)
class Row:
    """One published measurement.

    Attributes:
        name: model, task and machine.
        workload: what one micro batch computes.
        options: the public configuration, with the batch of the row.
        ipus: of the Pod.
        published: items per second.
        items: of a sample: sequences of a pack.
    """

    name: str
    workload: Workload
    options: PlanOptions
    ipus: int
    published: float
    items: float = 1.0


def empty(*shape: int) -> Tensor:
    """A tensor of which only the shape is there."""
    return torch.empty(shape, device="meta")


def linear(x: Tensor, outputs: int) -> Tensor:
    """A projection of the last axis."""
    return F.linear(x, empty(outputs, x.shape[-1]), empty(outputs))


def norm(x: Tensor) -> Tensor:
    """LayerNorm over the last axis."""
    return F.layer_norm(x, x.shape[-1:], empty(x.shape[-1]), empty(x.shape[-1]))


def drop(x: Tensor) -> Tensor:
    """Dropout: a random mask, and a product with it."""
    return x * torch.bernoulli(x)


def attention(x: Tensor, heads: int, fused: bool, masked: bool, dropout: bool) -> Tensor:
    """Attention over (B, S, D), without the residual."""
    batch, length, width = x.shape
    parts = linear(x, 3 * width).split(width, -1) if fused else [linear(x, width) for _ in range(3)]
    q, k, v = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in parts)
    scores = (q @ k.transpose(-1, -2)) * 0.125  # (B, H, S, S)
    scores = scores + empty(batch, 1, length, length) if masked else scores
    weights = scores.softmax(-1)
    out = (drop(weights) if dropout else weights) @ v
    return linear(out.transpose(1, 2).reshape(batch, length, width), width)


def encoder_layer(x: Tensor, heads: int, fused: bool, masked: bool, dropouts: Tuple[bool, bool]) -> Tensor:
    """One layer of BERT (fused, masked) or of ViT; `dropouts`: of the attention's weights, inside the feed-forward."""
    x = norm(x + drop(attention(x, heads, fused, masked, dropouts[0])))
    inner = F.gelu(linear(x, 4 * x.shape[-1]))
    return norm(x + drop(linear(drop(inner) if dropouts[1] else inner, x.shape[-1])))


def layer_parameters(width: int) -> int:
    """Numbers of one such layer."""
    return 12 * width**2 + 13 * width


def bert(batch: int, length: int, width: int, layers: int, heads: int, masked: int, tied: bool = True) -> Workload:
    """BERT: pre-training predicts `masked` positions; with 0 of them, SQuAD's two logits a position."""
    x, tokens = empty(batch, length, width), torch.zeros(batch, length, dtype=torch.long, device="meta")

    def embed() -> None:
        drop(norm(F.embedding(tokens, empty(BERT_VOCABULARY, width)) + empty(length, width) + empty(length, width)))

    def head() -> None:
        if not masked:
            linear(x, 2).log_softmax(1)
            return
        chosen = empty(batch, masked, length) @ x  # the masked positions, by a product with one-hot vectors
        linear(norm(F.gelu(linear(chosen, width))), BERT_VOCABULARY).log_softmax(-1)
        linear(linear(x[:, 0], width).tanh(), 2)

    middle = count(encoder_layer, x, heads, True, True, (False, False))
    vocabulary = BERT_VOCABULARY * width
    stack: List[Layer] = [
        Layer(EMBEDDING, count(embed), vocabulary + 514 * width, 0),
        *[Layer(LAYER, middle, layer_parameters(width), x.numel()) for _ in range(layers)],
        Layer(HEAD, count(head), 2 * width**2 + BERT_VOCABULARY, x.numel(), repeats=False),
    ]
    return Workload(tuple(stack), batch, 4 * 4 * length)


def vit(batch: int, pretraining: bool) -> Workload:
    """ViT-Base/16 at 224 pixels; bytes come from the host in pre-training, half precision numbers in fine-tuning."""
    pixels, width = empty(batch, 3, 224, 224), 768
    x = empty(batch, 197, width)

    def embed() -> None:
        patches = F.conv2d(pixels / 255, empty(width, 3, 16, 16), empty(width), stride=16)
        drop(torch.cat((empty(batch, 1, width), patches.flatten(2).transpose(1, 2)), dim=1) + empty(197, width))

    def head() -> None:
        first = norm(x)[:, 0]
        linear(linear(first, width).tanh() if pretraining else first, 1000).log_softmax(-1)

    middle = count(encoder_layer, x, 12, False, False, (pretraining, True))
    stack = [
        Layer(EMBEDDING, count(embed), 768 * width + 198 * width, 0),
        *[Layer(LAYER, middle, layer_parameters(width), x.numel()) for _ in range(12)],
        Layer(HEAD, count(head), (width + 1) * 1000, x.numel(), repeats=False),
    ]
    return Workload(tuple(stack), batch, pixels[0].numel() * (1 if pretraining else 2))


def _options(batch: int, accumulation: int, replicas: int, layers: Tuple[int, ...], shares: Tuple[float, ...],
             **others: Any) -> PlanOptions:  # fmt: skip
    return PlanOptions(
        batch_size=batch,
        gradient_accumulation=accumulation,
        replication_factor=replicas,
        ipus_per_replica=len(layers),
        layers_per_ipu=layers,
        matmul_proportion=shares,
        enable_half_partials=True,
        enable_rts=True,
        fp16=True,
        **others,
    )


def rows() -> List[Row]:
    """The rows of BERT and ViT, in the order of the published table."""
    large, pre = (3, 7, 7, 7), {"cls_ipu_id": 0, "optimizer_state_offchip": True}
    return [
        Row("BERT-Base 128, Pod16", bert(32, 128, 768, 12, 12, 20),
            _options(32, 512, 4, (0, 4, 4, 4), (0.25,), **pre), 16, 15911),
        Row("BERT-Large 128 packed, Pod16", bert(8, 128, 1024, 24, 16, 23),
            _options(8, 1497, 4, large, (0.15, 0.25, 0.25, 0.25), **pre), 16, 5600, 1.17),
        Row("BERT-Large 128 packed, Pod64", bert(8, 128, 1024, 24, 16, 23),
            _options(8, 374, 16, large, (0.14, 0.19, 0.19, 0.19), **pre), 64, 18442, 1.17),
        Row("BERT-Large 512 packed, Pod16", bert(2, 512, 1024, 24, 16, 79),
            _options(2, 512, 4, large, (0.1, 0.15, 0.15, 0.15), **pre), 16, 1973, 2.0),
        Row("BERT-Large 512 packed, Pod64", bert(2, 512, 1024, 24, 16, 79),
            _options(2, 128, 16, large, (0.13, 0.19, 0.19, 0.19), **pre), 64, 6543, 2.0),
        Row("BERT-Large SQuAD 384, Pod16", bert(4, 384, 1024, 24, 16, 0),
            _options(4, 32, 2, (2, 3, 3, 3, 3, 3, 3, 4), (0.08, 0.28, 0.32, 0.32, 0.36, 0.38, 0.4, 0.32),
                     device_iterations=2, enable_half_first_order_momentum=True), 16, 1009),
        Row("ViT-Base pre-training, Pod16", vit(8, True),
            _options(8, 2048, 4, (3, 3, 3, 3), (0.3,)), 16, 7615),
        Row("ViT-Base pre-training, Pod64", vit(8, True),
            _options(8, 512, 16, (3, 3, 3, 3), (0.3,), instances=8), 64, 27868),
        Row("ViT-Base fine-tuning, Pod16", vit(17, False),
            _options(17, 30, 4, (3, 3, 3, 3), (0.3,), device_iterations=8), 16, 7319),
    ]  # fmt: skip


def held_out_rows() -> List[Row]:
    """The rows of mini DALL-E, which no constant is fitted on: `L16_POD16` with the published batch."""
    row, column = "axial_row", "axial_col"
    kinds = (row, row, column, row) * 2 + (row, row, column, "full") + (row, row, column, "full")
    workload = workload_of_dalle(TransformerOptions(attn_types=kinds), 8192, 1024, (16, 16), 2, RELEASED_VQGAN, 1, 4)
    options = _options(2, 768, 4, (0, 6, 6, 4), (0.6,), embedding_serialization_factor=4,
                       enable_half_first_order_momentum=True)  # fmt: skip
    return [Row("mini DALL-E L16, Pod16", workload, options, 16, 1916)]
