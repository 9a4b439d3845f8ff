"""The arithmetic of a run: half precision, rounding, exceptions, random numbers."""

from __future__ import annotations

import copy
from typing import Any, Callable, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import Options, OutputMode, inferenceModel, trainingModel
from ipu.simulator.poptorch_core import Error


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(*tensors)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(x), y)


def classes(rows: int = 64) -> Any:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (rows,), generator=generator)
    return torch.randn(rows, 16, generator=generator) + y[:, None] / 2, y


def is_on_half_grid(tensor: Tensor) -> bool:
    return torch.equal(tensor, tensor.half().float())


# ----------------------------------------------------------------------------------------------------------------- half


def test_half_models_learn_close_to_single_precision_and_stay_on_the_grid() -> None:
    torch.manual_seed(0)
    single = Perceptron()
    half = copy.deepcopy(single).half()
    x, y = classes()
    first = trainingModel(single, optimizer=torch.optim.SGD(single.parameters(), lr=0.1))
    second = trainingModel(half, optimizer=poptorch.optim.SGD(half.parameters(), lr=0.1, loss_scaling=128.0))
    one = [first(x, y).item() for _ in range(20)]
    other = [second(x.half(), y) for _ in range(20)]
    assert all(loss.dtype == torch.half for loss in other)
    assert [loss.item() for loss in other] == pytest.approx(one, abs=0.02)
    assert other[-1] < 0.7 * other[0]
    assert all(is_on_half_grid(tensor) for tensor in second._device.weights_and_buffers().values())


def test_every_operator_rounds_its_result_and_no_sum_within_does() -> None:
    x = (1 + torch.arange(64.0) / 512).half()
    found = inferenceModel(Function(lambda x: ((x * x) + x, x @ x)))(x)
    carried = x.float()
    assert torch.equal(found[0], ((carried * carried).half().float() + carried).half())
    assert torch.equal(found[1], (carried @ carried).half())


def test_gradients_in_half_underflow_without_loss_scaling_and_survive_with_it() -> None:
    def learned(scale: float) -> float:
        class Tiny(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(1).half())

            def forward(self, x: Tensor) -> Tensor:
                return poptorch.identity_loss((self.weight * x).float() * 2.0**-26, "sum")

        plain = Tiny()
        trainingModel(plain, optimizer=poptorch.optim.SGD(plain.parameters(), lr=2.0**20, loss_scaling=scale))(
            torch.ones(1).half()
        )
        return 1 - float(plain.weight)

    assert learned(1.0) == 0
    assert learned(1024.0) == pytest.approx(2.0**-6)


def test_half_buffers_are_kept_in_half() -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4).half())

        def forward(self, x: Tensor) -> Tensor:
            self.mean.mul_(0.9).add_(x.mean(0) * 0.1)
            return self.mean * 1

    model = inferenceModel(Average())
    for _ in range(3):
        model(torch.randn(8, 4).half())
    assert is_on_half_grid(model._device.weights_and_buffers()["mean"])


def test_partial_sums_in_half_lose_what_single_ones_keep() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(1024, 1).half()
            self.conv = nn.Conv1d(1024, 1, 1).half()
            for layer in (self.lin, self.conv):
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x: Tensor) -> Any:
            return self.lin(x), x @ x.t(), F.conv2d(x[:, :, None, None], self.conv.weight[..., None])

    # 2048 and eight numbers of a quarter for each partial sum: half precision has steps of 2 up there
    x = torch.full((1, 1024), 1 / 128)
    x[0, 0] = 2048
    exact = float(x.sum())
    plain = Sum()
    options = Options()
    options.Precision.setPartialsType(torch.half)
    single = inferenceModel(plain)(x.half())
    rounded = inferenceModel(plain, options)(x.half())
    assert float(single[0]) == float(torch.tensor(exact).half()) == float(single[2])
    assert float(rounded[0]) == float(rounded[2]) == 2048
    assert float(rounded[1]) == pytest.approx(float(single[1]), rel=1e-3)


def test_stochastic_rounding_keeps_small_updates_alive_on_average() -> None:
    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4096).half())

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss((self.weight * x), "sum")

    def mean_after(stochastic: bool) -> float:
        plain = Weights()
        options = Options().randomSeed(3)
        options.Precision.enableStochasticRounding(stochastic)
        training = trainingModel(plain, options, poptorch.optim.SGD(plain.parameters(), lr=2.0**-14))
        for _ in range(8):
            training(torch.ones(1).half())
        return float(plain.weight.float().mean())

    assert mean_after(False) == 1
    assert mean_after(True) == pytest.approx(1 - 8 * 2.0**-14, abs=4e-5)


