"""How outputs are compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ipu.simulator.testing import allclose

ONE, NEAR, FAR = torch.ones(2), torch.ones(2) + 1e-7, torch.ones(2) + 1e-2


@pytest.mark.parametrize(
    "ref, other, same",
    [
        (ONE, NEAR, True),
        (ONE, FAR, False),
        ((ONE, [ONE, ONE]), (NEAR, [NEAR, NEAR]), True),
        ((ONE, [ONE, ONE]), (NEAR, [NEAR, FAR]), False),
        ((ONE,), [ONE], False),
        ([ONE], (ONE,), False),
        ([ONE], ONE, False),
        (ONE, [ONE], False),
        ([ONE], [ONE, ONE], False),
        ([ONE, ONE], [ONE], False),
        ([ONE, None, 3], [ONE, None, 3], True),
        ([ONE, None, 3], [ONE, None, 4], False),
    ],
)
def test_structures_and_tensors_have_to_agree(ref: Any, other: Any, same: bool) -> None:
    assert allclose(ref, other) is same
