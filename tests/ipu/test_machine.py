"""The machines' numbers."""

from __future__ import annotations

import pytest

from ipu.machine import BOW, GC200, Machine, machine_named
from options import OptionError


def test_an_ipu_has_the_published_memory_and_peak() -> None:
    assert BOW.memory == GC200.memory == 940_572_672
    assert BOW.peak == pytest.approx(350e12, rel=0.01)
    assert GC200.peak == pytest.approx(250e12, rel=0.02)
    assert 256 * BOW.peak == pytest.approx(89.23e15, rel=0.01)  # a Bow Pod256's data sheet


@pytest.mark.parametrize("ipus, pod", [(1, 4), (4, 4), (5, 16), (16, 16), (64, 64), (65, 128), (256, 256)])
def test_the_smallest_pod_with_enough_ipus_is_taken(ipus: int, pod: int) -> None:
    assert machine_named("Bow", ipus) == Machine(BOW, pod)
    assert machine_named("GC200", ipus).name == f"GC200 Pod{pod}"


def test_a_pod16_has_one_host_and_a_pod64_four() -> None:
    assert [machine_named("Bow", ipus).hosts for ipus in (4, 16, 64)] == [1, 1, 4]


def test_more_ipus_than_the_largest_pod_and_unknown_kinds_are_refused() -> None:
    with pytest.raises(OptionError, match="= 257 IPUs"):
        machine_named("Bow", 257)
    with pytest.raises(OptionError, match="'Colossus'.*GC200, Bow"):
        machine_named("Colossus", 4)
    with pytest.raises(OptionError, match="replication_factor=8 are 32 IPUs, and a Bow Pod16 has 16"):
        machine_named("Bow", 16).check_room(4, 8)
