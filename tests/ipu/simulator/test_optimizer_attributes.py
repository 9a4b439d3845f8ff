"""Snapshots of optimizers: which values are constant, and what a compiled program accepts in their place."""

from __future__ import annotations

import logging
import math
from typing import Any, Callable, Dict

import pytest
import torch
from torch import nn

from ipu.simulator import optim
from ipu.simulator.optimizer_attributes import Attributes, Kind, Setting, read_attributes
from ipu.simulator.poptorch_core import Error

LOGGER = "poptorch::python"


def parameters(count: int = 1) -> Any:
    return [nn.Parameter(torch.ones(2)) for _ in range(count)]


def setting(optimizer: torch.optim.Optimizer, name: str) -> Setting:
    attributes = read_attributes(optimizer)
    return attributes.loss_scaling if name == "loss_scaling" else attributes.groups[0][name]


@pytest.mark.parametrize(
    "optimizer, kind",
    [
        (torch.optim.SGD(parameters(), lr=0.1), Kind.SGD),
        (optim.SGD(parameters(), 0.1), Kind.SGD),
        (optim.SGD(parameters(), 0.1, use_combined_accum=True), Kind.SGD_COMBINED),
        (torch.optim.Adam(parameters()), Kind.ADAM),
        (optim.Adam(parameters()), Kind.ADAM),
        (torch.optim.AdamW(parameters()), Kind.ADAMW),
        (optim.AdamW(parameters(), bias_correction=False), Kind.ADAMW),
        (torch.optim.RMSprop(parameters()), Kind.RMSPROP),
        (optim.RMSprop(parameters(), centered=True), Kind.RMSPROP_CENTERED),
        (optim.LAMB(parameters()), Kind.LAMB),
        (optim.LAMB(parameters(), bias_correction=False), Kind.LAMB_NO_BIAS),
    ],
)
def test_every_optimizer_has_its_update_rule(optimizer: torch.optim.Optimizer, kind: Kind) -> None:
    assert read_attributes(optimizer).kind is kind


def test_other_optimizers_are_refused() -> None:
    with pytest.raises(AssertionError, match="Unsupported optimizer type Adagrad; take SGD, Adam"):
        read_attributes(torch.optim.Adagrad(parameters()))


@pytest.mark.parametrize("module", [torch.optim, optim])
def test_amsgrad_is_refused(module: Any) -> None:
    with pytest.raises(ValueError, match="amsgrad=True"):
        read_attributes(module.AdamW(parameters(), amsgrad=True))


def test_groups_that_disagree_about_centering_are_refused() -> None:
    groups = [{"params": parameters(), "centered": value} for value in (True, False)]
    with pytest.raises(AssertionError, match=r"centered=\[True, False\] differs"):
        read_attributes(optim.RMSprop(groups))


@pytest.mark.parametrize(
    "make, name, constant",
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "lr", False),
        (lambda p: torch.optim.SGD(p, lr=0.1), "momentum", True),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum", False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1), "dampening", False),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "nesterov", True),
        (lambda p: torch.optim.Adam(p), "weight_decay", True),
        (lambda p: torch.optim.Adam(p, weight_decay=0.01), "weight_decay", False),
        (lambda p: torch.optim.AdamW(p), "weight_decay", True),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.0), "weight_decay", False),
        (lambda p: torch.optim.Adam(p, betas=(0.5, 0.5)), "beta1", True),
        (lambda p: torch.optim.Adam(p), "eps", True),
        (lambda p: torch.optim.Adam(p, eps=1e-6), "eps", False),
        (lambda p: torch.optim.RMSprop(p, alpha=0.5), "alpha", True),
        (lambda p: torch.optim.Adam(p), "loss_scaling", True),
        (lambda p: optim.SGD(p, 0.1), "momentum", True),
        (lambda p: optim.SGD(p, 0.1, momentum=0.0), "momentum", False),
        (lambda p: optim.Adam(p, betas=(0.9, 0.999)), "beta2", False),
        (lambda p: optim.Adam(p), "beta2", True),
        (lambda p: optim.RMSprop(p, alpha=0.99), "alpha", False),
        (lambda p: optim.Adam(p), "loss_scaling", True),
        (lambda p: optim.Adam(p, loss_scaling=1.0), "loss_scaling", False),
        (lambda p: optim.LAMB(p, max_weight_norm=1.0), "max_weight_norm", False),
    ],
)
def test_constness(make: Callable[[Any], torch.optim.Optimizer], name: str, constant: bool) -> None:
    assert setting(make(parameters()), name).constant is constant


@pytest.mark.parametrize("module", [torch.optim, optim])
def test_automatic_loss_scaling_makes_the_loss_scaling_variable(module: Any) -> None:
    optimizer = module.Adam(parameters())
    assert not read_attributes(optimizer, automatic_loss_scaling=True).loss_scaling.constant


