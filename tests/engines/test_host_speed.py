"""What makes the host engine's step faster or smaller, and leaves its numbers as they are."""

from __future__ import annotations

import functools
from typing import Any, Dict, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

import engines.host
from engines import open_engine
from engines.host import HostEngine
from engines.memory import fitting_batch, measure_activations
from engines.onednn import OneDnnLinear, is_faster, lay_out
from engines.options import IpuOptions, TrainingOptions
from models.dalle import Projection
from models.products import onednn_linear
from options import OptionError
from tests.parity import Case, make_model, make_samples
from tests.parity import make_engine as make_ipu_engine

SAMPLES = 12


class Drawn(Dataset):  # type: ignore[type-arg]
    """Captions with pictures; a key is an epoch and an index."""

    def __init__(self) -> None:
        self.tensors = make_samples(SAMPLES)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[Tensor, ...]:
        return tuple(tensor[key[1]] for tensor in self.tensors)


def engine_of(transformer: Dict[str, Any], **options: Any) -> HostEngine:
    training = TrainingOptions(**{"engine": "host", "device": "cpu", "learning_rate": 3e-3, **options})
    engine = open_engine(make_model(Case("host", transformer)), training, IpuOptions(), 0)
    assert isinstance(engine, HostEngine)
    return engine


def trained(engine: HostEngine) -> List[Tensor]:
    """The losses of some steps, and the weights after them."""
    dataset = Drawn()
    engine.compile(tuple(tensor[None] for tensor in dataset[0, 0]))
    losses = [engine.step(batch) for batch in engine.loader(dataset, 0, 2)]
    return [torch.stack(losses), *engine.model.state_dict().values()]


