"""The PyTorch form of the fused operators against the model's own attention and embeddings."""

from __future__ import annotations

import copy
from typing import List, Optional, Sequence

import pytest
import torch
from torch import Tensor

from custom_ops import fused_attention, fused_embedding, twins
from models.attention import Attention
from models.dalle import embed
from models.patterns import Pattern

BATCH, HEADS, HEAD_WIDTH, WIDTH = 2, 2, 3, 6


def with_gradients(out: Tensor, given: Sequence[Tensor]) -> List[Tensor]:
    """The output, and the gradients of an uneven sum of it."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), list(given))]


@pytest.mark.parametrize("pixels", [-2, 0, 1, 4, None], ids=["part-of-text", "text", "1-pixel", "4-pixels", "all"])
@pytest.mark.parametrize("stable", [False, True])
def test_attention_of_the_twin_is_that_of_the_model_in_value_and_gradient(
    pattern: Pattern, pixels: Optional[int], stable: bool
) -> None:
    layout = pattern.layout
    length = layout.sequence_len if pixels is None else layout.text_len + pixels
    x = torch.randn(BATCH, length, WIDTH, dtype=torch.float64, requires_grad=True)
    own = Attention(WIDTH, HEADS, HEAD_WIDTH, pattern, stable=stable).double()
    fused = copy.deepcopy(own)
    fused.kernel = beside_each_other
    for found, expected in zip(*(with_gradients(a(x), [x, *a.parameters()]) for a in (fused, own))):
        torch.testing.assert_close(found, expected)


def beside_each_other(qkv: Tensor, pattern: Pattern) -> Tensor:
    """The operator as a `models.attention.AttentionKernel`."""
    return fused_attention(*(t.transpose(1, 2) for t in qkv.unbind(2)), pattern).transpose(1, 2)


def test_scores_of_halves_are_in_single_precision_and_the_results_are_halves(pattern: Pattern) -> None:
    q, k, v = (torch.randn(BATCH, HEADS, 16, HEAD_WIDTH).half() for _ in range(3))
    q[0] *= 400  # products of half precision would be beyond 65504
    k[0] *= 400
    out = twins.attention(q, k, v, pattern)
    assert out.dtype == torch.float16 and out.isfinite().all()
    torch.testing.assert_close(
        out.float(), twins.attention(q.float(), k.float(), v.float(), pattern), rtol=0, atol=3e-3
    )


@pytest.mark.parametrize("has_position", [True, False])
def test_the_embedding_of_the_twin_is_that_of_the_model_in_value_and_gradient(has_position: bool) -> None:
    table, vectors = torch.randn(7, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    position, given = (vectors, [table, vectors]) if has_position else (None, [table])
    ids = torch.tensor([[0, 6, 3, 3, 1], [0, 0, 0, 2, 6]])
    expected = with_gradients(embed(table, ids, position), given)
    for found, meant in zip(with_gradients(fused_embedding(table, ids, position), given), expected):
        assert torch.equal(found, meant)


def test_the_padding_row_is_looked_up_and_learns_nothing() -> None:
    table = torch.randn(4, 3, requires_grad=True)
    out = fused_embedding(table, torch.tensor([[1, 0, 1]]), padding_idx=1)
    assert torch.equal(out[0, 0], table[1])
    out.sum().backward()
    assert table.grad is not None and table.grad[:, 0].tolist() == [1, 0, 0, 0]
