"""Training on IPUs, or on the simulator of them, against plain PyTorch on the unsplit model, step by step."""

from __future__ import annotations

from typing import List

import pytest

from ipu import answers
from tests.parity import Case, Tolerance, assert_within, train_on_engine, train_plainly
from tests.parity_cases import ENTRIES, entry_case, single_precision_cases

ENGINES: List[str] = ["ipu-sim", *(["ipu"] if answers() else [])]
SINGLE_PRECISION = Tolerance(loss=1e-5, gradient=1e-5, weight=1e-5)


def by_name(case: Case) -> str:
    return case.name


@pytest.mark.skipif("ipu" in ENGINES, reason="IPUs answer, and every case below runs on them, too")
def test_on_ipus_all_this_holds_as_well() -> None:
    pytest.skip("no IPU answers here, so the cases run on ipu-sim alone")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", single_precision_cases(), ids=by_name)
def test_losses_gradients_and_weights_are_those_of_plain_pytorch(case: Case, engine: str) -> None:
    assert_within(train_on_engine(case, engine), train_plainly(case), SINGLE_PRECISION)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_of_the_configurations_trains_as_plain_pytorch(entry: str, engine: str) -> None:
    case = entry_case(entry, single_precision=True)
    assert_within(train_on_engine(case, engine), train_plainly(case), SINGLE_PRECISION)
