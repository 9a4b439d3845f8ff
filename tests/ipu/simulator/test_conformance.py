"""What programs written for PopTorch rely on beyond its manual's main road; each of these ran differently before."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import ConnectionType, Options, OutputMode, inferenceModel, trainingModel
from ipu.simulator.poptorch_core import (
    Error,
    RecoverableError,
    TestErrorType,
    UnrecoverableError,
    _throwTestError,
)
from tests.ipu.simulator.functions import Function, on_ipu


class Classifier(nn.Module):
    """Computes its loss while it trains, its scores while it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, label: Any = None) -> Any:
        scores = self.fc(x)
        return (scores, F.cross_entropy(scores, label)) if self.training else scores


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def batch() -> List[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])]


# ---------------------------------------------------------------------------------------------------------- executables


def test_a_file_that_was_made_without_a_device_runs_on_one(tmp_path: Path) -> None:
    options = Options().useOfflineIpuTarget()
    file = str(tmp_path / "model.poptorch")
    trainingModel(Classifier(), options).compileAndExport(file, *batch())
    loaded = poptorch.load(file)
    model = loaded.model
    assert isinstance(model, Classifier)
    before = model.fc.weight.detach().clone()
    assert loaded(*batch())[1] > 0
    assert not torch.equal(model.fc.weight, before)
    assert not loaded.options.exists("ipu_version")


def test_a_loaded_file_can_be_kept_off_the_device(tmp_path: Path) -> None:
    file = str(tmp_path / "model.poptorch")
    trainingModel(Classifier()).compileAndExport(file, *batch())

    def stay_away(options: Options) -> None:
        options.connectionType(ConnectionType.Never)

    loaded = poptorch.load(file, stay_away)
    with pytest.raises(AssertionError, match="offline device"):
        loaded(*batch())


def test_an_executable_runs_as_it_was_made_whatever_mode_the_model_is_in(tmp_path: Path) -> None:
    file = str(tmp_path / "validation.poptorch")
    x, label = batch()
    inferenceModel(Classifier().eval()).compileAndExport(file, x, export_model=False)
    model = Classifier()
    trainer = trainingModel(model)
    validator = inferenceModel(trainer)
    validator.loadExecutable(file)
    trainer(x, label)
    torch.testing.assert_close(validator(x), F.linear(x, model.fc.weight, model.fc.bias).detach())
    assert model.training and model.fc.training


# ----------------------------------------------------------------------------------------------------- gradients to see


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradients_and_updated_weights_can_be_anchored(accumulation: int) -> None:
    x, label = batch()
    options = Options()
    options.Training.gradientAccumulation(accumulation)
    options.anchorTensor("gradient", "Gradient___fc.weight", OutputMode.All)
    options.anchorTensor("bias", "Gradient___fc.bias")
    options.anchorTensor("after", "UpdatedVar___fc.weight")
    model, plain = Classifier(), Classifier()
    plain.load_state_dict(model.state_dict())
    executor = trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.5))
    executor(x, label)
    gradients = []
    for part, labels in zip(x.chunk(accumulation), label.chunk(accumulation)):
        plain.zero_grad()
        plain(part, labels)[1].backward()
        gradients.append(gradient(plain.fc.weight))
    torch.testing.assert_close(executor.getAnchoredTensor("gradient"), torch.cat(gradients))
    torch.testing.assert_close(executor.getAnchoredTensor("bias"), gradient(plain.fc.bias))
    assert torch.equal(executor.getAnchoredTensor("after"), model.fc.weight)
    assert {"Gradient___fc.bias", "UpdatedVar___fc.weight"} <= set(executor.getTensorNames())


def test_an_anchored_gradient_is_scaled_as_the_loss_is_and_of_each_replica() -> None:
    x, label = batch()
    options = Options().replicationFactor(2)
    options.anchorTensor("gradient", "Gradient___fc.bias")
    model = Classifier()
    plain = Classifier()
    plain.load_state_dict(model.state_dict())
    executor = trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.5, loss_scaling=8.0))
    executor(x, label)
    wanted = []
    for part, labels in zip(x.chunk(2), label.chunk(2)):
        plain.zero_grad()
        plain(part, labels)[1].backward()
        wanted.append(8 * gradient(plain.fc.bias))
    torch.testing.assert_close(executor.getAnchoredTensor("gradient"), torch.cat(wanted))


