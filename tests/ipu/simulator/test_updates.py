"""From gradients of micro batches to an update: accumulation, reduction, clipping, loss scaling, saved states."""

from __future__ import annotations

import math
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor, nn

from ipu.simulator import optim
from ipu.simulator.enums import MeanReductionStrategy, ReductionType
from ipu.simulator.half import Rounder, round_half
from ipu.simulator.poptorch_core import Error
from ipu.simulator.updates import Updater, read_attributes
from tests.ipu.simulator.updating import (
    Gradients,
    assert_equal,
    copies,
    make_gradients,
    make_parameters,
    make_updater,
    update,
)

POST, RUNNING = MeanReductionStrategy.Post, MeanReductionStrategy.Running


def updated(updater: Updater, parameters: Dict[str, Any], micro_batches: List[Gradients], replicas: int = 1) -> Any:
    """Weights after one update."""
    weights = copies(parameters)
    update(updater, weights, micro_batches, replicas)
    return weights


def sum_of(micro_batches: List[Gradients]) -> Gradients:
    return {name: torch.stack([batch[name] for batch in micro_batches]).sum(0) for name in micro_batches[0]}


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("strategy", [POST, RUNNING])
@pytest.mark.parametrize("reduction", [ReductionType.Sum, ReductionType.Mean])
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_gradients_are_added_up_or_averaged_over_micro_batches_and_replicas(
    momentum: Any, reduction: ReductionType, strategy: MeanReductionStrategy, accumulation: int, replicas: int
) -> None:
    parameters, count = make_parameters(), accumulation * replicas
    optimizer = optim.SGD(parameters.values(), 0.1, momentum=momentum, loss_scaling=16.0)
    updater = make_updater(optimizer, parameters, torch.float32, accumulation, replicas, reduction, strategy)
    micro_batches = make_gradients(count)
    weights = updated(updater, parameters, micro_batches, replicas)
    share = 1 if reduction == ReductionType.Sum else 1 / count
    expected = {name: parameters[name] - 0.1 * share * total for name, total in sum_of(micro_batches).items()}
    assert_equal(weights, expected)


@pytest.mark.parametrize("strategy", [POST, RUNNING])
def test_adam_averages_too(strategy: MeanReductionStrategy) -> None:
    parameters, micro_batches = make_parameters(), make_gradients(6)
    mean = {name: total / 6 for name, total in sum_of(micro_batches).items()}
    values = {"lr": 0.1, "eps": 0.1}  # of a size that shows the size of the gradient
    plain = make_updater(optim.Adam(parameters.values(), **values), parameters)
    ours = make_updater(
        optim.Adam(parameters.values(), loss_scaling=8.0, **values), parameters, torch.float32, 3, 2, strategy=strategy
    )
    assert_equal(updated(ours, parameters, micro_batches, 2), updated(plain, parameters, [mean]))


def test_updates_do_not_remember_the_gradients_of_earlier_ones() -> None:
    parameters, weights = make_parameters(), copies(make_parameters())
    updater = make_updater(optim.SGD(parameters.values(), 0.1), parameters, gradient_accumulation=2)
    first, second, third, fourth = make_gradients(4)
    update(updater, weights, [first, second])
    update(updater, weights, [third, fourth])
    total = sum_of([first, second, third, fourth])
    assert_equal(weights, {name: parameters[name] - 0.05 * total[name] for name in parameters})


def test_gradients_that_share_memory_are_told_apart() -> None:
    parameters = {name: nn.Parameter(torch.ones(3)) for name in ("a", "b", "c")}
    updater, weights = make_updater(optim.SGD(parameters.values(), 1.0), parameters, gradient_accumulation=2), {}
    weights.update(copies(parameters))
    updater.begin_replica()
    for value in (1.0, 2.0):
        shared = torch.full((3,), value)
        updater.accumulate({"a": shared, "b": shared, "c": torch.full((), value).expand(3)})
    updater.end_replica()
    updater.apply(weights)
    assert_equal(weights, {name: torch.full((3,), -0.5) for name in parameters}, 0)


