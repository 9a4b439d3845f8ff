"""Which operators there are, and the types that they give."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipu.simulator import inferenceModel
from ipu.simulator.operators import LOWERED, compute, on_half_grid
from ipu.simulator.poptorch_core import Error
from tests.ipu.simulator.functions import on_ipu

FUNCTIONS = [
    lambda x: F.softmax(x, -1),
    lambda x: F.layer_norm(x, (4,)),
    lambda x: F.group_norm(x[None], 2),
    lambda x: F.gelu(x),
    lambda x: F.max_pool2d(x[None], 2),
    lambda x: F.interpolate(x[None, None], scale_factor=2),
    lambda x: F.conv2d(x[None, None], torch.ones(1, 1, 2, 2)),
    lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], x > 0),
    lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], x),
    lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    lambda x: torch.einsum("ij,kj->ik", x, x),
    lambda x: x.argmax(-1),
    lambda x: x.topk(2)[0],
    lambda x: x.cumsum(0).sort(1)[1],
    lambda x: x.roll(1, 0).flip(1).T.contiguous().view(-1),
    lambda x: torch.cat([x, x[1:]]).chunk(2, 1)[1],
    lambda x: x.masked_fill(x > 0, -9.0),
    lambda x: torch.where(x > 0, x, -x),
    lambda x: F.one_hot(x.argmax(1), 4),
    lambda x: torch.triu(torch.ones(4, 4, device=x.device)) * x,
    lambda x: x + torch.eye(4, device=x.device) + torch.linspace(0, 1, 4, device=x.device),
    lambda x: torch.zeros(4, 4, device=x.device).scatter(1, x.argmax(1, keepdim=True), 1.0),
    lambda x: x.clone().index_put_((torch.tensor([1], device=x.device),), torch.tensor(1.0, device=x.device)),
    lambda x: x.new_zeros(2, 4) + x[:2],
    lambda x: x.std(-1) + x.var(-1) + x.norm(),
]


@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
def test_functions_give_what_the_host_gives(number: int) -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(number))
    torch.testing.assert_close(on_ipu(FUNCTIONS[number], x), FUNCTIONS[number](x), check_dtype=False)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("aten::tril", torch.tril),
        ("aten::lerp", lambda x: torch.lerp(x, x, 0.5)),
        ("aten::_fft_r2c", lambda x: torch.fft.fft(x).real),
        ("aten::digamma", torch.digamma),
    ],
)
def test_operators_that_poptorch_does_not_lower_are_refused(name: str, function: Callable[..., Tensor]) -> None:
    assert name[6:] not in LOWERED
    with pytest.raises(Error, match=f"the operator {name} cannot run on an IPU"):
        on_ipu(function, torch.eye(4))


def test_the_line_of_the_model_that_cannot_run_is_named() -> None:
    with pytest.raises(Error, match=r"\[.*test_operators.py:\d+\]$"):
        on_ipu(lambda x: x[x > 0], torch.eye(4))


HALF, FLOAT = torch.ones(2, 2).half(), torch.ones(2, 2)


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (lambda half, full: half + full, torch.float32),
        (lambda half, full: half * 2.5, torch.half),
        (lambda half, full: half * full.sum(), torch.half),
        (lambda half, full: half @ full, torch.float32),
        (lambda half, full: F.linear(half, full), torch.half),
        (lambda half, full: F.linear(full, half), torch.float32),
        (lambda half, full: F.conv2d(half[None, None], full[None, None]), torch.half),
        (lambda half, full: F.conv2d(full[None, None], half[None, None]), torch.float32),
        (lambda half, full: F.batch_norm(half, full[0], full[1]), torch.half),
        (lambda half, full: F.layer_norm(half, (2,), full[0], full[1]), torch.half),
        (lambda half, full: half.sum(), torch.half),
        (lambda half, full: half.softmax(-1, dtype=torch.float32), torch.float32),
        (lambda half, full: full.to(torch.half), torch.half),
        (lambda half, full: F.cross_entropy(half, half.argmax(1)), torch.half),
        (lambda half, full: full.double(), torch.float32),
        (lambda half, full: full.bfloat16(), torch.float32),
        (lambda half, full: torch.zeros(2, dtype=torch.float64, device=full.device), torch.float32),
        (lambda half, full: F.max_pool2d(half[None], 2), torch.half),
    ],
)
def test_results_have_the_devices_types(function: Callable[..., Tensor], dtype: torch.dtype) -> None:
    assert on_ipu(function, HALF, FLOAT).dtype == dtype


def test_half_results_saturate_and_sums_within_an_operator_do_not() -> None:
    assert float(compute(torch.ops.aten.mul.Tensor, (HALF * 300, HALF * 300), {}).max()) == 65504
    large = torch.full((4,), 40000.0).half()
    assert float(on_ipu(lambda x: x.mean(), large)) == 40000


def test_numbers_that_half_does_not_have_become_the_largest_and_infinity_stays() -> None:
    assert on_half_grid(-1e9) == -65504 and on_half_grid(float("-inf")) == float("-inf")
    assert on_half_grid(0.1) == float(torch.tensor(0.1).half()) and on_half_grid(3) == 3
    found = on_ipu(lambda x: x.masked_fill(x > 0, -1e9), HALF)
    assert found.tolist() == [[-65504] * 2] * 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_run_whole(kind: Any) -> None:
    layer = kind(3, 4, batch_first=True)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(inferenceModel(First())(x), layer(x)[0].detach())
