"""What the tests of the fused operators share: the library built for this CPU, and patterns over a small layout."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch

from custom_ops import host_library as libraries
from custom_ops.host_library import Library
from models.patterns import Layout, Pattern

KINDS: List[Dict[str, Any]] = [
    {"kind": "full"},
    {"kind": "axial_row"},
    {"kind": "axial_col"},
    {"kind": "conv_like", "kernel_size": 3, "dilation": 2},
    {"kind": "conv_like", "kernel_size": 3, "window": "centered"},
    {"kind": "sparse", "block_size": 2, "random_blocks": 1},
]


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test draws the same numbers, whichever run before it."""
    torch.manual_seed(0)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(str(value) for value in kind.values()))
def pattern(request: pytest.FixtureRequest) -> Pattern:
    """Every kind of pattern, over five text positions and a picture of four rows and three columns: 16 positions."""
    return Pattern(layout=Layout(5, 4, 3), **request.param)


@pytest.fixture(scope="session")
def host_library() -> Library:
    """The library of the operators for this CPU, built first."""
    missing = libraries.missing_tool()
    if missing is not None:
        pytest.skip(f"{missing}: the operators for this CPU cannot be built")
    return libraries.open_library()


@pytest.fixture(scope="session")
def testing_library(host_library: Library) -> Library:
    """The same code with what only tests call; beside the other one, with which it shares nothing."""
    libraries.build("host-ops-for-tests")
    return libraries.load(libraries.BUILT.with_name("libhost_custom_ops_tests.so"))
