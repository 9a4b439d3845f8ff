"""Attention in the form that suits its pattern, against the dense form of the textbook."""

from __future__ import annotations

from typing import Any, Set, Tuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.attention import Attention
from models.cache import KeyWindow, LayerCache, WindowTables
from models.patterns import Pattern

WIDTH, HEADS, HEAD_WIDTH, BATCH = 6, 2, 3, 2


def attention_of(pattern: Pattern, **options: Any) -> Attention:
    return Attention(WIDTH, HEADS, HEAD_WIDTH, pattern, **options).double()


def sequences(length: int) -> Tensor:
    return torch.randn(BATCH, length, WIDTH, dtype=torch.float64, requires_grad=True)


def dense_attention(attention: Attention, x: Tensor) -> Tensor:
    """Softmax over all scores, the forbidden ones at -inf; no einops, nothing fused."""
    length = x.shape[1]
    q, k, v = attention.to_qkv(x).view(BATCH, length, 3, HEADS, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
    scores = q.matmul(k.transpose(2, 3)) / HEAD_WIDTH**0.5
    weights = torch.where(attention.pattern.mask(length), scores, -torch.inf).softmax(dim=-1)
    return attention.to_out(weights.matmul(v).transpose(1, 2).reshape(BATCH, length, HEADS * HEAD_WIDTH))


def values_and_gradients(attention: Attention, x: Tensor, out: Tensor) -> Tuple[Tensor, ...]:
    """The output, and the gradients of an uneven sum of it in input and weights."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return (out, *torch.autograd.grad((out * weights).sum(), [x, *attention.parameters()]))


@pytest.mark.parametrize("pixels", [-2, 0, 1, 4, None], ids=["part-of-text", "text", "1-pixel", "4-pixels", "all"])
def test_attention_equals_dense_attention_in_value_and_gradient(pattern: Pattern, pixels: Any) -> None:
    layout = pattern.layout
    x = sequences(layout.sequence_len if pixels is None else layout.text_len + pixels)
    attention = attention_of(pattern)
    got = values_and_gradients(attention, x, attention(x))
    wanted = values_and_gradients(attention, x, dense_attention(attention, x))
    for ours, dense in zip(got, wanted):
        torch.testing.assert_close(ours, dense)


def test_a_cache_is_given_the_keys_and_values(pattern: Pattern) -> None:
    attention, x = attention_of(pattern), sequences(pattern.layout.text_len).detach()
    tables = WindowTables(pattern, x.device, x.dtype)
    keys = KeyWindow(tables, BATCH, HEADS, HEAD_WIDTH)
    with torch.no_grad():
        attention(x, LayerCache(keys))
        qkv = attention.to_qkv(x).view(BATCH, x.shape[1], 3, HEADS, HEAD_WIDTH)
    assert torch.equal(keys.window[:, :, :, : x.shape[1]], qkv[:, :, 1:].permute(0, 2, 3, 1, 4))


def test_dropout_changes_training_and_nothing_else(pattern: Pattern) -> None:
    attention, x = attention_of(pattern, dropout=0.5), sequences(pattern.layout.sequence_len)
    assert not torch.equal(attention(x), attention(x))
    torch.testing.assert_close(attention.eval()(x), dense_attention(attention, x))


@pytest.mark.parametrize("stable, rotary_emb", [(False, False), (True, True)])
def test_a_lower_precision_reaches_every_kind(pattern: Pattern, stable: bool, rotary_emb: bool) -> None:
    attention = Attention(WIDTH, HEADS, 6, pattern, stable=stable, rotary_emb=rotary_emb)
    x = sequences(pattern.layout.sequence_len).detach().float()
    exact = attention(x)
    with Precisions() as seen, torch.autocast("cpu", torch.bfloat16):
        computed = attention(x)
    assert computed.dtype == torch.bfloat16
    assert seen.of_products == {torch.bfloat16}
    torch.testing.assert_close(computed.float(), exact, rtol=0.1, atol=0.05)


class Precisions(TorchDispatchMode):
    """Notes in which types matrix products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.of_products: Set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.of_products.add(out.dtype)
        return out
