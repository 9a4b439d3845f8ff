"""The measurements themselves: every group runs, on tiny sizes, and what it writes can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from PIL import Image

from bench.__main__ import GROUPS, ON_CPU, ON_GPU, main
from bench.cases import Scope
from bench.contest import BenchError, Case, Contestant, Outcome, check, run_case
from bench.report import make_rows
from bench.settings import TINY, S, layer_weights, make_dalle, training_arithmetic

SURROUNDINGS = {"threads": 1, "device": "cpu"}


def outcome(seconds: float, **figures: Any) -> Outcome:
    return Outcome([seconds], [seconds], seconds, 2**20, figures)


def contestant(name: str, *against: str) -> Contestant:
    return Contestant(name, "bench.machine:copying", {"size": 4096}, against)


def test_every_group_runs_on_some_machine() -> None:
    assert set(ON_CPU) | set(ON_GPU) == set(GROUPS)


@pytest.mark.parametrize("groups", [["machine", "gpu_training"], ["gpu_pictures"], ["gpu_drawing"], ["data"]])
def test_the_quick_bench_writes_a_table_its_data_and_a_chart(groups: list, tmp_path: Path) -> None:
    if groups == ["gpu_pictures"] and torch.__version__ < "2.1":
        pytest.skip("the compiler of PyTorch 2.0 makes C++ of bfloat16 on CPUs that does not build")
    main([*groups, "--quick", "--repetitions", "1", "--warmup", "0", "--threads", "1", "--out", str(tmp_path)])
    values = json.loads(next(tmp_path.glob("*.json")).read_text(encoding="utf-8"))
    assert {"processor", "threads", "versions", "date"} <= set(values["machine"])
    rows = values["rows"]
    assert any(row["contestant"].startswith("ours") for row in rows)
    assert all(row["rate"] > 0 and row["seconds"] > 0 for row in rows)
    table = next(tmp_path.glob("*.md")).read_text(encoding="utf-8")
    assert all(f"## {row['case']}" in table and f"| {row['contestant']} |" in table for row in rows)
    assert Image.open(next(tmp_path.glob("*.png"))).width > 100


@pytest.mark.parametrize("group", list(GROUPS))
def test_cases_name_only_contestants_that_take_part(group: str) -> None:
    for case in GROUPS[group](Scope(folder="pictures")):
        names = [one.name for one in case.contestants]
        assert len(set(names)) == len(names)
        assert {rival for one in case.contestants for rival in one.against} <= set(names)
        assert {part for weights, _ in case.sums.values() for part in weights} <= set(names)


@pytest.mark.parametrize("group", list(GROUPS))
def test_without_the_peers_every_group_measures_ours_alone(group: str) -> None:
    cases = GROUPS[group](Scope(with_peers=False, folder="pictures"))
    assert cases
    assert not [one for case in cases for one in case.contestants if one.name.startswith("dalle-pytorch")]


def test_ratios_and_sums_are_of_the_medians() -> None:
    sums = {"both": ({"ours": 1.0, "part": 0.1}, ("theirs",))}
    contestants = (contestant("ours", "theirs"), contestant("part"), contestant("theirs"))
    case = Case("case", "samples/s", 8, contestants, sums=sums, needs={"arithmetic": 4e9})
    outcomes = {"ours": outcome(2.0), "part": outcome(10.0), "theirs": outcome(6.0)}
    rows = {row.contestant: row for row in make_rows(case, outcomes, {"matrix product fp32": 8e9})}
    assert rows["ours"].ratios == {"theirs": 3.0}
    assert rows["ours"].rate == 4.0
    assert rows["ours"].of_limit == 0.25
    assert rows["both"].seconds == 3.0
    assert rows["both"].ratios == {"theirs": 2.0}


@pytest.mark.parametrize(
    "rules, figures, finding",
    [
        ({"equal": ("tokens",)}, ({"tokens": [1, 2]}, {"tokens": [1, 3]}), "tokens of theirs differ"),
        ({"close": {"loss": 1e-3}}, ({"loss": 1.0}, {"loss": 1.01}), "loss differ by more than"),
    ],
)
def test_contestants_that_compute_something_else_are_refused(rules: Dict[str, Any], figures: Any, finding: str) -> None:
    case = Case("case", "samples/s", 1, (contestant("ours"), contestant("theirs")), **rules)
    with pytest.raises(BenchError, match=finding):
        check(case, {"ours": outcome(1.0, **figures[0]), "theirs": outcome(1.0, **figures[1])})


def test_a_contestant_that_ends_is_named() -> None:
    broken = Contestant("broken", "bench.machine:no_such_function", {})
    with pytest.raises(BenchError, match="broken ended with code 1"):
        run_case(Case("case", "runs/s", 1, (broken,)), SURROUNDINGS, 1, 0)


def test_a_contestant_with_threads_of_its_own_is_refused() -> None:
    meddler = Contestant("meddler", "tests.bench.meddler:prepare", {})
    with pytest.raises(BenchError, match="meddler computes with 3 threads, and the others with 1"):
        run_case(Case("case", "runs/s", 1, (meddler,)), SURROUNDINGS, 1, 0)


def test_slow_contestants_may_be_repeated_less_often() -> None:
    options = {"size": 4096}
    slow = Contestant("slow", "bench.machine:copying", options, repetitions=1, warmup=0)
    quick = Contestant("quick", "bench.machine:copying", options)
    outcomes = run_case(Case("case", "B/s", 1, (slow, quick)), SURROUNDINGS, 3, 1)
    assert [len(outcomes[name].seconds) for name in ("slow", "quick")] == [1, 3]


def test_the_counted_weights_are_those_of_the_model() -> None:
    matrices = [p for name, p in make_dalle(TINY).layers.named_parameters() if p.dim() == 2 and "scale" not in name]
    assert layer_weights(TINY) == sum(p.numel() for p in matrices)


def test_a_training_step_counts_six_operations_a_weight_and_token_and_more() -> None:
    assert 1 < training_arithmetic(S) / (6 * S.tokens * layer_weights(S)) < 2


def test_an_unknown_group_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["trainin"])
    assert re.search("trainin is no group; they are machine, training", capsys.readouterr().err)
