"""Which images belong to which captions: the layout of a dataset is recognised by what lies in its folder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Dict, List

from data.captions import Pair
from data.coco import read_coco
from data.folder import SIBLING, list_files, read_folder
from data.options import DataOptions
from data.places import named_folder, named_path
from data.report import DataError, DataReport

__all__ = ["Pair", "open_images", "open_pairs"]

_SPLITS = {"train": "train", "validation": "val"}  # how the names of COCO's splits begin


def open_pairs(options: DataOptions, split: str, report: DataReport) -> List[Pair]:
    """Return the pairs of `split` ("train" or "validation"), sorted by path; what is unusable goes to `report`.

    The layout is COCO's when `annotations` is given, or when captions_<split>.json lies in `annotations` beside the
    folder <split>; otherwise images go with text files. Validation pairs are those of validation_folder, otherwise
    those of COCO's val split, otherwise validation_share of the pairs, otherwise none.

    Raises:
        DataError: a folder is missing, or holds no pair.
    """
    if split == "validation" and options.validation_folder is not None:
        folder = named_folder("validation_folder", options.validation_folder)
        return _any(_read_layout(folder, "", report), folder, report)
    root = named_folder("input_folder", options.input_folder)
    if options.annotations is not None:
        pairs = read_coco(named_path("annotations", options.annotations), root, report)
    elif options.captions_folder is not None:
        pairs = read_folder(root, named_folder("captions_folder", options.captions_folder), report)
    elif split == "validation" and _splits(root, "val"):
        return _read_layout(root, "val", report)
    else:
        pairs = _read_layout(root, "train", report)
    pairs = _any(pairs, root, report)
    return [pair for pair in pairs if _is_in(split, pair.image, root, options.validation_share)]


def open_images(options: DataOptions, split: str, report: DataReport) -> List[Path]:
    """Return the images of `split`, captions or not, sorted by path; options and errors are those of `open_pairs`."""
    if split == "validation" and options.validation_folder is not None:
        return list_files(named_folder("validation_folder", options.validation_folder), report)[0]
    root = named_folder("input_folder", options.input_folder)
    if split == "validation" and _splits(root, "val"):
        return _images_of(_splits(root, "val"), report)
    images = _images_of(_splits(root, "train"), report) or list_files(root, report)[0]
    if not images:
        raise DataError(f"input_folder={root} holds no image; give a folder with images")
    return [image for image in images if _is_in(split, image, root, options.validation_share)]


def _splits(root: Path, prefix: str) -> Dict[Path, Path]:
    """The caption files of COCO's layout whose splits begin with `prefix`, each with its folder of images."""
    start = "captions_"
    files = sorted((root / "annotations").glob(f"{start}{prefix}*.json"))
    splits = {file: root / file.stem[len(start) :] for file in files}
    return {file: folder for file, folder in splits.items() if folder.is_dir()}


def _images_of(splits: Dict[Path, Path], report: DataReport) -> List[Path]:
    return [image for folder in splits.values() for image in list_files(folder, report)[0]]


def _read_layout(root: Path, prefix: str, report: DataReport) -> List[Pair]:
    """The pairs of COCO's splits whose names begin with `prefix`; without such splits at all, those of text files."""
    if not _splits(root, ""):
        sibling = root.parent / (root.name + SIBLING)
        apart = sibling.is_dir() and not list_files(root, report)[1]
        return read_folder(root, sibling if apart else None, report)
    splits = _splits(root, prefix)
    if not splits:
        found = ", ".join(folder.name for folder in _splits(root, "").values())
        raise DataError(f"input_folder={root} has the splits {found}; training needs one that begins with {prefix!r}")
    return sorted(pair for file, folder in splits.items() for pair in read_coco(file, folder, report))


def _any(pairs: List[Pair], root: Path, report: DataReport) -> List[Pair]:
    """`pairs`, unless there are none.

    Raises:
        DataError: says what was looked for, and what was found instead.
    """
    if pairs:
        return pairs
    images, captions = list_files(root, report)
    raise DataError(
        f"{root} holds no image with captions: {len(images)} images, {len(captions)} caption files. Looked for images "
        "with a .txt file of the same path and stem (beside them, in captions_folder, or in <folder>_captions), and "
        "for annotations/captions_<split>.json beside a folder <split>; bring the dataset into one of these layouts"
        + (f". Skipped so far:\n{report.summary()}" if report.skipped else "")
    )


def _is_in(split: str, image: Path, root: Path, validation_share: float) -> bool:
    """Whether an image falls to a split; decided by its relative path, so that added files move no other."""
    digest = hashlib.sha256(Path(os.path.relpath(image, root)).as_posix().encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") < validation_share * 2**64) == (split == "validation")
