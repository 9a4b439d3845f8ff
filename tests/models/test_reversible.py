"""Reversible layers: the same numbers as keeping everything, in memory that does not grow with depth."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from torch import Tensor

from engines.memory import measure_activations
from models.dalle import Dalle

TEXT = torch.tensor([[3, 7, 1, 0, 0], [9, 2, 8, 4, 6]])
CODES = torch.arange(24).view(2, 12) % 13
MODELS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "shared": {"shared_attn_ids": "0", "shared_ff_ids": "a,b,a"},
    "shifted": {"shift_tokens": True, "attn_types": "axial_row,conv_like"},
    "frozen": {},
}


def gradients(dalle: Dalle) -> List[Tensor]:
    parameters = [p for p in dalle.parameters() if p.requires_grad]
    return list(torch.autograd.grad(dalle(TEXT, CODES)[0], parameters))


def gradients_keeping_everything(dalle: Dalle) -> List[Tensor]:
    """Through torch's own backward pass of the two streams."""

    def run(x: Tensor, caches: Any = None, position: int = 0) -> Tensor:
        streams = torch.stack((x, x))
        for layer in dalle.layers:
            streams = layer(streams)
        return streams.mean(dim=0)

    reversibly, dalle.run = dalle.run, run  # type: ignore[method-assign]
    try:
        return gradients(dalle)
    finally:
        dalle.run = reversibly  # type: ignore[method-assign]


@pytest.mark.parametrize("model", MODELS)
def test_gradients_equal_those_of_keeping_everything(make_dalle: Callable[..., Dalle], model: str) -> None:
    dalle = make_dalle(reversible=True, num_hidden_layers=4, **MODELS[model])
    if model == "frozen":
        dalle.layers[1].requires_grad_(False)
    torch.testing.assert_close(gradients(dalle), gradients_keeping_everything(dalle))


def test_the_streams_are_two(make_dalle: Callable[..., Dalle]) -> None:
    reversible = make_dalle(reversible=True)
    sequential = make_dalle()
    sequential.load_state_dict(reversible.state_dict())
    assert not torch.allclose(reversible(TEXT, CODES)[0], sequential(TEXT, CODES)[0])


def test_activations_do_not_grow_with_depth(make_dalle: Callable[..., Dalle]) -> None:
    def bytes_of(depth: int, **options: Any) -> int:
        return measure_activations(make_dalle(num_hidden_layers=depth, **options), (TEXT, CODES))

    assert bytes_of(12, reversible=True) == bytes_of(2, reversible=True)
    assert bytes_of(12) > 3 * bytes_of(2)


@pytest.mark.parametrize("dropout", ["attn_dropout", "ff_dropout"])
def test_backward_drops_what_forward_dropped(make_dalle: Callable[..., Dalle], dropout: str) -> None:
    dalle = make_dalle(reversible=True, num_hidden_layers=3, **{dropout: 0.5}).train()
    found = []
    for way in (gradients, gradients_keeping_everything):
        torch.manual_seed(1)
        found.append(way(dalle))
    torch.testing.assert_close(found[0], found[1])


def test_the_random_numbers_to_come_are_those_of_keeping_everything(make_dalle: Callable[..., Dalle]) -> None:
    dalle = make_dalle(reversible=True, ff_dropout=0.5).train()
    following = []
    for way in (gradients, gradients_keeping_everything):
        torch.manual_seed(1)
        way(dalle)
        following.append(torch.rand(3))
    assert torch.equal(following[0], following[1])


def test_backward_computes_in_the_precision_of_forward(make_dalle: Callable[..., Dalle]) -> None:
    dalle, types = make_dalle(reversible=True).float(), []
    dalle.layers[0].feed_forward.to_inner.register_forward_hook(lambda *call: types.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = dalle(TEXT, CODES)[0]
    loss.backward()
    assert types == [torch.bfloat16, torch.bfloat16]


def test_gradients_reach_every_parameter_of_shared_layers_once(make_dalle: Callable[..., Dalle]) -> None:
    dalle = make_dalle(reversible=True, shared_ff_ids="0", num_hidden_layers=3)
    dalle(TEXT, CODES)[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in dalle.parameters())
    names = [name for name, _ in dalle.named_parameters() if "feed_forward.to_inner.weight" in name]
    assert names == ["layers.0.feed_forward.to_inner.weight"]


@pytest.mark.parametrize("grid", [(3, 4)])
def test_drawing_and_training_see_the_same_logits(make_dalle: Callable[..., Dalle], grid: Tuple[int, int]) -> None:
    dalle = make_dalle(grid, reversible=True)
    with_gradients = dalle.logits(dalle.number_padding(TEXT), CODES)
    with torch.no_grad():
        torch.testing.assert_close(dalle.logits(dalle.number_padding(TEXT), CODES), with_gradients)
