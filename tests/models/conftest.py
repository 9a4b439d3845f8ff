"""What the tests of the models share: every pattern over small layouts, and small transformers."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch

from models.dalle import Dalle
from models.options import TransformerOptions
from models.patterns import Layout, Pattern
from models.transformer import LayerScale

KINDS: List[Dict[str, Any]] = [{"kind": kind} for kind in ("full", "axial_row", "axial_col")]
KINDS += [
    {"kind": "conv_like", "window": window, "kernel_size": kernel_size, "dilation": dilation}
    for window in ("causal", "centered")
    for kernel_size in (3, 5)
    for dilation in (1, 2)
]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, whichever run before it."""
    torch.manual_seed(0)


@pytest.fixture(params=[(4, 4), (3, 5), (5, 2)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
def layout(request: pytest.FixtureRequest) -> Layout:
    """Three text positions before a square, a wide and a tall picture."""
    return Layout(3, *request.param)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values()))
def pattern(request: pytest.FixtureRequest, layout: Layout) -> Pattern:
    """Every kind of pattern over every layout."""
    return Pattern(layout=layout, **request.param)


@pytest.fixture
def make_dalle() -> Callable[..., Dalle]:
    """Builds a small transformer: `make_dalle(grid, **options)`, 11 text ids, 13 codes.

    It computes in double precision, so that two ways to one number agree, and its layers and logits are strong, so that
    a wrong way to that number shows.
    """

    def make(grid: Tuple[int, int] = (3, 4), **options: Any) -> Dalle:
        sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "dim_head": 4, "text_seq_len": 5}
        dalle = Dalle(TransformerOptions(**{**sizes, **options}), 11, 13, grid).double().eval()
        for module in dalle.modules():
            if isinstance(module, LayerScale):
                torch.nn.init.ones_(module.scale)
        for parameter in dalle.to_logits.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return dalle

    return make
