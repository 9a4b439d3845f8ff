"""A model that is trained on a device: still itself, and plain again in every copy and file of it."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import inferenceModel, trainingModel
from ipu.simulator.poptorch_core import Error


class Tied(nn.Module):
    """Two layers with one matrix, and a norm with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.mse_loss(self.norm(self.second(self.first(x))), x)


def trained() -> Any:
    plain = Tied()
    model = trainingModel(plain)
    model(torch.randn(8, 4))
    return plain, model


def test_a_wrapped_model_changes_class_and_stays_the_same_object() -> None:
    plain = Tied()
    weight, mean = plain.first.weight, plain.norm.running_mean
    model = trainingModel(plain)
    assert type(plain).__name__ == "PoptorchTied" and isinstance(plain, Tied)
    assert plain.first.weight is weight and isinstance(weight, nn.Parameter) and type(weight) is not nn.Parameter
    assert plain.norm.running_mean is mean and isinstance(mean, Tensor)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in Tied().named_parameters()]
    assert model.model is plain


def copied(plain: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(plain)
    if how == "pickle":
        return pickle.loads(pickle.dumps(plain))
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_plain_and_tied_and_have_what_was_learned(how: str) -> None:
    plain, model = trained()
    other = copied(plain, how)
    assert type(other) is Tied and type(other.first.weight) is nn.Parameter
    assert type(other.norm.running_mean) is Tensor
    assert other.first.weight is other.second.weight
    for name, tensor in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    model(torch.randn(8, 4))
    assert not torch.equal(other.first.weight, plain.first.weight)
    trainingModel(other)(torch.randn(8, 4))
    assert type(plain).__name__ == "PoptorchTied"


def test_files_of_a_wrapped_model_do_not_need_the_simulator() -> None:
    plain, _ = trained()
    file = io.BytesIO()
    torch.save(plain, file)
    torch.save(plain.state_dict(), file)
    assert b"simulator.wrapping" not in file.getvalue()


def test_a_state_dict_is_plain_and_its_tied_entries_share_memory() -> None:
    plain, _ = trained()
    state = plain.state_dict()
    assert {type(tensor) for tensor in state.values()} == {Tensor}
    assert state["first.weight"].data_ptr() == state["second.weight"].data_ptr()


def test_tied_weights_are_updated_once_with_both_gradients() -> None:
    plain = Tied()
    reference = copy.deepcopy(plain)
    x = torch.randn(8, 4)
    trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=0.1))(x)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    reference(x).backward()
    optimizer.step()
    for one, other in zip(plain.state_dict().values(), reference.state_dict().values()):
        torch.testing.assert_close(one, other)
    assert plain.first.weight is plain.second.weight


def test_wrapped_parameters_work_as_parameters() -> None:
    plain, model = trained()
    assert type(plain.first.weight + 1) is Tensor
    assert torch.cat([plain.first.weight, plain.first.weight]).shape == (8, 4)
    assert isinstance(plain.first.weight.data, Tensor)
    plain.first.bias.data.fill_(3)
    model.copyWeightsToDevice()
    model.copyWeightsToHost()
    assert plain.first.bias.tolist() == [3] * 4
    F.linear(torch.ones(1, 4), plain.first.weight).sum().backward()
    assert plain.first.weight.grad is not None


def test_the_model_itself_can_bring_weights_back_and_let_the_device_go() -> None:
    plain, model = trained()
    assert plain.copyWeightsToHostIfNeeded() is True
    assert plain.copyWeightsToHostIfNeeded() is False
    plain.destroy()
    assert type(plain) is Tied and not model.isCompiled()


def test_wrapped_tensors_are_shown_as_plain_ones() -> None:
    plain, _ = trained()
    assert repr(plain.norm.running_mean).startswith("tensor(")
    assert repr(plain.first.bias).startswith("Parameter containing:\ntensor(")
    assert "requires_grad=True" in str(plain.first.bias)


def test_an_inference_model_wraps_nothing() -> None:
    plain = Tied()
    inferenceModel(plain)(torch.randn(8, 4))
    assert type(plain) is Tied and type(plain.first.weight) is nn.Parameter


def test_a_buffer_of_another_type_is_refused_and_nothing_is_half_wrapped() -> None:
    class Odd(Tensor):
        pass

    plain = Tied()
    plain.norm.running_mean = torch.zeros(4).as_subclass(Odd)
    with pytest.raises(Error, match="a buffer is a Odd, and has to be a torch.Tensor"):
        trainingModel(plain)
    assert type(plain) is Tied and type(plain.first.weight) is nn.Parameter


def test_replica_groups_of_weights_are_not_simulated() -> None:
    plain, model = trained()
    with pytest.raises(Error, match="replicaGrouping is not simulated"):
        model.first.weight.replicaGrouping(
            poptorch.CommGroupType.Consecutive, 2, poptorch.VariableRetrievalMode.OnePerGroup
        )


def test_a_half_model_gets_half_weights_back() -> None:
    plain = nn.Linear(4, 4).half()

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = plain

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(self.lin(x), "mean")

    trainingModel(Loss())(torch.randn(8, 4).half())
    assert plain.weight.dtype == torch.half
