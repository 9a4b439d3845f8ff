"""PopTorch's own operations: their values on the host and in a graph, their gradients, what they refuse."""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator, List, Set, Tuple

import pytest
import torch
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import MatMulSerializationMode, Options, OverlapMode, inferenceModel, trainingModel
from ipu.simulator.ops import _custom_ops
from ipu.simulator.poptorch_core import Error
from tests.ipu.simulator.functions import Function, on_ipu


@pytest.mark.parametrize("place", ["host", "ipu"])
def test_identities_are_identities_everywhere(place: str) -> None:
    def function(x: Tensor) -> Any:
        x = poptorch.nop(poptorch.recomputationCheckpoint(x))
        x, y = poptorch.recomputationCheckpoint(x, x * 2)
        x, y = poptorch.recomputationCheckpoint([x, y])
        x = poptorch.set_overlap_for_input(x, OverlapMode.NoOverlap)
        kept = poptorch.set_overlap_for_output({"a": (x, [y])}, OverlapMode.NoOverlap)
        with poptorch.NameScope("name"), poptorch.Attribute(kind={"a": "b"}):
            return kept["a"][0], kept["a"][1][0], poptorch.identity_loss(x, "sum"), poptorch.identity_loss(x, "mean")

    x = torch.tensor([1.0, 2.0])
    found = function(x) if place == "host" else on_ipu(function, x)
    assert [tensor.tolist() for tensor in found] == [[1, 2], [2, 4], 3, 1.5]


@pytest.mark.parametrize("mode", list(MatMulSerializationMode))
def test_a_serialized_product_is_the_product_with_its_gradients(mode: MatMulSerializationMode) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(poptorch.serializedMatMul(x, self.weight, mode, 2, True).pow(2), "mean")

    plain = Product()
    reference = copy.deepcopy(plain)
    x = torch.randn(8, 4)
    trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=1.0))(x)
    (x @ reference.weight).pow(2).mean().backward()
    torch.testing.assert_close(plain.weight.detach(), (reference.weight - reference.weight.grad).detach())


def test_a_serialized_product_asks_for_a_mode_and_a_whole_factor() -> None:
    x = torch.ones(2, 2)
    with pytest.raises(AssertionError, match="MatMulSerializationMode"):
        poptorch.serializedMatMul(x, x, "output_channels", 2)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="whole number"):
        poptorch.serializedMatMul(x, x, MatMulSerializationMode.Disabled, 2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda: poptorch.nop(3),  # type: ignore[arg-type]
        lambda: poptorch.set_available_memory("x", 0.1),  # type: ignore[arg-type]
        lambda: poptorch.ipu_print_tensor([1]),  # type: ignore[arg-type]
        lambda: poptorch.set_overlap_for_input([3], OverlapMode.NoOverlap),
        lambda: poptorch.set_overlap_for_output(torch.ones(1), "no_overlap"),
        lambda: poptorch.dynamic_slice(torch.ones(3), 0, 1, 2, 1),  # type: ignore[arg-type]
        lambda: poptorch.dynamic_update(torch.ones(3), torch.ones(2), 0, torch.tensor(1), 1),
        lambda: poptorch.ipu_print_tensor(torch.ones(1), float_format="hexadecimal"),
        lambda: poptorch.ctc_beam_search_decoder(torch.ones(1), torch.ones(1)),
    ],
)
def test_arguments_of_the_wrong_kind_are_errors(call: Callable[[], Any]) -> None:
    with pytest.raises(Error):
        call()


@pytest.mark.parametrize("inputs", [torch.ones(1), (torch.ones(1),), [torch.ones(1), 3]])
def test_a_loop_takes_a_list_of_tensors(inputs: Any) -> None:
    with pytest.raises(ValueError, match="a list of tensors"):
        poptorch.for_loop(3, lambda *tensors: tensors, inputs)


def test_convolutions_can_be_planned_together_and_nothing_else() -> None:
    def function(x: Tensor, convolves: bool) -> Tensor:
        with poptorch.MultiConv():
            return torch.conv2d(x, x) if convolves else x * 2

    x = torch.ones(1, 1, 2, 2)
    assert inferenceModel(Function(function))(x, True).item() == 4
    with pytest.raises(Error, match="no convolution was called within"):
        inferenceModel(Function(function))(x, False)


def test_only_tensors_can_be_checkpoints() -> None:
    with pytest.raises(ValueError, match="All inputs must be tensors"):
        poptorch.recomputationCheckpoint(torch.ones(1), 3)


# ------------------------------------------------------------------------------------------------------------- printing


