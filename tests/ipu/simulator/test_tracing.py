"""What a trace sees of a model, and that it leaves no traces itself."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ipu.simulator as poptorch
from ipu.simulator import inferenceModel, trainingModel
from ipu.simulator.poptorch_core import Error


class Does(nn.Module):
    def __init__(self, what: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(self, x)


def infer(what: Callable[[Any, Tensor], Any], x: Any = None) -> Any:
    return inferenceModel(Does(what))(torch.randn(4, 4) if x is None else x)


def check_gradient(loss: Callable[[Any, Tensor], Tensor]) -> None:
    """Training minimises this value."""
    plain = Does(loss)
    reference = copy.deepcopy(plain)
    x = torch.rand(4, 4)
    trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=1.0))(x)
    reference(x).sum().backward()
    wanted = (reference.lin.weight - reference.lin.weight.grad).detach()
    torch.testing.assert_close(plain.lin.weight.detach(), wanted)


# --------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, x: F.mse_loss(model.lin(x), x),
        lambda model, x: F.l1_loss(model.lin(x), x, reduction="sum"),
        lambda model, x: F.mse_loss(model.lin(x), x, reduction="none"),
        lambda model, x: F.cross_entropy(model.lin(x), x.argmax(1), label_smoothing=0.1),
        lambda model, x: nn.NLLLoss()(model.lin(x).log_softmax(1), x.argmax(1)),
        lambda model, x: F.kl_div(model.lin(x).log_softmax(1), x.softmax(1), reduction="batchmean"),
        lambda model, x: F.binary_cross_entropy_with_logits(model.lin(x), x),
        lambda model, x: F.smooth_l1_loss(model.lin(x), x),
        lambda model, x: F.triplet_margin_loss(model.lin(x), x, -x),
        lambda model, x: poptorch.identity_loss(model.lin(x), "mean"),
        lambda model, x: poptorch.identity_loss(model.lin(x).pow(2).sum(1), "none"),
        lambda model, x: poptorch.identity_loss(0.3 * F.mse_loss(model.lin(x), x) + model.lin.weight.norm(), "sum"),
        lambda model, x: F.l1_loss(F.mse_loss(model.lin(x), x), torch.zeros((), device=x.device)),
    ],
)
def test_the_last_loss_function_is_what_is_minimised(loss: Callable[[Any, Tensor], Tensor]) -> None:
    check_gradient(loss)


def test_what_comes_after_the_loss_is_not_minimised() -> None:
    plain = Does(lambda model, x: F.mse_loss(model.lin(x), x) * 100)
    reference = copy.deepcopy(plain)
    x = torch.randn(4, 4)
    trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=1.0))(x)
    (reference(x) / 100).backward()
    torch.testing.assert_close(plain.lin.weight.detach(), (reference.lin.weight - reference.lin.weight.grad).detach())


def test_the_loss_need_not_be_returned() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.lin(x)
        F.mse_loss(y, x)
        return y

    plain = Does(forward)
    before = plain.lin.weight.detach().clone()
    assert trainingModel(plain)(torch.randn(4, 4)).shape == (4, 4)
    assert not torch.equal(plain.lin.weight, before)


def test_inference_does_not_ask_for_losses() -> None:
    assert infer(lambda model, x: (F.mse_loss(x, x), F.l1_loss(x, x)))[0].tolist() == 0


# --------------------------------------------------------------------------------------------- the model's surroundings


def test_tensors_say_that_they_are_on_an_ipu() -> None:
    seen = []

    def forward(model: Any, x: Tensor) -> Tensor:
        seen.extend([x.device, (x + 1).device, model.lin.weight.device, f"{x}", repr(x)])
        return x.to(x.device) + torch.ones(4, device=x.device) + torch.ones(4, device="ipu") + x.to("cpu")

    assert infer(forward, torch.zeros(4, 4)).tolist() == [[2.0] * 4] * 4
    assert seen[:3] == [torch.device("ipu", 0)] * 3
    assert seen[3] == seen[4] == "tensor([...], device='ipu:0', size=(4, 4), dtype=torch.float32)"


def test_factories_without_a_device_work_with_a_warning_for_each(caplog: pytest.LogCaptureFixture) -> None:
    found = infer(lambda model, x: x + torch.ones(4) + torch.zeros_like(x) + torch.tensor([1.0] * 4), torch.zeros(4, 4))
    assert found.tolist() == [[2.0] * 4] * 4
    warned = [record.message for record in caplog.records if "without device=" in record.message]
    assert [line.split()[0] for line in warned] == ["ones", "tensor"]
    assert all("test_tracing.py" in line for line in warned)


def test_constants_made_in_forward_can_be_part_of_the_backward_pass() -> None:
    check_gradient(lambda model, x: F.mse_loss(model.lin(x) * (torch.arange(4.0) * 2 + 1), x))


def test_constants_that_forward_changes_begin_afresh_with_each_micro_batch() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        total = torch.zeros(4, device=x.device)
        total += x.sum(0)
        total[0] = 7
        return total

    model = inferenceModel(Does(forward), poptorch.Options().deviceIterations(3))
    assert model(torch.ones(3, 4)).tolist() == [7, 1, 1, 1] * 3


def test_writes_through_views_reach_what_they_are_views_of() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = x * 1
        y.view(-1)[:2] = 5
        y.t()[0].mul_(2)
        return y

    assert infer(forward, torch.ones(2, 2)).tolist() == [[10, 5], [2, 1]]


def test_in_place_steps_of_a_trained_model_have_their_gradients() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.lin(x)
        y += x
        y *= 3
        y[:, 0] = 0
        return poptorch.identity_loss(y.pow(2), "sum")

    check_gradient(forward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.half])
def test_in_place_steps_may_overwrite_what_a_host_would_have_kept(dtype: torch.dtype) -> None:
    """PyTorch refuses to go back through these; an IPU's graph has new values in place of memory."""

    def forward(model: Any, x: Tensor, inplace: bool = True) -> Tensor:
        y = F.relu(model.lin(x), inplace=inplace).sigmoid()
        y = y.add_(1).mul_(2) if inplace else (y + 1) * 2
        y.view(-1).mul_(3)
        return poptorch.identity_loss(y, "sum")

    torch.manual_seed(0)
    plain = Does(forward).to(dtype)
    functional = Does(lambda model, x: poptorch.identity_loss(forward(model, x, False) * 1, "none")).to(dtype)
    functional.load_state_dict(plain.state_dict())
    x = torch.randn(4, 4).to(dtype)
    for model in (plain, functional):
        trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))(x)
    assert torch.equal(plain.lin.weight.detach(), functional.lin.weight.detach())


