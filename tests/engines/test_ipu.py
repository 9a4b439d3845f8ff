"""The IPU engine, on the simulator, against the host engine. What it learns is compared in tests/cpu_ipu_test.py."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from engines import open_engine
from engines.base import Engine
from engines.ipu import IpuEngine
from engines.ipu_loading import ShareSampler
from engines.launcher import Launcher
from engines.options import IpuOptions, TrainingOptions
from engines.sampler import EpochSampler
from models.decoding import SamplingOptions, draw_image_tokens, log_likelihood, uniform_numbers
from models.image_tokenizer import TextToImage
from models.vae import DiscreteVAE
from options import OptionError, UserError
from tests.parity import (
    CODES,
    GRID,
    WORDS,
    Case,
    GreyTokenizer,
    calls_of,
    make_engine,
    make_model,
    make_samples,
)

TWO_IPUS = Case("two IPUs", {}, {"gradient_accumulation": 3}, {"layers_per_ipu": (1, 1)})
REPLICATED = Case(
    "two replicas",
    {"attn_types": ("axial_row", "full")},
    {"gradient_accumulation": 3, "replication_factor": 2},
    {"layers_per_ipu": (1, 1), "embedding_serialization_factor": 2},
)
CASES = pytest.mark.parametrize("case", [Case("one IPU"), TWO_IPUS, REPLICATED], ids=lambda case: case.name)


class Samples(Dataset):  # type: ignore[type-arg]
    """Samples whose captions hold their number and their pass."""

    def __init__(self, length: int) -> None:
        _, self.images = make_samples(length)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Any) -> Tuple[Tensor, Tensor]:
        number, index = key if isinstance(key, tuple) else (0, key)
        return torch.tensor([number + 1, index + 1, 1, 1, 1, 1]), self.images[index]


def host_engine(case: Case, model: Optional[TextToImage] = None) -> Engine:
    training = dataclasses.replace(case.training_options, engine="host", device="cpu")
    return open_engine(model or make_model(case), training, IpuOptions(), workers=0)


def steps(engine: Engine, case: Case, updates: int, start: int = 0) -> List[Tensor]:
    """The scalars of each call, from update number `start` on."""
    calls = calls_of(case, start + updates)[start // case.training_options.device_iterations :]
    size = case.training_options.batch_size
    host = not isinstance(engine, IpuEngine)
    batches = [list(zip(*(tensor.split(size) for tensor in inputs))) if host else [inputs] for inputs in calls]
    return [engine.step(batch) for batch in batches]


def differing(one: Any, other: Any, name: str = "") -> List[str]:
    """Where two states of nested containers differ, tensors by a single bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        missing = [f"{name}/{key}" for key in one.keys() ^ other.keys()]
        return missing + [
            found for key in one.keys() & other.keys() for found in differing(one[key], other[key], f"{name}/{key}")
        ]
    same = torch.equal(one, other) and one.dtype == other.dtype if isinstance(one, Tensor) else one == other
    return [] if same else [name]


# -------------------------------------------------------------------------------------------- validation and drawing


@CASES
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_batch_of_any_length_evaluates_as_on_the_host(case: Case, count: int) -> None:
    engine, host = make_engine(case), host_engine(case)
    inputs = make_samples(count)
    with engine.inference(), host.inference():
        torch.testing.assert_close(engine.evaluate(inputs), host.evaluate(inputs), rtol=1e-5, atol=1e-5)


def test_evaluation_sees_the_weights_of_the_last_step_each_time() -> None:
    engine, host = make_engine(TWO_IPUS), host_engine(TWO_IPUS)
    inputs, seen = make_samples(3), []
    for start in range(3):
        with engine.inference(), host.inference():
            seen.append(engine.evaluate(inputs))
            torch.testing.assert_close(seen[-1], host.evaluate(inputs), rtol=1e-5, atol=1e-5)
        for each in (engine, host):
            steps(each, TWO_IPUS, 1, start)
    assert len({float(scalars[0]) for scalars in seen}) == 3


def test_evaluation_and_drawing_take_turns_on_the_device() -> None:
    engine, host = make_engine(TWO_IPUS), host_engine(TWO_IPUS)
    text, images = make_samples(3)
    codes = GreyTokenizer().encode(images)
    for start in range(2):
        for each in (engine, host):
            steps(each, TWO_IPUS, 1, start)
        with engine.inference() as model, host.inference() as plain:
            before = engine.evaluate((text, images))
            found = log_likelihood(model.dalle, text, codes)
            torch.testing.assert_close(found, log_likelihood(plain.dalle, text, codes), rtol=1e-5, atol=1e-5)
            assert torch.equal(engine.evaluate((text, images)), before)


