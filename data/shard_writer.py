"""Make WebDataset shards of a dataset: `python -m data.shards --input-folder DATASET --out-dir FOLDER`.

Samples follow each other in the order of their paths; an image goes in as the file it is, its captions as lines. Equal
datasets give equal shards, byte for byte. A shard is written beside its place and renamed, so that one that is there is
whole; started again after an interruption, the command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

from data.archives import import_webdataset
from data.captions import Pair
from data.options import DataOptions
from data.pairs import open_pairs
from data.report import DataError, DataReport

CONTENT = "shards.json"  # says what the shards of a folder are made of


def write_shards(pairs: Sequence[Pair], folder: Path, samples_per_shard: int, wds: Sequence[str]) -> List[Path]:
    """Write shards of `pairs` into `folder`; those that are there from an earlier start stay as they are.

    Args:
        pairs: images with their captions.
        folder: of the shards; created when it is missing.
        samples_per_shard: the last one may have fewer.
        wds: the keys of images and captions in the shards.

    Raises:
        DataError: the folder holds shards of something else.
    """
    webdataset = import_webdataset()
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _describe(pairs, samples_per_shard, wds))
    count = math.ceil(len(pairs) / samples_per_shard)
    shards = [folder / f"shard-{number:06}.tar" for number in range(count)]
    for number, shard in enumerate(shards):
        if shard.exists():
            continue
        first = number * samples_per_shard
        partial = shard.with_name(shard.name + ".partial")
        with partial.open("wb") as file:
            # what tar notes of owners and times would make equal shards differ
            with webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
                for index, pair in enumerate(pairs[first : first + samples_per_shard], first):
                    image, captions = pair.image.read_bytes(), "\n".join(pair.captions).encode("utf-8")
                    writer.write({"__key__": f"{index:09}", wds[0]: image, wds[1]: captions})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, shard)
        print(f"{shard}: samples {first} to {min(first + samples_per_shard, len(pairs)) - 1}", flush=True)
    return shards


def _describe(pairs: Sequence[Pair], samples_per_shard: int, wds: Sequence[str]) -> Dict[str, Union[int, str]]:
    """What shards are made of: equal when they are, byte for byte."""
    digest = hashlib.sha256()
    for pair in pairs:
        stat = pair.image.stat()
        digest.update(json.dumps([str(pair.image), stat.st_size, stat.st_mtime_ns, pair.captions]).encode("ascii"))
    return {
        "samples": len(pairs),
        "samples_per_shard": samples_per_shard,
        "wds": ",".join(wds),
        "dataset": digest.hexdigest(),
    }


def _claim(folder: Path, content: Dict[str, Union[int, str]]) -> None:
    """Note in `folder` what its shards are made of, unless it holds others."""
    path, text = folder / CONTENT, json.dumps(content, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if path.exists() or any(folder.glob("*.tar*")):
        raise DataError(
            f"out_dir={folder} holds shards of another dataset, or cut in another way; give an empty folder, or remove "
            "what lies there"
        )
    path.write_text(text, encoding="utf-8")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Write the shards; return the exit status."""
    args = _parse(arguments)
    report = DataReport()
    try:
        if args.samples_per_shard < 1:
            raise DataError(f"samples_per_shard={args.samples_per_shard} is below 1, the least allowed; raise it")
        options = DataOptions(
            input_folder=args.input_folder, captions_folder=args.captions_folder, annotations=args.annotations
        )
        wds = [key.strip().lower().lstrip(".") for key in args.wds.split(",")]
        if len(set(wds)) != 2 or not all(key.replace(".", "").isalnum() for key in wds):
            raise DataError(f"wds={args.wds} is no pair of keys; name the image's and the captions', as in img,cap")
        pairs = open_pairs(options, args.split, report)
        shards = write_shards(pairs, Path(args.out_dir), args.samples_per_shard, wds)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if report.summary():
        print(report.summary())
    print(
        f"{len(pairs)} samples in {len(shards)} shards; train on them with --wds {args.wds} "
        f"--input-folder {args.out_dir}"
    )
    return 0


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.shards", description="Make WebDataset shards of a dataset.")

    def add(name: str, **how: object) -> None:
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}", **how)  # type: ignore[arg-type]

    add("input-folder", required=True, help="folder of images and captions, or one in COCO's layout")
    add("captions-folder", help="folder of caption files, when they do not lie with the images")
    add("annotations", help="COCO caption JSON of the images in the dataset's folder")
    add("split", default="train", choices=("train", "validation"), help="which pairs of a layout with splits")
    add("out-dir", required=True, help="folder of the shards")
    add("samples-per-shard", type=int, default=10000, help="samples of a shard (default 10000)")
    add("wds", default="img,cap", help="keys of images and captions in the shards (default img,cap)")
    return parser.parse_args(arguments)
