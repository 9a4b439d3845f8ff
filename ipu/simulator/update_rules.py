"""How one weight is updated from its gradient: the rules of the device, with their states and scalars.

A rule works on one weight after the other, all passes over it together, because a weight's tensors then stay in the
cache: on a CPU this is half as fast again as one pass after the other over all weights. Numbers are float32 throughout;
states that are declared half are brought to the half grid after each change.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Mapping, NamedTuple, Tuple, Union

import torch
from torch import Tensor

from ipu.simulator.half import Rounding
from ipu.simulator.optimizer_attributes import Attributes, Kind, Settings

Values = Mapping[str, float]
State = Dict[str, Tensor]
FIRST, SECOND, THIRD, COMBINED, STEP = "Accl1", "Accl2", "Accl3", "Accl", "Step"

GRADIENT_DIVISOR = "divisor"
"""Beside the optimizer's own values: how often a gradient was added up where a mean is wanted, otherwise 1."""


class Scalar(NamedTuple):
    """A number that the host uploads for each weight.

    Args:
        name: PopART's.
        made_of: the optimizer's values that it follows from; when all are constant it is compiled in.
        compute: it, from these values.
    """

    name: str
    made_of: Tuple[str, ...]
    compute: Callable[[Values], float]


class StateSpec(NamedTuple):
    """A tensor in the shape of the weight that lasts from update to update."""

    dtype: torch.dtype
    initial: float = 0.0


def _gradient_scaling(values: Values) -> float:
    return 1 / (values["loss_scaling"] * values[GRADIENT_DIVISOR])


_PLAIN_SGD_SCALARS = (
    Scalar("scaledLearningRate0", ("lr", "dampening", "loss_scaling"), lambda v: _rate(v) / v["loss_scaling"]),
    Scalar("weightDecayScaleFactor0", ("lr", "dampening", "weight_decay"), lambda v: 1 - _rate(v) * v["weight_decay"]),
)


def _momentum_sgd_scalars(number: int) -> Tuple[Scalar, ...]:
    """For the tensor shared with the accumulator (1) or one of its own (2)."""
    scaling = "velocity_scaling"
    return (
        Scalar(f"scaledLearningRate{number}", ("lr", scaling), lambda v: v["lr"] / v[scaling]),
        Scalar(f"scaledMomentum{number}", ("momentum",), lambda v: v["momentum"]),
        Scalar(
            f"dampeningScaleFactor{number}",
            ("dampening", scaling, "loss_scaling"),
            lambda v: (1 - v["dampening"]) * v[scaling] * _gradient_scaling(v),
        ),
        Scalar(
            "scaledWeightDecay1",  # one name for both
            ("dampening", "weight_decay", scaling),
            lambda v: (1 - v["dampening"]) * v["weight_decay"] * v[scaling],
        ),
    )


_ADAM_SCALARS = (
    Scalar("learningRate", ("lr",), lambda v: v["lr"]),
    Scalar("weightDecay", ("weight_decay",), lambda v: v["weight_decay"]),
    Scalar("adamBeta1", ("beta1",), lambda v: v["beta1"]),
    Scalar("adamBeta2", ("beta2",), lambda v: v["beta2"]),
    Scalar("adamEps", ("eps",), lambda v: v["eps"]),
    Scalar("adamGradientScaling", ("loss_scaling",), _gradient_scaling),
)
_LAMB_SCALARS = (*_ADAM_SCALARS, Scalar("maxWeightNorm", ("max_weight_norm",), lambda v: v["max_weight_norm"]))
_RMSPROP_SCALARS = (
    Scalar("learningRate", ("lr",), lambda v: v["lr"]),
    Scalar("weightDecay", ("weight_decay",), lambda v: v["weight_decay"]),
    Scalar("adaptiveAlpha", ("alpha",), lambda v: v["alpha"]),
    Scalar("adaptiveMomentum", ("momentum",), lambda v: v["momentum"]),
    Scalar("adaptiveEps", ("eps",), lambda v: v["eps"]),
    Scalar("adaptiveGradientScaling", ("loss_scaling",), _gradient_scaling),
)


