"""The DALL-E transformer: its logits, its loss, its parameters."""

from __future__ import annotations

import copy
from typing import Any, Callable, Dict, Tuple

import pytest
import torch
from torch import Tensor

from models.attention import Attention, scale_queries
from models.dalle import Dalle, drop_texts
from models.options import ATTENTION_TYPES, TransformerOptions
from models.transformer import Layer
from options import OptionError
from tests.models.conftest import VARIANTS

BATCH = 2
LAYER = {
    "attention_norm": ("weight", "bias"),
    "attention.to_qkv": ("weight",),
    "attention.to_out": ("weight", "bias"),
    "attention_scale": ("scale",),
    "feed_forward_norm": ("weight", "bias"),
    "feed_forward.to_inner": ("weight", "bias"),
    "feed_forward.to_out": ("weight", "bias"),
    "feed_forward_scale": ("scale",),
}
SANDWICH = {"attention_out_norm": ("weight", "bias"), "feed_forward_out_norm": ("weight", "bias")}
OUTSIDE = {
    "text_embedding": ("weight",),
    "text_position": ("weight",),
    "image_embedding": ("weight",),
    "image_position": ("row", "column"),
    "norm": ("weight", "bias"),
    "to_logits": ("weight", "bias"),
}


def sample(dalle: Dalle, batch: int = BATCH) -> Tuple[Tensor, Tensor]:
    """Captions of random ids, with padding at the end of each but the first, and random codes."""
    text = torch.randint(1, dalle.padding_start, (batch, dalle.text_seq_len))
    text[1:, -2:] = 0
    return text, torch.randint(dalle.image_vocab_size, (batch, dalle.layout.image_len))


def masked_log_probabilities(dalle: Dalle, text: Tensor, image_tokens: Tensor) -> Tensor:
    """(B, S, V) over the whole vocabulary at every position, the other segment's logits at -inf."""
    x = torch.cat((dalle.embed_text(text), dalle.embed_image(image_tokens[:, :-1])), dim=1)
    logits = dalle.to_logits(dalle.norm(dalle.run(x)))
    logits[:, : dalle.text_seq_len, dalle.text_vocab_size :] = -torch.inf
    logits[:, dalle.text_seq_len :, : dalle.text_vocab_size] = -torch.inf
    return logits.log_softmax(dim=-1)


@pytest.mark.parametrize("sandwich_norm", [False, True])
def test_a_layer_adds_scaled_attention_and_then_scaled_gated_feed_forward(
    make_dalle: Callable[..., Dalle], sandwich_norm: bool
) -> None:
    layer = make_dalle(sandwich_norm=sandwich_norm).layers[0]
    assert isinstance(layer, Layer)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    weights = layer.state_dict()

    def norm(name: str, x: Tensor) -> Tensor:
        normalized = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return normalized * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def add(name: str, x: Tensor, out: Tensor) -> Tensor:
        return x + weights[f"{name}_scale.scale"] * (norm(f"{name}_out_norm", out) if sandwich_norm else out)

    x = torch.randn(BATCH, 8, 8, dtype=torch.float64)
    wanted = add("attention", x, layer.attention(norm("attention_norm", x)))
    values, gates = linear("feed_forward.to_inner", norm("feed_forward_norm", wanted)).chunk(2, dim=-1)
    gelu = gates * (1 + torch.erf(gates / 2**0.5)) / 2
    wanted = add("feed_forward", wanted, linear("feed_forward.to_out", values * gelu))
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("weight", [0.0, 1.0, 7.0])
def test_logits_and_loss_equal_those_of_the_whole_vocabulary_with_the_other_segment_masked(
    make_dalle: Callable[..., Dalle], weight: float
) -> None:
    dalle = make_dalle(loss_img_weight=weight, attn_types=ATTENTION_TYPES)
    text, image_tokens = sample(dalle)
    numbered, split, first_code = dalle.number_padding(text), dalle.text_seq_len, dalle.text_vocab_size
    log_probabilities = masked_log_probabilities(dalle, numbered, image_tokens)
    text_logits, image_logits = dalle.logits(numbered, image_tokens)
    torch.testing.assert_close(text_logits.log_softmax(dim=-1), log_probabilities[:, :split, :first_code])
    torch.testing.assert_close(image_logits.log_softmax(dim=-1), log_probabilities[:, split:, first_code:])

    targets = torch.cat((numbered, image_tokens + first_code), dim=1)
    losses = -log_probabilities.gather(2, targets[:, :, None]).squeeze(2)  # (B, S)
    text_loss, image_loss = losses[:, :split].mean(), losses[:, split:].mean()
    wanted = ((text_loss + weight * image_loss) / (weight + 1), text_loss, image_loss)
    torch.testing.assert_close(dalle(text, image_tokens), wanted)