def test_what_varies_in_one_group_is_variable_in_all() -> None:
    groups = [{"params": parameters(), "weight_decay": value} for value in (0.0, 0.1)]
    attributes = read_attributes(torch.optim.Adam(groups, lr=0.1))
    assert [group["weight_decay"] for group in attributes.groups] == [
        Setting(0.0, False),
        Setting(pytest.approx(0.1), False),
    ]
    assert not attributes.defaults["weight_decay"].constant  # though its value is torch's default


def test_snapshots_are_equal_until_a_value_changes() -> None:
    optimizer = optim.Adam(parameters(2), lr=0.1)
    before = read_attributes(optimizer)
    assert read_attributes(optimizer) == before
    optimizer.param_groups[0]["lr"] = 0.2
    assert read_attributes(optimizer) != before
    optimizer.param_groups[0]["lr"] = 0.1
    assert read_attributes(optimizer) == before
    optimizer.loss_scaling = 2.0
    assert read_attributes(optimizer) != before


def test_a_snapshot_does_not_follow_its_optimizer() -> None:
    optimizer = optim.Adam(parameters(), lr=0.5)
    before = read_attributes(optimizer)
    optimizer.param_groups[0]["lr"] = 0.25
    assert before.groups[0]["lr"].value == 0.5


def test_snapshots_of_other_parameters_differ() -> None:
    assert read_attributes(optim.Adam(parameters())) != read_attributes(optim.Adam(parameters()))


def test_parameters_find_their_group_by_identity() -> None:
    first, second, third = parameters(3)
    attributes = read_attributes(optim.Adam([{"params": [first]}, {"params": [second]}]))
    assert [attributes.group_of(parameter) for parameter in (first, second, third)] == [0, 1, None]


def test_an_update_of_variable_values_is_accepted() -> None:
    optimizer = optim.Adam(parameters(), lr=0.1, weight_decay=0.1, loss_scaling=1.0)
    before = read_attributes(optimizer)
    optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    optimizer.loss_scaling = 2.0
    before.check_update(read_attributes(optimizer))


def changed_value(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.5


def changed_pair(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["betas"] = (0.9, 0.5)


def changed_scaling(optimizer: Any) -> None:
    optimizer.loss_scaling = 2.0


def changed_constness(optimizer: Any) -> None:
    optimizer.variable_attrs.markAsVariable("eps")


def changed_type(optimizer: Any) -> None:
    optimizer.accum_type = torch.float16


@pytest.mark.parametrize(
    "change, message",
    [
        (changed_value, r'weight_decay of group 0 was 0 and constant.*0.5.*markAsVariable\("weight_decay"\)'),
        (changed_pair, r'beta2 of group 0 was 0.999 and constant.*markAsVariable\("betas"\)'),
        (changed_scaling, "loss_scaling of the optimizer was 1 and constant"),
        (changed_constness, "eps of group 0 was 1e-08 and constant.*variable now"),
        (changed_type, "accum_type was torch.float32"),
    ],
)
def test_an_update_of_what_is_compiled_in_is_refused(change: Callable[[Any], None], message: str) -> None:
    optimizer = optim.Adam(parameters(), lr=0.1)
    before = read_attributes(optimizer)
    change(optimizer)
    with pytest.raises(Error, match=message):
        before.check_update(read_attributes(optimizer))


@pytest.mark.parametrize("momentum, later", [(0.0, 0.9), (0.9, 0.0)])
def test_torchs_momentum_may_not_begin_or_end_later(momentum: float, later: float) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=momentum)
    before = read_attributes(optimizer)
    optimizer.param_groups[0]["momentum"] = 0.5 if momentum else 0.0
    before.check_update(read_attributes(optimizer))
    optimizer.param_groups[0]["momentum"] = later
    with pytest.raises(Error, match="momentum of group 0"):
        before.check_update(read_attributes(optimizer))


def test_another_rule_or_number_of_groups_is_refused() -> None:
    parameter = parameters()
    before = read_attributes(optim.Adam(parameter))
    with pytest.raises(Error, match="update rule was Adam .* now has AdamW"):
        before.check_update(read_attributes(optim.AdamW(parameter)))
    with pytest.raises(Error, match="number of groups was 1"):
        before.check_update(read_attributes(optim.Adam([{"params": parameters()}, {"params": parameters()}])))


@pytest.mark.parametrize(
    "name, value, rule",
    [
        *[(name, -0.1, "0 or more") for name in ("lr", "weight_decay", "momentum", "dampening")],
        ("velocity_scaling", 0.0, "above 0"),
    ],
)
def test_values_of_sgd_have_bounds(name: str, value: float, rule: str) -> None:
    optimizer = optim.SGD(parameters(), 0.1, use_combined_accum=True)
    optimizer.param_groups[0][name] = value
    with pytest.raises(Error, match=f"{name}={value:g} of group 0 is refused: it has to be {rule}"):
        read_attributes(optimizer).check_values()


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("eps", 0.0, "eps=0 of group 0.*above 0"),
        ("betas", (0.9, -0.5), "beta2=-0.5 of group 0.*0 or more"),
        ("lr", math.nan, "lr=nan"),
    ],
)
def test_values_of_adam_have_bounds(name: str, value: Any, message: str) -> None:
    optimizer = optim.Adam(parameters())
    optimizer.param_groups[0][name] = value
    with pytest.raises(Error, match=message):
        read_attributes(optimizer).check_values()


