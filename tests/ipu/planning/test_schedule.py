"""The pipeline in time."""

from __future__ import annotations

from typing import Dict, List

import pytest

from ipu.planning.schedule import StageTime, busy, cycle_time, pipeline_time, stashes, timeline

UNEVEN = [StageTime(0, 2.0, 0.5), StageTime(1, 1.0, 3.0), StageTime(2, 1.5, 2.0), StageTime(3, 0.5, 1.0)]
THERE_AND_BACK = [StageTime(0, 0.2, 0.4), StageTime(1, 1.0, 3.0), StageTime(0, 0.6, 1.2)]


def all_cycles(times: List[StageTime], micro_batches: int) -> int:
    return micro_batches + 2 * len(times) - 2


@pytest.mark.parametrize("times", [UNEVEN, THERE_AND_BACK])
@pytest.mark.parametrize("micro_batches", [1, 4, 7, 12, 40])
def test_the_time_of_a_step_is_the_end_of_its_timeline(times: List[StageTime], micro_batches: int) -> None:
    work = timeline(times, micro_batches, all_cycles(times, micro_batches))
    assert max(item.end for item in work) == pytest.approx(pipeline_time(times, micro_batches))


@pytest.mark.parametrize("times", [UNEVEN, THERE_AND_BACK])
def test_every_micro_batch_passes_every_stage_once_each_way_and_no_ipu_does_two_things(times: List[StageTime]) -> None:
    work = timeline(times, 9, all_cycles(times, 9))
    assert len(work) == 2 * 9 * len(times)
    for ipu in {time.ipu for time in times}:
        own = sorted((item for item in work if item.ipu == ipu), key=lambda item: item.start)
        assert all(one.end <= other.start + 1e-9 for one, other in zip(own, own[1:]))


def test_backward_follows_forward_in_every_stage_and_a_stage_keeps_as_many_stashes_as_are_told() -> None:
    work = timeline(UNEVEN, 20, all_cycles(UNEVEN, 20))
    for stage in range(4):  # stage and IPU have one number here
        kept, most = set(), 0
        for item in sorted((item for item in work if item.ipu == stage), key=lambda item: item.start):
            if item.kind == "forward":
                kept.add(item.micro_batch)
            else:
                kept.remove(item.micro_batch)
            most = max(most, len(kept))
        assert most == stashes(stage, 4) == 2 * (4 - stage) - 1


def test_a_long_step_takes_the_slowest_ipus_time_for_every_micro_batch() -> None:
    assert busy(UNEVEN) == [2.5, 4.0, 3.5, 1.5]
    assert cycle_time(UNEVEN) == 4.0
    assert busy(THERE_AND_BACK) == pytest.approx([2.4, 4.0])
    assert pipeline_time(UNEVEN, 1001) - pipeline_time(UNEVEN, 1000) == pytest.approx(4.0)


def test_one_stage_has_no_bubble() -> None:
    assert pipeline_time([StageTime(0, 1.0, 2.0)], 10) == pytest.approx(30.0)


def test_even_stages_lose_the_cycles_in_which_the_pipeline_fills_and_drains() -> None:
    even = [StageTime(ipu, 1.0, 1.0) for ipu in range(3)]
    # 2 cycles forward only, 2 with both but without the first stages' backward passes, and so on back
    lengths: Dict[int, float] = {cycle: 1.0 if cycle < 2 or cycle >= 12 else 2.0 for cycle in range(14)}
    assert pipeline_time(even, 10) == pytest.approx(sum(lengths.values()))
