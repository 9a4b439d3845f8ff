"""The update in one pass, and the copies of weights in bfloat16, against PyTorch's optimizers and autocast."""

from __future__ import annotations

import copy
import shutil
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn

import engines.host
import native
from engines.bfloat16 import Bfloat16Copies
from engines.options import TrainingOptions
from engines.updates import OnePassUpdate
from optim import clip_gradients, in_memory_order, load_named_optimizer_state, make_optimizer, named_optimizer_state
from tests.engines.test_host_speed import assert_alike, engine_of, trained
from tests.parity import make_samples

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 7), nn.LayerNorm(7), nn.Linear(7, 5, bias=False), nn.Linear(5, 5))
    model[2].weight.data = model[2].weight.data.t().contiguous().t()  # lies otherwise
    return model


def draw_gradients(model: nn.Module, seed: int, but: int = -1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = None if index == but else torch.randn(parameter.shape, generator=generator)


# -------------------------------------------------------------------------------------------------------------- updates

OPTIONS: List[Dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"optimizer": "AdamW", "weight_decay": 0.1},
    {"clip_grad_norm": 0.5, "adam_beta2": 0.9},
    {"clip_grad_norm": 1e9},
]


def torch_update(model: nn.Module, optimizer: torch.optim.Optimizer, options: TrainingOptions) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:  # PyTorch's fused Adam takes it for laid out as the weight is
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
    clip_gradients(model.parameters(), options.clip_grad_norm)
    with in_memory_order(optimizer):
        optimizer.step()


@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_an_update_in_one_pass_is_pytorchs(given: Dict[str, Any]) -> None:
    options = TrainingOptions(learning_rate=0.01, **given)
    ours, theirs = make_network(), make_network()
    update, optimizer = OnePassUpdate(make_optimizer(ours, options)), make_optimizer(theirs, options)
    for step in range(4):
        for model in (ours, theirs):
            draw_gradients(model, step, but=2 if step == 1 else -1)
        update.step(options.clip_grad_norm)
        torch_update(theirs, optimizer, options)
        assert all(parameter.grad is None for parameter in ours.parameters())
    assert_alike(list(ours.parameters()), list(theirs.parameters()), 1e-6)
    states = [named_optimizer_state(o, m) for o, m in ((update.optimizer, ours), (optimizer, theirs))]
    assert states[0].keys() == states[1].keys()
    for name, state in states[0].items():
        assert state.keys() == states[1][name].keys()
        assert_alike([v.float() for v in state.values()], [v.float() for v in states[1][name].values()], 1e-6)


def test_either_goes_on_from_the_state_of_the_other() -> None:
    options = TrainingOptions(learning_rate=0.01)
    models, wanted = [make_network(), make_network()], make_network()
    optimizers = [make_optimizer(model, options) for model in (*models, wanted)]
    updates = [OnePassUpdate(optimizer) for optimizer in optimizers]
    for step, (first, second) in enumerate([(0, 1), (1, 0)]):
        for model in (models[first], wanted):
            draw_gradients(model, step)
        updates[0].step(0.0) if first == 0 else torch_update(models[1], optimizers[1], options)
        updates[2].step(0.0)
        models[second].load_state_dict(copy.deepcopy(models[first].state_dict()))
        load_named_optimizer_state(
            optimizers[second], models[second], named_optimizer_state(optimizers[first], models[first])
        )
    assert_alike(list(models[0].parameters()), list(wanted.parameters()), 1e-6)


# --------------------------------------------------------------------------------------------------------------- copies


def losses(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(x).float().square().mean()


def of_autocast(x: Tensor) -> Tuple[Tensor, List[Tensor]]:
    model = make_network()
    loss = losses(model, x)
    return loss, list(torch.autograd.grad(loss, list(model.parameters())))


def test_copies_give_the_bits_of_autocast() -> None:
    x, model = torch.randn(6, 9), make_network()
    copies = Bfloat16Copies(model)
    loss = losses(model, x)
    loss.backward()
    copies.hand_over_gradients()
    wanted, gradients = of_autocast(x)
    assert torch.equal(loss, wanted)
    for parameter, gradient in zip(model.parameters(), gradients):
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=2**-7, atol=2**-9 * float(gradient.abs().max()))


def test_gradients_of_micro_batches_are_added_in_the_weights_precision() -> None:
    model = make_network()
    copies = Bfloat16Copies(model)
    for value in (1.0, 2.0**-10):  # whose sum bfloat16 does not have
        copies.of(model[0].weight).grad = torch.full((7, 9), value, dtype=torch.bfloat16)
        copies.hand_over_gradients()
    assert model[0].weight.grad is not None and bool((model[0].weight.grad == 1 + 2.0**-10).all())


def test_an_update_renews_the_copies_and_takes_their_gradients() -> None:
    options = TrainingOptions(learning_rate=0.01, clip_grad_norm=0.5)
    ours, theirs = make_network(), make_network()
    copies = Bfloat16Copies(ours)
    update, optimizer = OnePassUpdate(make_optimizer(ours, options), copies), make_optimizer(theirs, options)
    for step in range(3):
        draw_gradients(theirs, step)
        for ours_, theirs_ in zip(ours.parameters(), theirs.parameters()):
            assert theirs_.grad is not None
            theirs_.grad = theirs_.grad.bfloat16().float()
            if copies.find(ours_) is None:
                ours_.grad = theirs_.grad.clone()
            else:
                copies.of(ours_).grad = theirs_.grad.bfloat16()
        update.step(0.5)
        torch_update(theirs, optimizer, options)
    assert_alike(list(ours.parameters()), list(theirs.parameters()), 1e-6)
    for module in (ours[0], ours[2], ours[3]):
        copied = copies.of(module.weight)
        assert copied.grad is None and torch.equal(copied, module.weight.bfloat16())


def test_a_copy_follows_a_weight_that_is_changed_otherwise() -> None:
    model = make_network()
    copies = Bfloat16Copies(model)
    copies.of(model[0].weight)
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    assert torch.equal(copies.of(model[0].weight), model[0].weight.bfloat16())


def test_outside_of_autocast_layers_compute_in_single_precision() -> None:
    x, model = torch.randn(2, 9), make_network()
    wanted = model(x)
    Bfloat16Copies(model)
    assert torch.equal(model(x), wanted)


# --------------------------------------------------------------------------------------------------------------- engine


@pytest.mark.parametrize(
    "transformer",
    [{}, {"reversible": True}, {"shift_tokens": True, "sandwich_norm": True}, {"shared_attn_ids": (0, 0)}],
    ids=str,
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_bfloat16_trains_as_without_compiled_kernels(
    transformer: Dict[str, Any], micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.host, "has_bf16_instructions", lambda: True)
    step = {
        "bf16": True,
        "batch_size": 2,
        "gradient_accumulation": micro_batches,
        "ema_decay": 0.9,
        "clip_grad_norm": 1.0,
    }
    found = trained(engine_of(transformer, **step))
    monkeypatch.setattr(native, "is_for", lambda *_: False)
    wanted = trained(engine_of(transformer, **step))
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-2, atol=1e-2)


def test_validation_sees_the_average_through_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.host, "has_bf16_instructions", lambda: True)
    engine = engine_of({}, bf16=True, ema_decay=0.5)
    trained(engine)
    inputs = make_samples(2)
    plain = engine.evaluate(inputs)
    with engine.inference() as model:
        averaged = torch.stack(model(*inputs)).float()
    assert engine._copies is not None and not torch.equal(averaged, plain)
    assert torch.equal(engine.evaluate(inputs), plain)