def test_values_and_gradients_are_printed_when_they_are_computed(capfd: pytest.CaptureFixture[str]) -> None:
    class Printing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x: Tensor) -> Tensor:
            y = poptorch.ipu_print_tensor(x * self.weight, "product")
            return poptorch.identity_loss(y, "sum")

    options = Options()
    options.Training.gradientAccumulation(2)
    model = trainingModel(Printing(), options)
    model.compile(torch.tensor([1.0, 3.0]))
    assert capfd.readouterr().err == ""
    model(torch.tensor([1.0, 3.0]))
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "product: (2.0000)",
        "product_gradient: (1.0000)",
        "product: (6.0000)",
        "product_gradient: (1.0000)",
    ]


def test_a_print_whose_result_nobody_uses_vanishes(capfd: pytest.CaptureFixture[str]) -> None:
    def function(x: Tensor) -> Tensor:
        poptorch.ipu_print_tensor(x, "lost")
        return x * 2

    on_ipu(function, torch.ones(1))
    assert capfd.readouterr().err == ""


def test_the_form_of_what_is_printed_can_be_chosen(capfd: pytest.CaptureFixture[str]) -> None:
    before = str(torch.ones(3) / 3)
    x = torch.arange(12.0).view(2, 6)
    on_ipu(lambda x: poptorch.ipu_print_tensor(x, "x", True, 4, 1, 80, 1, "scientific", "; ", "<", ">"), x)
    assert capfd.readouterr().err == "x: <<0.0e+00; ...; 5.0e+00>; <6.0e+00; ...; 1.1e+01>>\n"
    poptorch.ipu_print_tensor(torch.tensor([[1, 2], [3, 4]]), "whole")
    assert capfd.readouterr().err == "whole: ((1, 2), (3, 4))\n"
    assert str(torch.ones(3) / 3) == before


# ----------------------------------------------------------------------------------------------------- custom operators


@pytest.fixture
def cube() -> Any:
    poptorch.register_custom_op("Cube", "test.ops", 1, lambda x, alpha=1.0: [x.pow(3) * alpha])
    yield
    del _custom_ops["test.ops", "Cube", 1]


def test_a_registered_operator_computes_and_has_gradients(cube: Any) -> None:
    class Cubed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0]))

        def forward(self, x: Tensor) -> Tensor:
            y = poptorch.custom_op([x * self.weight], "Cube", "test.ops", 1, [x], {"alpha": 0.5})[0]
            return poptorch.identity_loss(y, "sum")

    plain = Cubed()
    assert float(plain(torch.ones(1))) == 0  # on the host it gives its example, filled with zeros
    loss = trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=1.0))(torch.ones(1))
    assert float(loss) == 4 and plain.weight.tolist() == [2 - 0.5 * 3 * 4]


class Sums(nn.Module):
    """What an operator of two outputs computes of a weight in half precision: its cubes, and in float32 their sum."""

    def __init__(self, example_type: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.5, 1000.0]).half())
        self.example_type = example_type

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        examples = [self.weight, x.new_zeros(1, dtype=self.example_type)]
        cubes, total = poptorch.custom_op([self.weight, x], "Sum", "test.ops", 1, examples, {"by": 2.0})
        return poptorch.identity_loss(cubes.float().sum() + total, "sum"), total


@pytest.fixture
def seen_types() -> Iterator[List[Set[torch.dtype]]]:
    """The types that come to the operator of `Sums`, call by call."""
    types: List[Set[torch.dtype]] = []

    def implementation(x: Tensor, y: Tensor, by: float) -> List[Tensor]:
        types.append({x.dtype, y.dtype})
        return [x * by, (x.float() + y.float()).sum(dim=0, keepdim=True)]

    poptorch.register_custom_op("Sum", "test.ops", 1, implementation, own_types=True)
    yield types
    del _custom_ops["test.ops", "Sum", 1]


def test_an_operator_of_its_own_types_takes_halves_and_gives_single_precision(seen_types: Any) -> None:
    loss, total = inferenceModel(Sums())(torch.tensor([0.125, 2**-10]).half())
    assert total.dtype == torch.float32 and total.tolist() == [1001.625 + 2**-10]  # of which half precision has none
    assert float(loss) == 2003 + float(total)
    assert len(seen_types) == 2 and all(types == {torch.float16} for types in seen_types)


def test_gradients_go_through_an_operator_of_its_own_types(seen_types: Any) -> None:
    model = Sums()
    training = trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    training(torch.zeros(2).half())
    training.copyWeightsToHost()
    assert model.weight.dtype == torch.float16 and model.weight.tolist() == [1.5 - 3, 1000 - 3]
    assert {torch.float16} in seen_types


def test_an_example_of_another_type_than_an_operators_own_is_refused(seen_types: Any) -> None:
    with pytest.raises(Error, match=r"gave \(1,\) torch.float32 where its example output is \(1,\) torch.float16"):
        inferenceModel(Sums(torch.float16))(torch.zeros(2).half())


def test_an_operator_has_to_give_what_its_example_says(cube: Any) -> None:
    with pytest.raises(Error, match=r"gave \(2,\) torch.float32 where its example output is \(3,\)"):
        on_ipu(lambda x: poptorch.custom_op([x], "Cube", "test.ops", 1, [torch.empty(3)])[0], torch.ones(2))