def test_every_padded_position_has_an_id_of_its_own_above_the_tokenizer_s(make_dalle: Callable[..., Dalle]) -> None:
    text = torch.tensor([[4, 9, 0, 0, 0], [4, 9, 2, 10, 0]])
    assert make_dalle().number_padding(text).tolist() == [[4, 9, 13, 14, 15], [4, 9, 2, 10, 15]]


EVERY: Dict[str, Dict[str, Any]] = {**{kind: {"attn_types": kind} for kind in ATTENTION_TYPES}, **VARIANTS}


@pytest.mark.parametrize("model", EVERY)
def test_no_logit_depends_on_its_own_token_or_a_later_one_and_all_the_next_on_it(
    make_dalle: Callable[..., Dalle], model: str
) -> None:
    dalle = make_dalle(**EVERY[model])
    text, image_tokens = sample(dalle, batch=1)
    split = dalle.text_seq_len
    before = masked_log_probabilities(dalle, text, image_tokens)
    for position in range(before.shape[1]):
        tokens = torch.cat((text, image_tokens), dim=1)
        tokens[0, position] = tokens[0, position] % 10 + 1  # another id of either vocabulary
        after = masked_log_probabilities(dalle, tokens[:, :split], tokens[:, split:])
        changed = (before != after).any(dim=-1)[0]
        assert not changed[: position + 1].any()
        assert changed[position + 1 : position + 2].all()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("model", EVERY)
