"""Products of a few rows, by whichever call and layout the rule chooses, against PyTorch's linear."""

from __future__ import annotations

import shutil
from typing import Iterator, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import native
from models import products
from models.products import added_product, gated_product, product
from models.transformer import gate

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=[True, False], ids=["compiled", "pytorch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(native, "is_for", lambda *_: False)
    return bool(request.param)


def draw(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tuple[Tensor, Tensor, Tensor]:
    """Rows, weights and a bias; in single precision where products are in a lower one, as under autocast."""
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    return tuple(torch.randn(*size, dtype=kept) for size in ((rows, inputs), (outputs, inputs), (outputs,)))


def assert_near(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(wanted.abs().max()), 1.0)
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 33])
@pytest.mark.parametrize("outputs, inputs", [(2048, 32), (1026, 9), (16, 64), (6, 5), (2, 1)])
def test_every_product_is_the_one_of_pytorch(
    threads: int, compiled: bool, dtype: torch.dtype, rows: int, outputs: int, inputs: int
) -> None:
    x, weight, bias = draw(rows, outputs, inputs, dtype)
    scale, before = torch.randn(outputs, dtype=x.dtype), torch.randn(rows, outputs, dtype=x.dtype)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    assert_near(product(weight, None, dtype, rows)(x), wanted - bias, dtype)
    assert_near(product(weight, bias, dtype, rows)(x), wanted, dtype)
    assert_near(gated_product(weight, bias, dtype, rows)(x), gate(wanted), dtype)
    assert_near(added_product(weight, bias, dtype, rows)(scale, before, x), before + scale * wanted, dtype)


@pytest.mark.parametrize("missing", ["onednn_linear", "onednn_reorder"])
def test_a_build_without_onednn_s_calls_multiplies_too(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(products, missing, lambda: None)
    x, weight, bias = draw(33, 16, 64, torch.float32)
    torch.testing.assert_close(product(weight, bias, torch.float32, 33)(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("rows", [1, 33])
def test_multiplying_leaves_the_weights_and_their_gradients_alone(rows: int) -> None:
    weight = torch.nn.Parameter(torch.randn(2048, 32))
    before = weight.detach().clone()
    out = product(weight, None, torch.float32, rows)(torch.randn(rows, 32))
    assert torch.equal(weight, before) and not out.requires_grad


def test_rows_and_weights_may_lie_in_memory_in_any_order() -> None:
    x, weight = torch.randn(32, 3).t(), torch.randn(32, 48).t()
    torch.testing.assert_close(product(weight, None, torch.float32, 3)(x), F.linear(x, weight))


def test_a_model_kept_in_bfloat16_is_computed_in_it() -> None:
    x, weight, bias = (t.bfloat16() for t in draw(1, 16, 8, torch.bfloat16))
    assert product(weight, bias, torch.bfloat16, 1)(x).dtype == torch.bfloat16


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_a_row_s_product_is_the_same_bits_in_any_batch(threads: int, dtype: torch.dtype) -> None:
    x, weight, bias = draw(4, 40, 101, dtype)
    together = product(weight, bias, dtype, 4)(x)
    alone = product(weight, bias, dtype, 1)
    assert torch.equal(together, torch.cat([alone(row) for row in x.split(1)]))
