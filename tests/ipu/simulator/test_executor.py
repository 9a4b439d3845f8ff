"""The life of an executor: compiling, attaching, weights to and fro, its optimizer, its arguments, its files."""

from __future__ import annotations

import copy
import datetime
import gc
import io
import logging
import pickle
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import ConnectionType, Options, OutputMode, inferenceModel, trainingModel
from ipu.simulator.poptorch_core import Error


class Model(nn.Module):
    """A line through points, with a buffer that counts the micro batches."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, y: Optional[Tensor] = None) -> Any:
        self.seen.add_(1)
        found = self.lin(x)
        return found if y is None else (found, F.mse_loss(found, y))


def data(rows: int = 8) -> Tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)


def copies_in(caplog: pytest.LogCaptureFixture) -> List[str]:
    """What was copied implicitly since the last time this was asked."""
    found = [record.message for record in caplog.records if record.message.startswith("Implicit")]
    caplog.clear()
    return found


@pytest.fixture
def debug(caplog: pytest.LogCaptureFixture) -> Any:
    logger = logging.getLogger("poptorch::python")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="poptorch::python")
    yield caplog
    logger.setLevel(before)


# ----------------------------------------------------------------------------------------------------------- life cycle


def states(model: Any) -> Tuple[bool, bool]:
    return model.isCompiled(), model.isAttachedToDevice()


def test_the_states_of_an_executor_follow_its_life() -> None:
    model = trainingModel(Model())
    assert states(model) == (False, False)
    model.compile(*data())
    assert states(model) == (True, True)
    model.detachFromDevice()
    assert states(model) == (True, False)
    model(*data())
    assert states(model) == (True, True)
    model.destroy()
    assert states(model) == (False, False)
    model.destroy()
    offline = trainingModel(Model(), Options().connectionType(ConnectionType.Never))
    offline.compile(*data())
    assert states(offline) == (True, False)


def test_compiling_changes_neither_weights_nor_buffers_nor_random_numbers() -> None:
    plain = Model()
    before = copy.deepcopy(plain.state_dict())
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    trainingModel(plain).compile(*data())
    assert torch.equal(torch.rand(2), wanted)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_compiling_twice_warns_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = inferenceModel(Model())
    model.compile(data()[0])
    graph = model._graph
    model.compile(torch.zeros(5, 3))
    assert model._graph is graph and "compiled already" in caplog.text


def test_a_compilation_that_fails_leaves_nothing_compiled() -> None:
    model = trainingModel(Model())
    with pytest.raises(Error, match="Couldn't find a loss"):
        model.compile(data()[0])
    assert states(model) == (False, False)
    model.compile(*data())
    assert states(model) == (True, True)


def test_compile_hooks_run_once_around_each_compilation_even_a_failing_one() -> None:
    calls: List[str] = []
    before = poptorch.registerPreCompileHook(lambda: calls.append("before"))
    after = poptorch.registerPostCompileHook(lambda: calls.append("after"))
    try:
        model = inferenceModel(Model())
        model(data()[0])
        model(data()[0])
        assert calls == ["before", "after"]
        with pytest.raises(Error, match="Couldn't find a loss"):
            trainingModel(Model()).compile(data()[0])
        assert calls == ["before", "after"] * 2
    finally:
        before.remove()
        after.remove()
    inferenceModel(Model())(data()[0])
    assert len(calls) == 4


def test_side_effects_of_forward_happen_once_and_control_flow_is_frozen() -> None:
    calls: List[bool] = []

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(poptorch.isRunningOnIpu())
            return x * len(calls)

    model = inferenceModel(Counting())
    assert [float(model(torch.ones(1))) for _ in range(3)] == [1, 1, 1]
    assert calls == [True] and not poptorch.isRunningOnIpu()


def test_attributes_set_on_the_model_after_wrapping_are_not_seen_but_those_of_its_modules_are() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor, self.inner = 2.0, nn.Dropout(1.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.factor

    plain = Scaled()
    model = inferenceModel(plain)
    plain.factor = 5.0
    plain.inner.eval()
    assert model(torch.ones(1)).tolist() == [2.0]


def test_a_tensor_that_is_neither_parameter_nor_buffer_is_baked_in() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.tensor([2.0])

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    plain = Holding()
    model = inferenceModel(plain)
    assert model(torch.ones(1)).tolist() == [2]
    plain.scale.fill_(7)
    assert model(torch.ones(1)).tolist() == [2]


def test_modules_reached_through_a_closure_are_trained() -> None:
    outside = nn.Linear(3, 2)

    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = outside

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(outside(x), y)

    before = outside.weight.detach().clone()
    model = trainingModel(Closure())
    model(*data())
    assert not torch.equal(outside.weight, before)


def test_forgetting_the_executor_frees_the_model_and_keeps_what_it_learned() -> None:
    plain = Model()
    model = trainingModel(plain)
    before = plain.lin.weight.detach().clone()
    model(*data())
    del model
    gc.collect()
    assert not torch.equal(plain.lin.weight, before)
    again = trainingModel(plain)
    again(*data())
    again.destroy()
    assert type(plain) is Model and type(plain.lin.weight) is nn.Parameter


def test_a_destroyed_executor_leaves_a_plain_model_and_can_run_again() -> None:
    plain = Model()
    model = trainingModel(plain)
    model(*data())
    model.destroy()
    assert type(plain) is Model and type(plain.lin.weight) is nn.Parameter and type(plain.seen) is Tensor
    learned = plain.lin.weight.detach().clone()
    model(*data())
    assert torch.equal(plain.lin.weight, learned)
    model.copyWeightsToHost()
    assert not torch.equal(plain.lin.weight, learned)


def test_an_executor_collected_while_another_is_traced_leaves_its_weights() -> None:
    class Collecting(Model):
        def forward(self, x: Tensor, y: Optional[Tensor] = None) -> Any:
            trained.clear()
            gc.collect()
            return super().forward(x, y)

    model = Model().train()
    before = model.lin.weight.detach().clone()
    trained = [trainingModel(model, Options(), poptorch.optim.SGD(model.parameters(), lr=0.1))]
    trained[0](*data())
    inferenceModel(Collecting().eval())(data()[0])
    assert not torch.equal(model.lin.weight, before)


def test_destroying_before_compiling_leaves_the_model_wrapped() -> None:
    plain = Model()
    model = trainingModel(plain)
    model.destroy()
    with pytest.raises(RuntimeError, match="already been wrapped"):
        trainingModel(plain)


# -------------------------------------------------------------------------------------------------------------- weights


def test_weights_come_back_once_when_they_are_first_read(debug: pytest.LogCaptureFixture) -> None:
    plain = Model()
    model = trainingModel(plain)
    model(*data())
    assert copies_in(debug) == ["Implicit copyWeightsToDevice()"]
    model(*data())
    assert copies_in(debug) == []
    first = plain.lin.weight.detach().clone()
    assert copies_in(debug) == ["Implicit copyWeightsToHost()"]
    plain.state_dict()
    assert float(plain.lin.bias.sum()) == float(plain.lin.bias.sum())
    assert copies_in(debug) == []
    model(*data())
    assert copies_in(debug) == []
    assert not torch.equal(plain.lin.weight, first)


@pytest.mark.parametrize(
    "read",
    [
        lambda plain: plain.lin.weight.sum(),
        lambda plain: list(plain.parameters()),
        lambda plain: plain.state_dict(),
        lambda plain: plain.seen + 1,
        lambda plain: plain(torch.zeros(1, 3)),
        lambda plain: torch.save(plain, io.BytesIO()),
        lambda plain: copy.deepcopy(plain),
        lambda plain: str(plain.lin.weight),
        lambda plain: plain.lin.weight.tolist(),
        lambda plain: F.linear(torch.zeros(1, 3), plain.lin.weight),
    ],
)
def test_every_way_to_read_a_weight_brings_it_back_first(debug: pytest.LogCaptureFixture, read: Any) -> None:
    plain = Model()
    model = trainingModel(plain)
    model(*data())
    copies_in(debug)
    read(plain)
    assert copies_in(debug) == ["Implicit copyWeightsToHost()"]
    read(plain)
    assert copies_in(debug) == []
    assert model.isAttachedToDevice()


def test_pushing_weights_discards_what_the_device_learned_unless_it_was_read() -> None:
    plain = Model()
    model = trainingModel(plain)
    before = plain.lin.weight.detach().clone()
    model(*data())
    model.copyWeightsToDevice()
    assert torch.equal(plain.lin.weight, before)
    model(*data())
    read = plain.lin.weight.detach().clone()
    model.copyWeightsToDevice()
    model.copyWeightsToHost()
    assert torch.equal(plain.lin.weight, read) and not torch.equal(read, before)


def test_weights_changed_by_hand_are_seen_after_they_are_pushed() -> None:
    plain = Model()
    model = inferenceModel(plain)
    x = data()[0]
    before = model(x)
    with torch.no_grad():
        plain.lin.weight.zero_()
    assert torch.equal(model(x), before)
    model.copyWeightsToDevice()
    torch.testing.assert_close(model(x), plain.lin.bias.detach().expand(8, 2))


def test_loading_through_the_executor_reaches_the_device() -> None:
    model = trainingModel(Model())
    model(*data())
    state = {name: torch.ones_like(tensor) for name, tensor in Model().state_dict().items()}
    assert model.load_state_dict(state).missing_keys == []
    model.copyWeightsToHost()
    assert model.lin.weight.tolist() == [[1] * 3] * 2
    assert list(model.load_state_dict({}, strict=False).missing_keys) == list(state)


def test_inference_follows_training_with_one_copy_for_each_change(debug: pytest.LogCaptureFixture) -> None:
    plain = Model()
    training = trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=0.1))
    inference = inferenceModel(training)
    x, y = data()
    first = inference(x)
    copies_in(debug)
    assert torch.equal(inference(x), first)
    assert copies_in(debug) == []
    training(x, y)
    copies_in(debug)
    second = inference(x)
    assert copies_in(debug) == ["Implicit copyWeightsToHost()", "Implicit copyWeightsToDevice()"]
    assert torch.equal(inference(x), second) and not torch.equal(second, first)
    assert copies_in(debug) == []
    torch.testing.assert_close(second, plain.lin(x))


def test_buffers_come_back_and_those_of_inference_stay_on_the_device() -> None:
    plain = Model()
    options = Options().deviceIterations(2)
    options.Training.gradientAccumulation(3)
    training = trainingModel(plain, options)
    training(*data(6))
    training(*data(6))
    assert float(plain.seen) == 12
    alone = Model()
    inference = inferenceModel(alone)
    for _ in range(3):
        inference(data()[0])
    assert float(alone.seen) == 0
    inference.copyWeightsToHost()
    assert float(alone.seen) == 3


def test_each_replica_has_buffers_of_its_own_where_they_are_not_broadcast() -> None:
    class Summing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x)
            return self.total * 1

    plain = Summing()
    options = Options().replicationFactor(2).deviceIterations(2).broadcastBuffers(False)
    model = inferenceModel(plain, options)
    assert model(torch.tensor([1.0, 10.0, 2.0, 20.0])).tolist() == [1, 10, 3, 30]
    assert model(torch.tensor([1.0, 10.0, 2.0, 20.0])).tolist() == [4, 40, 6, 60]
    model.copyWeightsToHost()
    assert plain.total.tolist() == [6]


def test_named_buffers_can_be_updated_alone() -> None:
    plain = Model()
    model = inferenceModel(plain, Options().updatableNamedBuffers(["seen"]))
    model(data()[0])
    with torch.no_grad():
        plain.seen.fill_(100)
        plain.lin.weight.zero_()
    before = model(data()[0])
    model.copyNamedBuffersToDevice()
    assert torch.equal(model(data()[0]), before)
    model.copyWeightsToHost()
    assert float(plain.seen) == 101


def test_frozen_parameters_stay_and_unlisted_ones_follow_the_defaults() -> None:
    plain = Model()
    plain.lin.bias.requires_grad_(False)
    bias, weight = plain.lin.bias.detach().clone(), plain.lin.weight.detach().clone()
    stranger = nn.Parameter(torch.zeros(1))
    training = trainingModel(plain, optimizer=poptorch.optim.SGD([stranger], lr=0.5))
    x, y = data()
    training(x, y)
    reference = nn.Linear(3, 2)
    reference.load_state_dict({"weight": weight, "bias": bias})
    F.mse_loss(reference(x), y).backward()
    assert torch.equal(plain.lin.bias, bias)
    torch.testing.assert_close(plain.lin.weight.detach(), weight - 0.5 * reference.weight.grad)


def test_a_model_whose_loss_reaches_no_weight_runs_and_keeps_them() -> None:
    class Constant(Model):
        def forward(self, x: Tensor, y: Optional[Tensor] = None) -> Any:
            return poptorch.identity_loss(x, "mean") + 0 * self.lin.weight.detach().sum()

    plain = Constant()
    before = plain.lin.weight.detach().clone()
    assert float(trainingModel(plain)(torch.ones(2, 3))) == 1
    assert torch.equal(plain.lin.weight, before)


# -------------------------------------------------------------------------------------------------------- the optimizer


def losses(training: Any, steps: int = 3) -> List[float]:
    return [float(training(*data())[1]) for _ in range(steps)]


def test_without_an_optimizer_sgd_with_a_rate_of_a_hundredth_is_used() -> None:
    one, other = Model(), Model()
    other.load_state_dict(one.state_dict())
    assert losses(trainingModel(one)) == losses(
        trainingModel(other, optimizer=torch.optim.SGD(other.parameters(), lr=0.01))
    )


def test_a_changed_rate_counts_after_set_optimizer_only() -> None:
    plain = Model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    training = trainingModel(plain, optimizer=optimizer)
    training(*data())
    optimizer.param_groups[0]["lr"] = 0.0
    before = plain.lin.weight.detach().clone()
    training(*data())
    assert not torch.equal(plain.lin.weight, before)
    training.setOptimizer(optimizer)
    before = plain.lin.weight.detach().clone()
    training(*data())
    assert torch.equal(plain.lin.weight, before)


def test_a_rate_set_while_detached_counts_at_the_next_call() -> None:
    plain = Model()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    training = trainingModel(plain, optimizer=optimizer)
    training(*data())
    training.detachFromDevice()
    optimizer.param_groups[0]["lr"] = 0.0
    training.setOptimizer(optimizer)
    before = plain.lin.weight.detach().clone()
    training(*data())
    assert torch.equal(plain.lin.weight, before)


def test_the_state_of_a_poptorch_optimizer_is_fetched_when_it_is_new(debug: pytest.LogCaptureFixture) -> None:
    plain = Model()
    optimizer = poptorch.optim.Adam(plain.parameters(), lr=0.1)
    training = trainingModel(plain, optimizer=optimizer)
    assert optimizer.state_dict()["ipu_state"] is None
    training(*data())
    debug.clear()
    state = optimizer.state_dict()
    assert "Writing optimiser state tensors from IPU to host." in debug.text
    assert float(state["ipu_state"]["Step___lin.weight"]) == 1
    debug.clear()
    optimizer.state_dict()
    assert "Using cached optimiser state dict" in debug.text and "Writing optimiser" not in debug.text
    training(*data())
    assert float(optimizer.state_dict()["ipu_state"]["Step___lin.weight"]) == 2


def checkpoint_of(training: Any, optimizer: Any) -> Dict[str, Any]:
    file = io.BytesIO()
    torch.save({"model": training.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return torch.load(file)


def test_a_run_resumed_from_model_and_optimizer_repeats_the_losses() -> None:
    def start() -> Tuple[Any, Any]:
        torch.manual_seed(0)
        plain = Model()
        return plain, poptorch.optim.AdamW(plain.parameters(), lr=0.1)

    plain, optimizer = start()
    training = trainingModel(plain, optimizer=optimizer)
    losses(training)
    saved = checkpoint_of(training, optimizer)
    wanted = losses(training)
    plain, optimizer = start()
    plain.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert losses(trainingModel(plain, optimizer=optimizer)) == wanted


def test_a_state_loaded_into_a_running_optimizer_is_used_by_the_next_call() -> None:
    plain = Model()
    optimizer = poptorch.optim.Adam(plain.parameters(), lr=0.1)
    training = trainingModel(plain, optimizer=optimizer)
    training(*data())
    saved = copy.deepcopy(optimizer.state_dict())
    losses(training)
    optimizer.load_state_dict(saved)
    training(*data())
    assert float(optimizer.state_dict()["ipu_state"]["Step___lin.weight"]) == 2


def test_the_optimizers_state_survives_detaching_and_destroying() -> None:
    def run(break_after: str) -> List[float]:
        torch.manual_seed(0)
        plain = Model()
        optimizer = poptorch.optim.Adam(plain.parameters(), lr=0.1)
        training = trainingModel(plain, optimizer=optimizer)
        found = losses(training)
        if break_after == "detach":
            training.detachFromDevice()
        if break_after == "destroy":
            training.destroy()
            assert float(optimizer.state_dict()["ipu_state"]["Step___lin.weight"]) == 3
        return found + losses(training)

    assert run("detach") == run("nothing") == run("destroy")


def test_a_replaced_optimizer_keeps_its_last_state_and_the_new_one_goes_on() -> None:
    plain = Model()
    first = poptorch.optim.Adam(plain.parameters(), lr=0.1)
    training = trainingModel(plain, optimizer=first)
    losses(training)
    second = poptorch.optim.Adam(plain.parameters(), lr=0.0)
    training.setOptimizer(second)
    before = plain.lin.weight.detach().clone()
    training(*data())
    assert torch.equal(plain.lin.weight, before)
    assert float(first.state_dict()["ipu_state"]["Step___lin.weight"]) == 3
    assert float(second.state_dict()["ipu_state"]["Step___lin.weight"]) == 4


def test_a_scheduler_works_through_set_optimizer_and_its_addition_is_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = Model()
    optimizer = poptorch.optim.SGD(plain.parameters(), lr=1.0)
    training = trainingModel(plain, optimizer=optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0 if epoch else 0.1)
    for _ in range(3):
        training(*data())
        scheduler.step()
        training.setOptimizer(optimizer)
    assert caplog.text.count("initial_lr") == 1
    before = plain.lin.weight.detach().clone()
    training(*data())
    assert torch.equal(plain.lin.weight, before)


def test_the_optimizers_values_are_logged_with_what_is_constant(debug: pytest.LogCaptureFixture) -> None:
    plain = Model()
    trainingModel(plain, optimizer=poptorch.optim.SGD(plain.parameters(), lr=0.5)).compile(*data())
    line = next(r.message for r in debug.records if r.message.startswith("Updating group 0 optimizer with"))
    assert "lr=0.5," in line and "momentum=0 (const)" in line


# ------------------------------------------------------------------------------------------------------------ arguments


def test_inputs_that_forward_changes_are_changed_in_the_callers_tensor() -> None:
    class Changing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return x * 10

    x = torch.arange(4.0)
    model = inferenceModel(Changing(), Options().deviceIterations(2))
    assert model(x).tolist() == [10, 20, 30, 40]
    assert x.tolist() == [1, 2, 3, 4]
    assert model(x).tolist() == [20, 30, 40, 50]


def test_types_are_the_devices() -> None:
    class Types(nn.Module):
        def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Any:
            return a + 1, b * 2, c.argmax(), d, c.half()

    given = (torch.tensor([2**33 + 5]), torch.ones(1).double(), torch.tensor([[1.0, 3.0]]), torch.tensor([True]))
    found = inferenceModel(Types())(*given)
    assert [tensor.dtype for tensor in found] == [torch.int32, torch.float32, torch.int32, torch.bool, torch.half]
    assert found[0].tolist() == [6]


def test_a_gradient_of_an_input_is_not_computed_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = inferenceModel(Model())
    for _ in range(2):
        assert not model(data()[0].requires_grad_()).requires_grad
    assert caplog.text.count("requires a gradient") == 1


def test_a_result_of_the_host_comes_back_as_it_is_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    outside = torch.arange(3)

    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x, outside, "text", None

    found = inferenceModel(Mixed(), Options().deviceIterations(2))(torch.ones(4))
    assert found[1].tolist() == [0, 1, 2] and found[2:] == ("text", None)
    assert "expected on the IPU" in caplog.text


def test_results_of_earlier_calls_stay_as_they_were() -> None:
    model = inferenceModel(Model())
    first = model(torch.zeros(1, 3))
    kept = first.clone()
    model(torch.ones(1, 3))
    assert torch.equal(first, kept)


def test_a_saved_result_loads_as_weights_only_without_the_simulator() -> None:
    file = io.BytesIO()
    torch.save(trainingModel(Model())(*data())[1], file)
    assert b"simulator" not in file.getvalue()
    file.seek(0)
    assert torch.load(file, weights_only=True).dim() == 0


# ---------------------------------------------------------------------------------------------------- files and queries


def test_a_saved_executable_brings_model_options_optimizer_and_random_numbers_back(tmp_path: Path) -> None:
    plain = Model()
    optimizer = poptorch.optim.SGD([{"params": plain.lin.weight, "lr": 0.0}, {"params": plain.lin.bias}], lr=0.5)
    training = trainingModel(plain, Options().deviceIterations(2).outputMode(OutputMode.Sum), optimizer)
    training(*data())
    training.save(str(tmp_path / "deep" / "file"))
    training.copyWeightsToHost()
    loaded = poptorch.load(str(tmp_path / "deep" / "file"))
    assert loaded.isCompiled() and loaded.options.device_iterations == 2
    assert type(loaded.model).__mro__[2] is Model
    assert loaded.rng_state == training.rng_state
    before = loaded.model.lin.weight.detach().clone()
    wanted, found = training(*data()), loaded(*data())
    assert torch.equal(wanted[1], found[1])
    assert torch.equal(loaded.model.lin.weight, before)  # its group's rate is 0
    assert torch.equal(loaded.model.lin.bias, plain.lin.bias)


def test_options_can_be_edited_while_loading(tmp_path: Path) -> None:
    model = inferenceModel(Model(), Options().useOfflineIpuTarget())
    model.compileAndExport(str(tmp_path / "offline"), data()[0])
    loaded = poptorch.load(str(tmp_path / "offline"), lambda options: options.connectionType(ConnectionType.Always))
    assert torch.equal(loaded(data()[0]), inferenceModel(loaded.model)(data()[0]))


def test_a_folder_gets_a_file_and_an_executable_without_model_needs_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = Model()
    model = inferenceModel(plain)
    wanted = model(data()[0])
    model.save(str(tmp_path), export_model=False)
    assert "is a folder" in caplog.text
    file = str(tmp_path / "model.poptorch")
    with pytest.raises(AssertionError, match="loadExecutable"):
        poptorch.load(file)
    fresh = inferenceModel(plain)
    fresh.loadExecutable(file)
    assert fresh.isCompiled() and torch.equal(fresh(data()[0]), wanted)


def test_an_executable_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(pickle.dumps({"version": "2.0"}))
    with pytest.raises(AssertionError, match="version 2.0, and this is 3.4.0"):
        poptorch.load(str(path))


def test_what_was_compiled_is_noted_in_the_cache_and_found_again(tmp_path: Path, debug: Any) -> None:
    options = Options().enableExecutableCaching(str(tmp_path / "cache"))
    plain = Model()
    for _ in range(2):
        inferenceModel(plain, options)(data()[0])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert "executable found in" in debug.text
    inferenceModel(plain, options)(data(9)[0])
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_several_processes_without_a_cache_are_warned(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    for options in (Options().enableExecutableCaching(str(tmp_path)), Options()):
        options.Distributed.configureProcessId(0, 2)
        inferenceModel(Model(), options)(data()[0])
    assert caplog.text.count("enableExecutableCaching(path)") == 1


def test_a_run_that_stops_leaves_nothing_to_the_next() -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(self.weight / x, "sum")

    plain = Exploding()
    options = Options().replicationFactor(2)
    options.Precision.enableFloatingPointExceptions(True)
    training = trainingModel(plain, options, torch.optim.SGD(plain.parameters(), lr=0.5))
    with pytest.raises(Error, match="floating point exception"):
        training(torch.tensor([0.1, 0.0]))
    training(torch.tensor([1.0, 1.0]))
    assert plain.weight.tolist() == [0.5]


def test_random_numbers_go_on_from_call_to_call_and_can_be_put_back() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(2, device=x.device)

    model = inferenceModel(Random(), Options().randomSeed(5))
    first = model(torch.zeros(2))
    state = model.rng_state
    assert state[0] == 5 and all(isinstance(number, int) for number in state)
    second = model(torch.zeros(2))
    assert not torch.equal(first, second)
    model.rng_state = state
    assert torch.equal(model(torch.zeros(2)), second)
    model.detachFromDevice()
    third = model(torch.zeros(2))
    assert not torch.equal(third, second)
    assert torch.equal(inferenceModel(Random(), Options().randomSeed(5))(torch.zeros(2)), first)


def test_counters_have_an_entry_for_every_micro_batch() -> None:
    options = Options().deviceIterations(2).replicationFactor(2)
    options.Training.gradientAccumulation(3)
    model = trainingModel(Model(), options.broadcastBuffers(False))
    assert model.getPerfCounters() == {name: [[]] for name in ("input", "input_complete", "output", "output_complete")}
    assert model.getLatency() == (0, 0, 0)
    model(*data(12))
    counters = model.getPerfCounters()
    assert [len(moments) for moments in counters["input"]] == [12, 12]
    assert [len(moments) for moments in counters["output_complete"]] == [2, 2]
    least, most, mean = model.getLatency()
    assert 0 < least <= mean <= most


def test_synthetic_data_moves_nothing_and_leaves_torchs_random_numbers_alone() -> None:
    model = inferenceModel(Model(), Options().enableSyntheticData(True))
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    assert model(torch.zeros(4, 3)).std() > 0
    assert torch.equal(torch.rand(1), wanted)
    assert model.getPerfCounters()["input"] == [[]]
    assert model.getLatency() == (0, 0, 0)


def test_compilation_time_and_names_are_known_after_compiling() -> None:
    model = inferenceModel(Model())
    with pytest.raises(AssertionError, match="Model has not been compiled"):
        model.getTensorNames()
    model(data()[0])
    assert isinstance(model.compilationTime(), datetime.timedelta)
    assert {"lin.weight", "lin.bias", "input 0"} <= set(model.getTensorNames())
    quiet = inferenceModel(Model(), Options().showCompilationProgressBar(False))
    quiet(data()[0])
    with pytest.raises(Error, match="showCompilationProgressBar"):
        quiet.compilationTime()


def test_an_anchored_tensor_comes_back_beside_the_outputs_in_its_own_mode() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).relu() + 1

    probe = inferenceModel(Inner())
    probe(torch.ones(1))
    name = next(name for name in probe.getTensorNames() if name.startswith("mul"))
    options = Options().deviceIterations(4).outputMode(OutputMode.Final)
    options.anchorTensor("doubled", name, OutputMode.All)
    options.anchorTensor("last", name)
    model = inferenceModel(Inner(), options)
    assert model(torch.arange(4.0)).tolist() == [7]
    assert model.getAnchoredTensor("doubled").tolist() == [0, 2, 4, 6]
    assert model.getAnchoredTensor("last").tolist() == [6]
    with pytest.raises(AssertionError, match="no anchored tensor is called other"):
        model.getAnchoredTensor("other")


def test_unknown_attributes_are_the_models() -> None:
    plain = Model()
    model = trainingModel(plain)
    assert model.model is plain and model.lin is plain.lin
    model.lin.weight.replicaGrouping(poptorch.CommGroupType.All, 0, poptorch.VariableRetrievalMode.OnePerGroup)
    with pytest.raises(AttributeError):
        _ = model.no_such_thing
    poptorch.BeginBlock(plain.lin, "first", 0)
    assert "(lin): BeginBlock(user_id=first, ipu_id=0) Linear" in repr(model)
