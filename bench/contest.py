"""Contestants measured alternately, each in a process of its own, so that memory stands beside time.

A process prepares itself once and then runs one repetition at a time, when it is told to: A B C A B C ..., so that a
machine that slows down slows all of them. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
Say = Callable[[str], None]
DIFFERENCE = 1e-3  # of logits and losses of two programs in single precision, at most


class BenchError(Exception):
    """A measurement that cannot be taken, or whose contestants do not compute the same."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is measured.

    Attributes:
        name: in the tables.
        prepare: "module:function"; called with `options`, it returns one repetition, a function without arguments that
            returns figures as a dictionary.
        options: plain values.
        against: the contestants that its speed is divided by.
        repetitions: instead of the usual number, for slow ones.
        warmup: instead of the usual number.
    """

    name: str
    prepare: str
    options: Dict[str, Any]
    against: Tuple[str, ...] = ()
    repetitions: Optional[int] = None
    warmup: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Contestants that do the same work.

    Attributes:
        name: in the tables.
        unit: of the rate, such as "tokens/s".
        work: what one repetition does, in that unit without "/s".
        contestants: who does it.
        equal: figures of a repetition that have to be equal for all contestants that give them, such as "tokens".
        close: figures of the first repetition that have to agree, and by which share of them they may differ.
        comparison: run once before all; none of its figures may exceed DIFFERENCE.
        sums: further results: a name, the contestants whose seconds are added up, with weights, and what they are
            measured against.
        needs: what a repetition needs of the machine at least, "arithmetic" in operations or "read" in bytes.
        curve: the size that varies from case to case, and its value.
        in_process: whether the contestants' own processes do the work, so that their memory says something.
    """

    name: str
    unit: str
    work: float
    contestants: Tuple[Contestant, ...]
    equal: Tuple[str, ...] = ()
    close: Dict[str, float] = dataclasses.field(default_factory=dict)
    comparison: Optional[Contestant] = None
    sums: Dict[str, Tuple[Dict[str, float], Tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    needs: Dict[str, float] = dataclasses.field(default_factory=dict)
    curve: Optional[Tuple[str, float]] = None
    in_process: bool = True


@dataclasses.dataclass
class Outcome:
    """What a contestant took.

    Attributes:
        seconds: of each repetition.
        cpu_seconds: that the cores worked for each, which a busy machine disturbs less.
        first: seconds of the first one, warm-up included, with whatever it compiles.
        memory: bytes at the peak, above what the process held before it prepared itself.
        figures: of the first repetition.
    """

    seconds: List[float]
    cpu_seconds: List[float]
    first: float
    memory: int
    figures: Dict[str, Any]

    @property
    def median(self) -> float:
        """Seconds of one repetition."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Seconds that the cores worked for one repetition, all together."""
        return statistics.median(self.cpu_seconds)


class Process:
    """A contestant's process; see `bench.worker`."""

    def __init__(self, contestant: Contestant, surroundings: Dict[str, Any]) -> None:
        self.name = contestant.name
        environment = {**os.environ, "OMP_NUM_THREADS": str(surroundings["threads"]), "PYTHONPATH": str(ROOT)}
        environment["PYTHONWARNINGS"] = "ignore"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        options = {**surroundings, **contestant.options}
        self._tell({"prepare": contestant.prepare, "options": options, "threads": surroundings["threads"]})

    def check_threads(self, threads: int) -> None:
        """Wait until it is prepared.

        Raises:
            BenchError: it ended, or computes with another number of threads than all others.
        """
        found = self.answer()["threads"]
        if found != threads:
            raise BenchError(f"{self.name} computes with {found} threads, and the others with {threads}")

    def repeat(self) -> Dict[str, Any]:
        """The answer to one repetition; errors as for `answer`."""
        self._tell({"repeat": 1})
        return self.answer()

    def answer(self) -> Dict[str, Any]:
        """Its next answer: the first one when it is prepared, then one for each repetition.

        Raises:
            BenchError: the process ended.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"{self.name} ended with code {self.process.wait()}; what it said stands above")
        return json.loads(line)

    def _tell(self, request: Dict[str, Any]) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading finds out, too
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def run_case(
    case: Case, surroundings: Dict[str, Any], repetitions: int, warmup: int, say: Say = print
) -> Dict[str, Outcome]:
    """Measure a case.

    Args:
        case: its contestants.
        surroundings: options that all of them get: threads, device.
        repetitions: of each contestant that does not say otherwise.
        warmup: repetitions before them that do not count.
        say: told of progress.

    Raises:
        BenchError: a contestant ended, or they do not compute the same.
    """
    say(f"{case.name}: {', '.join(contestant.name for contestant in case.contestants)}")
    if case.comparison is not None:
        compare(case.comparison, surroundings, say)
    processes: List[Process] = []
    try:
        for contestant in case.contestants:
            processes.append(Process(contestant, surroundings))
        for process in processes:  # they prepare themselves side by side
            process.check_threads(surroundings["threads"])
        answers = _alternate(case.contestants, processes, repetitions, warmup)
    finally:
        for process in processes:
            process.close()
    outcomes = {}
    for contestant in case.contestants:
        given = answers[contestant.name]
        counted = given[warmup if contestant.warmup is None else contestant.warmup :]
        outcomes[contestant.name] = Outcome(
            seconds=[answer["seconds"] * answer["figures"].get("scale", 1) for answer in counted],
            cpu_seconds=[answer["cpu_seconds"] * answer["figures"].get("scale", 1) for answer in counted],
            first=given[0]["seconds"],
            memory=given[-1]["memory"],
            figures=given[0]["figures"],
        )
    check(case, outcomes)
    return outcomes


def compare(comparison: Contestant, surroundings: Dict[str, Any], say: Say) -> None:
    """Run a comparison.

    Raises:
        BenchError: a difference is too large.
    """
    process = Process(comparison, surroundings)
    try:
        process.check_threads(surroundings["threads"])
        figures = process.repeat()["figures"]
    finally:
        process.close()
    shown = ", ".join(f"{name} {difference:.1e}" for name, difference in figures.items())
    if max(figures.values()) > DIFFERENCE:
        raise BenchError(f"the two programs differ by more than {DIFFERENCE:g}: {shown}")
    say(f"  largest differences: {shown}")


def _alternate(
    contestants: Sequence[Contestant], processes: Sequence[Process], repetitions: int, warmup: int
) -> Dict[str, List[Dict[str, Any]]]:
    """The answers of each contestant, in order."""
    turns = {
        contestant.name: (warmup if contestant.warmup is None else contestant.warmup)
        + (contestant.repetitions or repetitions)
        for contestant in contestants
    }
    answers: Dict[str, List[Dict[str, Any]]] = {name: [] for name in turns}
    for turn in range(max(turns.values())):
        for contestant, process in zip(contestants, processes):
            if turn < turns[contestant.name]:
                answers[contestant.name].append(process.repeat())
    return answers


def check(case: Case, outcomes: Dict[str, Outcome]) -> None:
    """Refuse outcomes of contestants that do not compute the same.

    Raises:
        BenchError: says what differs.
    """
    for figure in case.equal:
        given = {name: outcome.figures[figure] for name, outcome in outcomes.items() if figure in outcome.figures}
        names = list(given)
        differing = [name for name in names if given[name] != given[names[0]]]
        if differing:
            raise BenchError(f"{case.name}: {figure} of {', '.join(differing)} differ from those of {names[0]}")
    for figure, tolerance in case.close.items():
        given = {name: outcome.figures[figure] for name, outcome in outcomes.items() if figure in outcome.figures}
        if given and max(given.values()) - min(given.values()) > tolerance * abs(max(given.values())):
            shown = ", ".join(f"{name} {value:.6f}" for name, value in given.items())
            raise BenchError(f"{case.name}: {figure} differ by more than {tolerance:g} of it: {shown}")
