"""Outcomes as a dated table (Markdown), as data (JSON) and as a chart (see `bench.chart`)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from bench.contest import Case, Contestant, Outcome

LIMITS = {
    "arithmetic": {"fp32": "matrix product fp32", "bf16": "matrix product bf16"},
    "read": {"fp32": "read", "bf16": "read"},
}


@dataclasses.dataclass
class Row:
    """One line of a table.

    Attributes:
        case, contestant: names.
        unit: of the rate.
        rate: work a second.
        seconds: of a repetition, the median; None of all for a sum of others.
        fastest, slowest: seconds.
        cpu_seconds: that the cores worked for a repetition, the median.
        first: seconds of the first repetition.
        memory: bytes at the peak.
        repetitions: that were timed.
        ratios: how many times faster than others.
        memory_ratios: how many times their memory.
        of_limit: share of the machine's best rate that the work needs at least; None: not measured.
        note: what has to be known about it.
        curve: see `Case`.
    """

    case: str
    contestant: str
    unit: str
    rate: float
    seconds: float
    fastest: Optional[float] = None
    slowest: Optional[float] = None
    cpu_seconds: Optional[float] = None
    first: Optional[float] = None
    memory: Optional[int] = None
    repetitions: int = 0
    ratios: Dict[str, float] = dataclasses.field(default_factory=dict)
    memory_ratios: Dict[str, float] = dataclasses.field(default_factory=dict)
    of_limit: Optional[float] = None
    note: str = ""
    curve: Optional[Tuple[str, float]] = None


def make_rows(case: Case, outcomes: Dict[str, Outcome], limits: Dict[str, float]) -> List[Row]:
    """The rows of a case; `limits` are the rates that the group `machine` measured, by the names of its cases."""
    seconds = {name: outcome.median for name, outcome in outcomes.items()}
    rows = [_row(case, contestant, outcomes, seconds, limits) for contestant in case.contestants]
    for name, (weights, rivals) in case.sums.items():
        total = sum(seconds[part] * weight for part, weight in weights.items())
        ratios = {rival: seconds[rival] / total for rival in rivals if rival in seconds}
        rows.append(Row(case.name, name, case.unit, case.work / total, total, ratios=ratios, note=_said(weights)))
    return rows


def _said(weights: Dict[str, float]) -> str:
    return " + ".join(part if weight == 1 else f"{weight:g} of {part}" for part, weight in weights.items())


def _row(
    case: Case,
    contestant: Contestant,
    outcomes: Dict[str, Outcome],
    seconds: Dict[str, float],
    limits: Dict[str, float],
) -> Row:
    outcome, median = outcomes[contestant.name], seconds[contestant.name]
    rivals = [rival for rival in contestant.against if rival in seconds]
    return Row(
        case.name,
        contestant.name,
        case.unit,
        case.work / median,
        median,
        fastest=min(outcome.seconds),
        slowest=max(outcome.seconds),
        cpu_seconds=outcome.cpu_median,
        first=outcome.first,
        memory=outcome.memory if case.in_process else None,
        repetitions=len(outcome.seconds),
        ratios={rival: seconds[rival] / median for rival in rivals},
        memory_ratios={rival: outcome.memory / max(outcomes[rival].memory, 1) for rival in rivals if case.in_process},
        of_limit=_of_limit(case, contestant, median, limits),
        note=f"timed: {outcome.figures['timed']}" if "timed" in outcome.figures else "",
        curve=case.curve,
    )


def _of_limit(case: Case, contestant: Contestant, seconds: float, limits: Dict[str, float]) -> Optional[float]:
    precision = contestant.options.get("precision", "fp32")
    shares = [
        amount / seconds / limits[LIMITS[what][precision]]
        for what, amount in case.needs.items()
        if LIMITS[what][precision] in limits
    ]
    return max(shares, default=None)


def write(rows: List[Row], machine: Dict[str, Any], folder: Path, name: str) -> Tuple[Path, Path]:
    """Write `name`.md and `name`.json into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    table, values = folder / f"{name}.md", folder / f"{name}.json"
    contents = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
    values.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    table.write_text(markdown(rows, machine, f"{name}.png"), encoding="utf-8")
    return table, values


def markdown(rows: List[Row], machine: Dict[str, Any], chart: str) -> str:
    """The tables, one a case, under what has to be known of the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    described = [f"{name.replace('_', ' ')}: {value}" for name, value in machine.items() if name != "versions"]
    lines = [
        f"# Measured on {machine['date']}",
        "",
        "; ".join(described) + ".",
        "",
        versions + ".",
        "",
        f"![{chart}]({chart})",
    ]
    for case in dict.fromkeys(row.case for row in rows):
        chosen = [row for row in rows if row.case == case]
        unit = chosen[0].unit
        lines += [
            "",
            f"## {case}",
            "",
            f"| | {unit} | a repetition | slowest | first | peak memory | of the limit | speed against |",
        ]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |", *map(_line, chosen)]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    against = [
        f"{ratio:.2f}x {rival}" + (f" (memory {row.memory_ratios[rival]:.2f}x)" if rival in row.memory_ratios else "")
        for rival, ratio in row.ratios.items()
    ]
    cells = [
        row.contestant,
        in_short(row.rate),
        duration(row.seconds),
        "" if row.slowest is None else duration(row.slowest),
        "" if row.first is None else duration(row.first),
        "" if row.memory is None else f"{row.memory / 2**20:,.0f} MiB",
        "" if row.of_limit is None else f"{row.of_limit:.0%}",
        "; ".join(against + ([row.note] if row.note else [])),
    ]
    return "| " + " | ".join(cells) + " |"


def in_short(value: float) -> str:
    """A number with three digits that count."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
