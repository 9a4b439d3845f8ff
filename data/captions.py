"""Captions: cleaned to one line each, and what turns them into ids."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import List, NamedTuple, Protocol, Tuple

from data.report import DataError, DataReport, PathLike

# A zero-width space parts words, as control characters do; the other invisible ones (joiners, marks of direction, soft
# hyphens, byte-order marks, lone surrogates) stand inside words.
_PARTING = re.compile("[\x00-\x1f\x7f-\x9f\u200b]")
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_SPACE_BEFORE_PUNCTUATION = re.compile(r" +([,;]|\.(?!\w))")  # ".5" and ".NET" keep theirs


class Pair(NamedTuple):
    """An image with its captions."""

    image: Path
    captions: Tuple[str, ...]


class Tokenizer(Protocol):
    """What turns captions into ids. 0 is padding and stands for no token."""

    def encode(self, text: str) -> List[int]:
        """Ids of one caption."""

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        """Ids of several captions."""


def clean_caption(text: str) -> str:
    """Return `text` as one line in NFC without line breaks, control or invisible characters and stray spaces."""
    text = _INVISIBLE.sub("", _PARTING.sub(" ", text))
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return _SPACE_BEFORE_PUNCTUATION.sub(r"\1", text)


def fitted(ids: List[int], text_seq_len: int, image: PathLike, report: DataReport, truncate: bool) -> List[int]:
    """The ids of a caption of `image`, cut to `text_seq_len` and noted when there are more.

    Raises:
        DataError: there are more, and `truncate` is off.
    """
    if len(ids) <= text_seq_len:
        return ids
    if not truncate:
        raise DataError(
            f"a caption of {os.fspath(image)} has {len(ids)} tokens, text_seq_len={text_seq_len}; cut such captions "
            "with --truncate-captions, or raise text_seq_len"
        )
    report.note("image with a caption cut to text_seq_len", path=image)
    return ids[:text_seq_len]
