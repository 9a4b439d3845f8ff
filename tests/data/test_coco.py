"""COCO's caption files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from PIL import Image

from data import coco
from data.coco import iterate_members, read_coco
from data.report import DataError, DataReport


def annotation(number: int, image: int, caption: str) -> Dict[str, Any]:
    return {"id": number, "image_id": image, "caption": caption}


def write(root: Path, annotations: List[Dict[str, Any]], images: int = 2) -> Path:
    """A caption file that names `images` images, which exist."""
    listed = []
    for number in range(images):
        Image.new("RGB", (1, 1)).save(root / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png"})
    path = root / "captions.json"
    path.write_text(json.dumps({"images": listed, "annotations": annotations}))
    return path


def test_captions_go_to_their_images_cleaned_and_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, [annotation(1, 1, "one\n"), annotation(2, 0, "zero"), annotation(3, 1, "two . ")])
    pairs = read_coco(path, tmp_path, DataReport())
    assert [(pair.image.name, pair.captions) for pair in pairs] == [("0.png", ("zero",)), ("1.png", ("one", "two."))]


def test_every_inconsistency_is_reported_under_its_kind(tmp_path: Path) -> None:
    annotations = [annotation(n, image, "x") for n, image in enumerate((0, 3, 2, 3))]
    annotations += [annotation(0, 0, "again"), annotation(9, 77, "x"), annotation(10, 78, "x"), annotation(11, 0, " ")]
    path = write(tmp_path, annotations, images=4)
    (tmp_path / "2.png").unlink()
    (tmp_path / "3.png").write_bytes(b"")
    report = DataReport()
    pairs = read_coco(path, tmp_path, report)
    assert [(pair.image.name, pair.captions) for pair in pairs] == [("0.png", ("x",))]
    assert report.counts == {
        "duplicate annotation": 1,
        "annotation of unknown image": 2,
        "image absent": 1,
        "image without captions": 1,
        "empty image file": 1,
    }
    assert report.notes == {"empty caption": 1}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_members_equal_those_of_the_whole_file_wherever_the_reads_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int, ascii_only: bool
) -> None:
    monkeypatch.setattr(coco, "_CHUNK", chunk)
    content: Dict[str, Any] = {
        "annotations": [{"a": 'é "]}, \\', "b": [1.5e3, {"c": None}]}, 12, "\u732b\U0001f415", [], True],
        "info": {"images": [1, 2]},
        "licenses": [{"id": 1}, 2],
        "version": 1234567,
        "images": [],
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    members = list(iterate_members(path, ("images", "annotations")))
    assert members == [("annotations", member) for member in content["annotations"]]


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "_CHUNK", 4096)
    held = []
    read = coco._Reader._read

    def watched(reader: coco._Reader) -> bool:
        more = read(reader)
        held.append(len(reader._text))
        return more

    monkeypatch.setattr(coco._Reader, "_read", watched)
    path = write(tmp_path, [annotation(n, 0, "words " * 10) for n in range(5000)])
    assert path.stat().st_size > 400_000
    assert sum(1 for _ in iterate_members(path, ("annotations",))) == 5000
    assert max(held) < 3 * 4096


@pytest.mark.parametrize(
    "text, offset",
    {
        "": 0,
        "no json": 0,
        '{"annotations": [{"id": 1}, {"id": 2': 36,
        '{"annotations": [{"id": 1}': 26,
        '{"annotations": [1 2]}': 19,
        '{"é": 1, "annotations": [nonsense]}': 26,
        '{"annotations": 5}': 16,
        '{"annotations": []} {}': 20,
        "[1, 2]": 0,
    }.items(),
)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_text_that_is_cut_off_or_no_json_is_an_error_with_file_and_byte_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, offset: int, chunk: int
) -> None:
    monkeypatch.setattr(coco, "_CHUNK", chunk)
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"x.json .* at byte {offset};"):
        list(iterate_members(path, ("annotations",)))


def test_bytes_that_are_no_text_are_an_error_naming_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"images": ["\xff\xfe"]}')
    with pytest.raises(DataError, match="x.json"):
        list(iterate_members(tmp_path / "x.json", ("images",)))


def test_a_file_of_boxes_instead_of_captions_is_an_error_naming_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path, [{"id": 1, "image_id": 0, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(DataError, match=r"captions.json.*bbox.*'caption'"):
        read_coco(path, tmp_path, DataReport())
