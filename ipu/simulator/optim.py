"""The optimizers of PopTorch: torch's classes, with what the device needs to know beside.

An optimizer here only holds values. They are read when an executor is made and at each `setOptimizer`
(`optimizer_attributes.py`), and the updates run on the device (`updates.py`); `step` is never called.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Protocol, Tuple

import torch

Parameters = Iterable[Any]
"""Parameters, or dictionaries with "params" and the values of a group."""

_FIRST, _SECOND = "first_order_momentum_accum_type", "second_order_momentum_accum_type"
_DEVICE_KEYS = ("ipu_state", "ipu_param")
_log = logging.getLogger("poptorch::python")


class DeviceStateHolder(Protocol):
    """What an optimizer needs of the executor that runs it."""

    def _device_state(self) -> Dict[str, Any]:
        """The entries `ipu_state` and `ipu_param` of the device."""


class VariableAttributes:
    """Which values of an optimizer may change after compilation, by name; the others are compiled in.

    Args:
        variable_attributes: those that may change.
        allowed_attributes: all that have a choice.
    """

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes, self._allowed_attributes = list(variable_attributes), list(allowed_attributes)

    def isConstant(self, attr: str) -> bool:
        """Whether the value is compiled in.

        Raises:
            AssertionError: no attribute of that name, as in the other two methods.
        """
        self._check(attr)
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Compile the value in; to be called before the executor is made."""
        self._check(attr)
        self._variable_attributes = [name for name in self._variable_attributes if name != attr]

    def markAsVariable(self, attr: str) -> None:
        """Let the value change after compilation; to be called before the executor is made."""
        if self.isConstant(attr):
            self._variable_attributes.append(attr)

    def _check(self, attr: str) -> None:
        names = ", ".join(self._allowed_attributes)
        assert attr in self._allowed_attributes, f"{attr!r} is no attribute of this optimizer; there are {names}"


class DeviceOptimizer(torch.optim.Optimizer):
    """What the five have in common: attributes of the device, and a state that the device holds."""

    variable_attrs: VariableAttributes
    ipu_state: Optional[Dict[str, Any]] = None
    ipu_param: Optional[Dict[str, Any]] = None
    _executor: Optional[DeviceStateHolder] = None
    _was_loaded = False

    def state_dict(self) -> Dict[str, Any]:
        """torch's entries, and `ipu_state` and `ipu_param`: what the device holds, None before compilation."""
        if self._executor is not None and not self._was_loaded:
            self._keep(self._executor._device_state())
        contents = super().state_dict()
        contents.update({key: getattr(self, key) for key in _DEVICE_KEYS})
        return contents

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Put back what `state_dict` returned; the device gets its part before its next run.

        Raises:
            RuntimeError: empty, or of an optimizer that never was on a device.
        """
        if not state_dict:
            raise RuntimeError("cannot load an optimizer state that is empty; give what state_dict() returned")
        missing = [key for key in _DEVICE_KEYS if key not in state_dict]
        if missing:
            raise RuntimeError(
                f"Only IPU optimizer states can be loaded onto the IPU. {missing[0]!r} is missing: load what the "
                "state_dict() of an optimizer of poptorch.optim returned"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key not in _DEVICE_KEYS})
        self._keep(state_dict)
        self._was_loaded = True

    def __getstate__(self) -> Dict[str, Any]:
        # Neither the tie to the executor nor the wrappers that schedulers put around methods can go along.
        state = {key: value for key, value in self.__dict__.items() if key[0] != "_" and not callable(value)}
        return {**state, "_was_loaded": self._was_loaded}

    def _bind(self, executor: DeviceStateHolder) -> None:
        """From now on the executor's device holds the state."""
        self._executor = executor

    def _release(self, state: Optional[Dict[str, Any]]) -> None:
        """The executor has another optimizer; `state` is the last that the device knew, None when there is none."""
        self._executor = None
        if state is not None and not self._was_loaded:
            self._keep(state)

    def _take_loaded_state(self) -> Optional[Dict[str, Any]]:
        """What was loaded since this was last asked, for the device; None when nothing was."""
        if not self._was_loaded:
            return None
        self._was_loaded = False
        return {key: getattr(self, key) or {} for key in _DEVICE_KEYS}

    def _keep(self, state: Dict[str, Any]) -> None:
        self.ipu_state, self.ipu_param = state["ipu_state"], state["ipu_param"]

    def _set_variables(self, candidates: Dict[str, Any]) -> None:
        """What the caller gave is variable, and so is the learning rate."""
        given = [name for name, value in candidates.items() if value is not None]
        self.variable_attrs = VariableAttributes(["lr", *given], ["lr", *candidates])

    def _set_types(self, **types: Optional[torch.dtype]) -> None:
        for name, dtype in types.items():
            assert dtype in (None, torch.float16, torch.float32), (
                f"{name}={dtype} is not a type that states are kept in; give torch.float16 or torch.float32"
            )
            setattr(self, name, dtype or torch.float32)

    def _set_group_value(self, name: str, value: float) -> None:
        """A value of every group beside torch's; groups added later get it from `defaults`."""
        self.defaults[name] = value
        for group in self.param_groups:
            group.setdefault(name, value)


