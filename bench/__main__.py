"""Measure this program beside DALLE-pytorch: `python -m bench [GROUP ...]`, in an environment that has both.

`make bench` makes that environment (`.venv-peers`) and runs all groups; `make bench-gpu` runs those for GPUs. Results
go to `bench/results/`: a table, the same as data, and a chart.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import yaml

from bench import cases, cases_gpu, chart, peers, report
from bench.contest import ROOT, BenchError, Case, run_case
from bench.machine import cores, describe
from bench.pictures import make_folder

GROUPS: Dict[str, Callable[[cases.Scope], List[Case]]] = {
    "machine": cases.machine,  # first: others are compared with its rates
    "training": cases.training,
    "pictures": cases.pictures,
    "drawing": cases.drawing,
    "attention": cases.attention,
    "data": cases.data,
    "start": cases.start,
    "curves": cases.curves,
    "gpu_training": cases_gpu.gpu_training,
    "gpu_pictures": cases_gpu.gpu_pictures,
    "gpu_drawing": cases_gpu.gpu_drawing,
}
ON_CPU = [name for name in GROUPS if not name.startswith("gpu_")]
ON_GPU = ["machine", *(name for name in GROUPS if name.startswith("gpu_")), "attention", "data"]


def main(arguments: Optional[List[str]] = None) -> None:
    """Measure the groups that the command line names and write what was found."""
    options = _read(arguments)
    name = (
        datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S") + ("_quick" if options.quick else "") + f"_{options.device}"
    )
    machine = {"date": datetime.date.today().isoformat(), **describe(options.device, options.threads)}
    rows: List[report.Row] = []
    limits: Dict[str, float] = {}
    groups = options.groups or (ON_GPU if options.device == "cuda" else ON_CPU)
    with tempfile.TemporaryDirectory() as folder:
        if "data" in groups:
            make_folder(Path(folder), cases.picture_count(options.quick), options.pictures)
        scope = _scope(options, folder)
        for group in sorted(groups, key=list(GROUPS).index):
            for case in GROUPS[group](scope):
                measured = _measure(case, options, limits)
                if group == "machine":
                    limits[case.name] = case.work / (measured[0].fastest or measured[0].seconds)
                rows += measured
                # after every case, so that what was measured is kept, whatever comes
                table, _ = report.write(rows, machine, Path(options.out), name)
                chart.draw(
                    rows, f"speed against others, {machine['processor']}, {machine['date']}", table.with_suffix(".png")
                )
    print(f"written: {table}, {table.stem}.json and {table.stem}.png")


def _measure(case: Case, options: argparse.Namespace, limits: Dict[str, float]) -> List[report.Row]:
    surroundings = {"threads": options.threads, "device": options.device}
    say = functools.partial(print, flush=True)
    outcomes = run_case(case, surroundings, options.repetitions, options.warmup, say)
    rows = report.make_rows(case, outcomes, limits)
    for row in rows:
        ratios = ", ".join(f"{ratio:.2f}x {rival}" for rival, ratio in row.ratios.items())
        memory = "" if row.memory is None else f", {row.memory / 2**20:,.0f} MiB"
        figures = f"{report.duration(row.seconds)}, {report.in_short(row.rate)} {row.unit}{memory}"
        print(f"  {row.contestant}: {figures}{'; ' + ratios if ratios else ''}", flush=True)
    return rows


def _scope(options: argparse.Namespace, folder: str) -> cases.Scope:
    with_peers = peers.are_installed() and not options.ours_alone
    if not with_peers and not options.ours_alone:
        print("dalle-pytorch is not installed here: ours are measured alone; `make bench` installs it")
    return cases.Scope(
        device=options.device,
        quick=options.quick,
        with_peers=with_peers,
        options=dict(options.option),
        shipped_steps=options.shipped_steps,
        sizes=tuple(options.sizes),
        batch=options.batch,
        folder=folder,
    )


def _read(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help=f"what to measure, of: {', '.join(GROUPS)} (default: those for the device)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--threads", type=int, default=cores(), help="of every contestant (default: %(default)s, the cores)"
    )
    parser.add_argument(
        "--repetitions", type=int, default=7, help="of every contestant but the slow ones (default: %(default)s)"
    )
    parser.add_argument("--warmup", type=int, default=2, help="repetitions before them (default: %(default)s)")
    parser.add_argument("--sizes", nargs="*", default=[], help="models to measure, such as S or L16 (default: all)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of training that ours get",
    )
    parser.add_argument(
        "--pictures", metavar="FOLDER", help="photographs for the group data (default: noise with their spectrum)"
    )
    parser.add_argument(
        "--shipped-steps",
        type=int,
        metavar="N",
        help="time N tokens only, spread evenly, of pictures that dalle-pytorch draws as shipped; the table says so",
    )
    parser.add_argument("--batch", type=int, help="samples of a training step in the groups for GPUs")
    parser.add_argument("--ours-alone", action="store_true", help="leave dalle-pytorch out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the bench itself")
    parser.add_argument("--out", help="folder of the results (default: bench/results; output/bench for --quick)")
    options = parser.parse_args(arguments)
    options.out = options.out or str(ROOT / ("output/bench" if options.quick else "bench/results"))
    unknown = [group for group in options.groups if group not in GROUPS]
    if unknown:
        parser.error(f"{unknown[0]} is no group; they are {', '.join(GROUPS)}")
    return options


def _option(text: str) -> Any:
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name.replace("-", "_"), yaml.safe_load(value)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        raise SystemExit(f"bench: {error}") from None
