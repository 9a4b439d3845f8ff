"""Training with the fused operators: the command, and what each layer's operator is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

import train
from engines.options import IpuOptions
from ipu import fused
from ipu.fused import chunks_of
from models.attention import Attention
from options import OptionError
from tests.conftest import Run
from tests.cpu_ipu_test import TOLERANCE
from tests.parity import Case, GreyTokenizer, calls_of, make_engine, make_model, make_samples

FUSED: Dict[str, Any] = {"fused_attention": True, "fused_embedding": True}
POSITIONS = 22  # of the small model's sequences


def test_train_py_has_the_losses_of_the_stock_path(
    run: Callable[..., None], scenes: Path, vae: Run, tmp_path: Path
) -> None:
    losses = []
    for name, options in (("stock", {}), ("fused", FUSED)):
        folder = tmp_path / name
        run(
            train,
            config="unit_test",
            engine="ipu-sim",
            max_steps=20,
            input_folder=scenes,
            vae_path=vae.folder,
            output_dir=folder,
            checkpoint_output_dir="",
            log_steps=1,
            async_dataloader=False,
            dataloader_workers=0,
            **options,
        )
        losses.append(Run(folder, "dalle").series("loss"))
    stock, with_operators = losses
    assert len(stock) == 20 and len(set(stock)) == 20
    assert with_operators == pytest.approx(stock, abs=TOLERANCE["single"].loss)


# ------------------------------------------------------------------------------------------ what the operators are told


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> List[Dict[str, Any]]:
    """What is asked of the operators while a model is compiled, call by call."""
    calls: List[Dict[str, Any]] = []
    attention, embedding = fused.fused_attention, fused.fused_embedding

    def noted_attention(q: Any, k: Any, v: Any, pattern: Any, *given: Any) -> Any:
        names = ("poptorch", "chunks", "available_memory", "partials_type")
        calls.append({"kind": pattern.kind, **dict(zip(names, given))})
        return attention(q, k, v, pattern, *given)

    def noted_embedding(table: Any, ids: Any, position: Any, **given: Any) -> Any:
        calls.append({"rows": len(table), "has_position": position is not None, **given})
        return embedding(table, ids, position, **given)

    monkeypatch.setattr(fused, "fused_attention", noted_attention)
    monkeypatch.setattr(fused, "fused_embedding", noted_embedding)
    return calls


def compiled(case: Case) -> None:
    engine = make_engine(case)
    inputs = calls_of(case, updates=1)[0]
    engine.compile(tuple(tensor[: case.training_options.batch_size] for tensor in inputs))
    engine.close()


def test_each_operator_has_the_memory_of_its_ipu_and_the_parts_that_were_asked_for(told: List[Dict[str, Any]]) -> None:
    split = {"layers_per_ipu": (0, 1, 1), "matmul_proportion": (0.1, 0.2, 0.3), "embedding_serialization_factor": 4}
    transformer = {"attn_types": ("axial_row", "full")}
    compiled(Case("split", transformer, {"gradient_accumulation": 5}, {**FUSED, **split, "enable_half_partials": True}))
    text, image, first, second = ({k: v for k, v in call.items() if k != "poptorch"} for call in told)
    assert text == {"rows": 24, "has_position": True, "splits": 4, "available_memory": 0.1}
    assert image == {"rows": 16, "has_position": True, "splits": 4, "available_memory": 0.1}
    assert first == {"kind": "axial_row", "chunks": 2, "available_memory": 0.2, "partials_type": "half"}
    assert second == {"kind": "full", "chunks": 2, "available_memory": 0.3, "partials_type": "half"}


def test_with_rotary_embeddings_no_positions_are_added(told: List[Dict[str, Any]]) -> None:
    compiled(Case("rotary", {"rotary_emb": True, "num_hidden_layers": 1}, {}, {**FUSED, "attention_chunks": 11}))
    assert [call.get("has_position") for call in told] == [False, False, None]
    assert told[2]["chunks"] == 11 and told[2]["partials_type"] == "float"


@pytest.mark.parametrize("only", ["fused_attention", "fused_embedding"])
def test_either_operator_can_be_had_alone(only: str, told: List[Dict[str, Any]]) -> None:
    compiled(Case("alone", {"num_hidden_layers": 1}, {}, {only: True}))
    assert ["rows" in call for call in told] == ([False] if only == "fused_attention" else [True, True])


def test_no_operator_is_asked_for_unless_somebody_wants_it(told: List[Dict[str, Any]]) -> None:
    compiled(Case("stock", {"num_hidden_layers": 1}))
    assert told == []


def test_the_plain_model_keeps_its_own_attention_and_the_state_its_names() -> None:
    case = Case("fused", {}, {}, {**FUSED, "embedding_serialization_factor": 2})
    model = make_model(case)
    engine = make_engine(case, model=model)
    engine.step(calls_of(case, updates=1)[:1])
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert attentions and all(attention.kernel is None for attention in attentions)
    state, stock = engine.state_dict(), make_engine(dataclasses.replace(case, ipu={}))
    assert set(state["optimizer"]) == set(dict(model.dalle.named_parameters(prefix="dalle")))
    stock.load_state_dict(state)  # and so a run can go on without them
    torch.testing.assert_close(*(each.step(calls_of(case, updates=2)[1:]) for each in (engine, stock)))


def test_validating_and_drawing_are_those_of_the_host() -> None:
    case = Case("fused", {"attn_types": ("conv_like", "axial_col")}, {"gradient_accumulation": 3}, FUSED)
    engine, model = make_engine(case), make_model(case).eval()
    text, images = make_samples(3)
    codes = GreyTokenizer().encode(images)
    numbered = model.dalle.number_padding(text)
    with engine.inference() as drawing, torch.no_grad():
        scalars, logits = engine.evaluate((text, images)), drawing.dalle.logits(numbered, codes)
        torch.testing.assert_close(scalars, torch.stack(model(text, images)), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits, model.dalle.logits(numbered, codes), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("positions, chunks", [(22, 2), (336, 4), (337, 1), (9, 3), (1, 1)])
def test_unless_told_otherwise_there_are_as_many_chunks_as_divide_the_positions_up_to_four(
    positions: int, chunks: int
) -> None:
    assert chunks_of(positions) == chunks


def test_chunks_that_do_not_divide_the_positions_are_refused_when_the_engine_is_made() -> None:
    message = r"attention_chunks=4 does not divide the 22 positions of a sequence; take one of 1, 2, 11, 22"
    with pytest.raises(OptionError, match=message):
        make_engine(Case("chunks", {}, {}, {"fused_attention": True, "attention_chunks": 4}))


def test_chunks_of_attention_that_is_not_fused_are_refused() -> None:
    with pytest.raises(OptionError, match="attention_chunks=4 is for fused attention; add --fused-attention"):
        IpuOptions(attention_chunks=4)


def test_a_fused_embedding_that_is_tied_is_refused() -> None:
    with pytest.raises(OptionError, match="fused_embedding=true and share_input_output_emb=true: .* leave one"):
        make_engine(Case("tied", {"share_input_output_emb": True}, {}, {"fused_embedding": True}))


def test_without_operators_for_the_sdk_the_engine_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(poptorch: Any) -> None:
        raise OptionError("run `make custom_ops`")

    monkeypatch.setattr(fused, "open_operators", refuse)
    with pytest.raises(OptionError, match="make custom_ops"):
        make_engine(Case("fused", {}, {}, FUSED))
