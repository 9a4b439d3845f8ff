"""Every update rule, against torch's optimizer where the mathematics is torch's, otherwise against its formula."""

from __future__ import annotations

import copy
import math
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

from ipu.simulator import optim
from tests.ipu.simulator.updating import assert_equal, copies, make_gradients, make_parameters, make_updater, update

STEPS = 10
Vector = List[float]


def device_weights(optimizer: torch.optim.Optimizer, parameters: Dict[str, nn.Parameter], **kwargs: Any) -> Any:
    """Weights after ten updates on the device."""
    updater, weights = make_updater(optimizer, parameters, **kwargs), copies(parameters)
    for gradients in make_gradients(STEPS):
        update(updater, weights, [gradients])
    return weights


def assert_torch_agrees(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, names: Dict[str, Any]) -> None:
    """Ten updates of both, from equal parameters; `names` are those of `ours`."""
    weights = device_weights(ours, names)
    parameters = [parameter for group in theirs.param_groups for parameter in group["params"]]
    for gradients in make_gradients(STEPS):
        for parameter, gradient in zip(parameters, gradients.values()):
            parameter.grad = gradient.clone()
        theirs.step()
    assert_equal(weights, dict(zip(names, parameters)))


def from_torch(name: str, **values: Any) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)(make_parameters().values(), **values)


@pytest.mark.parametrize(
    "name, values",
    [
        ("SGD", {"lr": 0.1}),
        ("SGD", {"lr": 0.1, "weight_decay": 0.3}),
        ("SGD", {"lr": 0.1, "momentum": 0.9}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "nesterov": True}),
        ("Adam", {"lr": 0.1}),
        ("Adam", {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3}),
        ("AdamW", {"lr": 0.1}),
        ("AdamW", {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3}),
        ("RMSprop", {"lr": 0.1}),
        ("RMSprop", {"lr": 0.1, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.3}),
        ("RMSprop", {"lr": 0.1, "momentum": 0.5}),
        ("RMSprop", {"lr": 0.1, "alpha": 0.8, "eps": 1e-3, "centered": True, "momentum": 0.5}),
    ],
)
@pytest.mark.parametrize("loss_scaling", [None, 1000.0])
def test_the_update_is_torchs(name: str, values: Dict[str, Any], loss_scaling: Any) -> None:
    parameters = make_parameters()
    ours = getattr(optim, name)(parameters.values(), loss_scaling=loss_scaling, **values)
    assert_torch_agrees(ours, from_torch(name, **values), parameters)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_torchs_own_optimizers_are_updated_as_torch_does(name: str) -> None:
    parameters = make_parameters()
    ours = getattr(torch.optim, name)(parameters.values(), lr=0.1, weight_decay=0.3)
    assert_torch_agrees(ours, from_torch(name, lr=0.1, weight_decay=0.3), parameters)


def test_the_combined_variant_of_sgd_comes_to_the_same() -> None:
    parameters, values = make_parameters(), {"momentum": 0.9, "weight_decay": 0.3, "loss_scaling": 64.0}
    separate = optim.SGD(parameters.values(), 0.1, **values)
    combined = optim.SGD(parameters.values(), 0.1, use_combined_accum=True, velocity_scaling=128.0, **values)
    assert_equal(device_weights(combined, parameters), device_weights(separate, parameters))


def test_bias_correction_has_no_effect_on_adamw() -> None:
    parameters = make_parameters()
    with_correction, without = (optim.AdamW(parameters.values(), bias_correction=given) for given in (True, False))
    assert_equal(device_weights(without, parameters), device_weights(with_correction, parameters), 0)


def test_groups_follow_values_of_their_own() -> None:
    def groups(parameters: List[nn.Parameter]) -> List[Dict[str, Any]]:
        return [{"params": parameters[:1], "lr": 0.2, "weight_decay": 0.5}, {"params": parameters[1:]}]

    parameters = make_parameters()
    ours = optim.AdamW(groups([*parameters.values()]), lr=0.1, weight_decay=0.0)
    theirs = torch.optim.AdamW(groups([*make_parameters().values()]), lr=0.1, weight_decay=0.0)
    assert_torch_agrees(ours, theirs, parameters)


def test_a_parameter_of_no_group_follows_the_defaults() -> None:
    parameters = make_parameters()
    group = {"params": [parameters["lin.bias"]], "lr": 0.5}
    weights = device_weights(optim.SGD([group], lr=0.1), parameters)
    expected = device_weights(optim.SGD(parameters.values(), lr=0.1), parameters)
    expected["lin.bias"] = device_weights(optim.SGD(parameters.values(), lr=0.5), parameters)["lin.bias"]
    assert_equal(weights, expected, 0)


