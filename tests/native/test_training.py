"""The compiled kernels of training steps against PyTorch in double precision."""

from __future__ import annotations

import shutil
from typing import Callable, Iterator, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import native
from engines.kernels.gated_gelu import gated_gelu
from engines.kernels.residual import add_scaled, layer_norm
from engines.kernels.softmax import causal_softmax, causal_softmax_gradient
from models import transformer

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
WIDTHS = [1, 15, 16, 17, 97, 130]  # around whole vectors
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(function: Callable[..., Tensor], *inputs: Tensor) -> List[Tensor]:
    """What a function gives, and the gradients of its inputs."""
    given = [t.detach().clone().requires_grad_() for t in inputs]
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out, given, draw(*out.shape, seed=1).to(out.dtype))]


def assert_near(found: List[Tensor], wanted: List[Tensor], dtype: torch.dtype) -> None:
    """Within the rounding of a type, for values up to 1 or the largest of a tensor."""
    for one, other in zip(found, wanted):
        torch.testing.assert_close(
            one.double(), other.double(), rtol=0, atol=ROUNDING[dtype] * max(float(other.abs().max()), 1)
        )


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_gated_gelu_is_that_of_the_model(width: int, dtype: torch.dtype) -> None:
    inner = draw(2, 3, 2 * width, dtype=dtype) * 3
    assert_near(results(gated_gelu, inner), results(transformer.gate, inner.double()), dtype)


def test_the_gated_gelu_of_far_gates_is_theirs_or_0_and_of_none_is_none() -> None:
    far = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, float("nan")])
    out, gradient = results(gated_gelu, torch.cat((torch.ones(8), far))[None])
    torch.testing.assert_close(out[0], torch.tensor([0, 0, 0, 0, 20, 100, 1e4, float("nan")]), equal_nan=True)
    slopes = draw(1, 8, seed=1)[0] * torch.tensor([0, 0, 0, 0.5, 1, 1, 1, float("nan")])
    torch.testing.assert_close(gradient[0, 8:], slopes, equal_nan=True)


def test_bfloat16_is_rounded_as_pytorch_does_and_what_is_no_number_stays_none() -> None:
    halves = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 1e-40, 3e38, float("inf")])
    no_number = torch.tensor([0x7FFFFFFF, -1]).int().view(torch.float32)  # in whose place rounding up would give 0
    x = torch.cat((halves, no_number))[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = add_scaled(torch.zeros(1, 8), x.bfloat16(), torch.ones(8)), _rounded(x)
    torch.testing.assert_close(found[0][0, :6], halves.bfloat16().float())
    torch.testing.assert_close(found[1], x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def _rounded(x: Tensor) -> Tensor:
    """x (1, D) in bfloat16, by the kernel for the gradient of a branch that is multiplied by 1."""
    branch = torch.zeros(x.shape, dtype=torch.bfloat16, requires_grad=True)
    return torch.autograd.grad(add_scaled(torch.zeros_like(x), branch, torch.ones(x.shape[1])), branch, x)[0]


@pytest.mark.parametrize("width", WIDTHS[1:])
def test_the_norm_is_pytorchs(width: int) -> None:
    inputs = draw(7, 11, width) * 5 + 2, draw(width, seed=2), draw(width, seed=3)

    def norm(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight, bias: kernel(x, (width,), weight, bias, 1e-5)

    wanted = results(norm(F.layer_norm), *(t.double() for t in inputs))
    assert_near(results(norm(layer_norm), *inputs), wanted, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(norm(layer_norm), *inputs)
    assert [t.dtype for t in found] == [torch.bfloat16, *[torch.float32] * 3]
    assert_near(found, wanted, torch.bfloat16)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_scaled_sum_is_that_of_the_model(width: int, dtype: torch.dtype) -> None:
    inputs = draw(5, 13, width), draw(5, 13, width, seed=2, dtype=dtype), draw(width, seed=3)
    found = results(add_scaled, *inputs)
    assert [t.dtype for t in found] == [torch.float32, torch.float32, dtype, torch.float32]
    assert_near(found, results(transformer.add_scaled, *(t.double() for t in inputs)), dtype)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("before_width", [0, 1, 16, 81])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_causal_softmax_is_one_of_masked_scores(width: int, before_width: int, dtype: torch.dtype) -> None:
    before, scores = draw(3, width, before_width, dtype=dtype) * 9, draw(3, width, width, seed=2, dtype=dtype) * 9
    gradients = draw(3, width, before_width, seed=3, dtype=dtype), draw(3, width, width, seed=4, dtype=dtype)

    def plain(before: Tensor, scores: Tensor) -> Tensor:
        seen = torch.ones(width, width, dtype=torch.bool).tril()
        return torch.cat((before, scores.masked_fill(~seen, float("-inf"))), dim=2).mul(0.7).softmax(dim=2)

    given = [t.double().requires_grad_() for t in (before, scores)]
    weights = plain(*given)
    wanted = torch.autograd.grad(weights, given, torch.cat(gradients, dim=2).double())
    causal_softmax(before, scores, 0.7)
    assert_near([torch.cat((before, scores), dim=2)], [weights.detach()], dtype)
    assert not scores.triu(1).any()
    causal_softmax_gradient((before, scores), gradients, 0.7)
    if dtype == torch.float32:
        assert_near([torch.cat(gradients, dim=2)], [torch.cat(wanted, dim=2)], dtype)
    assert not gradients[1].triu(1).any()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (31, 5), (32, 16), (100, 700)], ids=str)
def test_sums_are_pytorchs(shape: Tuple[int, int], dtype: torch.dtype) -> None:
    t = draw(*shape, dtype=dtype)
    assert_near([native.sum_over_rows(t)], [t.double().sum(dim=0)], torch.float32)
    assert native.sum_of_squares(t) == pytest.approx(float(t.double().square().sum()), rel=1e-5)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bits(threads: Callable[[int], None]) -> None:
    x, weight, bias = draw(70, 33), draw(33, seed=2), draw(33, seed=3)

    def run(count: int) -> List[Tensor]:
        threads(count)
        norms = results(lambda *t: layer_norm(t[0], (33,), t[1], t[2], 1e-5), x, weight, bias)
        sums = results(add_scaled, x, x, weight)
        squares = torch.tensor(native.sum_of_squares(draw(400, 400)), dtype=torch.float64)
        return [*norms, *sums, squares, native.sum_over_rows(draw(400, 400))]

    for one, other in zip(run(1), run(3)):
        assert torch.equal(one, other)
