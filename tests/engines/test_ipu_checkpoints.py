"""Checkpoints of the IPU engine: into other engines and back, and resumed runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import Tensor

from checkpoint import CheckpointFolder, read_checkpoint
from engines.ipu import IpuEngine
from tests.conftest import Run
from tests.engines.test_ipu import differing, host_engine, steps
from tests.parity import Case, calls_of, make_engine
from tests.parity_cases import ALL_HALF, HALF

DROPOUT = {"ff_dropout": 0.3, "attn_dropout": 0.3}
TWO: Dict[str, Any] = {"layers_per_ipu": (1, 1)}
CASES: List[Case] = [
    Case("one IPU"),
    Case("serialised", {}, {"gradient_accumulation": 3}, {**TWO, "embedding_serialization_factor": 4}),
    Case("replicated, two updates a call", {}, {"replication_factor": 2, "device_iterations": 2, "optimizer": "AdamW"}),
    Case("shared and tied", {"shared_attn_ids": ("a",), "shared_ff_ids": ("b",), "share_input_output_emb": True}),
    Case("half", {}, HALF),
    Case("half, adapted", {}, {**HALF, "enable_als": True}),
    Case(
        "all in half, serialised, two IPUs",
        {},
        {**HALF, "gradient_accumulation": 3, "weight_decay": 0.1},
        {**TWO, "embedding_serialization_factor": 2, **ALL_HALF},
    ),
]
RANDOM_CASES: List[Case] = [
    Case("dropout", DROPOUT),
    Case("dropout on two replicas", DROPOUT, {"replication_factor": 2, "gradient_accumulation": 3}, TWO),
    Case("texts left out", {"null_cond_prob": 0.5}),
    Case("stochastic rounding", {}, HALF, {"stochastic_rounding": True}),
    Case(
        "all at once",
        {**DROPOUT, "reversible": True},
        {**HALF, "gradient_accumulation": 3, "replication_factor": 2, "enable_als": True, "device_iterations": 2},
        {**TWO, "embedding_serialization_factor": 2, "stochastic_rounding": True, **ALL_HALF},
    ),
]


def by_name(case: Case) -> str:
    return case.name


def through_a_file(state: Dict[str, Any], folder: Path) -> Dict[str, Any]:
    """The state as a checkpoint gives it back."""
    folder.mkdir(exist_ok=True)
    found = read_checkpoint(CheckpointFolder(folder, "tiny").save(1, state), "tiny")
    return {key: found[key] for key in state}


def compiled(engine: IpuEngine, case: Case) -> IpuEngine:
    """The engine with its program on the device, where the loaded state is then."""
    engine.compile(tuple(tensor[: case.training_options.batch_size] for tensor in calls_of(case, 1)[0]))
    engine._fetched = False  # the plain model is to ask the device
    return engine


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_weights_and_optimizer_come_back_bit_by_bit_from_the_host_engine(case: Case, tmp_path: Path) -> None:
    engine, host = make_engine(case), host_engine(case)
    steps(engine, case, 4)
    state = copy.deepcopy(engine.state_dict())
    host.load_state_dict(through_a_file(state, tmp_path / "from_ipu"))
    there = host.state_dict()
    for part in ("weights", "optimizer"):
        assert differing(state[part], there[part]) == []
    back = make_engine(case)
    back.load_state_dict(through_a_file(there, tmp_path / "from_host"))
    returned = compiled(back, case).state_dict()
    for part in ("weights", "optimizer"):
        assert differing(state[part], returned[part]) == []
    if not case.training_options.enable_als:  # the host engine has no place for the factor that this has come to
        assert [s.tolist() for s in steps(back, case, 2, 4)] == [s.tolist() for s in steps(engine, case, 2, 4)]


def test_a_run_of_the_host_engine_goes_on_on_ipus_and_back_on_the_host(tmp_path: Path) -> None:
    case = CASES[1]
    whole, host, ipus, again = host_engine(case), host_engine(case), make_engine(case), host_engine(case)
    expected = steps(whole, case, 6)
    found = steps(host, case, 2)
    ipus.load_state_dict(through_a_file(host.state_dict(), tmp_path / "one"))
    found += steps(ipus, case, 2, 2)
    again.load_state_dict(through_a_file(ipus.state_dict(), tmp_path / "two"))
    found += steps(again, case, 2, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.state_dict()["weights"], whole.state_dict()["weights"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [*CASES, *RANDOM_CASES], ids=by_name)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(case: Case, tmp_path: Path) -> None:
    whole = compiled(make_engine(case), case)
    scalars: List[Tensor] = steps(whole, case, 4)
    state = through_a_file(whole.state_dict(), tmp_path)
    scalars = steps(whole, case, 4, 4)
    resumed = make_engine(case)
    resumed.load_state_dict(state)
    compiled(resumed, case)
    assert differing(resumed.state_dict(), state, "loaded") == []
    assert [s.tolist() for s in steps(resumed, case, 4, 4)] == [s.tolist() for s in scalars]
    assert differing(resumed.state_dict(), whole.state_dict()) == []


@pytest.mark.parametrize("case", RANDOM_CASES[:4], ids=by_name)
def test_it_is_the_random_state_that_makes_it_so(case: Case) -> None:
    whole, resumed = make_engine(case), make_engine(case)
    steps(whole, case, 2)
    resumed.load_state_dict({**whole.state_dict(), "random": {"cpu": torch.get_rng_state()}})
    assert [s.tolist() for s in steps(resumed, case, 2, 2)] != [s.tolist() for s in steps(whole, case, 2, 2)]


@pytest.mark.parametrize("half", [False, True])
def test_moments_go_to_the_device_in_its_own_type_and_order_since_poptorch_copies_bytes(half: bool) -> None:
    attention = {"attn_types": ("conv_like",)}
    case = Case(
        "moments", attention, HALF, {"enable_half_first_order_momentum": half, "embedding_serialization_factor": 2}
    )
    host, engine = host_engine(case), make_engine(case)
    steps(host, case, 1)
    state = host.state_dict()
    name = "dalle.text_embedding.weight"
    turned = state["optimizer"][name]["exp_avg"].t().contiguous().t()  # the same numbers in another order of bytes
    state["optimizer"][name]["exp_avg"] = turned
    engine.load_state_dict(state)
    given = engine.optimizer.state_dict()["ipu_state"]
    kinds = {
        kind: {tensor.dtype for key, tensor in given.items() if key.startswith(kind)} for kind in ("Accl1", "Accl2")
    }
    assert kinds == {"Accl1": {torch.float16 if half else torch.float32}, "Accl2": {torch.float32}}
    assert {tensor.dtype for key, tensor in given.items() if key.startswith("Step")} == {torch.float32}
    assert not turned.is_contiguous() and all(tensor.is_contiguous() for tensor in given.values())


def test_random_numbers_of_other_replicas_are_left_out_since_popart_refuses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ipu.simulator.executor import PoplarExecutor

    told: List[int] = []
    whole = PoplarExecutor.rng_state
    setter = property(whole.fget, lambda self, state: told.append(len(state)))  # type: ignore[attr-defined]
    one, two = RANDOM_CASES[0], Case("dropout, two replicas", DROPOUT, {"replication_factor": 2})
    trained = make_engine(two)
    steps(trained, two, 1)
    state = trained.state_dict()
    monkeypatch.setattr(PoplarExecutor, "rng_state", setter)
    for case, expected in ((one, []), (two, [len(state["random"]["ipu"])])):
        engine = make_engine(case)
        engine.load_state_dict(state)
        compiled(engine, case)
        assert told == expected


def test_a_state_loaded_into_a_compiled_engine_takes_effect(tmp_path: Path) -> None:
    case = RANDOM_CASES[0]
    whole, other = make_engine(case), compiled(make_engine(case), case)
    steps(whole, case, 2)
    steps(other, case, 1)
    other.load_state_dict(through_a_file(whole.state_dict(), tmp_path))
    assert [s.tolist() for s in steps(other, case, 2, 2)] == [s.tolist() for s in steps(whole, case, 2, 2)]


@pytest.fixture
def ipu_options() -> Dict[str, Any]:
    """What a tiny run of train.py is given for two IPUs."""
    return {
        "engine": "ipu-sim",
        "ipus_per_replica": 2,
        "layers_per_ipu": "1,1",
        "gradient_accumulation": 3,
        "batch_size": 1,
        "embedding_serialization_factor": 2,
        "text_seq_len": 9,  # so that the vocabulary can be halved
        "ff_dropout": 0.2,
        "checkpoint_save_steps": 3,
        "validation_steps": 2,
        "validation_samples": 3,
    }


def test_a_run_of_train_py_on_ipus_resumes_bit_by_bit_and_goes_on_on_the_host(
    run_train: Callable[..., Run], tmp_path: Path, ipu_options: Dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_train(tmp_path / "whole", max_steps=6, sample_steps=5, **ipu_options)
    assert "1      1    layers_1         dalle.layers.1" in capsys.readouterr().out
    halves = run_train(tmp_path / "halves", max_steps=6, sample_steps=5, **ipu_options)
    for path in halves.folder.glob("ckpt/dalle_6*"):
        path.unlink()
    run_train(tmp_path / "halves", max_steps=6, sample_steps=5, resume=True, **ipu_options)
    lines = [line for line in halves.log() if line["step"] > 3][-3:]
    expected = [line for line in whole.log() if line["step"] > 3]
    for line in (*lines, *expected):
        del line["throughput"]
    assert lines == expected and len(expected) == 3
    assert whole.series("loss", "validation")[1:] == halves.series("loss", "validation")[-2:]
    one, other = whole.state(), halves.state()
    assert differing({**one, "config": None}, {**other, "config": None}) == []
    drawn = [run.folder / "samples" / "step_00000005.png" for run in (whole, halves)]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    on_host = {"gradient_accumulation": 3, "batch_size": 1, "ff_dropout": 0.2, "text_seq_len": 9, "engine": "host"}
    assert run_train(tmp_path / "whole", max_steps=8, resume=True, **on_host).series("step")[-2:] == [7, 8]