def test_a_weight_without_effect_has_an_anchored_gradient_of_zero() -> None:
    class TwoHeads(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(4, 2)

        def forward(self, x: Tensor, label: Any = None) -> Any:
            return (*super().forward(x, label), self.other(x))

    options = Options()
    options.anchorTensor("gradient", "Gradient___other.bias")
    executor = trainingModel(TwoHeads(), options)
    executor(*batch())
    assert executor.getAnchoredTensor("gradient").tolist() == [0, 0]


def test_inference_has_no_gradients_to_anchor() -> None:
    options = Options()
    options.anchorTensor("gradient", "Gradient___fc.bias")
    with pytest.raises(Error, match="no tensor Gradient___fc.bias"):
        inferenceModel(Classifier().eval(), options)(batch()[0])


# --------------------------------------------------------------------------------------------------------------- errors

KINDS = {
    TestErrorType.PoplarRecoverableFullReset: (RecoverableError, "poplar_recoverable_runtime_error"),
    TestErrorType.PoplarUnrecoverable: (UnrecoverableError, "poplar_unrecoverable_runtime_error"),
    TestErrorType.PoplarLinkError: (Error, "poplar_link_error"),
    TestErrorType.Popart: (Error, "popart_exception"),
}


@pytest.mark.parametrize("kind", list(TestErrorType))
def test_errors_can_be_asked_for(kind: TestErrorType) -> None:
    error_class, name = KINDS.get(kind, (Error, ""))
    with pytest.raises(error_class) as caught:
        _throwTestError(kind)
    assert caught.value.type == name or kind not in KINDS
    assert "throwTestError::topLevel" in caught.value.location
    assert "throwTestError" not in caught.value.message
    assert getattr(caught.value, "recovery_action", "FULL_RESET") == "FULL_RESET"


def test_an_error_that_was_asked_for_leaves_the_class_as_it_was() -> None:
    with pytest.raises(RecoverableError):
        _throwTestError(TestErrorType.PoplarRecoverableFullReset)
    assert RecoverableError("type", "message").recovery_action == "IPU_RESET"


def test_comparing_what_is_no_number_is_an_invalid_operation() -> None:
    options = Options()
    options.Precision.enableFloatingPointExceptions(True)
    x, y = torch.ones(3), torch.tensor([1.0, math.nan, 0.0])
    with pytest.raises(Error, match="an operand of gt"):
        inferenceModel(Function(lambda a, b: a > b), options)(x, y)
    infinite = torch.tensor([math.inf, 0.0, 2.0])
    assert inferenceModel(Function(lambda a, b: a > b), options)(x, infinite).tolist() == [False, True, False]
    assert on_ipu(lambda a, b: a > b, x, y).tolist() == [False, False, True]


# ---------------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 5, 3), nn.ConvTranspose1d(4, 5, 3), nn.Linear(7, 5)])
def test_a_layer_of_single_precision_gives_half_for_half(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0)).half()
    found = inferenceModel(layer)(x)
    assert found.dtype == torch.half
    torch.testing.assert_close(found.float(), layer(x.float()).detach(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("exponent", [3, 2.5, torch.tensor(2.0)])
def test_powers_are_taken_in_place(exponent: Any) -> None:
    x, power = torch.tensor([1.0, 2.0, 4.0]), exponent if isinstance(exponent, (int, float)) else exponent.item()

    def forward(x: Tensor) -> Tensor:
        y = x + 0
        y.pow_(torch.tensor(power) if isinstance(exponent, Tensor) else exponent)
        return y

    torch.testing.assert_close(on_ipu(forward, x), x**power)


def test_the_body_of_a_loop_writes_to_its_own_copies() -> None:
    def add_one(y: Tensor) -> Tensor:
        y += 1
        return y

    def forward(x: Tensor) -> Tensor:
        x += 1
        return poptorch.for_loop(3, add_one, [x])[0]

    x = torch.ones(2, dtype=torch.int32)
    assert on_ipu(forward, x).tolist() == [5, 5]
    assert x.tolist() == [2, 2]


@pytest.mark.parametrize("inputs, text", [(torch.ones(1), "Object is not list"), ([torch.ones(1), 5], "at index 1")])
def test_a_loop_takes_a_list_of_tensors(inputs: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        poptorch.for_loop(3, lambda x: x, inputs)


@pytest.mark.parametrize("number, how", [(-sys.float_info.max, "low"), ([1.0, sys.float_info.max], "high")])
def test_attributes_of_custom_operators_are_single_precision(number: Any, how: str) -> None:
    poptorch.register_custom_op("Scale", "conformance", 1, lambda x, by: [x])

    def forward(x: Tensor) -> Tensor:
        return poptorch.custom_op([x], "Scale", "conformance", 1, [x], {"by": number})[0]

    with pytest.raises(Error, match=f"is too {how} for a Popart float attribute"):
        on_ipu(forward, torch.ones(2))


def test_text_of_custom_operators_is_ascii() -> None:
    with pytest.raises(ValueError, match="a\u1f00b contains non-ASCII characters"):
        poptorch.custom_op([], "Any", "conformance", 1, [], {"text": ["ok", "a\u1f00b"]})


def test_convolutions_planned_together_are_convolutions_and_not_nested() -> None:
    weight = torch.ones(1, 1, 2)

    def planned(x: Tensor) -> Tensor:
        with poptorch.MultiConv():
            return F.conv1d(x, torch.ones_like(weight)) + F.conv1d(x * 2, torch.ones_like(weight))

    def nested(x: Tensor) -> Tensor:
        with poptorch.MultiConv(), poptorch.MultiConv():
            return F.conv1d(x, torch.ones_like(weight))

    def empty(x: Tensor) -> Tensor:
        with poptorch.MultiConv():
            return x * 2

    x = torch.ones(1, 1, 3)
    with pytest.raises(Error, match="Nested poptorch.MultiConv is not supported"):
        on_ipu(nested, x)
    with pytest.raises(Error, match="Unexpected end_multi_conv"):
        on_ipu(empty, x)
    assert on_ipu(planned, x).tolist() == [[[6, 6]]]
    assert empty(x).tolist() == [[[2, 2, 2]]]  # on the host nothing is planned


def test_a_product_of_batches_with_a_matrix_is_cut_over_all_their_rows() -> None:
    x, weight = torch.ones(2, 3, 4), torch.ones(4, 6)
    modes = poptorch.MatMulSerializationMode
    for mode, factor in ((modes.InputChannels, 6), (modes.ReducingDim, 2), (modes.OutputChannels, 3)):
        found = on_ipu(lambda a, b, m=mode, f=factor: poptorch.serializedMatMul(a, b, m, f), x, weight)
        assert torch.equal(found, torch.full((2, 3, 6), 4.0))
    with pytest.raises(Error, match="InputChannels has 6 entries"):
        on_ipu(lambda a, b: poptorch.serializedMatMul(a, b, modes.InputChannels, 4), x, weight)


# ----------------------------------------------------------------------------------------------------------- optimizers


def test_lamb_moves_nothing_while_no_norm_counts_and_learns_when_one_does() -> None:
    x, label = batch()
    model = Classifier()
    optimizer = poptorch.optim.LAMB(model.parameters(), lr=0.05, max_weight_norm=0.0)
    executor = trainingModel(model, optimizer=optimizer)
    first = executor(x, label)[1]
    assert executor(x, label)[1] == first
    optimizer.max_weight_norm = 100.0
    assert optimizer.max_weight_norm == optimizer.param_groups[0]["max_weight_norm"] == 100
    executor.setOptimizer(optimizer)
    executor(x, label)
    assert executor(x, label)[1] < first