def test_validating_and_drawing_leave_no_trace_in_training() -> None:
    dropout = dataclasses.replace(TWO_IPUS, transformer={"ff_dropout": 0.3, "attn_dropout": 0.3})
    watched, plain = make_engine(dropout), make_engine(dropout)
    text, images = make_samples(3)
    for start in range(3):
        scalars = [steps(engine, dropout, 1, start)[0] for engine in (watched, plain)]
        assert torch.equal(*scalars)
        with watched.inference() as model:
            assert not watched.executor.isAttachedToDevice(), "one program at a time is on the device"
            watched.evaluate((text, images))
            model.dalle.logits(text, GreyTokenizer().encode(images))
        assert watched.executor.isAttachedToDevice()
        assert not any(executor.isAttachedToDevice() for executor in watched._inference.values())
        assert watched.device_model.training
    assert differing(watched.state_dict(), {**plain.state_dict(), "random": watched.state_dict()["random"]}) == []


def test_validating_and_drawing_keep_the_host_s_random_numbers() -> None:
    engine = make_engine(TWO_IPUS)
    steps(engine, TWO_IPUS, 1)
    torch.rand(3)
    before = torch.get_rng_state()
    text, images = make_samples(3)
    with engine.inference() as model:
        engine.evaluate((text, images))
        model.dalle.logits(text, GreyTokenizer().encode(images))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_goes_on_after_a_failure_between_steps() -> None:
    engine, plain = make_engine(TWO_IPUS), make_engine(TWO_IPUS)
    for each in (engine, plain):
        steps(each, TWO_IPUS, 1)
    with pytest.raises(RuntimeError, match="no room"), engine.inference():
        raise RuntimeError("no room")
    assert torch.equal(steps(engine, TWO_IPUS, 1, 1)[0], steps(plain, TWO_IPUS, 1, 1)[0])


def test_inference_before_the_first_step_shows_the_weights_at_the_start() -> None:
    engine, host = make_engine(TWO_IPUS), host_engine(TWO_IPUS)
    inputs = make_samples(2)
    with engine.inference(), host.inference():
        torch.testing.assert_close(engine.evaluate(inputs), host.evaluate(inputs), rtol=1e-5, atol=1e-5)
    for each in (engine, host):
        steps(each, TWO_IPUS, 1)
    with engine.inference(), host.inference():
        torch.testing.assert_close(engine.evaluate(inputs), host.evaluate(inputs), rtol=1e-5, atol=1e-5)


SAMPLING = {
    "plain": SamplingOptions(top_k=0.0),
    "guided": SamplingOptions(top_k=0.5, cond_scale=2.0),
    "likeliest": SamplingOptions(temperature=0.0),
}


@CASES
@pytest.mark.parametrize("sampling", SAMPLING)
def test_ipus_draw_the_pictures_that_the_host_draws_with_and_without_its_cache(case: Case, sampling: str) -> None:
    engine = make_engine(case)
    steps(engine, case, 1)
    host = host_engine(case)
    host.load_state_dict(engine.state_dict())
    text, _ = make_samples(3)
    uniform = uniform_numbers([5, 6, 7], GRID * GRID)
    with engine.inference() as model:
        assert not model.training and not torch.is_grad_enabled()
        drawn = draw_image_tokens(model.dalle, text, uniform, SAMPLING[sampling])
    with host.inference() as plain:
        for use_cache in (True, False):
            expected = draw_image_tokens(plain.dalle, text, uniform, SAMPLING[sampling], use_cache=use_cache)
            assert torch.equal(drawn, expected)
    assert len(drawn.unique()) > 1
    assert drawn.dtype == torch.int64


