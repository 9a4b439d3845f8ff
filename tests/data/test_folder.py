"""Matching images with caption files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Dict, Optional, Tuple

import pytest
from PIL import Image

from data.folder import read_folder
from data.report import DataReport


def put(root: Path, name: str, content: str = "") -> Path:
    """Write a one-pixel image, or a caption file with `content`."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".txt":
        path.write_text(content or f"caption of {name}", encoding="utf-8")
    else:
        Image.new("RGB", (1, 1)).save(path)
    return path


def read(
    root: Path, report: Optional[DataReport] = None, captions: Optional[Path] = None
) -> Dict[str, Tuple[str, ...]]:
    """Captions by the image's path under `root`."""
    pairs = read_folder(root, captions, report or DataReport())
    return {pair.image.relative_to(root).as_posix(): pair.captions for pair in pairs}


def test_two_folders_with_equal_file_names_keep_all_their_pairs(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/x.txt", "b/x.png", "b/x.txt", "b/deep/er/x.png", "b/deep/er/x.txt"):
        put(tmp_path, name)
    assert read(tmp_path) == {
        "a/x.png": ("caption of a/x.txt",),
        "b/deep/er/x.png": ("caption of b/deep/er/x.txt",),
        "b/x.png": ("caption of b/x.txt",),
    }


def test_two_images_with_one_stem_both_have_its_captions(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x.txt"):
        put(tmp_path, name)
    assert set(read(tmp_path)) == {"x.png", "x.jpg"}


def test_captions_of_another_folder_match_by_relative_path(tmp_path: Path) -> None:
    put(tmp_path, "images/a/x.png")
    put(tmp_path, "texts/a/x.txt", "right")
    put(tmp_path, "texts/x.txt", "wrong")
    assert read(tmp_path / "images", captions=tmp_path / "texts") == {"a/x.png": ("right",)}


def test_a_captions_folder_inside_the_image_folder_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, "a/x.png")
    put(tmp_path, "captions/a/x.txt")
    put(tmp_path, "captions/preview.png")
    report = DataReport()
    assert set(read(tmp_path, report, captions=tmp_path / "captions")) == {"a/x.png"}
    assert report.summary() == ""


def test_a_sibling_folder_named_captions_matches_unless_a_text_lies_beside_the_image(tmp_path: Path) -> None:
    for name in ("train2017/1.jpg", "train2017/2.jpg", "train2017_captions/1.txt", "train2017_captions/2.txt"):
        put(tmp_path, name)
    put(tmp_path, "train2017/2.txt", "beside")
    pairs = read(tmp_path)
    assert pairs == {"train2017/1.jpg": ("caption of train2017_captions/1.txt",), "train2017/2.jpg": ("beside",)}


@pytest.mark.parametrize("name", ["x.PNG", "x.Jpeg", "x.webp", "x.tif", "x.bmp", "x.GIF"])
def test_every_extension_that_pillow_reads_is_an_image_in_any_case(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    put(tmp_path, "x.TXT")
    assert set(read(tmp_path)) == {name}


@pytest.mark.parametrize("stem", ["with space", "naïve café", "猫", "dots.in.name", "100%", "-dash", "[x]*?"])
def test_names_with_spaces_unicode_and_signs_match(tmp_path: Path, stem: str) -> None:
    put(tmp_path, f"{stem}.png")
    put(tmp_path, f"{stem}.txt")
    assert set(read(tmp_path)) == {f"{stem}.png"}


def test_accents_stored_in_two_ways_are_one_name(tmp_path: Path) -> None:
    put(tmp_path, unicodedata.normalize("NFD", "café.png"))
    put(tmp_path, unicodedata.normalize("NFC", "café.txt"))
    assert len(read(tmp_path)) == 1


def test_captions_stand_one_a_line_and_are_cleaned(tmp_path: Path) -> None:
    put(tmp_path, "x.png")
    put(tmp_path, "x.txt", "\ufeff first \r\n\nsecond ,\tlong\n\n")
    assert read(tmp_path) == {"x.png": ("first", "second, long")}


def test_what_has_no_counterpart_or_is_empty_is_reported_under_its_kind(tmp_path: Path) -> None:
    for name in ("good.png", "good.txt", "alone.png", "alone too.txt", "blank.png", "zero.txt", "bytes.png"):
        put(tmp_path, name)
    put(tmp_path, "blank.txt", "\n \n")
    (tmp_path / "zero.png").touch()
    (tmp_path / "bytes.txt").write_bytes(b"caf\xe9")
    report = DataReport()
    assert set(read(tmp_path, report)) == {"good.png"}
    assert report.counts == {
        "image without captions": 1,
        "captions without image": 1,
        "empty caption file": 1,
        "empty image file": 1,
        "unreadable caption file": 1,
    }


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("x.png", "x.txt", ".x.png", ".thumbnails/y.png"):
        put(tmp_path, name)
    report = DataReport()
    assert set(read(tmp_path, report)) == {"x.png"}
    assert report.summary() == ""


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    put(tmp_path, "store/x.png")
    put(tmp_path, "store/x.txt")
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "store", tmp_path / "root" / "linked")
    os.symlink(tmp_path / "root", tmp_path / "store" / "back")
    os.symlink("itself", tmp_path / "root" / "itself")
    assert set(read(tmp_path / "root")) == {"linked/x.png"}


def test_pairs_are_sorted_by_path(tmp_path: Path) -> None:
    for stem in ("b/1", "a/2", "c", "a/10"):
        put(tmp_path, f"{stem}.png")
        put(tmp_path, f"{stem}.txt")
    assert list(read(tmp_path)) == ["a/10.png", "a/2.png", "b/1.png", "c.png"]
