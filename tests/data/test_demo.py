"""The demo set: complete, repeatable, and honest about what is held out."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
from PIL import Image

import data.demo
from data.demo import DemoOptions, draw_demo_set, main, split_scenes
from data.scenes import WORDINGS, Scene, all_scenes, parse_caption
from options import OptionError


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo set, drawn once."""
    return _draw(tmp_path_factory.mktemp("demo") / "scenes")


def _draw(folder: Path, seed: int = 0) -> Path:
    draw_demo_set(DemoOptions(out_dir=str(folder), image_size=16, seed=seed))
    return folder


def _contents(folder: Path) -> Dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _annotations(folder: Path, split: str) -> Dict[str, Any]:
    return json.loads((folder / "annotations" / f"captions_{split}.json").read_text(encoding="utf-8"))


def _scenes(folder: Path, split: str) -> Set[Scene]:
    return {parse_caption(annotation["caption"]) for annotation in _annotations(folder, split)["annotations"]}


def _count_pairs(scenes: List[Scene]) -> Counter[Tuple[str, str]]:
    return Counter(pair for scene in scenes for pair in itertools.combinations(scene, 2))


@pytest.mark.parametrize("seed", range(3))
def test_held_out_scenes_never_occur_in_training_and_all_their_pairs_do(seed: int) -> None:
    training, held_out = split_scenes(seed)
    assert sorted(training + held_out) == sorted(all_scenes())
    assert len(held_out) == round(0.1 * len(all_scenes()))
    total, in_training = _count_pairs(all_scenes()), _count_pairs(training)
    assert all(2 * in_training[pair] >= total[pair] for pair in total)


def test_another_seed_holds_other_scenes_out() -> None:
    assert set(split_scenes(0)[1]) != set(split_scenes(1)[1])


def test_the_written_splits_share_no_scene_and_leave_none_out(demo_set: Path) -> None:
    training, held_out = _scenes(demo_set, "train2017"), _scenes(demo_set, "val2017")
    assert not training & held_out
    assert training | held_out == set(all_scenes())


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_every_image_of_the_caption_file_exists_and_has_five_captions_of_one_scene(demo_set: Path, split: str) -> None:
    content = _annotations(demo_set, split)
    assert {"info", "licenses", "images", "annotations"} == set(content)
    assert {path.name for path in (demo_set / split).iterdir()} == {image["file_name"] for image in content["images"]}
    for image in content["images"]:
        captions = {a["caption"] for a in content["annotations"] if a["image_id"] == image["id"]}
        assert len(captions) == WORDINGS == 5
        assert len({parse_caption(text) for text in captions}) == 1
        assert image["file_name"] == f"{image['id']:012d}.png"
        with Image.open(demo_set / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (16, 16)


def test_ids_are_unique_across_both_splits(demo_set: Path) -> None:
    splits = [_annotations(demo_set, split) for split in ("train2017", "val2017")]
    for kind in ("images", "annotations"):
        ids = [entry["id"] for content in splits for entry in content[kind]]
        assert len(ids) == len(set(ids))


def test_the_text_file_holds_exactly_the_training_captions(demo_set: Path) -> None:
    lines = (demo_set / "captions_train2017.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [annotation["caption"] for annotation in _annotations(demo_set, "train2017")["annotations"]]


def test_there_is_one_prompt_for_each_held_out_scene(demo_set: Path) -> None:
    prompts = (demo_set / "held_out_prompts.txt").read_text(encoding="utf-8").splitlines()
    assert [parse_caption(prompt) for prompt in prompts] == split_scenes(0)[1]


def test_pictures_per_scene_is_how_often_each_scene_is_drawn(tmp_path: Path) -> None:
    draw_demo_set(DemoOptions(out_dir=str(tmp_path / "set"), image_size=16, pictures_per_scene=2))
    training, held_out = split_scenes(0)
    assert len(_annotations(tmp_path / "set", "train2017")["images"]) == 2 * len(training)
    assert len(_annotations(tmp_path / "set", "val2017")["images"]) == 2 * len(held_out)


def test_pictures_of_one_scene_differ_with_jitter_and_only_then(tmp_path: Path) -> None:
    for jitter, different in ((0.0, 1), (1.0, 2)):
        options = DemoOptions(out_dir=str(tmp_path / "set"), image_size=32, pictures_per_scene=2, jitter=jitter)
        draw_demo_set(options)
        first, *_ = _annotations(tmp_path / "set", "train2017")["annotations"]
        of_one_scene = [
            (tmp_path / "set" / "train2017" / f"{annotation['image_id']:012d}.png").read_bytes()
            for annotation in _annotations(tmp_path / "set", "train2017")["annotations"]
            if annotation["caption"] == first["caption"]
        ]
        assert len(of_one_scene) == 2 and len(set(of_one_scene)) == different


def test_equal_seeds_give_equal_bytes_and_replace_an_older_set(demo_set: Path, tmp_path: Path) -> None:
    other = _contents(_draw(tmp_path / "set", seed=1))
    again = _contents(_draw(tmp_path / "set", seed=0))
    assert other != again == _contents(demo_set)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OptionError, match="thesis.txt"):
        _draw(tmp_path)
    assert _contents(tmp_path) == {"thesis.txt": b"mine"}


def test_a_demo_set_with_something_added_is_left_as_it_is(tmp_path: Path) -> None:
    (_draw(tmp_path / "set") / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OptionError, match="notes.txt"):
        _draw(tmp_path / "set")
    assert (tmp_path / "set" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_interrupted_drawing_leaves_the_old_set_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _contents(_draw(tmp_path / "set"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data.demo, "_write_annotations", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _draw(tmp_path / "set", seed=1)
    assert _contents(tmp_path / "set") == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_command_draws_what_its_options_say(demo_set: Path, tmp_path: Path) -> None:
    main(["--out-dir", str(tmp_path / "a" / "set"), "--image-size", "16", "--seed", "0"])
    assert _contents(tmp_path / "a" / "set") == _contents(demo_set)


def test_a_wrong_option_ends_the_command_with_its_name_and_rule(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--image-size", "8"])
    assert "image_size=8 is below 16" in capsys.readouterr().err
