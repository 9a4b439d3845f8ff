"""The files and folders that the options of the data name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from data.report import DataError, PathLike

MANIFEST = "encoded.json"
"""What a folder of encoded pictures is recognised by; see `data.encoded_format`."""


def named_path(name: str, value: Optional[str]) -> Path:
    """The file or folder that the option `name` has as its value.

    Raises:
        DataError: there is none.
    """
    if value is None:
        raise DataError(f"{name} is not set; give the dataset's folder with --{name.replace('_', '-')}")
    path = Path(os.path.abspath(os.path.expanduser(value)))
    if not path.exists():
        raise DataError(f"{name}={value} does not exist; check the path (looked for {path})")
    return path


def named_folder(name: str, value: Optional[str]) -> Path:
    """As `named_path`, a folder of pictures or captions.

    Raises:
        DataError: it is no folder, or one of encoded pictures.
    """
    path = named_path(name, value)
    if not path.is_dir():
        raise DataError(f"{name}={value} is no folder; give the folder that holds the files")
    if is_encoded(path):
        raise DataError(
            f"{name}={value} holds encoded pictures, which train.py and evaluate.py take, and this needs the pictures "
            "themselves; give their folder"
        )
    return path


def is_encoded(folder: Optional[PathLike]) -> bool:
    """Whether a folder holds encoded pictures."""
    return folder is not None and (Path(folder).expanduser() / MANIFEST).is_file()
