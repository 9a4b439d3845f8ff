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
KINDS += [{"kind": "sparse", "block_size": size, "random_blocks": blocks} for size, blocks in ((1, 2), (2, None))]

# Options that change how a transformer computes, alone and together.
VARIANTS: Dict[str, Dict[str, Any]] = {
    "rotary": {"rotary_emb": True, "dim_head": 7},
    "shifted": {"shift_tokens": True},
    "shifted-odd": {"shift_tokens": True, "hidden_size": 7},
    "reversible": {"reversible": True, "num_hidden_layers": 3},
    "stable": {"stable": True},
    "sandwich": {"sandwich_norm": True},
    "shared": {"shared_attn_ids": "a,b,a", "shared_ff_ids": "x", "num_hidden_layers": 4},
    "tied": {"share_input_output_emb": True},
    "everything": {
        "rotary_emb": True,
        "dim_head": 6,
        "shift_tokens": True,
        "reversible": True,
        "stable": True,
        "sandwich_norm": True,
        "shared_ff_ids": "0,1",
        "share_input_output_emb": True,
        "attn_types": "sparse,axial_row,conv_like,axial_col,full",
        "num_hidden_layers": 5,
        "sparse_block_size": 2,
    },
}


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
