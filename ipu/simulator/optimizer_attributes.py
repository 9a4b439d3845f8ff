"""What an optimizer's values were when an executor read them, and which of them the device may be told to change.

The executor never looks at an optimizer while it runs: it compiles with one snapshot, `setOptimizer` brings another.
A value is constant, compiled into the program, or variable. The optimizers of PopTorch say which of theirs are
(`variable_attrs`); with torch's own a value is constant while it equals torch's default.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import math
import numbers
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from torch import Tensor, nn

from ipu.simulator import optim
from ipu.simulator.poptorch_core import Error

_log = logging.getLogger("poptorch::python")
_BETAS = ("beta1", "beta2")


class Kind(enum.Enum):
    """The update rules of the device."""

    SGD_COMBINED = "SGD with one tensor for velocity and accumulated gradient"
    SGD = "SGD"
    ADAM = "Adam"
    ADAMW = "AdamW"
    RMSPROP = "RMSprop"
    RMSPROP_CENTERED = "centered RMSprop"
    LAMB = "LAMB"
    LAMB_NO_BIAS = "LAMB without bias correction"


class Setting(NamedTuple):
    """A value, and whether it is compiled in."""

    value: float
    constant: bool


Settings = Dict[str, Setting]

_ADAM_VALUES = ("lr", "betas", "eps", "weight_decay")
_RMSPROP_VALUES = ("lr", "alpha", "eps", "weight_decay", "momentum")
_SGD_VALUES = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling")
_GROUP_VALUES = {
    Kind.SGD_COMBINED: _SGD_VALUES,
    Kind.SGD: _SGD_VALUES,
    Kind.ADAM: _ADAM_VALUES,
    Kind.ADAMW: _ADAM_VALUES,
    Kind.RMSPROP: _RMSPROP_VALUES,
    Kind.RMSPROP_CENTERED: _RMSPROP_VALUES,
    Kind.LAMB: (*_ADAM_VALUES, "max_weight_norm"),
    Kind.LAMB_NO_BIAS: (*_ADAM_VALUES, "max_weight_norm"),
}
_TYPES = (
    "accum_type",
    "velocity_accum_type",
    "first_order_momentum_accum_type",
    "second_order_momentum_accum_type",
)
# With torch's own optimizers: a value that equals this one is constant. The learning rate never is.
_TORCH_DEFAULTS = {
    "momentum": 0.0,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "eps": 1e-8,
    "velocity_scaling": 1.0,
    "loss_scaling": 1.0,
}
_ALWAYS_CONSTANT = ("betas", "alpha", "nesterov")
_MISSING_FROM_TORCH = {"velocity_scaling": 1.0, "nesterov": False}
_KNOWN_CLASSES = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop),
    *(optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB),
)
_NOT_VALUES = {"params", "defaults", "state", "param_groups", "variable_attrs", "ipu_state", "ipu_param"}


class _Expected:
    """The names that an optimizer had when it was first read; what comes later is reported once."""

    def __init__(self, relaxed: bool) -> None:
        self.level = logging.DEBUG if relaxed else logging.WARNING
        self.names: Dict[str, Set[str]] = {}
        self.reported: Set[str] = set()

    def check(self, where: str, known_from: str, names: List[str], kind: Kind) -> None:
        extra = [name for name in names if name not in self.names[known_from]]
        if extra:
            self.report(f"Ignoring unexpected {where} in {kind.value} optimizer: {extra}")

    def report(self, message: str) -> None:
        if message not in self.reported:
            _log.log(self.level, message)
            self.reported.add(message)


@dataclasses.dataclass(frozen=True)
class Attributes:
    """A snapshot of an optimizer. Two are equal when the device would get the same values for the same parameters.

    Args:
        kind: of the update.
        fixed: the types of the states, and further values that are the whole optimizer's and always compiled in.
        loss_scaling: factor of the gradients while they are computed.
        defaults: the values for parameters of no group.
        groups: the values of each group.
        identities: of the parameters in each group.
    """

    kind: Kind
    fixed: Dict[str, Any]
    loss_scaling: Setting
    defaults: Settings
    groups: Tuple[Settings, ...]
    identities: Tuple[Tuple[int, ...], ...]
    _members: Tuple[Tuple[Any, ...], ...] = dataclasses.field(compare=False, repr=False)  # hold what is identified
    _expected: _Expected = dataclasses.field(compare=False, repr=False)

    @property
    def needs_running_mean(self) -> bool:
        """Whether a mean over micro batches has to be kept as a mean: their sum would overflow a half accumulator."""
        return bool(self.fixed["accum_type"] == torch.float16 and self.kind is not Kind.SGD_COMBINED)

    def group_of(self, parameter: nn.Parameter) -> Optional[int]:
        """The index of a parameter's group; None for one that is in none."""
        return next((index for index, members in enumerate(self.identities) if id(parameter) in members), None)

    def settings(self, group: Optional[int]) -> Settings:
        """The values of a group."""
        return self.defaults if group is None else self.groups[group]

    def check_update(self, new: Attributes) -> None:
        """Check that a program compiled with these values can run with the new ones.

        Raises:
            Error: a value that is compiled in has changed, or one that no update admits.
        """
        _check_same("the update rule", self.kind.value, new.kind.value)
        _check_same("the number of groups", len(self.groups), len(new.groups))
        for name, value in self.fixed.items():
            _check_same(name, value, new.fixed[name])
        for (where, name, old), (_, _, changed) in zip(self._all(), new._all()):
            if old.constant != changed.constant or (old.constant and old.value != changed.value):
                raise _constness_error(where, name, old, changed)
        new.check_values()

    def check_values(self) -> None:
        """Check the values against what the device's updates admit.

        Raises:
            Error: a value is out of bounds.
        """
        for where, name, setting in self._all():
            rule = _broken_rule(name, setting)
            if rule:
                raise _compiler_error(f"{name}={setting.value:g} of {where} is refused: it has to be {rule}")
        for where, settings in self._settings_by_place():
            nesterov, dampening = settings.get("nesterov"), settings.get("dampening")
            if nesterov and dampening and nesterov.value and dampening.value:
                raise _compiler_error(
                    f"nesterov=True of {where} is refused with dampening={dampening.value:g}; set dampening to 0"
                )

    def _settings_by_place(self) -> Iterator[Tuple[str, Settings]]:
        for index, settings in enumerate(self.groups):
            yield f"group {index}", settings
        yield "the defaults", self.defaults

    def _all(self) -> Iterator[Tuple[str, str, Setting]]:
        yield "the optimizer", "loss_scaling", self.loss_scaling
        for where, settings in self._settings_by_place():
            for name, setting in settings.items():
                yield where, name, setting


