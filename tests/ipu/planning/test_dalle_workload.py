"""The workload of DALL-E against what its architecture says."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch

from ipu.planning.dalle_workload import RELEASED_VQGAN, tokenizer_layer, workload_of_dalle
from ipu.planning.workload import EMBEDDING, HEAD, LAYER, TOKENIZER, FusedAttention, Layer, Product
from models.dalle import Dalle
from models.options import TransformerOptions
from models.vae import DiscreteVAE
from models.vqgan import VQGan

SMALL = TransformerOptions(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, dim_head=16, text_seq_len=6)
FULL = TransformerOptions(attn_types=("full",))
VAE = {"kind": "DiscreteVAE", "arguments": {"image_size": 64, "num_layers": 3, "hidden_dim": 32, "num_tokens": 48}}


def test_the_forward_pass_of_l16_has_the_operations_of_its_formula() -> None:
    layers = [layer for layer in workload_of_dalle(FULL, 8192, 1024, (16, 16), 2).layers if layer.role == LAYER]
    positions, width, inner = 2 * 336, 512, 16 * 64
    projections = 2 * positions * (width * 3 * inner + inner * width + width * 8 * width + 4 * width * width)
    attention = 2 * (2 * 16) * (2 * 336 * 336 * 64)
    assert [layer.flops for layer in layers] == [projections + attention] * 16


def test_the_logits_meet_only_their_own_part_of_the_vocabulary() -> None:
    head = workload_of_dalle(FULL, 8192, 1024, (16, 16), 2).layers[-1]
    assert head.role == HEAD
    assert head.flops == 2 * 2 * 512 * (80 * (8192 + 80) + 256 * 1024)


def test_parameters_are_those_of_the_model() -> None:
    model = Dalle(SMALL, 50, 20, (4, 4))
    workload = workload_of_dalle(SMALL, 50, 20, (4, 4), 2)
    assert sum(layer.parameters for layer in workload.layers) == sum(p.numel() for p in model.parameters())


def test_the_encoder_of_the_released_vqgan_has_its_published_operations() -> None:
    layer, numbers = tokenizer_layer(RELEASED_VQGAN, 2)
    assert layer.flops / 2 == pytest.approx(138e9, rel=0.01)
    assert numbers == 3 * 256 * 256
    assert not layer.learns


def test_only_the_encoder_of_an_image_tokenizer_is_held() -> None:
    layer, _ = tokenizer_layer(RELEASED_VQGAN, 1)
    with torch.device("meta"):
        model = VQGan()
    parts = (model.encoder, model.quant_conv, model.quantize)
    assert layer.parameters == sum(p.numel() for part in parts for p in part.parameters())


def test_the_discrete_vae_is_counted_convolution_by_convolution() -> None:
    layer, _ = tokenizer_layer(VAE, 2)
    halvings = [(3, 32, 32), (32, 32, 16), (32, 32, 8)]
    expected = sum(2 * 2 * side * side * before * after * 16 for before, after, side in halvings)
    assert layer.flops == expected + 2 * 2 * 8 * 8 * 32 * 48
    DiscreteVAE(**VAE["arguments"])  # such a one exists


def test_tokens_encoded_beforehand_need_no_encoder_and_hardly_any_input() -> None:
    pictures = workload_of_dalle(SMALL, 50, 48, (8, 8), 2, VAE)
    tokens = workload_of_dalle(SMALL, 50, 48, (8, 8), 2)
    assert [layer.role for layer in pictures.layers] == [TOKENIZER, EMBEDDING, LAYER, LAYER, LAYER, HEAD]
    assert pictures.layers[1:] == tokens.layers
    assert pictures.sample_bytes == 3 * 64 * 64 + 4 * 6
    assert tokens.sample_bytes == 4 * (64 + 6)


def test_axial_attention_counts_fewer_operations_than_full() -> None:
    def flops(kind: str) -> int:
        options = TransformerOptions(num_hidden_layers=1, attn_types=(kind,))
        return workload_of_dalle(options, 8192, 1024, (16, 16), 1).flops

    assert flops("axial_row") == flops("axial_col") < flops("full") == flops("conv_like") == flops("sparse")


def fused(chunks: int, **changes: Any) -> Layer:
    options = TransformerOptions(attn_types=("axial_row",), **changes)
    return workload_of_dalle(options, 8192, 1024, (16, 16), 2, attention_chunks=chunks).layers[1]


def test_fused_attention_computes_all_scores_and_keeps_none() -> None:
    stock = workload_of_dalle(FULL, 8192, 1024, (16, 16), 2).layers[1]
    assert fused(4).flops == fused(1).flops == stock.flops
    heads, positions, width = 2 * 16, 336, 64
    out = heads * positions * width
    # the stock form keeps scores and weights, and what their product gives
    assert stock.activations - fused(4).activations == 2 * heads * positions**2 - 2 * heads * positions
    assert stock.largest == heads * positions**2 and fused(4).largest == 2 * positions * 8 * 512 > out


def test_fused_attention_holds_two_numbers_in_single_precision_for_each_score_of_a_chunk() -> None:
    assert [fused(chunks).scratch for chunks in (1, 4, 336)] == [8 * 32 * 336 * rows for rows in (336, 84, 1)]


def test_the_backward_pass_of_fused_attention_has_one_product_more_than_two_for_each() -> None:
    (operation,) = (o for o in fused(4).operations if isinstance(o, FusedAttention))
    forward, backward = (
        [p.operations for p in parts if isinstance(p, Product)] for parts in (operation.forward, operation.backward)
    )
    assert len(forward) == 4 * 2 and len(backward) == 4 * 5
    assert sum(backward) == 2.5 * sum(forward)


@pytest.mark.parametrize(
    "changes",
    [
        {"reversible": True},
        {"rotary_emb": True, "shift_tokens": True},
        {"share_input_output_emb": True},
        {"shared_attn_ids": ("a", "b"), "shared_ff_ids": ("a",)},
        {"stable": True, "sandwich_norm": True},
    ],
)
def test_every_option_of_the_transformer_can_be_planned(changes: dict) -> None:
    options = TransformerOptions(**{**SMALL.__dict__, **changes})
    workload = workload_of_dalle(options, 50, 20, (4, 4), 2)
    model = Dalle(options, 50, 20, (4, 4))
    chunked = workload_of_dalle(options, 50, 20, (4, 4), 2, attention_chunks=2)
    assert [layer.parameters for layer in chunked.layers] == [layer.parameters for layer in workload.layers]
    assert sum(layer.parameters for layer in workload.layers) == sum(p.numel() for p in model.parameters())
    assert all(layer.flops for layer in workload.layers if layer.role == LAYER)


def test_a_sparse_model_still_works_after_it_was_planned() -> None:
    options = TransformerOptions(**{**SMALL.__dict__, "attn_types": ("sparse",), "sparse_seed": 977})
    workload_of_dalle(options, 50, 20, (4, 4), 1)
    loss, _, _ = Dalle(options, 50, 20, (4, 4))(torch.ones(1, 6, dtype=torch.long), torch.ones(1, 16, dtype=torch.long))
    assert torch.isfinite(loss)


def widths(layer: Layer) -> List[int]:
    return [operation.columns for operation in layer.operations if isinstance(operation, Product)]


def test_serialised_logits_are_the_same_operations_in_smaller_products() -> None:
    whole = workload_of_dalle(FULL, 8192, 1024, (16, 16), 2).layers[-1]
    parts = workload_of_dalle(FULL, 8192, 1024, (16, 16), 2, embedding_serialization_factor=4).layers[-1]
    assert parts.flops == whole.flops
    assert max(widths(parts)) * 4 == max(widths(whole))
    assert len(parts.operations) == len(whole.operations) + 6