def test_a_weight_without_a_gradient_has_one_of_zeros() -> None:
    parameters, weights = make_parameters(), copies(make_parameters())
    optimizer = optim.SGD(parameters.values(), 0.1, weight_decay=0.5)
    updater = make_updater(optimizer, parameters, gradient_accumulation=2)
    first, second = make_gradients(2)
    expected = {name: parameters[name] - 0.1 * (first[name] / 2 + 0.5 * parameters[name]) for name in parameters}
    expected["scale"] = parameters["scale"] * 0.95
    first.pop("scale")
    update(updater, weights, [first, {}])
    assert_equal(weights, expected)


def test_a_replica_that_ends_early_is_noticed() -> None:
    parameters = make_parameters()
    updater = make_updater(optim.SGD(parameters.values(), 0.1), parameters, gradient_accumulation=2)
    updater.begin_replica()
    updater.accumulate(make_gradients(1)[0])
    with pytest.raises(AssertionError, match="after 1 of 2 micro batches"):
        updater.end_replica()


# Half accumulators.


def one_weight(value: float = 0.0) -> Dict[str, nn.Parameter]:
    return {"w": nn.Parameter(torch.tensor([value]))}


def accumulate_in_half(strategy: MeanReductionStrategy, values: List[float], replicas: int = 1) -> float:
    """The mean gradient that arrives at the weight."""
    parameters = one_weight()
    optimizer = optim.SGD(parameters.values(), 1.0, accum_type=torch.half)
    each = len(values) // replicas
    updater = make_updater(optimizer, parameters, torch.float32, each, replicas, strategy=strategy)
    weights = updated(updater, parameters, [{"w": torch.tensor([value])} for value in values], replicas)
    return -weights["w"].item()


def half(value: float) -> float:
    return float(torch.tensor(value).half())


def test_a_sum_in_half_saturates_where_a_running_mean_does_not() -> None:
    values = [40000.0] * 4
    assert accumulate_in_half(POST, values) == 65504 / 4
    assert accumulate_in_half(RUNNING, values) == 40000


def test_a_half_accumulator_is_rounded_after_each_micro_batch() -> None:
    values = [1.0, 2.0**-11, 2.0**-11, 2.0**-11]  # each too small to change the sum, which together they would
    assert accumulate_in_half(POST, values) == 0.25
    mean = half(values[0])
    for step, value in enumerate(values[1:], start=2):
        mean = half(mean + (value - mean) / step)
    assert accumulate_in_half(RUNNING, values) == mean != sum(values) / 4


def test_replicas_are_added_up_in_the_accumulators_type() -> None:
    assert accumulate_in_half(POST, [40000.0, 0.0, 40000.0, 0.0], replicas=2) == 65504 / 4
    assert accumulate_in_half(RUNNING, [40000.0, 40000.0, 40000.0, 40000.0], replicas=2) == 65504 / 2


def test_without_accumulation_half_gradients_of_replicas_are_added_up_in_half() -> None:
    parameters = one_weight()
    micro_batches = [{"w": torch.tensor([40000.0])}] * 2
    found = {}
    for dtype in (torch.half, torch.float32):
        updater = make_updater(optim.SGD(parameters.values(), 1.0), parameters, dtype, 1, 2)
        found[dtype] = -updated(updater, parameters, micro_batches, 2)["w"].item()
    assert found == {torch.half: 65504 / 2, torch.float32: 40000}


def test_the_combined_variant_accumulates_in_the_weights_type() -> None:
    parameters = one_weight()
    micro_batches = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0**-11])}]
    found = {}
    for dtype in (torch.half, torch.float32):
        optimizer = optim.SGD(parameters.values(), 1.0, accum_type=torch.half, use_combined_accum=True)
        updater = make_updater(optimizer, parameters, dtype, 2, 1, ReductionType.Sum)
        found[dtype] = -updated(updater, parameters, micro_batches)["w"].item()
    assert found == {torch.half: 1.0, torch.float32: 1 + 2.0**-11}