def assert_alike(found: List[Tensor], wanted: List[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# -------------------------------------------------------------------------------------------------------- device_batch


@pytest.mark.parametrize("samples", ["1", "2", "3", "6", "auto"])
def test_regrouped_micro_batches_train_as_the_configured_ones(samples: str) -> None:
    step = {"batch_size": 1, "gradient_accumulation": 3, "replication_factor": 2}
    wanted = trained(engine_of({}, **step))
    engine = engine_of({}, device_batch=samples, **step)
    assert_alike(trained(engine), wanted)
    assert engine.device_batch == (6 if samples == "auto" else int(samples))


@pytest.mark.parametrize(
    "given, words", [("5", "does not divide the global batch of 12"), ("many", "neither"), ("0", "")]
)
def test_a_device_batch_that_makes_no_step_is_refused(given: str, words: str) -> None:
    with pytest.raises(OptionError, match=f"device_batch={given} .*{words}"):
        TrainingOptions(device_batch=given, batch_size=4, gradient_accumulation=3)


def test_auto_takes_what_fits_and_divides_the_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cpu = nn.Linear(10, 10, bias=False), torch.device("cpu")
    monkeypatch.setattr("engines.memory._free_memory", lambda device: 1_000_000)
    room = 1_000_000 * 0.8 - 3 * 400
    assert fitting_batch(model, room / 1.5 / 5.5, 100, cpu) == 5
    assert fitting_batch(model, room / 1.5 / 3.5, 100, cpu) == 2
    assert fitting_batch(model, 10 * room, 100, cpu) == 1
    assert fitting_batch(model, 1, 100, cpu) == 10  # at most 16 on a CPU


@pytest.mark.parametrize(
    "option", [{"device_batch": "2"}, {"compile": True}, {"checkpoint_activations": True}], ids=str
)
def test_ipus_refuse_what_is_for_the_host(option: Dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(option))}=.* is for the host engine"):
        make_ipu_engine(Case("host's", {}, {"batch_size": 2, **option}))


# ------------------------------------------------------------------------------------------------ layers made otherwise


@pytest.mark.parametrize("transformer", [{}, {"attn_types": ("axial_row",), "ff_dropout": 0.2}], ids=str)
def test_checkpointed_activations_give_the_same_bits_and_keep_less(
    transformer: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.__version__ < "2.1":  # which takes other kernels then, whose bits are others
        monkeypatch.setattr(engines.host, "use_kernels", lambda *_: None)
    plain, checkpointed = (engine_of(transformer, checkpoint_activations=value) for value in (False, True))
    inputs = tuple(tensor[:2] for tensor in make_samples(2))
    kept = [measure_activations(engine.model, inputs) for engine in (plain, checkpointed)]
    assert kept[1] < kept[0] / 2
    torch.manual_seed(3)
    wanted = trained(plain)
    torch.manual_seed(3)
    assert all(torch.equal(one, other) for one, other in zip(trained(checkpointed), wanted))


def test_compiled_layers_train_as_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: List[Any] = []

    def without_a_compiler(function: Any, **settings: Any) -> Any:
        compiled.append(function)
        return actual(function, **settings)

    actual = functools.partial(torch.compile, backend="eager")
    # compiling switches it off for good; monkeypatch puts back what it was
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    monkeypatch.setattr(torch, "compile", without_a_compiler)
    transformer = {"attn_types": ("axial_row", "full")}
    assert_alike(trained(engine_of(transformer, compile=True)), trained(engine_of(transformer)))
    assert [function.__name__ for function in compiled] == ["logits_gradient", "forward", "forward"]


@pytest.mark.parametrize("option", ["compile", "checkpoint_activations"])
def test_a_model_without_layers_has_none_to_change(option: str) -> None:
    training = TrainingOptions(device="cpu", **{option: True})
    with pytest.raises(OptionError, match=f"{option}=true is for the layers of a transformer"):
        HostEngine(nn.Linear(2, 2), training, IpuOptions(), 0)


def test_reversible_layers_are_not_checkpointed() -> None:
    with pytest.raises(OptionError, match="checkpoint_activations=true and reversible=true"):
        engine_of({"reversible": True}, checkpoint_activations=True)


# --------------------------------------------------------------------------------------------------------------- oneDNN

needs_onednn = pytest.mark.skipif(onednn_linear() is None, reason="this PyTorch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (1, 8)], ids=str)
def test_products_by_onednn_are_those_of_pytorch(shape: Any, bias: bool) -> None:
    results = []
    for fast in (False, True):
        torch.manual_seed(0)
        given = [torch.randn(shape), torch.randn(6, 8), *([torch.randn(6)] if bias else [])]
        given = [tensor.requires_grad_() for tensor in given]
        with OneDnnLinear() if fast else torch.enable_grad():
            out = F.linear(*given)
        gradients = torch.autograd.grad(out.square().sum(), given)
        results.append([out, *gradients])
    assert_alike(results[1], results[0])


@needs_onednn
def test_products_of_other_types_and_of_frozen_tensors_go_on_as_they_are() -> None:
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    frozen = torch.randn(6, 8)
    with OneDnnLinear():
        assert torch.equal(F.linear(x, weight), x @ weight.t())
        out = F.linear(x.float().requires_grad_(), frozen)
    out.sum().backward()
    assert frozen.grad is None


@needs_onednn
def test_a_step_by_onednn_trains_as_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = []
    for faster in (False, True):
        monkeypatch.setattr(engines.host, "is_faster", lambda flags, faster=faster: faster)
        outcomes.append(trained(engine_of({"attn_types": ("axial_col", "full")}, batch_size=2)))
    assert_alike(outcomes[1], outcomes[0])


@needs_onednn
def test_only_layers_that_widen_are_laid_out_otherwise_and_keep_their_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 4), Projection(4, 9))
    before = [weight.clone() for weight in model.state_dict().values()]
    lay_out(model)
    assert [layer.weight.is_contiguous() for layer in model] == [False, True, True, True]
    assert all(torch.equal(now, old) for now, old in zip(model.state_dict().values(), before))
    with OneDnnLinear():
        model(torch.randn(3, 4)).sum().backward()
    assert all(layer.weight.grad.stride() == layer.weight.stride() for layer in model)


def test_onednn_is_chosen_by_the_processor_alone() -> None:
    assert not is_faster(frozenset({"GenuineIntel", "avx512f"}))
    assert not is_faster(frozenset({"AuthenticAMD", "avx2"}))
    assert not is_faster(frozenset())
    assert is_faster(frozenset({"AuthenticAMD", "avx512f"})) == (onednn_linear() is not None)
