"""Optimizers, schedules and the average of weights."""

from __future__ import annotations

import copy
from typing import Any, List

import pytest
import torch
from torch import Tensor, nn

from engines.options import TrainingOptions
from optim import (
    Schedule,
    WeightAverage,
    clip_gradients,
    in_memory_order,
    load_named_optimizer_state,
    make_optimizer,
    named_optimizer_state,
    trainable_parameters,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_model() -> nn.Module:
    """Matrices, biases, a norm and a frozen layer."""
    frozen = nn.Linear(4, 4).requires_grad_(False)
    return nn.Sequential(frozen, nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 1))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> List[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(first: List[Tensor], second: List[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_weight_decay_spares_what_has_one_dimension_and_nothing_frozen_is_trained(kind: str) -> None:
    model = make_model()
    optimizer = make_optimizer(model, TrainingOptions(optimizer=kind, weight_decay=0.1, adam_beta2=0.9))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert type(optimizer).__name__ == kind
    assert decay == {id(p): 0.1 if p.dim() > 1 else 0.0 for _, p in trainable_parameters(model)}
    assert all(group["betas"] == (0.9, 0.9) and group["eps"] == 1e-6 for group in optimizer.param_groups)


def test_a_model_without_matrices_can_be_trained() -> None:
    assert len(make_optimizer(nn.LayerNorm(3), TrainingOptions()).param_groups) == 1


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_the_optimizers_state_under_names_repeats_the_next_updates_bit_by_bit(kind: str) -> None:
    options = TrainingOptions(optimizer=kind, weight_decay=0.1, learning_rate=0.1)
    model, inputs = make_model(), torch.randn(8, 3, 4)
    optimizer = make_optimizer(model, options)
    for batch in inputs[:4]:
        update(model, optimizer, batch)
    resumed, state = copy.deepcopy(model), copy.deepcopy(named_optimizer_state(optimizer, model))
    resumed_optimizer = make_optimizer(resumed, options)
    load_named_optimizer_state(resumed_optimizer, resumed, state)
    assert set(state) == {name for name, _ in trainable_parameters(model)}
    for batch in inputs[4:]:
        update(model, optimizer, batch)
        update(resumed, resumed_optimizer, batch)
        assert equal(weights(resumed), weights(model))


def laid_out(model: nn.Module) -> nn.Module:
    """The same weights, those of two dimensions lying column by column."""
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    return model


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_weights_that_lie_otherwise_are_updated_alike_and_stay_so(kind: str) -> None:
    options = TrainingOptions(optimizer=kind, weight_decay=0.1, learning_rate=0.1)
    model, inputs = make_model(), torch.randn(3, 3, 4)
    other = laid_out(copy.deepcopy(model))
    optimizer, others = make_optimizer(model, options), make_optimizer(other, options)
    for batch in inputs:
        update(model, optimizer, batch)
        others.zero_grad()
        other(batch).square().mean().backward()
        with in_memory_order(others):
            others.step()
    for (name, one), (_, turned) in zip(trainable_parameters(model), trainable_parameters(other)):
        torch.testing.assert_close(turned, one, rtol=1e-5, atol=1e-6)
        assert turned.dim() == 1 or 1 in turned.shape or turned.stride() == (1, len(turned))
        state = named_optimizer_state(others, other)[name]
        assert state["exp_avg"].stride() == turned.stride() == turned.grad.stride()  # type: ignore[union-attr]


def test_a_state_is_laid_out_as_the_weights_that_take_it() -> None:
    options = TrainingOptions(learning_rate=0.1)
    model, inputs = make_model(), torch.randn(4, 3, 4)
    optimizer = make_optimizer(model, options)
    update(model, optimizer, inputs[0])
    other = laid_out(copy.deepcopy(model))
    others = make_optimizer(other, options)
    load_named_optimizer_state(others, other, named_optimizer_state(optimizer, model))
    for batch in inputs[1:]:
        update(model, optimizer, batch)
        update(other, others, batch)
    for one, turned in zip(weights(model), weights(other)):
        torch.testing.assert_close(turned, one, rtol=1e-5, atol=1e-6)


def test_a_loaded_state_is_a_copy() -> None:
    model = make_model()
    optimizer = make_optimizer(model, TrainingOptions())
    update(model, optimizer, torch.randn(3, 4))
    state = copy.deepcopy(named_optimizer_state(optimizer, model))
    kept = copy.deepcopy(state)
    load_named_optimizer_state(optimizer, model, state)
    update(model, optimizer, torch.randn(3, 4))
    assert all(torch.equal(state[name][key], kept[name][key]) for name in kept for key in kept[name])


def test_the_state_of_other_parameters_is_refused_by_name() -> None:
    model, other = make_model(), nn.Linear(4, 1)
    optimizer = make_optimizer(other, TrainingOptions())
    update(other, optimizer, torch.randn(3, 4))
    with pytest.raises(ValueError, match="differ in 'bias'; resume with the run's own options"):
        state = named_optimizer_state(optimizer, other)
        load_named_optimizer_state(make_optimizer(model, TrainingOptions()), model, state)


@pytest.mark.parametrize(
    "kind, warmup, landmarks",
    [
        ("multi_step", None, {0: 0.05, 9: 0.5, 19: 1, 20: 1, 59: 1, 60: 0.1, 99: 0.1, 200: 0.1}),
        ("multi_step", 0, {0: 1, 49: 1, 50: 0.1, 99: 0.1}),
        ("constant", None, {0: 0.05, 19: 1, 99: 1}),
        ("constant", 4, {0: 0.25, 3: 1, 99: 1}),
        ("cosine", None, {0: 0.2, 4: 1, 5: 1, 100: 0, 150: 0}),
        ("cosine", 0, {0: 1, 25: 0.5 + 0.125**0.5, 50: 0.5, 75: 0.5 - 0.125**0.5, 100: 0}),
        ("ReduceLROnPlateau", None, {0: 1, 99: 1}),
        ("ReduceLROnPlateau", 10, {0: 0.1, 9: 1, 99: 1}),
    ],
)
def test_a_schedule_passes_its_landmarks(kind: str, warmup: Any, landmarks: Any) -> None:
    schedule = Schedule(TrainingOptions(lr_scheduler=kind, warmup_steps=warmup, learning_rate=0.3), total_steps=100)
    assert {step: schedule.rate(step) for step in landmarks} == {
        step: pytest.approx(0.3 * factor, abs=1e-9) for step, factor in landmarks.items()
    }


@pytest.mark.parametrize("kind", ["multi_step", "constant", "cosine"])
def test_only_the_plateau_schedule_listens_to_the_loss(kind: str) -> None:
    schedule = Schedule(TrainingOptions(lr_scheduler=kind, warmup_steps=0), total_steps=100)
    before = schedule.rate(10)
    for _ in range(30):
        schedule.end_epoch(1.0)
    assert schedule.rate(10) == before


def plateau_rates(schedule: Schedule, losses: List[float]) -> List[float]:
    rates = []
    for loss in losses:
        schedule.end_epoch(loss)
        rates.append(schedule.rate(0))
    return rates


def make_plateau(rate: float = 1.0) -> Schedule:
    return Schedule(TrainingOptions(lr_scheduler="ReduceLROnPlateau", learning_rate=rate), total_steps=100)


def test_the_rate_is_halved_after_eleven_epochs_without_progress_and_again_after_a_rest_of_ten() -> None:
    rates = plateau_rates(make_plateau(), [1.0] * 33)
    assert rates == [1.0] * 11 + [0.5] * 21 + [0.25]


def test_progress_keeps_the_rate() -> None:
    assert set(plateau_rates(make_plateau(), [1 / epoch for epoch in range(1, 40)])) == {1.0}


@pytest.mark.parametrize("rate", [1e-3, 1e-7])
def test_the_rate_never_falls_below_a_millionth_nor_rises_to_it(rate: float) -> None:
    assert plateau_rates(make_plateau(rate), [1.0] * 1000)[-1] == pytest.approx(min(rate, 1e-6))


@pytest.mark.parametrize("epochs", [0, 1, 7, 12, 15, 30])
def test_a_resumed_schedule_gives_the_same_rates(epochs: int) -> None:
    losses = [1.0] * 20 + [0.5] * 30
    whole, first, resumed = make_plateau(), make_plateau(), make_plateau()
    rates = plateau_rates(whole, losses)
    plateau_rates(first, losses[:epochs])
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert plateau_rates(resumed, losses[epochs:]) == rates[epochs:]


def test_the_average_moves_by_its_decay_which_rises_with_the_steps() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average, expected = WeightAverage(model, decay=0.25), 0.0
    for step in range(1, 6):
        nn.init.constant_(model.weight, step)
        average.update(model)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert average.weights["weight"].item() == pytest.approx(expected)


def test_the_average_leaves_frozen_weights_out_and_the_model_alone() -> None:
    model = make_model()
    before = weights(model)
    average = WeightAverage(model, decay=0.9)
    average.update(model)
    assert set(average.weights) == {name for name, _ in trainable_parameters(model)}
    assert equal(weights(model), before)


def test_swapping_shows_the_average_and_swapping_again_undoes_it() -> None:
    model = make_model()
    average = WeightAverage(model, decay=0.9)
    averaged = weights(model)
    update(model, make_optimizer(model, TrainingOptions(learning_rate=0.1)), torch.randn(3, 4))
    trained = weights(model)
    average.swap(model)
    assert equal(weights(model), averaged) and not equal(averaged, trained)
    average.swap(model)
    assert equal(weights(model), trained)
    average.swap(model)
    assert equal(weights(model), averaged)


def test_a_resumed_average_goes_on_exactly() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.99)
    for _ in range(3):
        nn.init.normal_(model.weight)
        average.update(model)
    resumed = WeightAverage(nn.Linear(3, 2), decay=0.99)
    resumed.load_state_dict(copy.deepcopy(average.state_dict()))
    for held in (average, resumed):
        held.update(model)
    assert resumed.step == average.step == 4
    assert equal(list(resumed.weights.values()), list(average.weights.values()))


@pytest.mark.parametrize("largest, expected", [(0, 5.0), (1, 1.0), (10, 5.0)])
def test_gradients_are_scaled_down_to_the_largest_norm_and_never_up(largest: float, expected: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    clip_gradients([parameter], largest)
    assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-4)
