"""The demo set: a small dataset in COCO's layout, drawn here, whose held-out scenes never occur in training.

    python -m data.demo --out-dir output/demo/scenes

writes `train2017/`, `val2017/` (pictures of held-out scenes), `annotations/captions_*.json`, `captions_train2017.txt`
(all training captions, for a tokenizer) and `held_out_prompts.txt`. What a model draws for a held-out prompt it cannot
have remembered: it has met every part of the prompt, but never all of them together.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import json
import random
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from data.scenes import WORDINGS, Scene, all_scenes, caption, draw_scene
from options import OptionError, Options, option

_HELD_OUT_SHARE = 0.1
_TRAIN, _VAL = "train2017", "val2017"
_CAPTIONS, _PROMPTS = "captions_train2017.txt", "held_out_prompts.txt"
_MEMBERS = {_TRAIN, _VAL, "annotations", _CAPTIONS, _PROMPTS}


@dataclasses.dataclass(frozen=True)
class DemoOptions(Options):
    """What demo set to draw, and where."""

    out_dir: str = option("output/demo/scenes", "folder to write; a demo set that is there already is replaced")
    image_size: int = option(64, "pixels a side", minimum=16)
    pictures_per_scene: int = option(1, "pictures of each scene, which differ where there is jitter", minimum=1)
    jitter: float = option(
        0.0, "how far they stray: 1 is up to 1/256 of the side in place and up to 1 % in size", minimum=0, maximum=1
    )
    seed: int = option(0, "decides which scenes are held out, and how pictures of one scene differ", minimum=0)


def split_scenes(seed: int) -> Tuple[List[Scene], List[Scene]]:
    """All scenes as (training, held out), the latter in random order.

    Of the scenes that share any two values, say all red circles, at least half are for training.
    """
    scenes = all_scenes()
    random.Random(seed).shuffle(scenes)
    total = collections.Counter(pair for scene in scenes for pair in _pairs(scene))
    left = total.copy()
    held_out: List[Scene] = []
    for scene in scenes:
        if len(held_out) < _HELD_OUT_SHARE * len(scenes) and all(2 * left[p] > total[p] + 1 for p in _pairs(scene)):
            held_out.append(scene)
            left.subtract(_pairs(scene))
    return [scene for scene in all_scenes() if scene not in held_out], held_out


def _pairs(scene: Scene) -> List[Tuple[str, str]]:
    return list(itertools.combinations(scene, 2))


def draw_demo_set(options: DemoOptions) -> None:
    """Draw the set. It appears under `out_dir` complete or not at all, and equal options give equal bytes.

    Raises:
        OptionError: `out_dir` holds something else than a demo set.
    """
    out_dir = Path(options.out_dir)
    _check_replaceable(out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", dir=str(out_dir.parent)) as scratch:
        fresh = Path(scratch, "fresh")
        _draw_all(fresh, options)
        if out_dir.exists():
            out_dir.rename(Path(scratch, "replaced"))
        fresh.rename(out_dir)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if found and found != _MEMBERS:
        example = min(found - _MEMBERS or found)
        raise OptionError(
            f"out_dir={folder} holds something else than a demo set ({example}), which is never overwritten; "
            "choose another folder, or empty this one"
        )


def _draw_all(folder: Path, options: DemoOptions) -> None:
    training, held_out = split_scenes(options.seed)
    rng = random.Random(options.seed)
    copies = options.pictures_per_scene
    captions = _draw_split(folder, _TRAIN, training * copies, 1, options, rng)
    _draw_split(folder, _VAL, held_out * copies, len(training) * copies + 1, options, rng)
    _write_lines(folder / _CAPTIONS, captions)
    _write_lines(folder / _PROMPTS, (caption(scene, i % WORDINGS) for i, scene in enumerate(held_out)))


def _draw_split(
    folder: Path, split: str, scenes: Sequence[Scene], first_id: int, options: DemoOptions, rng: random.Random
) -> List[str]:
    """Write the pictures and the caption file of one split, and return its captions."""
    (folder / split).mkdir(parents=True)
    images: List[Dict[str, Any]] = []
    annotations: List[Dict[str, Any]] = []
    side = options.image_size
    for image_id, scene in enumerate(scenes, first_id):
        file_name = f"{image_id:012d}.png"
        draw_scene(scene, side, rng, options.jitter).save(folder / split / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": side, "height": side, "license": 1})
        for wording in range(WORDINGS):
            annotation_id = (image_id - 1) * WORDINGS + wording + 1
            annotations.append({"id": annotation_id, "image_id": image_id, "caption": caption(scene, wording)})
    _write_annotations(folder / "annotations" / f"captions_{split}.json", images, annotations)
    return [annotation["caption"] for annotation in annotations]


def _write_annotations(path: Path, images: List[Dict[str, Any]], annotations: List[Dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    content = {
        "info": {"description": "demo set: scenes of one shape", "version": "1.0"},
        "licenses": [{"id": 1, "name": "same as the program that draws it", "url": ""}],
        "images": images,
        "annotations": annotations,
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Draw the demo set that the command line describes."""
    parser = argparse.ArgumentParser(prog="python -m data.demo", description="Draw the demo set.")
    for field in dataclasses.fields(DemoOptions):
        name = "--" + field.name.replace("_", "-")
        text = f"{field.metadata['help']} (default: {field.default})".replace("%", "%%")
        parser.add_argument(name, default=field.default, help=text)
    try:
        options = DemoOptions(**vars(parser.parse_args(arguments)))
        draw_demo_set(options)
    except OptionError as error:
        parser.error(str(error))
    print(f"demo set drawn in {options.out_dir}")


if __name__ == "__main__":
    main()