def test_the_rest_of_a_given_picture_is_drawn_as_on_the_host() -> None:
    engine, host = make_engine(TWO_IPUS), host_engine(TWO_IPUS)
    text, images = make_samples(2)
    known = GreyTokenizer().encode(images)
    known[:, 5:] = -1
    uniform = uniform_numbers([1, 2], GRID * GRID)
    with engine.inference() as model, host.inference() as plain:
        drawn = draw_image_tokens(model.dalle, text, uniform, SAMPLING["plain"], known)
        assert torch.equal(drawn, draw_image_tokens(plain.dalle, text, uniform, SAMPLING["plain"], known))


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize("compiled", [False, True])
def test_the_learning_rate_reaches_the_device_in_the_very_next_step(compiled: bool) -> None:
    engine = make_engine(Case("rate"))
    if compiled:
        engine.compile(tuple(tensor[:2] for tensor in make_samples(2)))
    before = copy.deepcopy(engine.state_dict()["weights"])
    engine.set_learning_rate(0.0)
    steps(engine, Case("rate"), 1)
    assert differing(engine.state_dict()["weights"], before) == []
    engine.set_learning_rate(1e-2)
    steps(engine, Case("rate"), 1, 1)
    moved = [
        float((engine.state_dict()["weights"][name] - start).abs().max())
        for name, start in before.items()
        if start.is_floating_point()
    ]
    # Adam's second step, after one of rate 0, goes at most some 1.4 times the rate
    assert 0.9e-2 < max(moved) < 1.5e-2


def test_a_schedule_trains_as_on_the_host_from_the_first_step_on() -> None:
    engine, host = make_engine(TWO_IPUS), host_engine(TWO_IPUS)
    for number, rate in enumerate((1e-3, 4e-3, 4e-3, 2e-3)):
        for each in (engine, host):
            each.set_learning_rate(rate)
            steps(each, TWO_IPUS, 1, number)
    torch.testing.assert_close(engine.state_dict()["weights"], host.state_dict()["weights"], rtol=0, atol=1e-5)


def vae_engine(**ipu: Any) -> IpuEngine:
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(image_size=16, num_tokens=CODES, codebook_dim=4, num_layers=2, hidden_dim=4)
    model = TextToImage(
        type(make_model(Case("")).dalle)(TWO_IPUS.transformer_options, WORDS, CODES, tokenizer.grid), tokenizer
    )
    case = dataclasses.replace(TWO_IPUS, training={"gradient_accumulation": 5}, ipu={"async_dataloader": False, **ipu})
    return make_engine(case, model=model)


@pytest.mark.parametrize("embedding_ipu_id, first", [(0, 0), (1, 1)])
def test_the_image_tokenizer_runs_on_ipu_0_and_codes_leave_it_never_pictures(embedding_ipu_id: int, first: int) -> None:
    engine = vae_engine(layers_per_ipu=(0, 2), embedding_ipu_id=embedding_ipu_id)
    text, images = make_samples(1)[0], torch.rand(1, 3, 16, 16)
    table = engine.describe()
    engine.compile((text, images))
    assert table.splitlines()[1].split() == ["0", "0", "image_tokenizer", "image_tokenizer"]
    graph = engine.executor._graph
    convolutions = [node.place for node in graph.nodes if "conv" in node.name]
    assert convolutions and {(place.stage, place.ipu) for place in convolutions} == {(0, 0)}
    embeddings = [node.place.ipu for node in graph.nodes if node.name == "embedding"]
    assert set(embeddings) == {first}
    picture, codes = images.numel() * 4, GRID * GRID * 4
    sent = [transfer.size for transfer in engine.executor.getTransfers() if transfer.source == 0]
    assert sent and picture not in sent
    assert codes in sent


def test_the_placement_s_table_and_the_program_s_places_agree() -> None:
    case = Case(
        "split", {"num_hidden_layers": 4}, {"gradient_accumulation": 7}, {"layers_per_ipu": (1, 2, 1), "cls_ipu_id": 0}
    )
    engine = make_engine(case)
    rows = [line.split()[:3] for line in engine.describe().splitlines()[1:]]
    engine.compile(tuple(t[:2] for t in make_samples(2)))
    assert rows == [
        ["0", "0", "image_tokenizer"],
        ["0", "0", "embedding"],
        ["0", "0", "layers_0"],
        ["1", "1", "layers_1"],
        ["2", "2", "layers_2"],
        ["3", "0", "head"],
    ]
    graph = engine.executor._graph
    assert {(node.place.stage, node.place.ipu) for node in graph.nodes} == {(0, 0), (1, 1), (2, 2), (3, 0)}
    homes: Dict[str, int] = {}
    for name, value in graph.weights.items():
        place = graph.values[value].place
        homes[name] = place.ipu if place else -1
    assert {homes[name] for name in homes if ".layers.0." in name} == {0}
    assert {homes[name] for name in homes if ".layers.1." in name or ".layers.2." in name} == {1}
    assert {homes[name] for name in homes if ".layers.3." in name} == {2}
    assert homes["model.dalle.to_logits.weight"] == 0


