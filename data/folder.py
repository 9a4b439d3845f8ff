"""Image-text folders: an image and a text file belong together when their relative paths agree but for the extension.

Captions lie beside the images, in a folder of their own with the same structure, or in a sibling folder whose name ends
with `_captions`: `train2017/1.jpg` goes with `train2017_captions/1.txt`.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePath
from typing import Dict, Iterator, List, Optional, Tuple

from data.captions import Pair, clean_caption
from data.images import EMPTY_FILE, image_extensions
from data.report import DataReport

CAPTION_EXTENSION = ".txt"
SIBLING = "_captions"


def read_folder(root: Path, captions_folder: Optional[Path], report: DataReport) -> List[Pair]:
    """Return the pairs under `root`, sorted by path; captions come from `captions_folder` only, when it is given.

    What has no counterpart, or is empty, is skipped and reported.
    """
    images, beside = list_files(root, report, leave_out=captions_folder)
    if captions_folder is None:
        captions = {_key(path, root): path for path in beside}
    else:
        captions = {_key(path, captions_folder): path for path in list_files(captions_folder, report)[1]}
    matched = [(image, _caption_file(_key(image, root), captions)) for image in images]
    for path in sorted(set(captions.values()) - {file for _, file in matched if file is not None}):
        report.skip("captions without image", path)
    pairs = (_pair(image, file, report) for image, file in matched)
    return [pair for pair in pairs if pair is not None]


def list_files(root: Path, report: DataReport, leave_out: Optional[Path] = None) -> Tuple[List[Path], List[Path]]:
    """Return images and caption files under `root`, each sorted, without hidden ones and the folder `leave_out`."""
    extensions = image_extensions()
    left_out = None if leave_out is None or _real(leave_out) == _real(root) else _real(leave_out)
    images, captions = [], []
    for path in _walk(root, (), left_out, report):
        extension = path.suffix.lower()
        if extension in extensions:
            images.append(path)
        elif extension == CAPTION_EXTENSION:
            captions.append(path)
    return sorted(images), sorted(captions)


def _walk(folder: Path, above: Tuple[str, ...], left_out: Optional[str], report: DataReport) -> Iterator[Path]:
    """Yield the files under `folder`; symbolic links are followed, but never back into a folder that is `above`."""
    real = _real(folder)
    if real in above or real == left_out:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        report.skip("unreadable folder", folder, str(error))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():  # a link to itself is no folder
            yield from _walk(folder / entry.name, (*above, real), left_out, report)
        else:
            yield folder / entry.name


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _key(path: Path, root: Path) -> PurePath:
    """The relative path without extension; composed, since file systems differ in how they store accents."""
    return PurePath(unicodedata.normalize("NFC", str(path.relative_to(root).with_suffix(""))))


def _caption_file(key: PurePath, captions: Dict[PurePath, Path]) -> Optional[Path]:
    if key in captions:
        return captions[key]
    for depth, name in enumerate(key.parts[:-1]):
        sibling = PurePath(*key.parts[:depth], name + SIBLING, *key.parts[depth + 1 :])
        if sibling in captions:
            return captions[sibling]
    return None


def _pair(image: Path, file: Optional[Path], report: DataReport) -> Optional[Pair]:
    """An image with the captions of its file, or `None` once it is reported as useless."""
    if file is None:
        report.skip("image without captions", image)
    elif is_empty(image):
        report.skip(EMPTY_FILE, image)
    else:
        captions = _read_captions(file, report)
        if captions:
            return Pair(image, captions)
    return None


def is_empty(image: Path) -> bool:
    """Whether a file has no bytes, or is a link to nothing."""
    try:
        return image.stat().st_size == 0
    except OSError:
        return True


def _read_captions(file: Path, report: DataReport) -> Tuple[str, ...]:
    """The captions of a file, one a line; none once it is reported as unreadable or empty."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            captions = tuple(caption for caption in map(clean_caption, lines) if caption)
    except (OSError, UnicodeDecodeError) as error:
        report.skip("unreadable caption file", file, str(error))
        return ()
    if not captions:
        report.skip("empty caption file", file)
    return captions
