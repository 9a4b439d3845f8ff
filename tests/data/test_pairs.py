"""Recognising the layout of a dataset and dividing it into splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from PIL import Image

from data.options import DataOptions
from data.pairs import Pair, open_images, open_pairs
from data.report import DataError, DataReport


def pictures(folder: Path, names: List[str], captions: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (1, 1)).save(folder / f"{name}.png")
        if captions:
            (folder / f"{name}.txt").write_text(f"a {name}")
    return folder


def coco_json(path: Path, names: List[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate(names)]
    annotations = [{"id": n, "image_id": n, "caption": f"coco {name}"} for n, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def coco_split(root: Path, split: str, names: List[str]) -> None:
    pictures(root / split, names)
    coco_json(root / "annotations" / f"captions_{split}.json", names)


def pairs_of(split: str = "train", **options: Any) -> List[Pair]:
    typed: Dict[str, Any] = {name: str(value) for name, value in options.items()}
    return open_pairs(DataOptions(**typed), split, DataReport())


def names_of(pairs: List[Pair]) -> List[str]:
    return [pair.image.stem for pair in pairs]


def test_a_folder_of_images_and_texts_is_recognised(tmp_path: Path) -> None:
    pictures(tmp_path, ["b", "a"], captions=True)
    pairs = pairs_of(input_folder=tmp_path)
    assert [(pair.image, pair.captions) for pair in pairs] == [
        (tmp_path / "a.png", ("a a",)),
        (tmp_path / "b.png", ("a b",)),
    ]
    assert pairs_of("validation", input_folder=tmp_path) == []


def test_coco_s_layout_is_recognised_and_its_splits_are_kept_apart(tmp_path: Path) -> None:
    coco_split(tmp_path, "train2017", ["a", "b"])
    coco_split(tmp_path, "val2017", ["c"])
    assert names_of(pairs_of(input_folder=tmp_path)) == ["a", "b"]
    assert names_of(pairs_of("validation", input_folder=tmp_path)) == ["c"]


def test_extracted_captions_beside_coco_s_json_change_nothing(tmp_path: Path) -> None:
    coco_split(tmp_path, "train2017", ["a"])
    coco_split(tmp_path, "val2017", ["b"])
    (tmp_path / "train2017_captions").mkdir()
    (tmp_path / "train2017_captions" / "a.txt").write_text("coco a")
    report = DataReport()
    pairs = open_pairs(DataOptions(input_folder=str(tmp_path)), "train", report)
    assert [pair.captions for pair in pairs] == [("coco a",)]
    assert report.summary() == ""


def test_annotations_name_the_images_of_the_input_folder(tmp_path: Path) -> None:
    pictures(tmp_path / "images", ["a", "b"], captions=True)
    captions = coco_json(tmp_path / "elsewhere.json", ["a"])
    assert [pair.captions for pair in pairs_of(input_folder=tmp_path / "images", annotations=captions)] == [("coco a",)]


def test_captions_lie_in_their_own_folder_or_in_one_named_after_the_images(tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", ["a"])
    for folder in ("images_captions", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
    assert pairs_of(input_folder=images)[0].captions == ("images_captions",)
    assert pairs_of(input_folder=images, captions_folder=tmp_path / "other")[0].captions == ("other",)


def test_the_validation_folder_comes_before_all_else_and_counts_whole(tmp_path: Path) -> None:
    coco_split(tmp_path / "coco", "train2017", ["a"])
    coco_split(tmp_path / "coco", "val2017", ["b"])
    other = pictures(tmp_path / "other", ["c"], captions=True)
    options: Dict[str, Any] = {"input_folder": tmp_path / "coco", "validation_folder": other, "validation_share": 0.0}
    assert names_of(pairs_of("validation", **options)) == ["c"]
    assert names_of(pairs_of(**options)) == ["a"]
    assert names_of(pairs_of("validation", input_folder=other, validation_folder=tmp_path / "coco")) == ["a", "b"]


def test_a_validation_share_is_taken_from_training_and_stays_when_files_are_added(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n:03}" for n in range(100)], captions=True)
    options: Dict[str, Any] = {"input_folder": tmp_path, "validation_share": 0.3}
    train, validation = names_of(pairs_of(**options)), names_of(pairs_of("validation", **options))
    assert sorted(train + validation) == [f"{n:03}" for n in range(100)]
    assert 15 < len(validation) < 45
    pictures(tmp_path, [f"new{n}" for n in range(20)], captions=True)
    assert set(validation) <= set(names_of(pairs_of("validation", **options)))
    assert set(train) <= set(names_of(pairs_of(**options)))


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "input_folder is not set"),
        ({"input_folder": "absent"}, "input_folder=absent does not exist"),
        ({"input_folder": "images", "captions_folder": "absent"}, "captions_folder=absent does not exist"),
        ({"input_folder": "images", "annotations": "absent.json"}, "annotations=absent.json does not exist"),
        ({"input_folder": "images/a.png"}, "input_folder=images/a.png is no folder"),
        ({"input_folder": "images"}, "2 images, 0 caption files"),
        ({"input_folder": "empty"}, "0 images, 0 caption files"),
        ({"input_folder": "coco"}, "splits val2017; training needs"),
    ],
)
def test_a_missing_dataset_is_an_error_that_says_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, message: str
) -> None:
    pictures(tmp_path / "images", ["a", "b"])
    (tmp_path / "empty").mkdir()
    coco_split(tmp_path / "coco", "val2017", ["c"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        pairs_of(**options)


def test_images_alone_need_no_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "plain" / "deep", ["b", "a"])
    coco_split(tmp_path / "coco", "train2017", ["c"])
    coco_split(tmp_path / "coco", "val2017", ["d"])

    def images(split: str, folder: str) -> List[str]:
        options = DataOptions(input_folder=str(tmp_path / folder))
        return [path.stem for path in open_images(options, split, DataReport())]

    assert images("train", "plain") == ["a", "b"]
    assert images("validation", "plain") == []
    assert images("train", "coco") == ["c"]
    assert images("validation", "coco") == ["d"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        images("train", "empty")
