"""Extracting COCO's captions into text files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import List, Tuple

import pytest

import process_captions


def caption_file(root: Path, captions: List[Tuple[int, str]]) -> Path:
    annotations = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(captions)]
    path = root / "captions.json"
    path.write_text(json.dumps({"images": [], "annotations": annotations}))
    return path


def extract(captions: Path, out_dir: Path) -> None:
    process_captions.main(["--captions", str(captions), "--out-dir", str(out_dir)])


def test_an_image_has_one_file_named_by_twelve_digits_with_a_clean_caption_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = caption_file(tmp_path, [(7, "a\ndog . "), (8, "Katze \u732b"), (7, "two"), (9, " ")])
    extract(captions, tmp_path / "new" / "out")
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "new" / "out").iterdir()}
    assert files == {"000000000007.txt": "a dog.\ntwo\n", "000000000008.txt": "Katze \u732b\n"}
    assert "2 images, 3 captions; dropped 1 empty captions and 0 duplicates" in capsys.readouterr().out
    assert os.listdir(tmp_path / "new") == ["out"]


def test_files_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    for text in ("old", "new"):
        extract(caption_file(tmp_path, [(7, text)]), tmp_path / "out")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["new\n"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_run_that_is_killed_leaves_no_half_file_and_the_next_one_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    captions = caption_file(tmp_path, [(1, "one"), (2, "two")])
    out_dir = tmp_path / "out"
    if existing:
        out_dir.mkdir()
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name.endswith("2.txt"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(captions, out_dir)
    assert out_dir.exists() == existing
    assert [path.name for path in out_dir.glob("[!.]*")] == (["000000000001.txt"] if existing else [])
    monkeypatch.undo()
    extract(captions, out_dir)
    assert sorted(os.listdir(out_dir)) == ["000000000001.txt", "000000000002.txt"]


def test_a_file_that_is_cut_off_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    captions = caption_file(tmp_path, [(1, "one")])
    captions.write_text(captions.read_text()[:-5])
    with pytest.raises(SystemExit, match="captions.json .*byte"):
        extract(captions, tmp_path / "out")
    assert os.listdir(tmp_path) == ["captions.json"]
