"""The model cut for IPUs, called as a plain module, against the plain model; and its weights on the way back."""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from ipu import open_poptorch
from ipu.fused import FusedOptions
from ipu.layers import (
    IpuLogits,
    IpuModel,
    LayerOptions,
    SerializedEmbedding,
    SerializedProjection,
    ipu_state,
    plain_state,
)
from models.dalle import Projection
from models.image_tokenizer import TextToImage
from options import OptionError
from tests.parity import CODES, WORDS, Case, GreyTokenizer, make_model, make_samples

POPTORCH = open_poptorch("ipu-sim")
TEXT_IDS = WORDS + 6


def cut(transformer: Any = None, **options: Any) -> Tuple[TextToImage, IpuModel]:
    """A plain model, and the same one for IPUs."""
    model = make_model(Case("cut", transformer or {}))
    blocks: Dict[str, Any] = {
        "embedding": "embedding",
        "image_tokenizer": "tokenizer",
        "layers": [("first", 0), ("second", 1)],
        "head": "head",
    }
    return model, IpuModel(model, LayerOptions(**{**blocks, **options}), POPTORCH)


MODELS: List[Dict[str, Any]] = [
    {},
    {"rotary_emb": True, "stable": True},
    {"reversible": True, "shift_tokens": True},
    {"share_input_output_emb": True},
    {"shared_attn_ids": ("a",), "shared_ff_ids": ("b",)},
]


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("transformer", MODELS, ids=str)
def test_the_cut_model_computes_what_the_plain_one_does(transformer: Dict[str, Any], factor: int) -> None:
    plain, model = cut(transformer, serialization_factor=factor)
    text, images = make_samples(3)
    expected, found = plain(text, images), model(text, images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for scalar in (expected[0], found[0]):
        scalar.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert None not in gradients.values()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    torch.testing.assert_close(plain_state(gradients), theirs, rtol=1e-4, atol=1e-7)  # type: ignore[arg-type]


FUSED = FusedOptions(attention_chunks=2, embedding=True, layer_memory=(0.6, 0.6))


@pytest.mark.parametrize("transformer", [model for model in MODELS if "share_input_output_emb" not in model], ids=str)
def test_a_model_with_fused_operators_is_called_as_a_plain_module_and_has_the_plain_names(
    transformer: Dict[str, Any],
) -> None:
    plain, model = cut(transformer, serialization_factor=4, fused=FUSED)
    text, images = make_samples(3)
    torch.testing.assert_close(model(text, images), plain(text, images), rtol=1e-5, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == [f"model.{name}" for name, _ in plain.named_parameters()]


def test_what_computes_with_fused_operators_can_be_copied() -> None:
    dalle = cut(serialization_factor=2, fused=FUSED)[1].model.dalle
    for module in (dalle.layers[0].attention, dalle.text_embedding):
        assert copy.deepcopy(module).kernel is module.kernel


def test_drawing_and_training_share_their_weights() -> None:
    plain, model = cut(serialization_factor=2)
    logits = IpuLogits(model)
    text, images = make_samples(2)
    codes = GreyTokenizer().encode(images)
    text = plain.dalle.number_padding(text)
    torch.testing.assert_close(logits(text.int(), codes.int()), plain.dalle.logits(text, codes), rtol=1e-5, atol=1e-6)
    assert {id(p) for p in logits.parameters()} == {id(p) for p in model.parameters()}


def test_the_plain_model_stays_as_it_is() -> None:
    before = make_model(Case("same"))
    plain, model = cut(serialization_factor=2, fp16=True)
    assert list(plain.state_dict()) == list(before.state_dict())
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    assert plain.dalle.inverts_layers and not model.model.dalle.inverts_layers
    assert not {id(p) for p in plain.parameters()} & {id(p) for p in model.parameters()}


def test_only_the_transformer_learns() -> None:
    plain, model = cut()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {f"model.{name}" for name, _ in plain.named_parameters() if name.startswith("dalle.")}


def test_half_precision_is_held_by_all_weights_and_losses_come_in_single() -> None:
    _, model = cut(fp16=True, serialization_factor=2)
    assert {p.dtype for p in model.parameters()} == {torch.float16} and model.dtype == torch.float16
    if not torch.__version__.startswith("2.0."):  # whose CPU has no such products
        text, images = make_samples(2)
        assert {scalar.dtype for scalar in model(text, images.half())} == {torch.float32}


@pytest.mark.parametrize("transformer", MODELS, ids=str)
@pytest.mark.parametrize("factor", [1, 2, 8])
def test_the_state_goes_to_ipus_and_back_unchanged(transformer: Dict[str, Any], factor: int) -> None:
    plain, model = cut(transformer, serialization_factor=factor)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    weights = copy.deepcopy(plain.state_dict())
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    state = ipu_state(weights, shapes)
    assert list(state) == list(shapes)
    model.load_state_dict(state)
    back = plain_state(model.state_dict())
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_what_each_weight_has_one_number_of_is_not_cut() -> None:
    _, model = cut(serialization_factor=4)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    steps = {
        name: torch.tensor(float(number))
        for number, name in enumerate(plain_state({n: torch.zeros(1) for n in shapes}))
    }
    state = ipu_state(steps, shapes)
    assert set(state) == set(shapes)
    assert plain_state(state) == steps


def test_a_state_of_some_weights_stays_one_of_some() -> None:
    _, model = cut(serialization_factor=2)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    some = {"dalle.norm.weight": torch.ones(16), "unknown": torch.ones(1)}
    assert list(ipu_state(some, shapes)) == ["model.dalle.norm.weight"]


@pytest.mark.parametrize("factor", [1, 3, 4, 24])
def test_a_table_in_parts_looks_up_and_learns_as_a_whole_one(factor: int) -> None:
    whole = nn.Embedding(22, 5)
    parts = SerializedEmbedding(whole, factor)
    ids = torch.tensor([[0, 21, 7, 7], [8, 3, 15, 0]])
    weights = torch.randn(2, 4, 5)
    assert torch.equal(parts(ids), whole(ids))
    for table in (parts, whole):
        (table(ids) * weights).sum().backward()
    found = torch.cat([part.weight.grad for part in parts.split_embeddings])  # type: ignore[misc]
    torch.testing.assert_close(found, whole.weight.grad)
    assert sum(part.num_embeddings for part in parts.split_embeddings) == 22


@pytest.mark.parametrize("segment", [slice(0, 8), slice(8, None), slice(0, 24)])
def test_a_projection_in_parts_is_the_whole_one_and_survives_copying(segment: slice) -> None:
    plain = Projection(5, 24)
    for projection in (
        SerializedProjection(plain, 4, POPTORCH),
        copy.deepcopy(SerializedProjection(plain, 4, POPTORCH)),
    ):
        x = torch.randn(2, 3, 5)
        torch.testing.assert_close(projection(x, segment), plain(x, segment))
        assert list(dict(projection.named_parameters())) == ["weight", "bias"]


@pytest.mark.parametrize("factor, size, name", [(5, TEXT_IDS, "text"), (3, CODES, "image")])
def test_a_vocabulary_that_cannot_be_cut_is_refused(factor: int, size: int, name: str) -> None:
    message = f"embedding_serialization_factor={factor} does not divide the {size} ids of the {name} vocabulary"
    with pytest.raises(OptionError, match=message):
        cut(serialization_factor=factor)


def test_tied_embeddings_are_not_cut_from_their_projection() -> None:
    _, model = cut({"share_input_output_emb": True}, serialization_factor=2)
    assert not [name for name, _ in model.named_parameters() if "split_embeddings" in name]


def begun(model: IpuModel, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """The blocks that begin in one call, in order."""
    ids: List[str] = []
    text, _ = make_samples(len(images))
    blocks = POPTORCH.Block
    monkeypatch.setattr(blocks, "start", staticmethod(lambda user_id=None, ipu_id=None: ids.append(user_id)))
    for module, name in (
        (model.model.dalle.layers[0], "first"),
        (model.model.dalle.layers[1], "second"),
        (model.model.dalle.norm, "head"),
    ):
        module.register_forward_pre_hook(lambda module, inputs, name=name: ids.append(name))
    model(text, images)
    return ids


def test_the_blocks_begin_in_the_order_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = cut()
    images = make_samples(2)[1]
    assert begun(model, images, monkeypatch) == ["tokenizer", "embedding", "first", "second", "head", "head"]


def test_loaded_codes_need_no_image_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = cut()
    codes = GreyTokenizer().encode(make_samples(2)[1])
    assert begun(model, codes.int(), monkeypatch)[0] == "embedding"


@pytest.mark.parametrize("recomputation", [True, False])
def test_what_lies_between_the_layers_is_kept_where_the_rest_is_computed_again(
    recomputation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = cut(recomputation=recomputation)
    kept: List[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    monkeypatch.setattr(POPTORCH, "recomputationCheckpoint", keep)
    model(*make_samples(2))
    assert len(kept) == (2 if recomputation else 0)