def test_a_write_is_kept_only_where_somebody_reads_it() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = x * 2
        z = y + 1
        y.add_(100)
        return z

    model = inferenceModel(Does(forward))
    assert model(torch.ones(2)).tolist() == [3, 3]
    assert [node.name for node in model._graph.nodes] == ["mul", "add"]


def test_parts_without_gradient_pass_none() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = model.lin(x) * 2
        return F.mse_loss(model.lin(x) + model.lin(x).detach() + model.lin.weight.data.sum(), target)

    check_gradient(forward)


def test_results_can_be_assigned_to_a_given_tensor() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        target = torch.empty_like(x)
        torch.add(x, 1, out=target)
        return target * 2

    model = inferenceModel(Does(forward), poptorch.Options().deviceIterations(2))
    assert model(torch.arange(4.0).view(2, 2)).tolist() == [[2, 4], [6, 8]]


def test_a_spectral_norm_goes_on_as_on_the_host() -> None:
    torch.manual_seed(0)
    plain = Does(lambda model, x: F.mse_loss(model.lin(x), x))
    torch.nn.utils.parametrizations.spectral_norm(plain.lin)
    reference = Does(plain.what)
    torch.nn.utils.parametrizations.spectral_norm(reference.lin)
    reference.load_state_dict(plain.state_dict())
    x = torch.randn(4, 4)
    losses = trainingModel(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = reference(x)
        loss.backward()
        optimizer.step()
        assert float(losses(x)) == pytest.approx(loss.item(), abs=1e-5)


def test_factories_within_functions_of_pytorch_are_part_of_the_graph() -> None:
    hard = infer(lambda model, x: F.gumbel_softmax(x, hard=True))
    assert hard.sum(1).tolist() == [1.0] * 4
    draws = [infer(lambda model, x: F.gumbel_softmax(x * 0)) for _ in range(2)]
    assert not torch.equal(*draws)


def test_batch_norm_counts_and_averages_as_on_the_host() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return F.mse_loss(self.norm(x), x)

    plain = Normed()
    reference = copy.deepcopy(plain)
    options = poptorch.Options()
    options.Training.gradientAccumulation(3)
    x = torch.randn(12, 4)
    trainingModel(plain, options)(x)
    for part in x.split(4):
        reference(part)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(plain.norm, name), getattr(reference.norm, name))


def test_hooks_of_modules_are_part_of_the_trace() -> None:
    plain = Does(lambda model, x: model.lin(x))
    plain.lin.register_forward_hook(lambda module, inputs, output: output * 0 + 3)
    assert inferenceModel(plain)(torch.ones(1, 4)).tolist() == [[3.0] * 4]


def test_lambdas_and_missing_modules_are_kept() -> None:
    plain = Does(lambda model, x: model.lin(x))
    plain.lin.bias = None
    assert inferenceModel(plain)(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


def test_a_distribution_does_not_ask_for_values() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return torch.distributions.Normal(x, x.exp()).rsample()

    assert infer(forward).shape == (4, 4)
    with pytest.raises(ValueError):
        torch.distributions.Normal(torch.zeros(1), -torch.ones(1))


def test_everything_is_as_before_after_a_trace_even_a_failing_one() -> None:
    plain = Does(lambda model, x: x[x > 0])
    weight, apply = plain.lin.weight, torch.autograd.Function.apply
    state = torch.get_rng_state()
    with pytest.raises(Error):
        inferenceModel(plain)(torch.randn(4, 4, generator=torch.Generator()))
    assert plain.lin.weight is weight and torch.autograd.Function.apply == apply
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.is_inference_mode_enabled() and not poptorch.isRunningOnIpu()
    assert torch.distributions.Distribution._validate_args
    assert torch.ones(1).device.type == "cpu" and str(torch.ones(1)) == "tensor([1.])"


def test_a_wrong_model_fails_with_pytorchs_own_words() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        infer(lambda model, x: model.lin(x[:, :3]))


def test_unused_operations_are_left_out_and_unused_weights_stay_on_the_host() -> None:
    class Spare(Does):
        def __init__(self) -> None:
            super().__init__(lambda model, x: poptorch.identity_loss(model.lin(x), "mean"))
            self.spare = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            self.spare(x)
            return super().forward(x)

    plain = Spare()
    optimizer = poptorch.optim.Adam(plain.parameters())
    model = trainingModel(plain, optimizer=optimizer)
    before = plain.spare.weight.detach().clone()
    model(torch.randn(2, 4))
    assert torch.equal(plain.spare.weight, before)
    assert not any("spare" in name for name in optimizer.state_dict()["ipu_state"])
