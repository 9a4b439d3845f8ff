"""Windows of keys and values, against attention under the dense mask."""

from __future__ import annotations

from typing import Tuple

import pytest
import torch
from torch import Tensor

from models.cache import KeyWindow, Place, WindowTables, arrange
from models.patterns import Layout, Pattern
from models.rotary import rotate

ROWS, HEADS, WIDTH = 2, 2, 3
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def window_of(pattern: Pattern, dtype: torch.dtype = torch.float64) -> KeyWindow:
    """In double precision PyTorch attends, in the others a compiled kernel, if there is a compiler."""
    return KeyWindow(WindowTables(pattern, torch.device("cpu"), dtype), ROWS, HEADS, WIDTH)


def queries_keys_values(pattern: Pattern) -> Tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, ROWS, HEADS, pattern.layout.sequence_len, WIDTH, dtype=torch.float64).unbind()
    return q, k, v


def dense_attention(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    return scores.masked_fill(~pattern.mask(q.shape[2]), -torch.inf).softmax(dim=-1) @ v


def place_at(position: int, fixed_shapes: bool) -> Place:
    return Place(torch.tensor([position]), None if fixed_shapes else position)


def attend_at(window: KeyWindow, q: Tensor, k: Tensor, v: Tensor, position: int, fixed_shapes: bool = False) -> Tensor:
    qkv = torch.stack((q, k, v), dim=1)[:, :, :, position]
    return window.attend(qkv, place_at(position, fixed_shapes))


@pytest.mark.parametrize("fixed_shapes", [False, True], ids=["slices", "fixed-shapes"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("filled", [1, 3, 4, 8])
def test_attention_from_a_window_is_that_of_the_mask(
    pattern: Pattern, filled: int, dtype: torch.dtype, fixed_shapes: bool
) -> None:
    window, text_len = window_of(pattern, dtype), pattern.layout.text_len
    for _ in range(2):  # the second time where another sequence was
        q, k, v = (t.to(dtype) for t in queries_keys_values(pattern))
        wanted = dense_attention(*(t.double() for t in (q, k, v)), pattern)
        window.fill(k[:, :, :filled], v[:, :, :filled])
        for position in range(filled, q.shape[2]):
            got = attend_at(window, q, k, v, position, fixed_shapes and position >= text_len)
            torch.testing.assert_close(got.double(), wanted[:, :, position], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_step_reads_only_the_keys_that_its_pattern_allows(pattern: Pattern, dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in queries_keys_values(pattern))
    position, window = q.shape[2] - 1, window_of(pattern, dtype)
    unseen = ~pattern.mask(q.shape[2])[position]
    k[:, :, unseen] = v[:, :, unseen] = torch.nan
    window.fill(k[:, :, :position], v[:, :, :position])
    assert attend_at(window, q, k, v, position).isfinite().all()


def test_a_step_done_twice_is_a_step_done_once(pattern: Pattern) -> None:
    q, k, v = queries_keys_values(pattern)
    window, text_len = window_of(pattern), pattern.layout.text_len
    window.fill(k[:, :, :text_len], v[:, :, :text_len])
    for position in range(text_len, q.shape[2]):
        first = attend_at(window, q, k, v, position, fixed_shapes=True)
        assert torch.equal(attend_at(window, q, k, v, position, fixed_shapes=True), first)


@pytest.mark.parametrize("kind, size", [("full", 80 + 256), ("axial_row", 80 + 16), ("axial_col", 80 + 16)])
def test_a_window_holds_what_a_position_looks_at_and_no_more(kind: str, size: int) -> None:
    arrangement = arrange(Pattern(kind, Layout(80, 16, 16)))
    assert arrangement.size == size
    assert (arrangement.pixels is None) == (kind != "axial_col")


@pytest.mark.parametrize("kind", ["full", "axial_row", "axial_col"])
def test_pixels_of_a_single_column_need_no_copies(kind: str) -> None:
    assert arrange(Pattern(kind, Layout(3, 5, 1))).pixels is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_a_position_attends_from_and_to_is_turned_by_its_angles(pattern: Pattern, dtype: torch.dtype) -> None:
    text_len, turning = pattern.layout.text_len, 2
    angles = torch.rand(pattern.layout.sequence_len, turning // 2, dtype=torch.float64).repeat_interleave(2, dim=1) * 6
    tables = angles.cos(), angles.sin()
    window = window_of(pattern, dtype)
    turned_window = KeyWindow(window.tables, ROWS, HEADS, WIDTH, tuple(table.to(dtype) for table in tables))
    given = [t.to(dtype) for t in queries_keys_values(pattern)]
    q, k, v = (rotate(t, *(table.to(dtype) for table in tables)) for t in given)
    for one in (window, turned_window):
        one.fill(k[:, :, :text_len], v[:, :, :text_len])
    for position in range(text_len, k.shape[2]):
        wanted = attend_at(window, q, k, v, position)
        torch.testing.assert_close(attend_at(turned_window, *given, position), wanted)