class PlainSGD:
    """Without momentum and accumulator: w = w * (1 - lr * wd) - lr * g, and no state."""

    scalars = _PLAIN_SGD_SCALARS
    states: Dict[str, StateSpec] = {}
    counts_steps = False

    def __init__(self, divisor: float) -> None:
        self.divisor = divisor

    def update(self, weight: Tensor, gradient: Tensor, state: State, scalars: Values, factor: float) -> None:
        """Change a weight in place.

        Args:
            weight: float32.
            gradient: as accumulated, loss scaling included; its memory is used up.
            state: by prefix, changed in place.
            scalars: by name.
            factor: of the gradient, from clipping and automatic loss scaling.
        """
        if scalars["weightDecayScaleFactor0"] != 1:
            weight.mul_(scalars["weightDecayScaleFactor0"])
        weight.add_(gradient, alpha=-scalars["scaledLearningRate0"] * factor / self.divisor)


class MomentumSGD:
    """With velocity: v = mom * v + (1 - damp) * (g + wd * w); w -= lr * v, or Nesterov's form.

    Args:
        combined: whether one tensor is velocity and accumulator, times the velocity scaling.
        nesterov: w -= lr * (g + wd * w + mom * v) instead.
        dtype: of the velocity.
        round_half: brings float32 values to the half grid.
    """

    counts_steps = False

    def __init__(self, combined: bool, nesterov: bool, dtype: torch.dtype, round_half: Rounding) -> None:
        self.number = 1 if combined else 2
        self.prefix, self.nesterov, self.round_half = COMBINED if combined else FIRST, nesterov, round_half
        self.scalars = _momentum_sgd_scalars(self.number)
        self.states = {self.prefix: StateSpec(dtype)}

    def update(self, weight: Tensor, gradient: Tensor, state: State, scalars: Values, factor: float) -> None:
        """As `PlainSGD.update`."""
        momentum, decay = scalars[f"scaledMomentum{self.number}"], scalars["scaledWeightDecay1"]
        gradient.mul_(scalars[f"dampeningScaleFactor{self.number}"] * factor)
        if decay:
            gradient.add_(weight, alpha=decay)
        velocity = state[self.prefix].mul_(momentum).add_(gradient)
        _store(velocity, self.states[self.prefix], self.round_half)
        # Nesterov's form comes without dampening, so the gradient is whole.
        change = gradient.add_(velocity, alpha=momentum) if self.nesterov else velocity
        weight.add_(change, alpha=-scalars[f"scaledLearningRate{self.number}"])