def test_gradients_reach_every_parameter(make_dalle: Callable[..., Dalle], model: str, batch: int) -> None:
    dalle = make_dalle(**EVERY[model])
    dalle(torch.tensor([[3, 7, 1, 5, 0], [9, 2, 8, 4, 6]])[:batch], sample(dalle, batch)[1])[0].backward()
    assert [name for name, p in dalle.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", ["full", "conv_like"])
@pytest.mark.parametrize("sandwich_norm", [False, True])
def test_saved_names_are_the_recorded_ones(make_dalle: Callable[..., Dalle], kind: str, sandwich_norm: bool) -> None:
    modules = dict(OUTSIDE)
    modules.update({f"layers.{n}.{module}": tensors for n in (0, 1) for module, tensors in LAYER.items()})
    if sandwich_norm:
        modules.update({f"layers.{n}.{module}": tensors for n in (0, 1) for module, tensors in SANDWICH.items()})
    recorded = {f"{module}.{tensor}" for module, tensors in modules.items() for tensor in tensors}
    assert set(make_dalle(attn_types=kind, sandwich_norm=sandwich_norm).state_dict()) == recorded


def test_equal_weights_give_equal_losses(make_dalle: Callable[..., Dalle]) -> None:
    first, second = make_dalle(), make_dalle()
    inputs = sample(first)
    assert first(*inputs) != second(*inputs)
    second.load_state_dict(first.state_dict())
    assert first(*inputs) == second(*inputs)


@pytest.mark.parametrize("option", ["attn_dropout", "ff_dropout"])
def test_dropout_changes_training_and_nothing_else(make_dalle: Callable[..., Dalle], option: str) -> None:
    plain, dropping = make_dalle(), make_dalle(**{option: 0.5})
    dropping.load_state_dict(plain.state_dict())
    inputs = sample(plain)
    assert dropping(*inputs) == plain(*inputs)
    dropping.train()
    assert dropping(*inputs) != dropping(*inputs)


@pytest.mark.parametrize("kind", ATTENTION_TYPES)
def test_the_stable_softmax_equals_the_plain_one(make_dalle: Callable[..., Dalle], kind: str) -> None:
    plain = make_dalle(attn_types=kind)
    stable = make_dalle(attn_types=kind, stable=True)
    stable.load_state_dict(plain.state_dict())
    x = plain.embed_text(sample(plain)[0])
    torch.testing.assert_close(stable.run(x), plain.run(x))


def test_stable_scores_fit_half_precision_where_plain_ones_do_not() -> None:
    q = torch.full((1, 64), 120.0)
    largest = [float(scale_queries(q, stable) @ q[0]) for stable in (False, True)]
    assert largest[1] < torch.finfo(torch.float16).max < largest[0]


def test_stable_embeddings_get_a_tenth_of_their_gradient(make_dalle: Callable[..., Dalle]) -> None:
    stable = make_dalle(stable=True)
    x = torch.randn(1, 3, 8, dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(sum(layer.attend(x).sum() for layer in stable.layers[:1]), x)[0]
    stable.layers = stable.layers[:1]
    stable.layers[0].feed_forward_scale.scale.data.zero_()
    (got,) = torch.autograd.grad(stable.run(x).sum(), x)
    torch.testing.assert_close(got, (whole + 1) / 10)


def test_tied_tokens_are_embedded_by_the_rows_of_the_output(make_dalle: Callable[..., Dalle]) -> None:
    dalle = make_dalle(share_input_output_emb=True, rotary_emb=True, dim_head=6)
    text, image_tokens = sample(dalle)
    rows = dalle.to_logits.weight
    assert torch.equal(dalle.embed_text(text)[:, 1:], rows[text])
    assert torch.equal(dalle.embed_image(image_tokens), rows[dalle.text_vocab_size + image_tokens])
    assert [name for name in dalle.state_dict() if "embedding" in name or "position" in name] == []


def test_layers_with_one_id_are_one(make_dalle: Callable[..., Dalle]) -> None:
    dalle = make_dalle(shared_attn_ids="a,b", shared_ff_ids="x,x,y", num_hidden_layers=4)
    layers = list(dalle.layers)
    assert layers[0].attention is layers[2].attention is not layers[1].attention is layers[3].attention
    assert layers[0].feed_forward is layers[1].feed_forward is layers[3].feed_forward is not layers[2].feed_forward
    saved = [name for name in dalle.state_dict() if name.endswith(("to_qkv.weight", "to_inner.weight"))]
    assert saved == [
        "layers.0.attention.to_qkv.weight",
        "layers.0.feed_forward.to_inner.weight",
        "layers.1.attention.to_qkv.weight",
        "layers.2.feed_forward.to_inner.weight",
    ]
    copied = copy.deepcopy(dalle)
    assert copied.layers[2].attention is copied.layers[0].attention is not layers[0].attention


def test_texts_are_left_out_as_often_as_asked_for_and_in_training_alone(make_dalle: Callable[..., Dalle]) -> None:
    texts = torch.ones(4000, 5, dtype=torch.int64)
    dropped = (drop_texts(texts, 0.25) == 0).all(dim=1)
    assert 900 < dropped.sum() < 1100
    assert torch.equal(texts, torch.ones_like(texts))
    dalle = make_dalle(null_cond_prob=1)
    text, image_tokens = sample(dalle)
    evaluated, nothing = dalle(text, image_tokens), dalle(torch.zeros_like(text), image_tokens)
    dalle.train()
    assert dalle(text, image_tokens) == nothing != evaluated


def test_layers_start_the_weaker_the_deeper_they_lie() -> None:
    options = TransformerOptions(hidden_size=1, num_hidden_layers=25, num_attention_heads=1, dim_head=1)
    weights = Dalle(options, 2, 2, (2, 2)).state_dict()
    for part in ("attention", "feed_forward"):
        scales = torch.cat([weights[f"layers.{layer}.{part}_scale.scale"] for layer in range(25)])
        assert torch.equal(scales, torch.tensor([0.1] * 18 + [1e-5] * 6 + [1e-6]))


def test_a_fresh_model_is_as_good_as_guessing() -> None:
    dalle = Dalle(TransformerOptions(hidden_size=64, num_hidden_layers=2, text_seq_len=8), 92, 50, (4, 4))
    _, text_loss, image_loss = dalle(*sample(dalle, batch=8))
    guessing = torch.tensor([100.0, 50.0]).log()
    torch.testing.assert_close(torch.stack((text_loss, image_loss)), guessing, rtol=0, atol=0.1)


def test_attention_types_are_cycled_over_the_layers(make_dalle: Callable[..., Dalle]) -> None:
    dalle = make_dalle(attn_types="full,axial_row,conv_like", num_hidden_layers=5)
    kinds = [module.pattern.kind for module in dalle.modules() if isinstance(module, Attention)]
    assert kinds == ["full", "axial_row", "conv_like", "full", "axial_row"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attn_types": "full,dense"}, "attn_types='dense' is not one of full, axial_row"),
        ({"attn_types": ()}, "attn_types is empty; name at least one of full"),
        ({"conv_kernel_size": 4}, "conv_kernel_size=4 is even; make it odd"),
        ({"shared_attn_ids": ()}, "shared_attn_ids is empty; give an id for each layer"),
        ({"rotary_emb": True, "dim_head": 5}, "dim_head=5; give 6 or more"),
        ({"conv_window": "left"}, "conv_window='left' is not one of causal, centered"),
    ],
)
def test_an_impossible_transformer_is_refused_by_option_value_and_rule(options: Dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TransformerOptions(**options)


def test_layers_of_two_kinds_cannot_share_their_attention(make_dalle: Callable[..., Dalle]) -> None:
    with pytest.raises(OptionError, match="shared_attn_ids gives layer 3 the id a of a layer with full attention"):
        make_dalle(attn_types="full,axial_row,axial_col", shared_attn_ids="a,b", num_hidden_layers=3)
