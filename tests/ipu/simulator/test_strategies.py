"""Where execution strategies put blocks."""

from __future__ import annotations

import copy
import pickle
from typing import Any, List, Optional, Tuple

import pytest

from ipu.simulator.enums import AutoStage, Liveness
from ipu.simulator.poptorch_core import Error
from ipu.simulator.strategies import (
    ExecutionStrategy,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)

Blocks = List[Tuple[str, Optional[int]]]
AUTOMATIC = [PipelinedExecution, ShardedExecution]


def places(strategy: ExecutionStrategy, blocks: Blocks) -> List[Tuple[int, int]]:
    placer = strategy._placer()
    return [placer(*block) for block in blocks]


@pytest.mark.parametrize("kind", AUTOMATIC)
def test_stages_without_a_choice_are_the_ipus(kind: Any) -> None:
    blocks: Blocks = [("a", 0), ("b", 2), ("c", 1), ("d", 2)]
    assert places(kind(), blocks) == [(0, 0), (2, 2), (1, 1), (2, 2)]
    assert places(kind(AutoStage.SameAsIpu), blocks) == places(kind(), blocks)


def test_a_block_without_ipu_has_no_stage_by_ipu() -> None:
    with pytest.raises(AssertionError, match="'a' has no ipu_id"):
        places(PipelinedExecution(), [("a", None)])


def test_a_block_that_comes_back_keeps_its_stage() -> None:
    assert places(PipelinedExecution(), [("a", 1), ("b", 2), ("a", None)]) == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("kind", AUTOMATIC)
def test_counted_stages_begin_at_one(kind: Any) -> None:
    blocks: Blocks = [("a", 0), ("b", 1), ("a", 0), ("c", None)]
    assert places(kind(AutoStage.AutoIncrement), blocks) == [(1, 0), (2, 1), (1, 0), (3, 3)]


def test_every_trace_counts_anew() -> None:
    strategy = PipelinedExecution(AutoStage.AutoIncrement)
    assert places(strategy, [("a", 0), ("b", 1)]) == places(strategy, [("c", 0), ("d", 1)]) == [(1, 0), (2, 1)]


def test_named_stages_are_counted_in_order_from_zero() -> None:
    strategy = PipelinedExecution("a", ["b", "c"], Stage("d", "e"))
    assert places(strategy, [("e", None), ("a", None), ("b", None), ("c", None)]) == [(2, 2), (0, 0), (1, 1), (1, 1)]


def test_a_pinned_ipu_wins_over_the_blocks_and_that_over_the_stage() -> None:
    strategy = PipelinedExecution("a", Stage("b"))
    strategy.stage("b").ipu(3)
    assert places(strategy, [("a", 5), ("b", 1), ("a", None)]) == [(0, 5), (1, 3), (0, 0)]


def test_a_block_that_no_stage_names_is_refused() -> None:
    with pytest.raises(AssertionError, match="Unknown Block 'c'.*'a', 'b'"):
        places(PipelinedExecution("a", "b"), [("c", 0)])
    with pytest.raises(AssertionError, match="Unknown Block 'a'"):
        PipelinedExecution().stage("a")


def test_a_block_in_two_stages_is_refused() -> None:
    with pytest.raises(AssertionError, match="'a' is in more than one stage"):
        PipelinedExecution(["a", "b"], Stage("a"))
    with pytest.raises(AssertionError, match="'a' is in more than one stage"):
        SerialPhasedExecution("a", "a")


@pytest.mark.parametrize("wrong", [0, [0], None])
def test_stages_are_named_by_texts(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        PipelinedExecution("a", wrong)


def test_a_stage_tells_its_blocks() -> None:
    assert tuple(Stage("a", "b").blocks) == ("a", "b")
    with pytest.raises(AssertionError, match="texts"):
        Stage("a", 1)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="whole number"):
        Stage("a").ipu("0")  # type: ignore[arg-type]


def test_strategies_tell_the_compiler_their_mode() -> None:
    assert PipelinedExecution().backendOptions() == {"execution_mode": 0}
    assert ShardedExecution().backendOptions() == {"execution_mode": 1}
    parallel = ParallelPhasedExecution("a").sendTensorsOffChipAfterFwd().useSeparateBackwardPhase()
    assert parallel.backendOptions() == {
        "execution_mode": 2,
        "serial_phases_execution": False,
        "separate_backward_phase": True,
        "tensors_liveness": Liveness.OffChipAfterFwd,
    }
    serial = SerialPhasedExecution("a").setTensorsLiveness(Liveness.OffChipAfterEachPhase)
    assert serial.backendOptions()["serial_phases_execution"] is True
    assert serial.backendOptions()["tensors_liveness"] == Liveness.OffChipAfterEachPhase


@pytest.mark.parametrize("in_a_list", [False, True])
def test_phases_place_their_stages(in_a_list: bool) -> None:
    phases = [Phase(Stage("a").ipu(0), Stage("b").ipu(1)), Phase("c", "d")]
    strategy = SerialPhasedExecution(phases) if in_a_list else SerialPhasedExecution(*phases)
    strategy.phase(1).ipus(4)
    assert places(strategy, [("a", None), ("b", 7), ("c", None), ("d", None)]) == [(0, 0), (0, 1), (1, 4), (1, 4)]
    assert strategy.phase(0).stage(1).blocks == ("b",)


def test_phases_are_written_as_lists_too() -> None:
    strategy = ParallelPhasedExecution([Stage("a"), Stage("b")], ["c", "d"], "e")
    assert places(strategy, [("b", 3), ("d", 1), ("e", 2)]) == [(0, 3), (1, 1), (2, 2)]


def test_phases_have_to_be_given_and_placed() -> None:
    with pytest.raises(AssertionError, match="needs its phases"):
        SerialPhasedExecution()
    with pytest.raises(AssertionError, match="stages only or block ids only"):
        Phase("a", Stage("b"))
    with pytest.raises(AssertionError, match="has 1 stages"):
        Phase("a").ipus(0, 1)
    with pytest.raises(Error, match="'a' of a phase has no IPU"):
        places(SerialPhasedExecution("a"), [("a", None)])


@pytest.mark.parametrize("strategy", [PipelinedExecution("a", Stage("b").ipu(4)), SerialPhasedExecution("a", "b")])
def test_copied_strategies_place_alike(strategy: ExecutionStrategy) -> None:
    blocks: Blocks = [("b", 4), ("a", 2)]
    for copied in (copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))):
        assert places(copied, blocks) == places(strategy, blocks)
