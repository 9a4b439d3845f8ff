"""Memory in large pages, each time in a process of its own: what a process asks of its C library holds to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

from large_pages import use_large_pages

ROOT = Path(__file__).resolve().parent.parent
ALLOCATE = """
import re, resource, torch
from large_pages import use_large_pages
reserved = use_large_pages()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**22) for _ in range(8)]  # 128 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    large = sum(map(int, re.findall(r"AnonHugePages: +([0-9]+) kB", open("/proc/self/smaps").read())))
    del tensors
held = int(re.search(r"VmRSS:\\s+([0-9]+) kB", open("/proc/self/status").read()).group(1))
print(reserved, large, faults[0], faults[-1], held)
"""


def test_tensors_lie_in_large_pages_that_stay() -> None:
    run = subprocess.run([sys.executable, "-c", ALLOCATE], cwd=ROOT, capture_output=True, text=True, check=True)
    reserved, large, first, last, held = map(int, run.stdout.split())
    if not reserved:
        pytest.skip("this system has no large pages to be had by asking, or no glibc")
    assert large >= 96 * 1024, "kB of 128 MiB"
    assert first < 8192 and last < 1000, "of 32,768 that pages of 4 KiB would take"
    assert held < 3 * 2**20, "addresses set aside are no memory"


@pytest.mark.parametrize("text", [None, "always madvise [never]\n"], ids=["no such file", "never"])
def test_nothing_is_asked_of_a_system_without_large_pages(tmp_path: Path, text: Optional[str]) -> None:
    setting = tmp_path / "enabled"
    if text is not None:
        setting.write_text(text)
    assert use_large_pages(setting) == 0
