"""The operators' own code, built for this CPU and called from PyTorch, against their twins."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import pytest
import torch
from torch import Tensor

from custom_ops import DOMAIN, VERSION, fused_attention, fused_embedding, host_operator, twins
from custom_ops.host_library import Library
from custom_ops.host_operator import HostOperatorError
from models.patterns import Layout, Pattern
from tests.custom_ops.host_poptorch import HostPopTorch

SINGLE: Dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}
HALF: Dict[str, float] = {"rtol": 0, "atol": 3e-3}
TOLERANCE = {torch.float32: SINGLE, torch.float16: HALF}


@pytest.fixture
def poptorch(host_library: Library) -> HostPopTorch:
    return HostPopTorch(host_library)


def learning(*shapes: Tuple[int, ...], dtype: torch.dtype) -> List[Tensor]:
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def widened(tensors: List[Tensor]) -> List[Tensor]:
    """The same numbers in double precision, of which there are operators for every CPU."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def with_gradients(out: Tensor, given: List[Tensor]) -> List[Tensor]:
    """The output, and the gradients of an uneven sum of it; in double precision, to be compared."""
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    gradients = torch.autograd.grad((out * weights.to(out.dtype)).sum(), given)
    return [tensor.double() for tensor in (out, *gradients)]


def assert_close(found: List[Tensor], expected: List[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, **TOLERANCE[dtype])


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_is_its_twin_in_value_and_gradient(
    pattern: Pattern, dtype: torch.dtype, chunks: int, poptorch: HostPopTorch
) -> None:
    given = learning(*[(2, 2, 16, 8)] * 3, dtype=dtype)
    wide = widened(given)
    found = with_gradients(fused_attention(*given, pattern, poptorch, chunks=chunks), given)
    assert_close(found, with_gradients(twins.attention(*wide, pattern), wide), dtype)


def test_attention_of_a_sequences_beginning_is_its_twin(pattern: Pattern, poptorch: HostPopTorch) -> None:
    given = learning(*[(1, 2, 9, 4)] * 3, dtype=torch.float32)
    expected = with_gradients(twins.attention(*given, pattern), given)
    assert_close(with_gradients(fused_attention(*given, pattern, poptorch, chunks=3), given), expected, torch.float32)


def test_the_sum_of_exponentials_is_single_precision_whatever_comes_in(poptorch: HostPopTorch) -> None:
    q = torch.randn(1, 1, 6, 4).half()
    fused_attention(q, q, q, Pattern("full", Layout(3, 2, 2)), poptorch)
    out, log_sum_exp = poptorch.calls[0]["outputs"]
    assert (out.dtype, log_sum_exp.dtype) == (torch.float16, torch.float32)
    assert [(e.shape, e.dtype) for e in poptorch.calls[0]["example_outputs"]] == [
        (out.shape, out.dtype),
        (log_sum_exp.shape, log_sum_exp.dtype),
    ]
    scores = (q.float() @ q.float().transpose(-1, -2) / 2).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf)
    torch.testing.assert_close(log_sum_exp, scores.logsumexp(dim=-1))


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("padding_idx", [None, 0, 9])
@pytest.mark.parametrize("has_position", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_embedding_is_its_twin_in_value_and_gradient(
    dtype: torch.dtype, has_position: bool, padding_idx: Optional[int], splits: int, poptorch: HostPopTorch
) -> None:
    given = learning((10, 4), (5, 4), dtype=dtype)[: 1 + has_position]
    ids = torch.tensor([[0, 9, 3, 3, 1], [0, 0, 0, 2, 9], [4, 5, 6, 7, 8]])
    position = given[1] if has_position else None
    found = fused_embedding(given[0], ids, position, padding_idx, poptorch, splits=splits)
    wide = widened(given)
    twin = twins.embedding(wide[0], ids, wide[1] if has_position else None, padding_idx)
    assert found.dtype == dtype
    assert_close(with_gradients(found, given), with_gradients(twin, wide), dtype)


# ---------------------------------------------------------------------------------------------------- the way into C++


def attention(library: Library, q: Tensor, **changes: Any) -> List[Tensor]:
    attributes = {
        "pattern": "full", "text_len": 3, "rows": 2, "columns": 2, "scale": 0.5, "chunks": 1,
        "available_memory": 0.6, "partials_type": "float", **changes,
    }  # fmt: skip
    attributes = {key: value for key, value in attributes.items() if value is not None}
    return host_operator.run(library, DOMAIN, "FusedAttention", VERSION, attributes, [q, q, q])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"chunks": 4}, "chunks.*4"),
        ({"pattern": "round"}, "pattern.*round"),
        ({"columns": None}, "columns"),
        ({"kernel": 3}, "kernel"),
        ({"partials_type": "double"}, "partials_type.*double"),
    ],
)
def test_what_the_operator_refuses_is_an_error_in_its_words(
    host_library: Library, changes: Dict[str, Any], words: str
) -> None:
    with pytest.raises(HostOperatorError, match=words):
        attention(host_library, torch.randn(1, 6, 4), **changes)


def test_an_unknown_operator_and_an_unknown_type_are_refused(host_library: Library) -> None:
    with pytest.raises(HostOperatorError, match="minidalle.ops.Missing"):
        host_operator.run(host_library, DOMAIN, "Missing", VERSION, {}, [torch.ones(2)])
    with pytest.raises(HostOperatorError, match="torch.float64"):
        attention(host_library, torch.randn(1, 6, 4).double())


def test_an_operator_is_compiled_once_for_its_attributes_shapes_and_types(host_library: Library) -> None:
    host_operator._compiled.cache_clear()
    q = torch.randn(1, 6, 4)
    first = attention(host_library, q)[0]
    assert torch.equal(attention(host_library, q.clone())[0], first)
    assert host_operator._compiled.cache_info().misses == 1
    for other in (q[:, :5], q.half(), q.expand(2, 6, 4)):
        attention(host_library, other)
    attention(host_library, q, scale=0.25)
    assert host_operator._compiled.cache_info().misses == 5


def test_views_and_tensors_without_gradients_are_taken_as_they_are(host_library: Library) -> None:
    q = torch.randn(6, 1, 4).requires_grad_()
    seen = attention(host_library, q.transpose(0, 1))[0]
    with torch.inference_mode():
        again = attention(host_library, q.detach().transpose(0, 1).contiguous())[0]
    assert seen.requires_grad and not again.requires_grad
    assert torch.equal(seen, again)