class SGD(DeviceOptimizer, torch.optim.SGD):
    """Stochastic gradient descent. torch's arguments mean what they mean there; None is torch's default.

    Args:
        loss_scaling: factor of the gradients on their way through the model, divided out again; 1.
        velocity_scaling: factor that the combined tensor is kept with; 1.
        use_combined_accum: keep velocity and accumulated gradient in one tensor; False.
        accum_type: of the accumulated gradient; float32.
        velocity_accum_type: of the velocity; float32.
        max_grad_norm: largest norm of all gradients together; none.

    Raises:
        AssertionError: a type other than float16 and float32, as in all five.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        values = {"momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(
            params, lr, **_given(values, maximize=maximize, foreach=foreach, differentiable=differentiable)
        )
        self._set_group_value("velocity_scaling", _or(velocity_scaling, 1.0))
        self.loss_scaling: float = _or(loss_scaling, 1.0)
        self.use_combined_accum: bool = _or(use_combined_accum, False)
        self.max_grad_norm: float = _or(max_grad_norm, math.inf)
        self._set_types(accum_type=accum_type, velocity_accum_type=velocity_accum_type)
        self._set_variables({**values, "loss_scaling": loss_scaling, "velocity_scaling": velocity_scaling})
        if velocity_scaling is not None and not self.use_combined_accum:
            _log.warning("velocity_scaling is ignored: it is for use_combined_accum=True")


class Adam(DeviceOptimizer, torch.optim.Adam):
    """Adam, its weight decay part of the gradient. torch's arguments mean what they mean there.

    Args:
        loss_scaling: factor of the gradients on their way through the model, divided out again; 1.
        accum_type: of the accumulated gradient; float32.
        first_order_momentum_accum_type, second_order_momentum_accum_type: of the moments; float32.
        max_grad_norm: largest norm of all gradients together; none.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        values = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        switches = {"amsgrad": amsgrad, "foreach": foreach, "maximize": maximize}
        switches.update(capturable=capturable, differentiable=differentiable, fused=fused)
        super().__init__(params, **_given(values, lr=lr, **switches))
        self.loss_scaling: float = _or(loss_scaling, 1.0)
        self.max_grad_norm: float = _or(max_grad_norm, math.inf)
        types = {_FIRST: first_order_momentum_accum_type, _SECOND: second_order_momentum_accum_type}
        self._set_types(accum_type=accum_type, **types)
        self._set_variables({**values, "loss_scaling": loss_scaling})


