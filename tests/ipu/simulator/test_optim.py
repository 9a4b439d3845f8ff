"""PopTorch's optimizer classes: what they hold, which of it may vary, and what they save."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import pickle
from typing import Any, Dict, List, Type

import pytest
import torch
from torch import nn

from ipu.simulator import optim

CLASSES: List[Type[Any]] = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB]
MOMENTS = {"first_order_momentum_accum_type": torch.float32, "second_order_momentum_accum_type": torch.float32}


def make(kind: Type[Any], **values: Any) -> Any:
    return kind([nn.Parameter(torch.ones(2))], lr=0.1, **values)


class Executor:
    """Stands for what runs the optimizer: its device holds a state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def _device_state(self) -> Dict[str, Any]:
        return {"ipu_state": self.state, "ipu_param": {"learningRate": torch.tensor(0.1)}}


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_not_given_has_its_default(kind: Type[Any]) -> None:
    optimizer = make(kind)
    assert optimizer.loss_scaling == 1.0
    assert optimizer.accum_type == torch.float32
    if kind is optim.SGD:
        assert optimizer.velocity_accum_type == torch.float32
        assert not optimizer.use_combined_accum
        assert optimizer.param_groups[0]["velocity_scaling"] == 1.0
    else:
        assert {name: getattr(optimizer, name) for name in MOMENTS} == MOMENTS
    if kind in (optim.SGD, optim.Adam, optim.AdamW):
        assert optimizer.max_grad_norm == math.inf


@pytest.mark.parametrize("kind", CLASSES[:-1])
def test_torchs_values_keep_torchs_defaults(kind: Type[Any]) -> None:
    theirs = getattr(torch.optim, kind.__name__)([nn.Parameter(torch.ones(2))], lr=0.1)
    ours = make(kind)
    ours.defaults.pop("velocity_scaling", None)
    assert ours.defaults == theirs.defaults
    assert isinstance(ours, type(theirs))


@pytest.mark.parametrize("kind", CLASSES)
def test_arguments_are_torchs_first_and_then_the_devices(kind: Type[Any]) -> None:
    base = {optim.LAMB: torch.optim.AdamW}.get(kind) or getattr(torch.optim, kind.__name__)
    ours, theirs = (list(inspect.signature(c.__init__).parameters) for c in (kind, base))
    shared = [name for name in ours if name in theirs]
    assert ours[: len(shared)] == shared
    assert {"loss_scaling", "accum_type"} <= set(ours)


def test_lamb_has_its_defaults() -> None:
    group = optim.LAMB([nn.Parameter(torch.ones(2))]).param_groups[0]
    values = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500.0}
    assert {name: group[name] for name in values} == values


def test_sgd_wants_a_learning_rate() -> None:
    with pytest.raises(TypeError):
        optim.SGD([nn.Parameter(torch.ones(2))])  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", CLASSES)
def test_states_are_half_or_float(kind: Type[Any]) -> None:
    assert make(kind, accum_type=torch.float16).accum_type == torch.float16
    with pytest.raises(AssertionError, match=r"accum_type=torch.bfloat16.*torch.float16 or torch.float32"):
        make(kind, accum_type=torch.bfloat16)


def test_the_velocity_scaling_of_a_separate_velocity_is_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "poptorch::python"):
        make(optim.SGD, velocity_scaling=2.0, use_combined_accum=True)
        assert not caplog.records
        make(optim.SGD, velocity_scaling=2.0)
    assert "velocity_scaling is ignored" in caplog.text


@pytest.mark.parametrize("kind", CLASSES)
def test_given_values_and_the_learning_rate_are_variable_and_others_constant(kind: Type[Any]) -> None:
    attributes = make(kind, weight_decay=0.0).variable_attrs
    assert not attributes.isConstant("weight_decay")
    assert not attributes.isConstant("lr")
    assert attributes.isConstant("loss_scaling")
    assert not make(kind, loss_scaling=1.0).variable_attrs.isConstant("loss_scaling")


def test_constness_can_be_marked() -> None:
    attributes = make(optim.Adam, weight_decay=0.1).variable_attrs
    attributes.markAsConstant("weight_decay")
    assert attributes.isConstant("weight_decay")
    attributes.markAsVariable("weight_decay")
    attributes.markAsVariable("weight_decay")
    assert not attributes.isConstant("weight_decay")
    assert attributes._variable_attributes == ["lr", "weight_decay"]
    assert set(attributes._allowed_attributes) == {"lr", "betas", "eps", "weight_decay", "loss_scaling"}