def test_compiling_changes_neither_weights_nor_random_numbers() -> None:
    case = Case("dropout", {"ff_dropout": 0.5, "num_hidden_layers": 1})
    compiled, plain = make_engine(case), make_engine(case)
    compiled.compile(tuple(tensor[:2] for tensor in make_samples(2)))
    assert [scalars.tolist() for scalars in steps(compiled, case, 2)] == [s.tolist() for s in steps(plain, case, 2)]


def test_dropout_is_another_one_on_each_replica_and_in_each_micro_batch() -> None:
    def losses(samples: int, **training: Any) -> float:
        """The mean loss of `samples` times the same sample."""
        case = Case("dropout", {"ff_dropout": 0.5, "num_hidden_layers": 1}, {"batch_size": 1, **training})
        engine = make_engine(case)
        engine.set_learning_rate(0.0)
        text, images = make_samples(1)
        return float(engine.step([(text.repeat(samples, 1), images.repeat(samples, 1, 1, 1))])[0])

    single = losses(1)
    assert losses(2, replication_factor=2) != pytest.approx(single, abs=1e-7)
    assert losses(2, gradient_accumulation=2) != pytest.approx(single, abs=1e-7)
    assert losses(1) == single


# --------------------------------------------------------------------------------------------------------------- states


def test_the_state_has_the_names_that_the_host_engine_s_has() -> None:
    for case in (TWO_IPUS, REPLICATED, Case("tied", {"share_input_output_emb": True, "shared_attn_ids": ("a",)})):
        engine, host = make_engine(case), host_engine(case)
        for each in (engine, host):
            steps(each, case, 1)
        ours, theirs = engine.state_dict(), host.state_dict()
        assert list(ours["weights"]) == list(theirs["weights"])
        assert set(ours["optimizer"]) == set(theirs["optimizer"])
        for name, values in theirs["optimizer"].items():
            for key, value in values.items():
                assert ours["optimizer"][name][key].shape == value.shape, f"{name}/{key}"
                assert ours["optimizer"][name][key].dtype == value.dtype, f"{name}/{key}"
        assert set(ours) == set(theirs)


def test_a_state_before_the_first_step_resumes_from_the_beginning() -> None:
    state = make_engine(TWO_IPUS).state_dict()
    resumed, fresh = make_engine(TWO_IPUS), make_engine(TWO_IPUS)
    resumed.load_state_dict(copy.deepcopy(state))
    assert [s.tolist() for s in steps(resumed, TWO_IPUS, 2)] == [s.tolist() for s in steps(fresh, TWO_IPUS, 2)]


def test_the_state_of_another_model_is_refused_by_a_parameter_s_name() -> None:
    state = make_engine(TWO_IPUS).state_dict()
    state["optimizer"] = {"dalle.layers.9.scale": {}}
    with pytest.raises(UserError, match="optimizer's state and the model differ in 'dalle.layers.9.scale'"):
        make_engine(TWO_IPUS).load_state_dict(state)


def test_weights_alone_begin_training_anew() -> None:
    engine = make_engine(TWO_IPUS)
    steps(engine, TWO_IPUS, 2)
    state = {**engine.state_dict(), "optimizer": None}
    started, host = make_engine(TWO_IPUS), host_engine(TWO_IPUS)
    for each in (started, host):
        each.load_state_dict(copy.deepcopy(state))
        steps(each, TWO_IPUS, 2, 2)
    torch.testing.assert_close(started.state_dict()["weights"], host.state_dict()["weights"], rtol=0, atol=1e-5)


def test_weights_travel_only_when_somebody_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fetched = make_engine(TWO_IPUS), []
    copy_weights = type(engine.executor).copyWeightsToHost

    def note(executor: Any) -> None:
        fetched.append(executor is engine.executor)
        copy_weights(executor)

    monkeypatch.setattr(type(engine.executor), "copyWeightsToHost", note)
    steps(engine, TWO_IPUS, 3)
    assert True not in fetched
    for _ in range(2):
        engine.state_dict()
    assert fetched.count(True) == 1


# -------------------------------------------------------------------------------------------------------------- loading