def test_stochastic_rounding_repeats_with_the_seed() -> None:
    def run(seed: int) -> Tensor:
        options = Options().randomSeed(seed)
        options.Precision.enableStochasticRounding(True)
        return inferenceModel(Function(lambda x: x / 3), options)(torch.ones(64).half())

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    assert len(set(run(1).tolist())) == 2


# ----------------------------------------------------------------------------------------------------------- exceptions


def with_exceptions() -> Options:
    options = Options()
    options.Precision.enableFloatingPointExceptions(True)
    return options


@pytest.mark.parametrize(
    ("function", "x"),
    [
        (lambda x: x * 300, torch.full((1,), 300.0).half()),
        (lambda x: x / 0, torch.ones(1)),
        (lambda x: x.log(), torch.zeros(1)),
        (lambda x: (x - 1).sqrt(), torch.zeros(1)),
        (lambda x: x.exp(), torch.full((1,), 100.0)),
    ],
)
def test_overflow_division_by_zero_and_invalid_numbers_stop_a_run(function: Any, x: Tensor) -> None:
    with pytest.raises(Error, match="floating point exception"):
        inferenceModel(Function(function), with_exceptions())(x)
    inferenceModel(Function(function))(x)


def test_masks_of_infinity_are_no_exception() -> None:
    def attention(x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((4, 4), float("-inf"), device=x.device), 1)
        return (x + mask).softmax(-1) + x.masked_fill(x > 0, float("-inf")).exp()

    assert inferenceModel(Function(attention), with_exceptions())(torch.randn(4, 4)).isfinite().all()


def test_an_overflowing_gradient_stops_a_run_and_lowering_the_scale_helps() -> None:
    def train(scale: float) -> None:
        plain = Perceptron().half()
        optimizer = poptorch.optim.SGD(plain.parameters(), lr=0.1, loss_scaling=scale)
        x, y = classes()
        trainingModel(plain, with_exceptions(), optimizer)(x.half(), y)

    train(64.0)
    with pytest.raises(Error, match="floating point exception"):
        train(2.0**20)


def test_a_healthy_model_runs_with_exceptions_on() -> None:
    plain = Perceptron()
    x, y = classes()
    training = trainingModel(plain, with_exceptions())
    assert training(x, y) > training(x, y)


# ------------------------------------------------------------------------------------------------------- random numbers


def dropped(options: Options, calls: int = 1) -> List[List[float]]:
    model = inferenceModel(Function(lambda x: F.dropout(x, 0.5)), options)
    return [
        model(torch.ones(64 * options.device_iterations * options.replication_factor)).tolist() for _ in range(calls)
    ]


def test_replicas_iterations_and_calls_draw_different_numbers() -> None:
    first, second = dropped(Options().randomSeed(1).deviceIterations(2).replicationFactor(2), 2)
    parts = [tuple(row[i : i + 64]) for row in (first, second) for i in range(0, 256, 64)]
    assert len(set(parts)) == 8
    assert all(set(part) == {0.0, 2.0} for part in parts)


def test_the_first_replica_draws_the_same_numbers_however_many_there_are() -> None:
    alone = dropped(Options().randomSeed(1))[0]
    assert dropped(Options().randomSeed(1).replicationFactor(2))[0][:64] == alone


def test_torchs_own_random_numbers_neither_move_nor_matter() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    one = dropped(Options().randomSeed(7))
    torch.manual_seed(1)
    model = inferenceModel(Function(lambda x: F.dropout(x, 0.5)))
    model(torch.ones(8))
    assert torch.equal(torch.rand(2), wanted)
    torch.manual_seed(123)
    options = Options().randomSeed(7)
    torch.manual_seed(55)
    assert dropped(options) == one


def test_without_a_seed_executors_differ() -> None:
    assert dropped(Options()) != dropped(Options())


def test_dropout_in_training_uses_one_mask_for_both_passes() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, x: Tensor) -> Any:
            y = F.dropout(self.weight * x, 0.5)
            return y, poptorch.identity_loss(y, "sum")

    plain = Masked()
    options = Options().outputMode(OutputMode.All)
    y = trainingModel(plain, options, torch.optim.SGD(plain.parameters(), lr=1.0))(torch.ones(1))[0]
    assert set(y.tolist()) == {0.0, 2.0}
    assert torch.equal(plain.weight.detach(), 1 - y)


def test_random_factories_draw_anew_in_every_micro_batch() -> None:
    def function(x: Tensor) -> Tensor:
        noise = torch.randn_like(x) + torch.rand(4, device=x.device) + torch.randint(0, 9, (4,), device=x.device)
        return x + noise + torch.randperm(4, device=x.device) + torch.normal(0.0, 1.0, (4,), device=x.device)

    found = inferenceModel(Function(function), Options().deviceIterations(3))(torch.zeros(3, 4))
    assert found.unique(dim=0).shape == (3, 4)
