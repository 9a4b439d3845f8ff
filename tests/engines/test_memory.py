"""Memory told before the first step."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

from engines.memory import estimate_memory, measure_activations, megabytes

MEBIBYTE = 2**20


def told(line: str) -> Dict[str, float]:
    """The figures of an estimate in MiB, by name."""
    total, parts = re.fullmatch(r"memory estimate: ([\d.,]+) MiB \((.*)\)", line).groups()  # type: ignore[union-attr]
    named = dict(re.fullmatch(r"(.+) ([\d.,]+) MiB", part).groups() for part in parts.split(", "))  # type: ignore[union-attr]
    return {"total": float(total), **{name: float(figure) for name, figure in named.items()}}


class Squares(nn.Module):
    """Keeps its input and its output for the backward pass, beside its weight."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.linear, self.twice = nn.Linear(4, 3, bias=False), twice

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.linear(inputs)
        return (output.square() + output.square() if self.twice else output.square()).sum()


@pytest.mark.parametrize("twice", [False, True], ids=["used once", "used twice"])
@pytest.mark.parametrize("batch", [2, 5])
def test_activations_are_what_the_backward_pass_needs_without_weights_each_counted_once(
    batch: int, twice: bool
) -> None:
    assert measure_activations(Squares(twice), (torch.rand(batch, 4),)) == 4 * batch * (4 + 3)


def test_measuring_leaves_weights_gradients_and_random_numbers_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    weights, random = [p.detach().clone() for p in model.parameters()], torch.get_rng_state()
    measure_activations(model, (torch.rand(2, 4, generator=torch.Generator()),))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(p, w) and p.grad is None for p, w in zip(model.parameters(), weights))


def test_what_was_measured_is_let_go() -> None:
    held: List[Any] = []

    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = (x * self.scale).softmax(dim=-1)  # kept as the output of its own gradient
            held.append(weakref.ref(weights))
            return weights.square().sum()

    module = Kept()
    module.scale = nn.Parameter(torch.ones(4))
    gc.disable()
    try:
        measure_activations(module, (torch.rand(2, 4),))
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("averaged", [False, True])
def test_the_estimate_has_a_gradient_two_moments_and_an_average_for_each_weight(averaged: bool) -> None:
    model = nn.Linear(512, 512, bias=False)  # 1 MiB
    figures = told(estimate_memory(model, 3 * MEBIBYTE, averaged))
    expected = {"weights": 1, "gradients": 1, "optimizer": 2, "activations of a micro batch": 3}
    assert figures == {"total": 8 if averaged else 7, **expected, **({"weight average": 1} if averaged else {})}


def test_frozen_weights_and_buffers_have_neither_gradient_nor_moments() -> None:
    model = nn.Linear(512, 512, bias=False).requires_grad_(False)
    model.register_buffer("table", torch.zeros(512, 512))
    assert told(estimate_memory(model, 0, averaged=True)) == {"total": 2, "weights": 2}


def test_a_shared_weight_counts_once() -> None:
    first, second = nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)
    second.weight = first.weight
    assert told(estimate_memory(nn.Sequential(first, second), 0, averaged=False))["weights"] == 1


def test_large_figures_are_grouped() -> None:
    assert megabytes(2**31) == "2,048.0 MiB"
