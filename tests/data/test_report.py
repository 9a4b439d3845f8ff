"""The account of skipped files."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import pytest

from data.report import DataError, DataReport


def test_a_skip_in_another_process_reaches_this_one(tmp_path: Path) -> None:
    report = DataReport(tmp_path / "report.jsonl")
    process = multiprocessing.get_context("spawn").Process(target=report.skip, args=("damaged", tmp_path / "a.png"))
    process.start()
    process.join()
    assert report.counts == {"damaged": 1}


def test_a_file_skipped_again_by_anyone_counts_once(tmp_path: Path) -> None:
    first, second = DataReport(tmp_path / "report.jsonl"), DataReport(tmp_path / "report.jsonl")
    for report in (first, second, first):
        report.skip("damaged", tmp_path / "a.png")
    resumed = DataReport(tmp_path / "report.jsonl")
    resumed.skip("damaged", tmp_path / "a.png")
    assert first.counts == second.counts == resumed.counts == {"damaged": 1}


def test_a_known_file_is_not_written_again(tmp_path: Path) -> None:
    DataReport(tmp_path / "report.jsonl").skip("damaged", tmp_path / "a.png")
    size = (tmp_path / "report.jsonl").stat().st_size
    DataReport(tmp_path / "report.jsonl").skip("damaged", tmp_path / "a.png")
    assert (tmp_path / "report.jsonl").stat().st_size == size


def test_notes_with_a_file_count_once_and_without_one_add_up() -> None:
    report = DataReport()
    for _ in range(2):
        report.note("converted", path="a.png")
        report.note("cut", 3)
    assert report.notes == {"converted": 1, "cut": 6}


def test_half_a_line_at_the_end_waits_for_its_rest_and_one_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    path.write_bytes(b'{"skip": "damaged", "pa\n{"skip": "damaged", "path": "/a", "detail": ""}\n{"skip": "damaged", ')
    report = DataReport(path)
    assert report.skipped == ["/a"]
    with path.open("ab") as file:
        file.write(b'"path": "/b", "detail": ""}\n')
    assert report.skipped == ["/a", "/b"]


def test_check_refuses_only_more_than_the_share_and_names_numbers_kinds_list_and_remedy(tmp_path: Path) -> None:
    report = DataReport(tmp_path / "report.jsonl")
    report.skip("damaged", tmp_path / "a.png")
    report.check(total=4, max_share=0.25)
    report.skip("empty", tmp_path / "b.png")
    report.skip("damaged", tmp_path / "b.png")  # the same file: not one more
    with pytest.raises(DataError) as error:
        report.check(total=4, max_share=0.25)
    for part in ("2 of 4", "50.0%", "25.0%", "2 damaged, 1 empty", str(report.path), "--max-bad-share"):
        assert part in str(error.value)


def test_summary_has_a_line_a_kind_the_most_frequent_first() -> None:
    report = DataReport()
    assert report.summary() == ""
    report.skip("empty", "c")
    report.skip("damaged", "a")
    report.skip("damaged", "b")
    report.note("converted", path="d")
    assert report.summary() == "skipped 2: damaged\nskipped 1: empty\nmended 1: converted"


def test_a_temporary_report_goes_with_the_object_that_made_it_and_not_with_its_copies() -> None:
    report = DataReport()
    path = report.path
    copy = pickle.loads(pickle.dumps(report))
    del copy
    assert path.exists()
    del report
    assert not path.exists()