def test_stochastic_rounding_lets_small_gradients_count() -> None:
    parameters = {"w": nn.Parameter(torch.ones(10_000))}
    optimizer = optim.SGD(parameters.values(), 1.0)
    rounder = Rounder(stochastic=True, seed=1)
    gradient = {"w": torch.full((10_000,), 2.0**-14)}  # an eighth of the distance of halves below one
    exact = updated(make_updater(optimizer, parameters, torch.half), parameters, [gradient])["w"]
    drawn = updated(make_updater(optimizer, parameters, torch.half, rounding=rounder), parameters, [gradient])["w"]
    assert exact.unique().tolist() == [1.0]
    assert abs(drawn.mean().item() - (1 - 2.0**-14)) < 5 * 2.0**-11 / 2 / 100
    assert torch.equal(round_half(drawn), drawn)


# Clipping.


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("largest", [0.5, 1000.0])
def test_clipping_scales_all_gradients_by_their_common_norm(name: str, largest: float) -> None:
    values = {"lr": 0.1, "weight_decay": 0.3, **({} if name == "SGD" else {"eps": 0.1})}
    parameters, micro_batches = make_parameters(), make_gradients(4)
    optimizer = getattr(optim, name)(parameters.values(), loss_scaling=32.0, max_grad_norm=largest, **values)
    weights = updated(make_updater(optimizer, parameters, torch.float32, 2, 2), parameters, micro_batches, 2)
    theirs = make_parameters()
    for parameter, total in zip(theirs.values(), sum_of(micro_batches).values()):
        parameter.grad = total / 4
    norm = nn.utils.clip_grad_norm_(theirs.values(), largest)
    assert (norm > largest) == (largest == 0.5)
    getattr(torch.optim, name)(theirs.values(), **values).step()
    assert_equal(weights, theirs, 2e-6)


# Loss scaling.


def test_the_seed_is_the_loss_scaling_and_follows_it() -> None:
    parameters = make_parameters()
    optimizer = optim.SGD(parameters.values(), 0.1, loss_scaling=128.0)
    updater = make_updater(optimizer, parameters)
    assert updater.seed == 128
    optimizer.loss_scaling = 256.0
    updater.set_attributes(read_attributes(optimizer))
    assert updater.seed == 256
    gradient = make_gradients(1)
    weights = updated(updater, parameters, gradient)
    assert_equal(weights, {name: parameters[name] - 0.1 * gradient[0][name] for name in parameters})


class Automatic:
    """A half weight of a million elements whose loss scaling the device finds."""

    def __init__(self, loss_scaling: float = 1.0, **values: Any) -> None:
        self.parameters = {"w": nn.Parameter(torch.zeros(1_000_000))}
        self.optimizer = optim.SGD(self.parameters.values(), 1.0, loss_scaling=loss_scaling, **values)
        self.updater = make_updater(self.optimizer, self.parameters, torch.half, automatic_loss_scaling=True)

    def step(self, large: int = 0, value: float = 0.0) -> float:
        """One update with `large` values beyond the limit; returns the loss scale after it."""
        gradient = torch.full((1_000_000,), value)
        gradient[:large] = 8188.5
        self.updater.begin_replica()
        self.updater.accumulate({"w": gradient})
        self.updater.end_replica()
        self.weights = copies(self.parameters)
        self.updater.apply(self.weights)
        return self.updater.seed


def test_the_loss_scale_doubles_while_no_gradient_is_large() -> None:
    automatic = Automatic(loss_scaling=4.0)
    assert automatic.updater.seed == 4
    assert [automatic.step() for _ in range(3)] == [8, 16, 32]


def test_the_loss_scale_halves_when_a_gradient_is_large() -> None:
    automatic = Automatic(loss_scaling=4.0)
    assert [automatic.step(1), automatic.step(3), automatic.step(0)] == [2, 1, 2]
    assert automatic.step(0, -8188.5) == 1  # a negative one
    assert automatic.step(0, 8188.0) == 2  # an eighth of the largest half is not beyond it
    assert automatic.step(0, math.inf) == 1


def test_the_loss_scale_stops_where_a_half_could_not_hold_it() -> None:
    automatic = Automatic(loss_scaling=2.0**14)
    assert [automatic.step() for _ in range(3)] == [2.0**15] * 3