@pytest.mark.parametrize("attributes", [{1: 2}, {"a": None}, {"a": [1, "b"]}, {"a": "\u00e9"}, {"a": [torch.ones(1)]}])
def test_attributes_that_cannot_be_passed_are_value_errors(attributes: Any) -> None:
    with pytest.raises(ValueError, match="custom operator"):
        poptorch.custom_op([torch.ones(1)], "Any", "test.ops", 1, [torch.ones(1)], attributes)


# ---------------------------------------------------------------------------------------------- control flow and slices


@pytest.mark.parametrize("place", ["host", "ipu"])
def test_a_loop_calls_its_body_so_often(place: str) -> None:
    def function(x: Tensor, y: Tensor) -> List[Tensor]:
        return poptorch.for_loop(4, lambda a, b: (a * 2, a + b), [x, y])

    given = (torch.ones(1), torch.zeros(1))
    found = function(*given) if place == "host" else on_ipu(function, *given)
    assert isinstance(found, list) and [tensor.tolist() for tensor in found] == [[16], [15]]


@pytest.mark.parametrize("place", ["host", "ipu"])
def test_a_condition_chooses_at_every_call(place: str) -> None:
    def function(x: Tensor) -> Tensor:
        return poptorch.cond(x.sum() > 0, lambda a: a * 2, [x], lambda a: a - 1, [x])[0]

    call = function if place == "host" else inferenceModel(Function(function))
    assert call(torch.ones(1)).tolist() == [2] and call(-torch.ones(1)).tolist() == [-2]


def test_bodies_of_a_condition_return_alike() -> None:
    with pytest.raises(Error, match="the second body of cond returns"):
        on_ipu(lambda x: poptorch.cond(x.sum() > 0, lambda a: a, [x], lambda a: a[:1], [x])[0], torch.ones(2))


def test_a_part_on_the_host_runs_at_every_call_with_its_own_types() -> None:
    seen = []
    layer = nn.Linear(2, 2)

    def host(x: Tensor, indices: Tensor) -> Any:
        seen.append((x.dtype, poptorch.isRunningOnIpu()))
        return {"out": layer(x.float()), "count": indices.sum()}

    def function(x: Tensor, indices: Tensor) -> Tensor:
        found = poptorch.CPU(host, "part")(x, indices)
        return found["out"].float() + found["count"]

    x, indices = torch.ones(1, 2).half(), torch.tensor([[1, 2]])
    model = inferenceModel(Function(function))
    wanted = (layer(x.float()) + 3).detach()
    for _ in range(2):
        torch.testing.assert_close(model(x, indices), wanted, rtol=1e-3, atol=1e-3)
    assert len(seen) == 3 and set(seen) == {(torch.half, False)}
    assert poptorch.CPU(layer, "layer").layer.weight.requires_grad is False


def test_slices_begin_where_the_data_say() -> None:
    x = torch.arange(12.0).view(3, 4)

    def function(x: Tensor, start: Tensor) -> Any:
        part = poptorch.dynamic_slice(x, 1, start, 2, 1)
        return part, poptorch.dynamic_update(x, -part, 1, start, 2)

    model = inferenceModel(Function(function), Options())
    for start in (0, 2):
        part, updated = model(x, torch.tensor([start]))
        wanted = x.clone()
        wanted[:, start : start + 2] *= -1
        assert torch.equal(part, x[:, start : start + 2]) and torch.equal(updated, wanted)
        host = function(x, torch.tensor([start]))
        assert torch.equal(host[0], part) and torch.equal(host[1], updated)


def test_farthest_points_and_nearest_neighbours() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [5.0], [7.0], [100.0]])
    assert poptorch.fps(points, [0, 4, 6], 0.5).tolist() == [0, 2, 4]
    found = on_ipu(lambda x: poptorch.fps(x, [0, 4, 6], 0.5), points)
    assert found.tolist() == [0, 2, 4]
    y = torch.tensor([[0.0], [9.0]])
    assert on_ipu(poptorch.nearest, points, y).tolist() == [0, 0, 1, 1, 1, 1]
    batches = torch.tensor([0, 0, 0, 0, 0, 0]), torch.tensor([0, 1])
    assert poptorch.nearest(points, y, *batches).tolist() == [0] * 6


def test_plans_of_several_convolutions_check_their_values() -> None:
    plan = poptorch.MultiConv().availableMemoryProportions(0.2).cycleBackOff(0.1).perConvReservedTiles(1)
    assert plan.planType(poptorch.MultiConvPlanType.Serial).enableConvDithering(True) is plan
    with pytest.raises(ValueError, match="float16"):
        plan.partialsTypes(torch.int32)
    with pytest.raises(AssertionError, match="MultiConvPlanType"):
        plan.planType(3)  # type: ignore[arg-type]
