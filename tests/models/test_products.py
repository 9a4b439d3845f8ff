"""Products of a few rows, by whichever call and layout the rule chooses, against PyTorch's linear."""

from __future__ import annotations

from typing import Iterator

import pytest
import torch
import torch.nn.functional as F

from models import products
from models.products import row_product

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("outputs, inputs", [(2048, 32), (1025, 8), (16, 64), (7, 5)])
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_every_way_of_multiplying_gives_the_product(
    threads: int, dtype: torch.dtype, rows: int, outputs: int, inputs: int, has_bias: bool
) -> None:
    weight, x = torch.randn(outputs, inputs, dtype=dtype), torch.randn(rows, inputs, dtype=dtype)
    bias = torch.randn(outputs, dtype=dtype) if has_bias else None
    got, wanted = row_product(weight, bias, rows)(x), F.linear(x, weight, bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("missing", ["onednn_linear", "onednn_reorder"])
def test_a_build_without_onednn_s_calls_multiplies_too(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(products, missing, lambda: None)
    weight, x = torch.randn(16, 64), torch.randn(4, 64)
    torch.testing.assert_close(row_product(weight, None, 4)(x), F.linear(x, weight))


@pytest.mark.parametrize("rows", [1, 4])
def test_multiplying_leaves_the_weights_and_their_gradients_alone(rows: int) -> None:
    weight = torch.nn.Parameter(torch.randn(2048, 32))
    before = weight.detach().clone()
    out = row_product(weight, None, rows)(torch.randn(rows, 32))
    assert torch.equal(weight, before) and not out.requires_grad