def test_an_update_divides_by_the_loss_scale_that_its_gradients_had() -> None:
    automatic = Automatic(loss_scaling=4.0, max_grad_norm=1e6)
    automatic.step(0)
    automatic.step(0, 16.0)  # at a loss scale of 8
    assert automatic.weights["w"].unique().tolist() == [-2.0]


def test_replicas_and_micro_batches_vote_together() -> None:
    parameters = {"w": nn.Parameter(torch.zeros(4_000_000))}
    optimizer = optim.Adam(parameters.values())
    updater = make_updater(optimizer, parameters, torch.half, 2, 2, automatic_loss_scaling=True)
    for replica in range(2):
        updater.begin_replica()
        for micro_batch in range(2):
            gradient = torch.zeros(4_000_000)
            gradient[0] = 60000.0 if replica == micro_batch == 0 else 0.0
            updater.accumulate({"w": gradient})
        updater.end_replica()
    updater.apply(copies(parameters))
    assert updater.seed == 2  # one in sixteen million is few enough


def test_automatic_loss_scaling_needs_half_gradients() -> None:
    parameters = one_weight()
    updater = make_updater(optim.SGD(parameters.values(), 1.0), parameters, automatic_loss_scaling=True)
    with pytest.raises(Error, match="automatic loss scaling needs half gradients"):
        updated(updater, parameters, [{"w": torch.ones(1)}])


def test_half_gradients_of_activations_count_when_they_are_shown() -> None:
    parameters = one_weight()
    updater = make_updater(optim.SGD(parameters.values(), 1.0), parameters, automatic_loss_scaling=True)
    updater.watch(torch.full((3,), -1e4))
    updated(updater, parameters, [{"w": torch.ones(1)}])
    assert updater.seed == 0.5


# Values and states by name.


def test_values_do_not_follow_the_optimizer_until_they_are_set() -> None:
    parameters, gradients = make_parameters(), make_gradients(1)
    optimizer = optim.SGD(parameters.values(), lr=0.1)
    updater = make_updater(optimizer, parameters)
    optimizer.param_groups[0]["lr"] = 1.0
    kept = updated(updater, parameters, gradients)
    assert_equal(kept, {name: parameters[name] - 0.1 * gradients[0][name] for name in parameters})
    updater.set_attributes(read_attributes(optimizer))
    assert_equal(
        updated(updater, parameters, gradients), {name: parameters[name] - gradients[0][name] for name in parameters}
    )


def test_a_constant_cannot_be_set() -> None:
    parameters = make_parameters()
    optimizer = optim.SGD(parameters.values(), lr=0.1)
    updater = make_updater(optimizer, parameters)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(Error, match="weight_decay"):
        updater.set_attributes(read_attributes(optimizer))


def test_values_out_of_bounds_are_refused_when_compiling() -> None:
    parameters = make_parameters()
    with pytest.raises(Error, match="eps=0"):
        optimizer = optim.Adam(parameters.values())
        optimizer.param_groups[0]["eps"] = 0.0
        make_updater(optimizer, parameters)


def prefixes(names: Any) -> Any:
    """What stands before ___; every weight has to have the same."""
    found: Dict[str, set] = {}
    for key in names:
        prefix, weight = key.split("___", 1)
        found.setdefault(weight, set()).add(prefix)
    assert len(found) == 3 and len({frozenset(each) for each in found.values()}) == 1
    return next(iter(found.values()))