class Adam:
    """Moments m and v of the gradient; w -= lr * x with x = m^ / (sqrt(v^) + eps), of the corrected moments.

    Args:
        decoupled: the decay goes to x instead of the gradient.
        trust: LAMB: x is made as long as the weight.
        bias_correction: correct the moments for having started at zero.
        dtypes: of m and v.
        half_gradient: whether the unscaled gradient is half.
        round_half: brings float32 values to the half grid.
    """

    def __init__(
        self,
        decoupled: bool,
        trust: bool,
        bias_correction: bool,
        dtypes: Tuple[torch.dtype, torch.dtype],
        half_gradient: bool,
        round_half: Rounding,
    ) -> None:
        self.decoupled, self.trust, self.bias_correction = decoupled, trust, bias_correction
        self.half_gradient, self.round_half = half_gradient, round_half
        self.states = {FIRST: StateSpec(dtypes[0]), SECOND: StateSpec(dtypes[1])}
        self.counts_steps = bias_correction
        self.scalars = _LAMB_SCALARS if trust else _ADAM_SCALARS

    def update(self, weight: Tensor, gradient: Tensor, state: State, scalars: Values, factor: float) -> None:
        """As `PlainSGD.update`."""
        decay = scalars["weightDecay"]
        rounding = self.round_half if self.half_gradient else None
        _unscale(gradient, scalars["adamGradientScaling"] * factor, rounding)
        if decay and not self.decoupled:
            _add_decay(gradient, weight, decay, rounding)
        first, second = state[FIRST], state[SECOND]
        first.lerp_(gradient, 1 - scalars["adamBeta1"])
        _store(first, self.states[FIRST], self.round_half)
        second.mul_(scalars["adamBeta2"]).addcmul_(gradient, gradient, value=1 - scalars["adamBeta2"])
        _store(second, self.states[SECOND], self.round_half)
        lacking1, lacking2 = self._corrections(state, scalars)
        # x = scale * m / (sqrt(v) + sqrt(lacking2) * eps): the correction of v goes to two numbers, not over the tensor
        scale, eps = math.sqrt(lacking2) / lacking1, scalars["adamEps"] * math.sqrt(lacking2)
        divisor = torch.sqrt(second, out=gradient).add_(eps)
        if self.trust:
            self._follow_trust(weight, torch.div(first, divisor, out=divisor).mul_(scale), scalars)
            return
        if decay and self.decoupled:
            weight.mul_(1 - scalars["learningRate"] * decay)
        weight.addcdiv_(first, divisor, value=-scalars["learningRate"] * scale)

    def _corrections(self, state: State, scalars: Values) -> Tuple[float, float]:
        """1 - beta ** t for both moments, in the type of the moment."""
        if not self.bias_correction:
            return 1.0, 1.0
        step = state[STEP].add_(1).item()
        lacking = [1 - scalars["adamBeta1"] ** step, 1 - scalars["adamBeta2"] ** step]
        halves = [spec.dtype == torch.float16 for spec in self.states.values()]
        first, second = (float(torch.tensor(c).half()) if half else c for c, half in zip(lacking, halves))
        return first, second

    def _follow_trust(self, weight: Tensor, x: Tensor, scalars: Values) -> None:
        if scalars["weightDecay"]:
            x.add_(weight, alpha=scalars["weightDecay"])
        weight_norm, length = weight.norm().item(), x.norm().item()
        ratio = min(weight_norm, scalars["maxWeightNorm"]) / length if weight_norm and length else 1.0
        weight.add_(x, alpha=-scalars["learningRate"] * ratio)


class RMSprop:
    """Mean square a of the gradient; x = g / (sqrt(a) + eps), and w -= lr * x or the momentum of x.

    Args:
        centered: with the variance instead of the mean square.
        tf_variant: eps inside the root, a starts at one, the momentum collects lr * x.
        momentum: whether there is one.
        dtypes: of the mean square and the mean.
        half_gradient: whether the unscaled gradient is half.
        round_half: brings float32 values to the half grid.
    """

    scalars = _RMSPROP_SCALARS
    counts_steps = False

    def __init__(
        self,
        centered: bool,
        tf_variant: bool,
        momentum: bool,
        dtypes: Tuple[torch.dtype, torch.dtype],
        half_gradient: bool,
        round_half: Rounding,
    ) -> None:
        self.centered, self.tf_variant, self.momentum = centered, tf_variant, momentum
        self.half_gradient, self.round_half = half_gradient, round_half
        self.states = {FIRST: StateSpec(dtypes[0], 1.0 if tf_variant else 0.0)}
        if centered:
            self.states[SECOND] = StateSpec(dtypes[1])
        if momentum:
            self.states[THIRD] = StateSpec(torch.float32)

    def update(self, weight: Tensor, gradient: Tensor, state: State, scalars: Values, factor: float) -> None:
        """As `PlainSGD.update`."""
        alpha, rate = scalars["adaptiveAlpha"], scalars["learningRate"]
        rounding = self.round_half if self.half_gradient else None
        _unscale(gradient, scalars["adaptiveGradientScaling"] * factor, rounding)
        if scalars["weightDecay"]:
            _add_decay(gradient, weight, scalars["weightDecay"], rounding)
        state[FIRST].mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
        _store(state[FIRST], self.states[FIRST], self.round_half)
        divisor = self._divisor(gradient, state, alpha, scalars["adaptiveEps"])
        if not self.momentum:
            weight.addcdiv_(gradient, divisor, value=-rate)
            return
        inner, outer = (rate, 1.0) if self.tf_variant else (1.0, rate)
        state[THIRD].mul_(scalars["adaptiveMomentum"]).addcdiv_(gradient, divisor, value=inner)
        weight.add_(state[THIRD], alpha=-outer)

    def _divisor(self, gradient: Tensor, state: State, alpha: float, eps: float) -> Tensor:
        spread = state[FIRST]
        if self.centered:
            mean = state[SECOND].lerp_(gradient, 1 - alpha)
            _store(mean, self.states[SECOND], self.round_half)
            spread = torch.addcmul(spread, mean, mean, value=-1)
        return spread.add(eps).sqrt_() if self.tf_variant else spread.sqrt().add_(eps)