def read_attributes(
    optimizer: torch.optim.Optimizer,
    automatic_loss_scaling: bool = False,
    relaxed: bool = False,
    previous: Optional[Attributes] = None,
) -> Attributes:
    """Take a snapshot of an optimizer, of torch or PopTorch.

    Args:
        optimizer: to read.
        automatic_loss_scaling: whether the device finds the loss scaling, which makes it variable.
        relaxed: report attributes that nobody knows at level debug instead of warning.
        previous: the executor's last snapshot; names that came since its first are reported.

    Raises:
        AssertionError: not an optimizer that the device has, or a value of the wrong kind.
        ValueError: a variant that the device does not have.
    """
    kind = _kind(optimizer)
    expected = previous._expected if previous is not None else _Expected(relaxed)
    _report_subclass(optimizer, expected)
    _report_unexpected(optimizer, kind, expected)
    if automatic_loss_scaling and isinstance(optimizer, optim.DeviceOptimizer):
        optimizer.variable_attrs.markAsVariable("loss_scaling")
    groups = [_read_group(optimizer, kind, group) for group in optimizer.param_groups]
    constant = {name: all(group[name].constant for group in groups) for name in groups[0]}
    scaling = _number("loss_scaling", getattr(optimizer, "loss_scaling", 1.0))
    members = tuple(tuple(group["params"]) for group in optimizer.param_groups)
    return Attributes(
        kind,
        _read_fixed(optimizer, kind),
        Setting(scaling, not automatic_loss_scaling and _is_constant(optimizer, "loss_scaling", scaling)),
        _with_constness(_read_group(optimizer, kind, optimizer.defaults), constant),
        tuple(_with_constness(group, constant) for group in groups),
        tuple(tuple(id(parameter) for parameter in group) for group in members),
        members,
        expected,
    )


def _kind(optimizer: torch.optim.Optimizer) -> Kind:
    # Today's torch derives AdamW from Adam: the former has to be asked for first.
    if isinstance(optimizer, torch.optim.SGD):
        return Kind.SGD_COMBINED if getattr(optimizer, "use_combined_accum", False) else Kind.SGD
    if isinstance(optimizer, torch.optim.AdamW):
        return Kind.ADAMW
    if isinstance(optimizer, torch.optim.Adam):
        return Kind.ADAM
    if isinstance(optimizer, torch.optim.RMSprop):
        centered = [bool(group["centered"]) for group in optimizer.param_groups]
        assert len(set(centered)) == 1, f"centered={centered} differs between groups; give all of them the same"
        return Kind.RMSPROP_CENTERED if centered[0] else Kind.RMSPROP
    if isinstance(optimizer, optim.LAMB):
        return Kind.LAMB if optimizer.bias_correction else Kind.LAMB_NO_BIAS
    raise AssertionError(
        f"Unsupported optimizer type {type(optimizer).__name__}; "
        "take SGD, Adam, AdamW, RMSprop or LAMB of poptorch.optim"
    )


