"""The process of one contestant, `python -m bench.worker`: `bench.contest` starts it, and it answers line by line."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, TextIO

import torch

Repetition = Callable[[], Dict[str, Any]]


def main() -> None:
    """Prepare what the first line asks for, then run one repetition a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the measured programs print must not be taken for an answer
    request = json.loads(sys.stdin.readline())
    module, name = request["prepare"].split(":")
    prepare = getattr(importlib.import_module(module), name)
    torch.set_num_threads(request["threads"])
    cuda = request["options"].get("device") == "cuda"
    before = 0 if cuda else _held("VmRSS")
    repetition: Repetition = prepare(**request["options"])
    _forget_peak(cuda)
    _answer(answers, {"threads": torch.get_num_threads()})
    for _ in sys.stdin:
        started, worked = time.perf_counter(), time.process_time()
        figures = repetition()
        if cuda:
            torch.cuda.synchronize()
        seconds, worked = time.perf_counter() - started, time.process_time() - worked
        answer = {"seconds": seconds, "cpu_seconds": worked, "memory": peak_memory(cuda) - before, "figures": figures}
        _answer(answers, answer)


def peak_memory(cuda: bool) -> int:
    """Bytes that the process, or its tensors on the GPU, held at most."""
    if cuda:
        return torch.cuda.max_memory_allocated()
    return _held("VmHWM")


def _held(what: str) -> int:
    """Bytes by Linux's account: VmRSS at present, VmHWM at the peak; elsewhere the peak is all there is."""
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss, which begins with what the parent held
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
        if what in lines:
            return int(lines[what].split()[0]) * 1024
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _forget_peak(cuda: bool) -> None:
    """Let the peak count from here, so that what copying weights took is no part of it; where Linux permits it."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _answer(answers: TextIO, answer: Dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
