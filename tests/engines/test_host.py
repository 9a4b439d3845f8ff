"""The host engine against plain torch."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import engines.host
import processor
from checkpoint import CheckpointFolder, read_checkpoint
from engines import open_engine
from engines.host import HostEngine
from engines.options import IpuOptions, TrainingOptions
from optim import make_optimizer
from options import OptionError
from processor import cpu_flags, has_bf16_instructions

STEPS = 3
GLOBAL_BATCH = 12


class Regression(nn.Module):
    """Three scalars of a small network: squared error, absolute error, mean input."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
        self.dtype: Optional[torch.dtype] = None

    def forward(self, inputs: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        output = self.net(inputs)[:, 0]
        self.dtype = output.dtype
        error = output.float() - targets
        return error.square().mean(), error.abs().mean(), inputs.mean()


class Samples(Dataset):  # type: ignore[type-arg]
    """Random samples, whose indices are noted as they are fetched."""

    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(length, 4, generator=generator)
        self.targets = torch.randn(length, generator=generator)
        self.fetched: List[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, key: Any) -> Tuple[Tensor, Tensor]:
        index = key[1] if isinstance(key, tuple) else key
        self.fetched.append(index)
        return self.inputs[index], self.targets[index]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_engine() -> Callable[..., HostEngine]:
    """Builds an engine around an equal model each time: `make_engine(dropout=, workers=, **training options)`."""

    def make(dropout: float = 0.0, workers: int = 0, ipu: Optional[IpuOptions] = None, **options: Any) -> HostEngine:
        torch.manual_seed(7)
        training = TrainingOptions(**{"device": "cpu", "learning_rate": 0.05, **options})
        engine = open_engine(Regression(dropout), training, ipu or IpuOptions(), workers)
        assert isinstance(engine, HostEngine)
        return engine

    return make


def train(engine: HostEngine, samples: Samples, start: int = 0, epochs: int = 1) -> List[Tensor]:
    """The scalars of every call until the epochs are over."""
    return [engine.step(batch) for batch in engine.loader(samples, start, epochs)]


def weights(engine: HostEngine) -> Dict[str, Tensor]:
    return copy.deepcopy(engine.model.state_dict())


def assert_equal(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> None:
    assert {name: tensor.tolist() for name, tensor in first.items()} == {
        name: tensor.tolist() for name, tensor in second.items()
    }


def train_plainly(model: Regression, samples: Samples, order: List[int], options: TrainingOptions) -> List[Tensor]:
    """Whole global batches through torch alone."""
    optimizer, scalars = make_optimizer(model, options), []
    for batch in torch.tensor(order).split(options.global_batch):
        values = model(samples.inputs[batch], samples.targets[batch])
        optimizer.zero_grad()
        values[0].backward()
        if options.clip_grad_norm:
            nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad_norm)
        optimizer.step()
        scalars.append(torch.stack(values).detach())
    return scalars


@pytest.mark.parametrize("extra", [{}, {"clip_grad_norm": 0.05}, {"optimizer": "AdamW", "weight_decay": 0.5}], ids=str)
@pytest.mark.parametrize("batch, accumulation, replication", [(12, 1, 1), (2, 6, 1), (2, 3, 2), (1, 1, 12)])
def test_any_cut_of_a_global_batch_trains_as_plain_torch_on_the_whole(
    make_engine: Callable[..., HostEngine], batch: int, accumulation: int, replication: int, extra: Dict[str, Any]
) -> None:
    samples = Samples(STEPS * GLOBAL_BATCH)
    cut = {"batch_size": batch, "gradient_accumulation": accumulation, "replication_factor": replication}
    engine = make_engine(**cut, **extra)
    reference = copy.deepcopy(engine.model)
    scalars = train(engine, samples)
    expected = train_plainly(reference, samples, samples.fetched, engine.options)
    torch.testing.assert_close(scalars, expected)
    torch.testing.assert_close(weights(engine), reference.state_dict())


def test_clipping_changes_what_is_learned(make_engine: Callable[..., HostEngine]) -> None:
    clipped, free = make_engine(batch_size=12, clip_grad_norm=0.05), make_engine(batch_size=12)
    for engine in (clipped, free):
        train(engine, Samples(STEPS * GLOBAL_BATCH))
    assert not torch.allclose(clipped.model.net[0].weight, free.model.net[0].weight)


@pytest.mark.parametrize("iterations", [2, 3, 5])
def test_device_iterations_are_as_many_updates_and_give_their_mean(
    make_engine: Callable[..., HostEngine], iterations: int
) -> None:
    single, several = make_engine(batch_size=2), make_engine(batch_size=2, device_iterations=iterations)
    each, together = train(single, Samples(12)), train(several, Samples(12))
    calls = [each[first : first + iterations] for first in range(0, 6, iterations)]
    assert_equal(weights(several), weights(single))
    torch.testing.assert_close(together, [torch.stack(call).mean(dim=0) for call in calls])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_entered_later_sees_exactly_the_rest(make_engine: Callable[..., HostEngine], workers: int) -> None:
    def order(start: int) -> List[List[float]]:
        engine = make_engine(batch_size=2, gradient_accumulation=2, workers=workers)
        batches = engine.loader(Samples(9), start, 2)
        return [[float(x) for inputs in batch for x in inputs[1]] for batch in batches]

    whole = order(0)
    assert len(whole) == 4 and all(len(batch) == 4 for batch in whole)
    assert order(4) == whole[1:]
    assert order(12) == whole[3:]
    assert order(16) == []


def test_without_an_end_the_batches_go_on(make_engine: Callable[..., HostEngine]) -> None:
    engine, samples = make_engine(batch_size=2), Samples(4)
    batches: Iterator[Any] = engine.loader(samples, 0, None)
    for _ in range(10):
        engine.step(next(batches))
    assert len(samples.fetched) == 20 and set(samples.fetched) == set(range(4))


def test_a_global_batch_never_lies_in_memory_whole(
    make_engine: Callable[..., HostEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, samples, seen = make_engine(batch_size=2, gradient_accumulation=6, device_iterations=2), Samples(24), []
    forward = engine.model.forward

    def count(*inputs: Tensor) -> Tuple[Tensor, ...]:
        seen.append(len(samples.fetched))
        return forward(*inputs)

    monkeypatch.setattr(engine.model, "forward", count)
    train(engine, samples)
    assert seen == list(range(2, 25, 2))


@pytest.mark.parametrize("workers", [0, 1])
def test_validation_sees_every_sample_once_in_order(make_engine: Callable[..., HostEngine], workers: int) -> None:
    samples = Samples(7)
    seen = [inputs for inputs, _ in make_engine(batch_size=3, workers=workers).validation_loader(samples)]
    assert [len(inputs) for inputs in seen] == [3, 3, 1]
    assert torch.equal(torch.cat(seen), samples.inputs)


def test_compiling_and_validating_between_steps_leave_no_trace_in_training(
    make_engine: Callable[..., HostEngine],
) -> None:
    plain, watched = (make_engine(dropout=0.5, batch_size=2, ema_decay=0.9) for _ in range(2))
    torch.manual_seed(11)
    train(plain, Samples(12))
    torch.manual_seed(11)
    for batch in watched.loader(Samples(12), 0, 1):
        assert watched.compile((torch.ones(2, 4), torch.ones(2))).startswith("memory estimate: ")
        watched.step(batch)
        with watched.inference():
            for inputs in watched.validation_loader(Samples(3)):
                watched.evaluate(inputs)
    assert_equal(weights(watched), weights(plain))
    assert watched.average and plain.average
    assert_equal(watched.average.weights, plain.average.weights)


def test_evaluation_gives_the_scalars_of_the_averaged_model_without_dropout(
    make_engine: Callable[..., HostEngine],
) -> None:
    engine, samples = make_engine(dropout=0.5, batch_size=2, ema_decay=0.9), Samples(12)
    train(engine, samples)
    assert engine.average
    reference = copy.deepcopy(engine.model).eval()
    reference.load_state_dict({**reference.state_dict(), **engine.average.weights})
    with engine.inference(), torch.no_grad():
        scalars = engine.evaluate((samples.inputs, samples.targets))
        torch.testing.assert_close(scalars, torch.stack(reference(samples.inputs, samples.targets)))


@pytest.mark.parametrize("fails", [False, True])
def test_inference_shows_the_average_and_puts_the_weights_back_whatever_happens(
    make_engine: Callable[..., HostEngine], fails: bool
) -> None:
    engine = make_engine(batch_size=2, ema_decay=0.9)
    train(engine, Samples(12))
    assert engine.average
    trained, averaged = weights(engine), copy.deepcopy(engine.average.weights)
    try:
        with engine.inference() as model:
            assert_equal(dict(model.state_dict()), averaged)
            assert not model.training and not torch.is_grad_enabled()
            if fails:
                raise RuntimeError("out of memory")
    except RuntimeError:
        assert fails
    assert_equal(weights(engine), trained)
    assert_equal(engine.average.weights, averaged)
    assert torch.is_grad_enabled()


def test_the_learning_rate_is_that_of_the_next_step(make_engine: Callable[..., HostEngine]) -> None:
    engine = make_engine(batch_size=2, weight_decay=0.1, optimizer="AdamW")
    before = weights(engine)
    engine.set_learning_rate(0.0)
    train(engine, Samples(4))
    assert_equal(weights(engine), before)
    engine.set_learning_rate(0.1)
    train(engine, Samples(4))
    assert not torch.equal(weights(engine)["net.0.weight"], before["net.0.weight"])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_goes_on_from_a_checkpoint_repeats_scalars_and_weights_bit_by_bit(
    make_engine: Callable[..., HostEngine], tmp_path: Path, stop: int, ema_decay: float
) -> None:
    options = {"dropout": 0.5, "batch_size": 2, "ema_decay": ema_decay, "weight_decay": 0.1}
    whole, samples, scalars = make_engine(**options), Samples(12), []
    for number, batch in enumerate(whole.loader(samples, 0, 1), start=1):
        scalars.append(whole.step(batch).tolist())
        if number == stop:
            path = CheckpointFolder(tmp_path, "tiny").save(stop, whole.state_dict())
    resumed = make_engine(**options)
    resumed.load_state_dict(read_checkpoint(path, "tiny"))
    assert [values.tolist() for values in train(resumed, samples, start=2 * stop)] == scalars[stop:]
    assert_equal(weights(resumed), weights(whole))
    if ema_decay:
        assert resumed.average and whole.average
        assert_equal(resumed.average.weights, whole.average.weights)


def test_the_state_has_the_plain_models_names(make_engine: Callable[..., HostEngine]) -> None:
    engine = make_engine(batch_size=2, ema_decay=0.9)
    train(engine, Samples(2))
    state, names = engine.state_dict(), list(Regression().state_dict())
    assert list(state["weights"]) == list(state["optimizer"]) == list(state["average"]["weights"]) == names


@pytest.mark.parametrize("option", ["bf16", "fp16"])
def test_a_cpu_without_fast_instructions_computes_in_float32_and_says_so(
    make_engine: Callable[..., HostEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    option: str,
) -> None:
    monkeypatch.setattr(engines.host, "has_bf16_instructions", lambda: False)
    engine, plain = make_engine(batch_size=2, **{option: True}), make_engine(batch_size=2)
    for trained in (engine, plain):
        train(trained, Samples(4))
    assert engine.model.dtype == torch.float32
    assert_equal(weights(engine), weights(plain))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [f"{option}=true"]
    assert "computing in float32" in caplog.text


def test_bfloat16_computes_products_in_bfloat16_and_keeps_weights_in_float32(
    make_engine: Callable[..., HostEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.host, "has_bf16_instructions", lambda: True)
    engine = make_engine(batch_size=2, bf16=True)
    scalars = train(engine, Samples(4))
    assert engine.model.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in (*weights(engine).values(), *scalars)} == {torch.float32}


@pytest.mark.parametrize(
    "machine, flags, fast",
    [
        ("x86_64", "flags : fpu avx512f avx512_bf16 amx_tile", True),
        ("AMD64", "flags : fpu amx_bf16", True),
        ("x86_64", "flags : fpu avx2 avx512f", False),
        ("x86_64", None, False),
        ("riscv64", "flags : avx512_bf16", False),
    ],
)
def test_fast_bfloat16_is_read_off_the_cpus_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, flags: Optional[str], fast: bool
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(processor, "cpu_flags", lambda: cpu_flags(tmp_path / "cpuinfo"))
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert has_bf16_instructions() is fast


def test_a_gpu_that_is_not_there_is_refused(
    make_engine: Callable[..., HostEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="device=cuda, and torch sees no GPU here; use --device cpu"):
        make_engine(device="cuda")
    assert make_engine(device="auto").device.type == "cpu"


@pytest.mark.parametrize(
    "option",
    [{"synthetic_data": True}, {"compile_only": True}, {"executable_cache_dir": "cache"}, {"profile_dir": "profile"}],
    ids=lambda option: next(iter(option)),
)
def test_what_only_an_ipu_can_do_is_refused_by_name(
    make_engine: Callable[..., HostEngine], option: Dict[str, Any]
) -> None:
    ((name, value),) = option.items()
    with pytest.raises(OptionError, match=f"{name}={value} is for IPUs, and engine is host; leave {name} out"):
        make_engine(ipu=IpuOptions(**option))


def test_an_empty_folder_name_asks_for_nothing_of_an_ipu(make_engine: Callable[..., HostEngine]) -> None:
    make_engine(ipu=IpuOptions(executable_cache_dir="", profile_dir=""))  # as Graphcore's application has them


def test_what_only_places_or_rounds_on_ipus_is_named_and_changes_nothing(
    make_engine: Callable[..., HostEngine], caplog: pytest.LogCaptureFixture
) -> None:
    ipu = IpuOptions(layers_per_ipu=(0, 6, 6, 4), stochastic_rounding=True)
    with caplog.at_level(logging.INFO):
        placed = make_engine(batch_size=2, ipu=ipu)
    assert caplog.messages == ["for IPUs only, without effect on the host engine: layers_per_ipu, stochastic_rounding"]
    caplog.clear()
    plain = make_engine(batch_size=2)
    assert caplog.messages == []
    for engine in (placed, plain):
        train(engine, Samples(4))
    assert_equal(weights(placed), weights(plain))