Rule = Union[PlainSGD, MomentumSGD, Adam, RMSprop]


def make_rule(
    attributes: Attributes,
    group: Settings,
    weight_dtype: torch.dtype,
    accumulates: bool,
    divisor: float,
    round_half: Rounding,
) -> Rule:
    """The rule for the weights of a group.

    Args:
        attributes: of the optimizer.
        group: its values there.
        weight_dtype: declared type of the weights.
        accumulates: whether gradients of several micro batches come together in an accumulator.
        divisor: of the gradient, without the loss scaling.
        round_half: brings float32 values to the half grid.
    """
    kind, fixed = attributes.kind, attributes.fixed
    if kind in (Kind.SGD, Kind.SGD_COMBINED):
        if group["momentum"] == (0.0, True) and not accumulates:
            return PlainSGD(divisor)
        combined = kind is Kind.SGD_COMBINED
        dtype = weight_dtype if combined else fixed["velocity_accum_type"]
        return MomentumSGD(combined, bool(group["nesterov"].value), dtype, round_half)
    dtypes = (fixed["first_order_momentum_accum_type"], fixed["second_order_momentum_accum_type"])
    half_gradient = _unscaled_gradient_is_half(fixed["accum_type"], dtypes, weight_dtype, accumulates)
    if kind in (Kind.RMSPROP, Kind.RMSPROP_CENTERED):
        momentum = group["momentum"].value > 0 or not group["momentum"].constant
        centered = kind is Kind.RMSPROP_CENTERED
        return RMSprop(centered, fixed["use_tf_variant"], momentum, dtypes, half_gradient, round_half)
    trust = kind in (Kind.LAMB, Kind.LAMB_NO_BIAS)
    return Adam(kind is not Kind.ADAM, trust, kind is not Kind.LAMB_NO_BIAS, dtypes, half_gradient, round_half)


def device_scalars(rule: Rule, values: Values) -> Dict[str, float]:
    """The numbers that a rule is given for a weight, in single precision."""
    computed = torch.tensor([scalar.compute(values) for scalar in rule.scalars], dtype=torch.float32)
    return dict(zip((scalar.name for scalar in rule.scalars), computed.tolist()))


def _unscaled_gradient_is_half(
    accumulator: torch.dtype, moments: Tuple[torch.dtype, ...], weight: torch.dtype, accumulates: bool
) -> bool:
    if accumulator == torch.float16 and all(dtype == torch.float32 for dtype in moments):
        return False  # cast before it is unscaled
    return (accumulator if accumulates else weight) == torch.float16


def _rate(values: Values) -> float:
    return values["lr"] * (1 - values["dampening"])


def _unscale(gradient: Tensor, scale: float, rounding: Any) -> None:
    if scale != 1:
        gradient.mul_(scale)
        if rounding:
            gradient.copy_(rounding(gradient))


def _add_decay(gradient: Tensor, weight: Tensor, decay: float, rounding: Any) -> None:
    gradient.add_(weight, alpha=decay)
    if rounding:
        gradient.copy_(rounding(gradient))


def _store(tensor: Tensor, spec: StateSpec, round_half: Rounding) -> None:
    if spec.dtype == torch.float16:
        tensor.copy_(round_half(tensor))