# What differs from torch, as formulas on plain numbers. Each class holds the states of one weight.


class SGDFormula:
    def __init__(self, lr: float, momentum: float, dampening: float, weight_decay: float) -> None:
        self.lr, self.momentum, self.dampening, self.weight_decay = lr, momentum, dampening, weight_decay
        self.v: Vector = []

    def __call__(self, w: Vector, g: Vector) -> Vector:
        self.v = self.v or [0.0] * len(w)
        decayed = [x + self.weight_decay * y for x, y in zip(g, w)]
        self.v = [self.momentum * v + (1 - self.dampening) * x for v, x in zip(self.v, decayed)]
        return [y - self.lr * v for y, v in zip(w, self.v)]


class LambFormula:
    def __init__(self, bias_correction: bool, max_weight_norm: float = 65500.0) -> None:
        self.lr, self.b1, self.b2, self.eps, self.wd = 0.1, 0.8, 0.9, 1e-3, 0.3
        self.bias_correction, self.max_weight_norm, self.t = bias_correction, max_weight_norm, 0
        self.m: Vector = []
        self.v: Vector = []

    def __call__(self, w: Vector, g: Vector) -> Vector:
        self.t += 1
        self.m = [self.b1 * m + (1 - self.b1) * x for m, x in zip(self.m or [0.0] * len(w), g)]
        self.v = [self.b2 * v + (1 - self.b2) * x * x for v, x in zip(self.v or [0.0] * len(w), g)]
        c1, c2 = (1 - self.b1**self.t, 1 - self.b2**self.t) if self.bias_correction else (1.0, 1.0)
        x = [m / c1 / (math.sqrt(v / c2) + self.eps) + self.wd * y for m, v, y in zip(self.m, self.v, w)]
        r = min(norm(w), self.max_weight_norm) / norm(x) if norm(w) and norm(x) else 1.0
        return [y - self.lr * r * change for y, change in zip(w, x)]


class TensorFlowRMSpropFormula:
    def __init__(self, momentum: float, centered: bool) -> None:
        self.lr, self.alpha, self.eps, self.wd, self.momentum, self.centered = 0.1, 0.8, 1e-3, 0.3, momentum, centered
        self.a: Vector = []
        self.c: Vector = []
        self.buffer: Vector = []

    def __call__(self, w: Vector, g: Vector) -> Vector:
        zeros = [0.0] * len(w)
        g = [x + self.wd * y for x, y in zip(g, w)]
        self.a = [self.alpha * a + (1 - self.alpha) * x * x for a, x in zip(self.a or [1.0] * len(w), g)]
        self.c = [self.alpha * c + (1 - self.alpha) * x for c, x in zip(self.c or zeros, g)]
        spread = [a - c * c if self.centered else a for a, c in zip(self.a, self.c)]
        change = [self.lr * x / math.sqrt(s + self.eps) for x, s in zip(g, spread)]
        self.buffer = [self.momentum * b + x for b, x in zip(self.buffer or zeros, change)]
        return [y - b for y, b in zip(w, self.buffer)]


def norm(values: Vector) -> float:
    return math.sqrt(sum(value * value for value in values))


def by_formula(formula: Any, parameters: Dict[str, nn.Parameter]) -> Dict[str, Tensor]:
    """Weights after ten updates by a formula, each weight with a copy of it."""
    weights = {name: parameter.detach().reshape(-1).tolist() for name, parameter in parameters.items()}
    formulas = {name: copy.deepcopy(formula) for name in parameters}
    for gradients in make_gradients(STEPS):
        for name, gradient in gradients.items():
            weights[name] = formulas[name](weights[name], gradient.reshape(-1).tolist())
    return {name: torch.tensor(weights[name]).view(parameter.shape) for name, parameter in parameters.items()}


def test_dampening_acts_from_the_first_step_on() -> None:
    parameters = make_parameters()
    values = {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.3}
    weights = device_weights(optim.SGD(parameters.values(), 0.1, **values), parameters)
    assert_equal(weights, by_formula(SGDFormula(0.1, 0.9, 0.5, 0.3), parameters))


def test_dampening_without_momentum_shortens_the_step() -> None:
    parameters = make_parameters()
    weights = device_weights(optim.SGD(parameters.values(), 0.1, dampening=0.5, weight_decay=0.3), parameters)
    assert_equal(weights, by_formula(SGDFormula(0.1, 0.0, 0.5, 0.3), parameters))


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("max_weight_norm", [None, 0.5, 0.0])
def test_lamb_follows_its_formula(bias_correction: bool, max_weight_norm: Any) -> None:
    parameters = make_parameters()
    values = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3, "max_weight_norm": max_weight_norm}
    weights = device_weights(optim.LAMB(parameters.values(), bias_correction=bias_correction, **values), parameters)
    formula = LambFormula(bias_correction, 65500.0 if max_weight_norm is None else max_weight_norm)
    assert_equal(weights, by_formula(formula, parameters))