@pytest.mark.parametrize(
    "make, accumulation, expected",
    [
        (lambda p: optim.SGD(p, 0.1, momentum=0.9), 1, {"Accl1"}),
        (lambda p: optim.SGD(p, 0.1, momentum=0.0), 1, {"Accl1"}),
        (lambda p: optim.SGD(p, 0.1), 2, {"Accl1"}),
        (lambda p: optim.SGD(p, 0.1, use_combined_accum=True), 2, {"Accl"}),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 1, {"Accl1"}),
        (lambda p: optim.Adam(p), 1, {"Accl1", "Accl2", "Step"}),
        (lambda p: optim.AdamW(p, bias_correction=False), 2, {"Accl1", "Accl2", "Step"}),
        (lambda p: optim.LAMB(p), 1, {"Accl1", "Accl2", "Step"}),
        (lambda p: optim.LAMB(p, bias_correction=False), 1, {"Accl1", "Accl2"}),
        (lambda p: optim.RMSprop(p), 1, {"Accl1"}),
        (lambda p: optim.RMSprop(p, centered=True), 1, {"Accl1", "Accl2"}),
        (lambda p: optim.RMSprop(p, momentum=0.0), 1, {"Accl1", "Accl3"}),
    ],
)
def test_states_have_poparts_names(make: Any, accumulation: int, expected: Any) -> None:
    parameters = make_parameters()
    updater = make_updater(make(parameters.values()), parameters, gradient_accumulation=accumulation)
    state = updater.state()
    assert prefixes(state) == expected
    for key, tensor in state.items():
        shape = () if key.startswith("Step") else parameters[key.split("___")[1]].shape
        assert tensor.shape == shape


def test_sgd_without_momentum_and_accumulation_has_no_state() -> None:
    parameters = make_parameters()
    for optimizer in (optim.SGD(parameters.values(), 0.1), torch.optim.SGD(parameters.values(), 0.1)):
        assert make_updater(optimizer, parameters).state() == {}


def test_states_come_in_their_declared_types() -> None:
    parameters = make_parameters()
    optimizer = optim.Adam(parameters.values(), first_order_momentum_accum_type=torch.half)
    state = make_updater(optimizer, parameters).state()
    types = {key.split("___")[0]: tensor.dtype for key, tensor in state.items()}
    assert types == {"Accl1": torch.float16, "Accl2": torch.float32, "Step": torch.float32}


def test_a_saved_state_is_a_copy() -> None:
    parameters, weights = make_parameters(), copies(make_parameters())
    updater = make_updater(optim.Adam(parameters.values()), parameters)
    state = updater.state()
    update(updater, weights, make_gradients(1))
    assert state["Step___scale"] == 0
    assert updater.state()["Step___scale"] == 1
    assert state["Accl1___lin.bias"].count_nonzero() == 0


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda p: optim.Adam(p), {"learningRate"}),
        (lambda p: optim.AdamW(p, weight_decay=0.1), {"learningRate", "weightDecay"}),
        (lambda p: optim.Adam(p, betas=(0.9, 0.99), eps=1e-6), {"learningRate", "adamBeta1", "adamBeta2", "adamEps"}),
        (lambda p: optim.LAMB(p, max_weight_norm=1.0), {"learningRate", "maxWeightNorm"}),
        (
            lambda p: optim.RMSprop(p, alpha=0.9, momentum=0.1, eps=1e-6),
            {"learningRate", "adaptiveAlpha", "adaptiveMomentum", "adaptiveEps"},
        ),
        (lambda p: optim.SGD(p, 0.1), {"scaledLearningRate0", "weightDecayScaleFactor0"}),
        (lambda p: optim.SGD(p, 0.1, momentum=0.9), {"scaledLearningRate2", "scaledMomentum2"}),
        (
            lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.1, use_combined_accum=True),
            {"scaledLearningRate1", "scaledMomentum1", "dampeningScaleFactor1", "scaledWeightDecay1"},
        ),
    ],
)
def test_variable_values_have_poparts_names(make: Any, expected: Any) -> None:
    parameters = make_parameters()
    found = make_updater(make(parameters.values()), parameters).parameters()
    assert prefixes(found) == expected
    assert all(tensor.shape == () and tensor.dtype == torch.float32 for tensor in found.values())
    assert {key.split("___")[1] for key in found} == {"specific"}


def test_values_of_parameters_without_a_group_go_by_default() -> None:
    parameters = make_parameters()
    optimizer = optim.Adam([parameters["scale"]], lr=0.5)
    found = make_updater(optimizer, parameters).parameters()
    assert {key: value.item() for key, value in found.items()} == {
        "learningRate___specific___scale": 0.5,
        "learningRate___default___FLOAT": 0.5,
    }