def order_of(
    engine: Engine, samples: Samples, start: int, epochs: Optional[int], batches: int = 100
) -> List[List[int]]:
    """Pass and number of each sample, a row for each call of the engine."""
    found = []
    for _, batch in zip(range(batches), engine.loader(samples, start, epochs)):
        found.append([key for inputs in batch for key in inputs[0][:, :2].flatten().tolist()])
    return found


LOADED = Case(
    "loaded", {}, {"batch_size": 2, "gradient_accumulation": 3, "replication_factor": 2, "learning_rate": 1e-3}
)


def loading_engine(
    workers: int, ipu: Optional[Dict[str, Any]] = None, launcher: Optional[Launcher] = None, **training: Any
) -> IpuEngine:
    case = dataclasses.replace(
        LOADED, training={**LOADED.training, **training}, ipu={"layers_per_ipu": (2,), **(ipu or {})}
    )
    engine = open_engine(make_model(case), case.training_options, case.ipu_options, workers, launcher)
    assert isinstance(engine, IpuEngine)
    return engine


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("start", [0, 24, 48])
def test_samples_come_in_the_host_engine_s_order(start: int, iterations: int) -> None:
    case = dataclasses.replace(LOADED, training={**LOADED.training, "device_iterations": iterations})
    samples = Samples(30)
    expected = order_of(host_engine(case), samples, start, 2)
    assert order_of(loading_engine(0, device_iterations=iterations), samples, start, 2) == expected
    assert len(expected) == (4 - start // 12) // iterations


@pytest.mark.parametrize("asynchronous", [False, True])
def test_loader_processes_keep_the_order(asynchronous: bool) -> None:
    samples = Samples(30)
    engine = loading_engine(1, {"async_dataloader": asynchronous})
    assert order_of(engine, samples, 12, 2) == order_of(host_engine(LOADED), samples, 12, 2)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_calls_of_a_single_sample_are_loaded_which_poptorch_does_not_put_together(asynchronous: bool) -> None:
    single = {"batch_size": 1, "gradient_accumulation": 1, "replication_factor": 1}
    engine = loading_engine(1, {"async_dataloader": asynchronous}, **single)
    host = host_engine(dataclasses.replace(LOADED, training={**LOADED.training, **single}))
    assert order_of(engine, Samples(3), 0, 1) == order_of(host, Samples(3), 0, 1)


def test_without_an_end_the_batches_go_on() -> None:
    samples = Samples(30)
    expected = order_of(host_engine(LOADED), samples, 0, None, batches=7)
    assert order_of(loading_engine(0), samples, 0, None, batches=7) == expected and len(expected) == 7


def test_processes_under_poprun_share_each_global_batch_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("popdist", "popdist.poptorch"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(f"ipu.simulator.standins.{name}"))
    monkeypatch.setattr("engines.ipu.open_poptorch", lambda engine: importlib.import_module("ipu.simulator"))
    samples, replicated = Samples(30), {"replication_factor": 4, "batch_size": 1, "device_iterations": 2}
    whole = order_of(loading_engine(0, **replicated), samples, 0, 2)
    shares = []
    for number in range(2):
        told = {
            "NUM_TOTAL_REPLICAS": 4,
            "NUM_LOCAL_REPLICAS": 2,
            "NUM_IPUS_PER_REPLICA": 1,
            "REPLICA_INDEX_OFFSET": 2 * number,
        }
        for name, value in told.items():
            monkeypatch.setenv(f"POPDIST_{name}", str(value))
        monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(number))
        engine = loading_engine(0, launcher=Launcher(number, 2, 4), engine="ipu", **replicated)
        assert engine.is_main == (number == 0)
        assert engine.executor.options.replication_factor == 2
        shares.append(order_of(engine, samples, 0, 2))
    updates = [[keys[: len(keys) // 2], keys[len(keys) // 2 :]] for call in zip(*shares) for keys in call]
    joined = [one + other for (one, _), (other, _) in zip(updates[::2], updates[1::2])]
    assert len(whole) == 2 and len(shares[0]) == 2
    first_updates = [call[: len(call) // 2] for call in whole]
    assert joined == first_updates


def test_a_single_process_of_poprun_takes_its_options_and_on_the_simulator_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("popdist", "popdist.poptorch"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(f"ipu.simulator.standins.{name}"))
    monkeypatch.setattr("engines.ipu.open_poptorch", lambda engine: importlib.import_module("ipu.simulator"))
    for name in ("NUM_TOTAL_REPLICAS", "NUM_LOCAL_REPLICAS"):
        monkeypatch.setenv(f"POPDIST_{name}", "2")
    monkeypatch.setenv("POPDIST_NUM_IPUS_PER_REPLICA", "1")
    popdists = importlib.import_module("popdist.poptorch").Options
    for engine, expected in (("ipu", True), ("ipu-sim", False)):
        found = loading_engine(0, launcher=Launcher(0, 1, 2), engine=engine).executor.options
        assert isinstance(found, popdists) == expected
        assert found.replication_factor == 2


def test_of_several_processes_each_takes_its_part_of_every_global_batch() -> None:
    sampler = EpochSampler(50, 12, 3, 12, 2)
    keys = list(sampler)
    shares = [list(ShareSampler(sampler, number, 3, 4)) for number in range(3)]
    rebuilt = [key for part in range(len(keys) // 12) for share in shares for key in share[4 * part : 4 * part + 4]]
    assert rebuilt == keys


@pytest.mark.parametrize("fp16, expected", [(False, torch.float32), (True, torch.float16)])
def test_samples_travel_in_the_device_s_types(fp16: bool, expected: torch.dtype) -> None:
    engine = loading_engine(0, fp16=fp16)
    (inputs,) = next(iter(engine.loader(Samples(12), 0, 1)))
    assert [tensor.dtype for tensor in inputs] == [torch.int32, expected]
    engine.step([inputs])
    assert engine.executor._graph.values[engine.executor._graph.inputs[1]].dtype == expected


def test_pictures_in_bytes_train_as_pictures_in_fractions() -> None:
    engines = [make_engine(Case("bytes")) for _ in range(2)]
    text, images = calls_of(Case("bytes"), 1)[0]
    in_bytes = (images * 255).round().to(torch.uint8)
    scalars = [engine.step([(text, pictures)]) for engine, pictures in zip(engines, (in_bytes, in_bytes.float() / 255))]
    assert torch.equal(*scalars)


def test_codes_in_place_of_pictures_train_as_the_pictures_do() -> None:
    engines = [make_engine(TWO_IPUS) for _ in range(2)]
    text, images = calls_of(TWO_IPUS, 1)[0]
    scalars = [engine.step([(text, given)]) for engine, given in zip(engines, (images, GreyTokenizer().encode(images)))]
    assert torch.equal(*scalars)


def test_validation_sees_every_sample_once_in_order() -> None:
    samples = Samples(7)
    engine = loading_engine(0)
    texts = torch.cat([inputs[0] for inputs in engine.validation_loader(samples)])
    assert texts[:, 1].tolist() == list(range(1, 8))


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "training, message",
    [
        ({"ema_decay": 0.9}, "ema_decay=0.9 would bring all weights to the host .* leave ema_decay out"),
        ({"bf16": True}, r"bf16=true, and IPUs have no bfloat16 \(engine=ipu-sim\); use --fp16"),
        ({"device": "cuda"}, "device=cuda is for the host engine, and engine=ipu-sim; leave device out"),
        (
            {"enable_als": True},
            r"enable_als=true .* fp16 is off \(engine=ipu-sim\); leave enable_als out, or use --fp16",
        ),
        ({"loss_scaling": 0}, "loss_scaling=0 takes every gradient away; give a number above 0"),
    ],
)
def test_what_ipus_cannot_do_is_refused_by_name(training: Dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_engine(Case("refused", {}, training))


def test_other_models_are_refused() -> None:
    with pytest.raises(OptionError, match="engine=ipu-sim trains the transformer .* --engine host"):
        open_engine(nn.Linear(2, 2), TrainingOptions(engine="ipu-sim"), IpuOptions(), 0)


def test_several_processes_are_refused_where_they_would_not_exchange_gradients() -> None:
    with pytest.raises(OptionError, match="engine=ipu-sim does not exchange gradients .* poprun started 2; start one"):
        loading_engine(0, launcher=Launcher(0, 2, 4), replication_factor=4)


def test_without_the_sdk_the_engine_of_real_ipus_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipu.has_sdk", lambda: False)
    with pytest.raises(OptionError, match="engine=ipu needs Graphcore's SDK.*docs/ipu.md.*engine=ipu-sim"):
        make_engine(Case("none"), "ipu")


def test_a_vocabulary_that_cannot_be_cut_into_the_parts_asked_for_is_refused() -> None:
    with pytest.raises(OptionError, match="embedding_serialization_factor=5 does not divide the 24 ids of the text"):
        make_engine(Case("parts", {}, {}, {"embedding_serialization_factor": 5}))


# -------------------------------------------------------------------------------------------------- what IPUs alone do


def test_synthetic_data_replaces_the_pictures_on_the_device() -> None:
    def losses(images: Tensor, **ipu: Any) -> List[float]:
        engine = make_engine(Case("synthetic", {"num_hidden_layers": 1}, {}, {"layers_per_ipu": (1,), **ipu}))
        return engine.step([(make_samples(2)[0], images)]).tolist()

    bright, dark = torch.full((2, 1, 8, 8), 0.9), torch.full((2, 1, 8, 8), 0.1)
    assert losses(bright) != losses(dark)
    assert losses(bright, synthetic_data=True) == losses(dark, synthetic_data=True)


def test_compile_only_needs_no_device_and_the_program_cannot_run_then() -> None:
    engine = make_engine(Case("offline", {}, {}, {"compile_only": True}))
    assert engine.compile_only
    inputs = calls_of(Case("offline"), 1)[0]
    assert "image_tokenizer" in engine.describe()
    assert engine.compile(inputs)
    assert engine.executor.isCompiled() and not engine.executor.isAttachedToDevice()
    with pytest.raises(AssertionError, match="Trying to run a model on an offline device"):
        engine.step([inputs])
    engine.close()


def test_the_folder_of_compiled_programs_is_used_and_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    case = Case("cache", {"num_hidden_layers": 1}, {}, {"executable_cache_dir": str(folder)})
    for _ in range(2):
        make_engine(case).compile(calls_of(case, 1)[0])
        assert len(list(folder.iterdir())) == 1
    deeper = dataclasses.replace(case, transformer={"num_hidden_layers": 2})
    make_engine(deeper).compile(calls_of(case, 1)[0])
    assert len(list(folder.iterdir())) == 2


def test_the_folder_of_profiles_reaches_poplar(tmp_path: Path) -> None:
    engine = make_engine(Case("profile", {}, {}, {"profile_dir": str(tmp_path)}))
    engine_options = json.dumps(engine.executor.options.toDict(), default=str)
    assert "autoReport.directory" in engine_options and str(tmp_path) in engine_options
    plain = json.dumps(make_engine(Case("plain")).executor.options.toDict(), default=str)
    assert "autoReport.directory" not in plain


def test_closing_lets_go_of_the_device_and_keeps_what_was_trained() -> None:
    engine = make_engine(TWO_IPUS)
    steps(engine, TWO_IPUS, 1)
    with engine.inference():
        engine.evaluate(make_samples(1))
    weights = copy.deepcopy(engine.state_dict()["weights"])
    engine.close()
    assert not engine.executor.isCompiled()
    assert not any(executor.isCompiled() for executor in engine._inference.values())
    assert differing(dict(engine.model.state_dict()), weights) == []
    engine.close()


def test_a_last_call_that_would_lack_samples_is_refused_before_the_first_one() -> None:
    samples = Samples(45)  # 3 whole global batches of 12
    with pytest.raises(OptionError, match="leave 3 optimizer steps, and a call takes device_iterations=2.*max-steps 2"):
        next(loading_engine(0, device_iterations=2).loader(samples, 0, 1))
    engine = loading_engine(0, device_iterations=2, max_steps=2)
    assert len(list(engine.loader(samples, 0, 1))) == 1


def test_loaded_codes_leave_out_the_image_tokenizer_s_stage() -> None:
    case = Case("codes", {}, {"gradient_accumulation": 3}, {"layers_per_ipu": (0, 2), "embedding_ipu_id": 1})
    losses = {}
    for loads_codes in (False, True):
        model = make_model(case)
        engine = IpuEngine(model, case.training_options, case.ipu_options, 0, Launcher(), loads_codes)
        text, images = make_samples(case.training_options.global_batch)
        losses[loads_codes] = engine.step([(text, model.encode(images) if loads_codes else images)])
        names = [part.name for part in engine.placement.parts]
        assert ("image_tokenizer" in names, len(engine.placement.stages)) == (not loads_codes, 2 - loads_codes)
    torch.testing.assert_close(losses[True], losses[False])