def test_lamb_moves_a_weight_of_zeros() -> None:
    parameters = {"lin.weight": nn.Parameter(torch.zeros(3, 5))}
    updater, weights = make_updater(optim.LAMB(parameters.values(), lr=0.1), parameters), copies(parameters)
    update(updater, weights, [{"lin.weight": torch.ones(3, 5)}])
    torch.testing.assert_close(weights["lin.weight"], torch.full((3, 5), -0.1))


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("centered", [False, True])
def test_tensorflows_rmsprop_follows_its_formula(momentum: float, centered: bool) -> None:
    parameters = make_parameters()
    values = {"alpha": 0.8, "eps": 1e-3, "weight_decay": 0.3, "momentum": momentum, "centered": centered}
    weights = device_weights(optim.RMSprop(parameters.values(), 0.1, use_tf_variant=True, **values), parameters)
    assert_equal(weights, by_formula(TensorFlowRMSpropFormula(momentum, centered), parameters))


# Half states. The references round after each change of a state, and nowhere else.


def rounded(tensor: Tensor) -> Tensor:
    return tensor.half().float()


def first_weight(weights: Dict[str, Tensor]) -> Tensor:
    return weights["lin.weight"]


def test_half_moments_of_adam_are_rounded_after_each_update_and_the_corrections_with_them() -> None:
    parameters = make_parameters()
    half = {"first_order_momentum_accum_type": torch.half, "second_order_momentum_accum_type": torch.half}
    values = {"lr": 0.1, "betas": (0.875, 0.96875)}  # which single precision has exactly
    weights = device_weights(optim.Adam(parameters.values(), **values, **half), parameters)
    w = first_weight(copies(parameters))
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, gradients in enumerate(make_gradients(STEPS), start=1):
        g = first_weight(gradients)
        m, v = rounded(0.875 * m + 0.125 * g), rounded(0.96875 * v + 0.03125 * g * g)
        c1, c2 = rounded(torch.tensor(1 - 0.875**t)), rounded(torch.tensor(1 - 0.96875**t))
        w = w - 0.1 * (m / c1) / ((v / c2).sqrt() + 1e-8)
    torch.testing.assert_close(first_weight(weights), w, rtol=1e-5, atol=1e-5)
    exact = first_weight(device_weights(optim.Adam(parameters.values(), **values), parameters))
    assert (exact - w).abs().max() > 1e-4  # the rounding can be seen


def test_a_half_velocity_is_rounded_after_each_update() -> None:
    parameters = make_parameters()
    optimizer = optim.SGD(parameters.values(), 0.1, momentum=0.9, velocity_accum_type=torch.half)
    weights = device_weights(optimizer, parameters)
    w = first_weight(copies(parameters))
    v = torch.zeros_like(w)
    for gradients in make_gradients(STEPS):
        v = rounded(0.9 * v + first_weight(gradients))
        w = w - 0.1 * v
    torch.testing.assert_close(first_weight(weights), w, rtol=1e-6, atol=1e-6)


def test_half_weights_stay_on_the_half_grid() -> None:
    parameters = {name: nn.Parameter(rounded(parameter.detach())) for name, parameter in make_parameters().items()}
    weights = device_weights(optim.SGD(parameters.values(), 0.01), parameters, dtype=torch.half)
    w = first_weight(copies(parameters))
    for gradients in make_gradients(STEPS):
        w = rounded(w - 0.01 * first_weight(gradients))
    assert torch.equal(first_weight(weights), w)


@pytest.mark.parametrize("make", [optim.Adam, optim.RMSprop])
def test_a_half_gradient_is_unscaled_in_half_unless_the_accumulator_alone_is_half(make: Any) -> None:
    # 2**-15 / 2**10 lies below what half can tell from zero: the gradient vanishes when it is unscaled in half.
    def moves(**types: torch.dtype) -> bool:
        parameters = {"scale": nn.Parameter(torch.ones(()))}
        optimizer = make(parameters.values(), lr=0.5, eps=1e-12, loss_scaling=2.0**10, **types)
        updater, weights = make_updater(optimizer, parameters, torch.half), copies(parameters)
        update(updater, weights, [{"scale": torch.tensor(2.0**-25)}])
        return weights["scale"].item() != 1

    assert not moves()
    assert not moves(accum_type=torch.half, first_order_momentum_accum_type=torch.half)
    assert moves(accum_type=torch.half)