class AdamW(DeviceOptimizer, torch.optim.AdamW):
    """Adam with the weight decay beside the gradient. torch's arguments mean what they mean there.

    Args:
        bias_correction: without effect; the device always corrects.
        loss_scaling, accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type, max_grad_norm: as
            those of `Adam`.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        values = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        switches = {"amsgrad": amsgrad, "foreach": foreach, "maximize": maximize}
        switches.update(capturable=capturable, differentiable=differentiable, fused=fused)
        super().__init__(params, **_given(values, lr=lr, **switches))
        self.loss_scaling: float = _or(loss_scaling, 1.0)
        self.bias_correction: bool = _or(bias_correction, True)
        self.max_grad_norm: float = _or(max_grad_norm, math.inf)
        types = {_FIRST: first_order_momentum_accum_type, _SECOND: second_order_momentum_accum_type}
        self._set_types(accum_type=accum_type, **types)
        self._set_variables({**values, "loss_scaling": loss_scaling})


class RMSprop(DeviceOptimizer, torch.optim.RMSprop):
    """RMSprop. torch's arguments mean what they mean there.

    Args:
        loss_scaling, accum_type: as those of `Adam`.
        first_order_momentum_accum_type: of the mean square of the gradients; float32.
        second_order_momentum_accum_type: of their mean, which `centered` needs; float32.
        use_tf_variant: TensorFlow's form: eps inside the root, the mean square starts at one, and the momentum collects
            updates that the learning rate is part of; False.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        values = {"alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        switches = {"centered": centered, "foreach": foreach, "maximize": maximize, "differentiable": differentiable}
        super().__init__(params, **_given(values, lr=lr, **switches))
        self.loss_scaling: float = _or(loss_scaling, 1.0)
        self.use_tf_variant: bool = _or(use_tf_variant, False)
        types = {_FIRST: first_order_momentum_accum_type, _SECOND: second_order_momentum_accum_type}
        self._set_types(accum_type=accum_type, **types)
        self._set_variables({**values, "loss_scaling": loss_scaling})


class LAMB(DeviceOptimizer):
    """AdamW whose step of each weight is as long, relative to the weight's norm, as that of every other.

    Args:
        lr, betas, eps, weight_decay: as those of `torch.optim.AdamW`; 1e-3, (0.9, 0.999), 1e-8, 1e-2.
        bias_correction: divide the moments by what they lack while they are young; True.
        max_weight_norm: largest norm of a weight that counts; 65500.
        loss_scaling, accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: as those of `Adam`.
    """

    def __init__(
        self,
        params: Parameters,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        values = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "max_weight_norm": max_weight_norm}
        standard = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500.0}
        super().__init__(params, {**standard, **_given(values, lr=lr)})
        self.loss_scaling: float = _or(loss_scaling, 1.0)
        self.bias_correction: bool = _or(bias_correction, True)
        types = {_FIRST: first_order_momentum_accum_type, _SECOND: second_order_momentum_accum_type}
        self._set_types(accum_type=accum_type, **types)
        self._set_variables({**values, "loss_scaling": loss_scaling})

    @property
    def max_weight_norm(self) -> float:
        """Largest norm of a weight that counts; setting it sets it for all groups."""
        return float(self.defaults["max_weight_norm"])

    @max_weight_norm.setter
    def max_weight_norm(self, norm: float) -> None:
        for settings in (self.defaults, *self.param_groups):
            settings["max_weight_norm"] = norm

    def step(self, closure: Optional[Callable[[], float]] = None) -> Optional[float]:  # type: ignore[override]
        """Only there because torch asks for it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("LAMB updates weights on the device only: give it to poptorch.trainingModel")


def _given(values: Dict[str, Any], **further: Any) -> Dict[str, Any]:
    """The arguments that the caller gave; for the others torch has its defaults."""
    return {name: value for name, value in {**values, **further}.items() if value is not None}


def _or(value: Optional[Any], default: Any) -> Any:
    return default if value is None else value