def test_the_compound_values_of_sgd() -> None:
    parameters = one_weight()
    values = {"dampening": 0.5, "weight_decay": 0.25, "loss_scaling": 8.0}
    found = make_updater(optim.SGD(parameters.values(), 0.5, **values), parameters).parameters()
    assert {key: value.item() for key, value in found.items()} == {
        "scaledLearningRate0___specific___w": 0.5 * (1 - 0.5) / 8,
        "weightDecayScaleFactor0___specific___w": 1 - 0.5 * (1 - 0.5) * 0.25,
        "lossScaling_FLOAT": 8,
    }


RESUMED = [
    lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.3, loss_scaling=24.0),
    lambda p: optim.SGD(p, 0.1, momentum=0.9, use_combined_accum=True, velocity_scaling=3.0),
    lambda p: optim.Adam(p, lr=0.1, weight_decay=0.3, first_order_momentum_accum_type=torch.half),
    lambda p: optim.LAMB(p, lr=0.1),
    lambda p: optim.RMSprop(p, 0.1, centered=True, momentum=0.5),
]


@pytest.mark.parametrize("make", RESUMED)
def test_a_resumed_run_goes_on_bit_for_bit(make: Any) -> None:
    parameters, gradients = make_parameters(), make_gradients(6)
    straight = make_updater(make(parameters.values()), parameters)
    weights = copies(parameters)
    for each in gradients[:3]:
        update(straight, weights, [each])
    resumed, resumed_weights = make_updater(make(parameters.values()), parameters), copies(weights)
    resumed.load_state(straight.state())
    resumed.load_parameters(straight.parameters())
    for each in gradients[3:]:
        update(straight, weights, [each])
        update(resumed, resumed_weights, [each])
    assert_equal(resumed_weights, weights, 0)


def test_loaded_values_count_until_the_next_upload() -> None:
    parameters, gradients = one_weight(), [{"w": torch.ones(1)}]
    optimizer = optim.SGD(parameters.values(), 0.5)
    updater = make_updater(optimizer, parameters)
    updater.load_parameters({"scaledLearningRate0___specific___w": torch.tensor(2.0)})
    assert updated(updater, parameters, gradients)["w"].item() == -2
    updater.set_attributes(read_attributes(optimizer))
    assert updated(updater, parameters, gradients)["w"].item() == -0.5


def test_a_loaded_loss_scaling_is_the_seed() -> None:
    parameters = one_weight()
    updater = make_updater(optim.Adam(parameters.values(), loss_scaling=2.0), parameters)
    updater.load_parameters({"lossScaling_FLOAT": torch.tensor(64.0)})
    assert updater.seed == 64


def test_what_a_loaded_state_lacks_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    parameters, weights = one_weight(), copies(one_weight())
    updater = make_updater(optim.Adam(parameters.values()), parameters)
    update(updater, weights, [{"w": torch.ones(1)}])
    before = updater.state()
    updater.load_state({"Step___w": torch.tensor(7.0), "Accl1___other": torch.ones(3)})
    assert_equal(updater.state(), {**before, "Step___w": torch.tensor(7.0)}, 0)
    assert "no Accl1___w; 2 states stay" in caplog.text


def test_a_state_of_another_shape_is_refused() -> None:
    parameters = one_weight()
    updater = make_updater(optim.Adam(parameters.values()), parameters)
    with pytest.raises(Error, match=r"Accl1___w has the shape \(2,\).*\(1,\)"):
        updater.load_state({"Accl1___w": torch.ones(2)})


def test_the_found_factor_of_the_loss_scale_is_saved_with_the_state() -> None:
    automatic, other = Automatic(loss_scaling=4.0), Automatic(loss_scaling=4.0)
    automatic.step()
    state: Dict[str, Tensor] = automatic.updater.state()
    assert state["lossScaleUpdateFactor"] == 2
    other.updater.load_state(state)
    assert other.updater.seed == 8
    assert "lossScaleUpdateFactor" not in make_updater(automatic.optimizer, automatic.parameters).state()