def _read_group(optimizer: torch.optim.Optimizer, kind: Kind, group: Dict[str, Any]) -> Settings:
    if group.get("amsgrad", False):
        raise ValueError(f"amsgrad=True has no counterpart on the device; make the {kind.value} optimizer without it")
    settings: Settings = {}
    for name in _GROUP_VALUES[kind]:
        value = group.get(name, _MISSING_FROM_TORCH.get(name))
        assert value is not None, f"the {kind.value} optimizer has a group without {name}; give it one"
        constant = _is_constant(optimizer, name, value)
        for part, number in zip(_BETAS, value) if name == "betas" else [(name, value)]:
            settings[part] = Setting(_number(part, number), constant)
    if kind is Kind.SGD:
        settings["velocity_scaling"] = Setting(1.0, True)  # a velocity of its own needs none
    return settings


def _is_constant(optimizer: torch.optim.Optimizer, name: str, value: Any) -> bool:
    if isinstance(optimizer, optim.DeviceOptimizer):
        return optimizer.variable_attrs.isConstant(name)
    if name == "weight_decay" and isinstance(optimizer, torch.optim.AdamW):
        return bool(value == 1e-2)
    return name in _ALWAYS_CONSTANT or (name in _TORCH_DEFAULTS and bool(value == _TORCH_DEFAULTS[name]))


def _with_constness(settings: Settings, constant: Dict[str, bool]) -> Settings:
    """One program serves all groups, and the defaults: what varies in one group is variable everywhere."""
    return {name: Setting(setting.value, constant[name]) for name, setting in settings.items()}


def _read_fixed(optimizer: torch.optim.Optimizer, kind: Kind) -> Dict[str, Any]:
    fixed: Dict[str, Any] = {name: getattr(optimizer, name, torch.float32) for name in _TYPES}
    for name, dtype in fixed.items():
        if dtype not in (torch.float16, torch.float32):
            raise ValueError(
                f"{name}={dtype} is not a type that states are kept in; set torch.float16 or torch.float32"
            )
    fixed["max_grad_norm"] = _number("max_grad_norm", getattr(optimizer, "max_grad_norm", math.inf))
    if math.isnan(fixed["max_grad_norm"]):
        raise ValueError("max_grad_norm=nan is no norm; set a number above 0, or inf for none")
    fixed["use_tf_variant"] = bool(getattr(optimizer, "use_tf_variant", False))
    if fixed["use_tf_variant"] and kind not in (Kind.RMSPROP, Kind.RMSPROP_CENTERED):
        raise ValueError(f"use_tf_variant=True is a form of RMSprop; the optimizer is {kind.value}")
    return fixed


def _number(name: str, value: Any) -> float:
    """The value as the device gets it: in single precision."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    assert isinstance(value, numbers.Number), f"{name}={value!r} of the optimizer is not a number; set one"
    return torch.tensor(value, dtype=torch.float32).item()


def _report_subclass(optimizer: torch.optim.Optimizer, expected: _Expected) -> None:
    name = type(optimizer).__name__
    message = f"Poptorch does not run Python optimizer code directly: what {name} adds to its base class has no effect"
    if type(optimizer) not in _KNOWN_CLASSES and message not in expected.reported:
        _log.warning(message)
        expected.reported.add(message)


def _report_unexpected(optimizer: torch.optim.Optimizer, kind: Kind, expected: _Expected) -> None:
    own = [name for name, value in optimizer.__dict__.items() if name[0] != "_" and not callable(value)]
    places = [("default group variable", list(optimizer.defaults))]
    for index, group in enumerate(optimizer.param_groups):
        places.append((f"group {index} attribute", list(group)))
    if not expected.names:
        expected.names["group"] = _NOT_VALUES.union(*(names for _, names in places))
        expected.names["optimizer"] = _NOT_VALUES.union(own)
    for where, names in places:
        expected.check(where, "group", names, kind)
    expected.check("optimizer attribute", "optimizer", own, kind)


def _broken_rule(name: str, setting: Setting) -> str:
    """What a value should be and is not; empty when all is well."""
    value = setting.value
    if name in ("lr", "weight_decay", "momentum", "dampening", "beta1", "beta2", "alpha") and not value >= 0:
        return "0 or more"
    if name == "lr" and value == 0 and setting.constant:
        return "above 0 where it is constant"
    if name in ("eps", "velocity_scaling") and not value > 0:
        return "above 0"
    return "other than 0" if name == "loss_scaling" and value == 0 else ""


def _check_same(name: str, old: Any, new: Any) -> None:
    if old != new:
        raise _compiler_error(
            f"{name} was {old} when the model was compiled, and the optimizer now has {new}; keep it, or destroy() the "
            "executor and compile anew"
        )


def _constness_error(where: str, name: str, old: Setting, new: Setting) -> Error:
    attribute = "betas" if name in _BETAS else name
    states = ["constant" if setting.constant else "variable" for setting in (old, new)]
    return _compiler_error(
        f"{name} of {where} was {old.value:g} and {states[0]} when the model was compiled, and is {new.value:g} and "
        f"{states[1]} now; only variable values may change, and constness never: give {attribute} to a poptorch.optim "
        f'optimizer explicitly, or call its variable_attrs.markAsVariable("{attribute}") before the executor is made'
    )


def _compiler_error(message: str) -> Error:
    return Error("popart_exception", message)
