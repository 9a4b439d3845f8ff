"""Attention patterns against their definition, pixel by pixel."""

from __future__ import annotations

import random
from typing import List

import pytest
import torch

from models.options import ATTENTION_TYPES
from models.patterns import PATTERNS, Layout, Pattern


def seen_from(pattern: Pattern, position: int) -> List[int]:
    """The positions that `position` looks at, by walking over the pixels of its neighbourhood."""
    text_len, rows, columns = pattern.layout.text_len, pattern.layout.rows, pattern.layout.columns
    if position < text_len:
        return list(range(position + 1))
    row, column = divmod(position - text_len, columns)
    if pattern.kind == "sparse":
        return seen_sparsely_from(pattern, position)
    half = pattern.kernel_size // 2
    steps = range(-2 * half, 1) if pattern.window == "causal" else range(-half, half + 1)
    pixels = {
        "full": [(y, x) for y in range(rows) for x in range(columns)],
        "axial_row": [(row, x) for x in range(columns)],
        "axial_col": [(y, column) for y in range(rows)],
        "conv_like": [
            (row + down * pattern.dilation, column + right * pattern.dilation) for down in steps for right in steps
        ],
    }[pattern.kind]
    seen = [text_len + y * columns + x for y, x in pixels if 0 <= y < rows and 0 <= x < columns]
    return list(range(text_len)) + [key for key in seen if key <= position]


def seen_sparsely_from(pattern: Pattern, position: int) -> List[int]:
    """As `seen_from` for `sparse`: blocks of text, the four blocks of a window, and blocks drawn for every row."""
    size, rng = pattern.block_size, random.Random(pattern.seed)
    blocks = range(-(-pattern.layout.sequence_len // size))
    count = len(blocks) // 4 if pattern.random_blocks is None else pattern.random_blocks
    drawn = [rng.sample(blocks, count) for _ in blocks][position // size]
    window = range(position // size // 4 * 4, position // size // 4 * 4 + 4)
    text = range(-(-pattern.layout.text_len // size))
    return [key for key in range(position + 1) if key // size in {*drawn, *window, *text}]


def test_mask_and_keys_are_those_of_the_definition(pattern: Pattern) -> None:
    length = pattern.layout.sequence_len
    mask = pattern.mask(length)
    for position in range(length):
        seen = seen_from(pattern, position)
        assert mask[position].nonzero().squeeze(1).tolist() == seen
        assert pattern.keys()[position].tolist() == seen


def test_nobody_sees_later_positions_and_everybody_sees_itself(pattern: Pattern) -> None:
    mask = pattern.mask(pattern.layout.sequence_len)
    assert not mask.triu(1).any()
    assert mask.diagonal().all()


def test_text_is_causal_and_seen_by_every_pixel(pattern: Pattern) -> None:
    text_len = pattern.layout.text_len
    mask = pattern.mask(pattern.layout.sequence_len)
    assert torch.equal(mask[:text_len, :text_len], torch.ones(text_len, text_len).tril().bool())
    assert mask[text_len:, :text_len].all()


def test_the_mask_of_a_shorter_sequence_is_the_corner_of_the_whole_one(pattern: Pattern) -> None:
    whole = pattern.mask(pattern.layout.sequence_len)
    for length in range(1, len(whole)):
        assert torch.equal(pattern.mask(length), whole[:length, :length])


@pytest.mark.parametrize("window", ["causal", "centered"])
def test_a_window_of_one_pixel_holds_the_pixel_alone(window: str) -> None:
    pattern = Pattern("conv_like", Layout(1, 3, 3), kernel_size=1, window=window)
    assert [pattern.keys()[position].tolist() for position in (1, 5, 8)] == [[0, 1], [0, 5], [0, 8]]


def test_sparse_blocks_are_drawn_from_their_seed_alone() -> None:
    masks = [Pattern("sparse", Layout(3, 12, 12), block_size=4, seed=seed).mask(146) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert masks[0].float().mean() < 0.4  # of the half that is not later: sparse indeed


def test_the_last_image_token_is_not_fed() -> None:
    layout = Layout(text_len=6, rows=3, columns=4)
    assert (layout.image_len, layout.sequence_len) == (12, 17)


def test_every_attention_type_has_a_pattern() -> None:
    assert set(PATTERNS) == set(ATTENTION_TYPES)
