"""Training on a folder full of unusable files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable

import pytest

from data.report import DataError, DataReport
from data.scenes import all_scenes, caption, draw_scene
from options import UserError
from tests.conftest import SIDE, Run

Train = Callable[..., Run]
GOOD = 8


def add(folder: Path, name: str, text: str = "a red circle", mode: str = "RGB", side: int = SIDE) -> Path:
    """Put a picture with its caption into a folder."""
    picture = draw_scene(random.Random(name).choice(all_scenes()), 32, random.Random(name)).resize((side, side))
    (picture.convert("L").convert(mode) if mode.startswith("I") else picture.convert(mode)).save(folder / name)
    (folder / name).with_suffix(".txt").write_text(text)
    return folder / name


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder of sound pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, scene in enumerate(all_scenes()[:GOOD]):
        add(folder, f"good {number}.png", caption(scene, 0))
    return folder


@pytest.fixture
def bad(good: Path) -> Path:
    """Those pictures, odd ones, and unusable ones of every kind."""
    for name, mode in (("cmyk.jpg", "CMYK"), ("16 bit.png", "I;16"), ("palette.png", "P"), ("gray.jpg", "L")):
        add(good, name, mode=mode)
    add(good, "Größe ünd 色.png", "ein roter Kreis, 赤い円")
    for name in ("truncated 1.jpg", "truncated 2.jpg"):
        path = add(good, name, side=64)
        path.write_bytes(path.read_bytes()[:-500])
    add(good, "empty.jpg").write_bytes(b"")
    add(good, "text.jpg").write_text("this is no picture")
    add(good, "one pixel.png", side=1)
    add(good, "no caption.png").with_suffix(".txt").unlink()
    add(good, "empty caption.png", "\n")
    (good / "no picture.txt").write_text("a blue square")
    return good


SKIPPED = {
    "captions without image": 1,
    "empty caption file": 1,
    "empty image file": 1,
    "image too small": 1,
    "image without captions": 1,
    "unreadable image": 3,
}
MENDED = {f"image converted from mode {mode}": 1 for mode in ("CMYK", "I;16", "L", "P")}


@pytest.mark.parametrize("workers", [0, 1])
def test_training_completes_and_reports_every_bad_file_by_kind(
    run_train: Train, bad: Path, tmp_path: Path, workers: int
) -> None:
    options = {"input_folder": bad, "max_bad_share": 0.9, "max_steps": 12, "dataloader_workers": workers}
    run = run_train(tmp_path / "run", **options)
    assert len(run.log()) == 12
    report = DataReport(run.folder / "data_report.jsonl")
    assert report.counts == SKIPPED
    assert {kind: n for kind, n in report.notes.items() if kind in MENDED} == MENDED


def test_a_vae_trains_on_the_same_folder_captions_or_not(run_train_vae: Train, bad: Path, tmp_path: Path) -> None:
    run = run_train_vae(tmp_path / "run", input_folder=bad, max_bad_share=0.9, max_steps=12)
    counts = DataReport(run.folder / "data_report.jsonl").counts
    assert counts == {"empty image file": 1, "image too small": 1, "unreadable image": 3}


def test_files_found_unusable_at_the_start_stop_training_before_it_begins(
    run_train: Train, bad: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"max_bad_share=0.01 allows 1.0%.*mend the data, or raise --max-bad-share"):
        run_train(tmp_path / "run", input_folder=bad)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_found_unusable_while_training_stop_it(
    run_train: Train, good: Path, tmp_path: Path, workers: int
) -> None:
    path = add(good, "truncated.jpg", side=64)
    path.write_bytes(path.read_bytes()[:-500])
    options = {"input_folder": good, "max_steps": 20, "dataloader_workers": workers}
    with pytest.raises(DataError, match="1 of 9 files .*max_bad_share=0.01 .*1 unreadable image"):
        run_train(tmp_path / "run", **options)
    assert Run(tmp_path / "run", "dalle").log()


def test_mended_data_is_no_longer_held_against_a_run(run_train: Train, good: Path, tmp_path: Path) -> None:
    add(good, "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 9 files"):
        run_train(tmp_path / "run", input_folder=good)
    add(good, "empty.jpg")
    assert len(run_train(tmp_path / "run", input_folder=good).log()) == 3


def test_long_captions_are_cut_and_counted(run_train: Train, good: Path, tmp_path: Path) -> None:
    add(good, "long 1.png", "a red circle " * 100)
    add(good, "long 2.png", "x" * 1000)
    run = run_train(tmp_path / "run", input_folder=good, text_seq_len=20)
    assert DataReport(run.folder / "data_report.jsonl").notes == {"image with a caption cut to text_seq_len": 2}


def test_long_captions_are_refused_when_cutting_is_off(run_train: Train, good: Path, tmp_path: Path) -> None:
    add(good, "long.png", "a red circle " * 100)
    options: Any = {"input_folder": good, "text_seq_len": 20, "truncate_captions": False}
    with pytest.raises(UserError, match=r"long.png has \d+ tokens, text_seq_len=20; .*--truncate-captions"):
        run_train(tmp_path / "run", **options)