def test_the_loss_scaling_is_not_zero() -> None:
    optimizer = optim.Adam(parameters(), loss_scaling=0.0)
    with pytest.raises(Error, match="loss_scaling=0.*other than 0"):
        read_attributes(optimizer).check_values()


def test_a_constant_learning_rate_is_not_zero() -> None:
    optimizer = optim.Adam(parameters(), lr=0.0)
    read_attributes(optimizer).check_values()
    optimizer.variable_attrs.markAsConstant("lr")
    with pytest.raises(Error, match="above 0 where it is constant"):
        read_attributes(optimizer).check_values()


def test_nesterovs_momentum_is_not_dampened() -> None:
    optimizer = optim.SGD(parameters(), 0.1, momentum=0.9, nesterov=True)
    optimizer.param_groups[0]["dampening"] = 0.5
    with pytest.raises(Error, match="nesterov=True of group 0.*set dampening to 0"):
        read_attributes(optimizer).check_values()


def test_an_update_to_a_value_out_of_bounds_is_refused() -> None:
    optimizer = optim.Adam(parameters(), eps=1e-6)
    before = read_attributes(optimizer)
    optimizer.param_groups[0]["eps"] = 0.0
    with pytest.raises(Error, match="eps=0"):
        before.check_update(read_attributes(optimizer))


@pytest.mark.parametrize("value", ["0.1", None, (0.1, 0.2)])
def test_a_value_that_is_no_number_is_refused(value: Any) -> None:
    optimizer = optim.Adam(parameters())
    optimizer.param_groups[0]["eps"] = value
    with pytest.raises(AssertionError, match="eps"):
        read_attributes(optimizer)


def test_half_accumulators_need_a_running_mean_unless_combined_with_the_velocity() -> None:
    def needs(make: Callable[..., Any], **values: Any) -> bool:
        return read_attributes(make(parameters(), lr=0.1, **values)).needs_running_mean

    assert needs(optim.Adam, accum_type=torch.half)
    assert needs(optim.SGD, accum_type=torch.half)
    assert not needs(optim.SGD, accum_type=torch.half, use_combined_accum=True)
    assert not needs(optim.Adam)
    assert not needs(torch.optim.Adam)


def reports(caplog: pytest.LogCaptureFixture) -> Dict[str, int]:
    return {record.getMessage(): record.levelno for record in caplog.records if record.name == LOGGER}


@pytest.mark.parametrize("relaxed, level", [(False, logging.WARNING), (True, logging.DEBUG)])
def test_attributes_that_come_later_are_reported_once(
    caplog: pytest.LogCaptureFixture, relaxed: bool, level: int
) -> None:
    optimizer = optim.Adam(parameters())
    optimizer.param_groups[0]["there_from_the_start"] = 1
    with caplog.at_level(logging.DEBUG, LOGGER):
        attributes = read_attributes(optimizer, relaxed=relaxed)
        assert reports(caplog) == {}
        optimizer.param_groups[0]["initial_lr"] = 0.1
        optimizer.defaults["surplus"] = 1
        optimizer.note = "mine"
        attributes = read_attributes(optimizer, relaxed=relaxed, previous=attributes)
        assert reports(caplog) == {
            "Ignoring unexpected default group variable in Adam optimizer: ['surplus']": level,
            "Ignoring unexpected group 0 attribute in Adam optimizer: ['initial_lr']": level,
            "Ignoring unexpected optimizer attribute in Adam optimizer: ['note']": level,
        }
        caplog.clear()
        read_attributes(optimizer, relaxed=relaxed, previous=attributes)
        assert reports(caplog) == {}


class Decayed(torch.optim.Adam):
    pass


def test_a_class_of_the_users_own_gets_its_base_classs_update_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    attributes = read_attributes(Decayed(parameters()))
    assert attributes.kind is Kind.ADAM
    assert any("Poptorch does not run Python optimizer code directly" in message for message in reports(caplog))


def test_the_known_classes_get_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    for module in (torch.optim, optim):
        read_attributes(module.AdamW(parameters()))
    assert reports(caplog) == {}


def test_attributes_are_what_updates_offers() -> None:
    from ipu.simulator import updates

    assert updates.Attributes is Attributes