@pytest.mark.parametrize("method", ["isConstant", "markAsConstant", "markAsVariable"])
def test_a_value_that_the_optimizer_does_not_have_cannot_be_marked(method: str) -> None:
    with pytest.raises(AssertionError, match="'momentum' is no attribute.*weight_decay"):
        getattr(make(optim.Adam).variable_attrs, method)("momentum")


def test_a_group_that_is_added_later_has_the_devices_values_too() -> None:
    optimizer = make(optim.SGD, velocity_scaling=4.0, use_combined_accum=True)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert optimizer.param_groups[1]["velocity_scaling"] == 4.0


@pytest.mark.parametrize("kind", CLASSES)
def test_learning_rate_schedules_work_and_touch_the_groups(kind: Type[Any]) -> None:
    optimizer = make(kind)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_lamb_does_not_step_on_the_host() -> None:
    with pytest.raises(NotImplementedError, match="device"):
        make(optim.LAMB).step()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_keep_the_values_and_lose_the_executor(kind: Type[Any], duplicate: Any) -> None:
    optimizer = make(kind, loss_scaling=8.0, accum_type=torch.half)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    optimizer._bind(Executor({"Step___w": torch.ones(())}))
    optimizer.state_dict()
    copied = duplicate(optimizer)
    assert (copied.loss_scaling, copied.accum_type) == (8.0, torch.half)
    assert copied.variable_attrs._variable_attributes == ["lr", "loss_scaling"]
    assert copied.param_groups[0]["lr"] == 0.1
    assert torch.equal(copied.param_groups[0]["params"][0], torch.ones(2))
    optimizer._executor.state = {}
    assert copied.state_dict()["ipu_state"] == {"Step___w": torch.ones(())}
    assert optimizer.state_dict()["ipu_state"] == {}


@pytest.mark.parametrize("kind", CLASSES)
def test_before_compilation_the_devices_entries_are_none(kind: Type[Any]) -> None:
    state = make(kind).state_dict()
    assert set(state) == {"state", "param_groups", "ipu_state", "ipu_param"}
    assert state["ipu_state"] is None and state["ipu_param"] is None


def test_a_bound_optimizer_saves_what_its_device_holds() -> None:
    optimizer, executor = make(optim.Adam), Executor({"Step___w": torch.ones(())})
    optimizer._bind(executor)
    assert optimizer.state_dict()["ipu_state"] is executor.state
    executor.state = {"Step___w": torch.full((), 2.0)}
    assert optimizer.state_dict()["ipu_state"] is executor.state


def test_a_released_optimizer_keeps_its_last_state() -> None:
    optimizer, executor = make(optim.Adam), Executor({"Step___w": torch.ones(())})
    optimizer._bind(executor)
    optimizer._release(executor._device_state())
    expected, executor.state = executor.state, {}
    assert optimizer.state_dict()["ipu_state"] is expected


def test_a_loaded_state_is_handed_to_the_device_once() -> None:
    saved = make(optim.Adam)
    saved._bind(Executor({"Step___w": torch.ones(())}))
    saved.param_groups[0]["lr"] = 0.5
    optimizer = make(optim.Adam)
    optimizer._bind(Executor({"Step___w": torch.zeros(())}))
    optimizer.load_state_dict(saved.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state_dict()["ipu_state"] == {"Step___w": torch.ones(())}
    loaded = optimizer._take_loaded_state()
    assert loaded is not None
    assert loaded["ipu_state"] == {"Step___w": torch.ones(())}
    assert optimizer._take_loaded_state() is None
    assert optimizer.state_dict()["ipu_state"] == {"Step___w": torch.zeros(())}


def test_a_state_from_before_compilation_loads_as_nothing() -> None:
    optimizer = make(optim.Adam)
    optimizer.load_state_dict(make(optim.Adam).state_dict())
    assert optimizer._take_loaded_state() == {"ipu_state": {}, "ipu_param": {}}


@pytest.mark.parametrize("kind", CLASSES)
def test_states_that_no_device_held_are_refused(kind: Type[Any]) -> None:
    with pytest.raises(RuntimeError, match="empty"):
        make(kind).load_state_dict({})
    foreign = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).state_dict()
    with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU."):
        make(kind).load_state_dict(foreign)
