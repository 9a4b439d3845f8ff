"""Our ids of CLIP's vocabulary beside those of DALLE-pytorch's `SimpleTokenizer`.

Ours reads the vocabulary's file from `open_clip`, theirs brings it along; `ftfy` cleans the texts of both.
"""

from __future__ import annotations

import random
import unicodedata
from typing import Any, List, Tuple

import pytest

from bpe.tokenizer import ClipTokenizer
from tests.peers.texts import random_texts, read_captions

PIECES = (
    *("'s", "'S", "'\u017f", "'ll", "'", "!", "!!", "?!", " ", "a", "Dog", "1", "23", "\u00bd", "\u0130", "\u03a3"),
    *("<|startoftext|>", "<|EndOfText|>", "<start_of_text>", "&amp;", "&lt;", "&amp;amp;", "&#28;", "</w>"),
    *("\u00e2\u20ac\u2122", "\ufb01", "\u201c", "\u3000"),
)
Pair = Tuple[Any, ClipTokenizer]


@pytest.fixture(scope="module")
def pair() -> Pair:
    from dalle_pytorch.tokenizer import SimpleTokenizer

    return SimpleTokenizer(), ClipTokenizer()


def without_zero(ids: List[int]) -> List[int]:
    """Theirs keeps id 0, which its DALLE takes for padding; ours leaves it out."""
    return [token for token in ids if token]


def assert_equal(pair: Pair, texts: List[str]) -> None:
    """Ids and what they decode to are equal."""
    theirs, ours = pair
    ids = [theirs.encode(text) for text in texts]
    assert [text for text, want in zip(texts, ids) if without_zero(want) != ours.encode(text)] == []
    decoded = [theirs.decode(row, remove_start_end=False).strip() for row in map(without_zero, ids)]
    assert [text for text, want, row in zip(texts, decoded, ids) if want != ours.decode(row)] == []


def test_captions_have_equal_ids(pair: Pair) -> None:
    assert pair[1].vocab_size == pair[0].vocab_size
    assert_equal(pair, read_captions())


def test_special_names_contractions_and_what_cleaning_changes_have_equal_ids(pair: Pair) -> None:
    rng = random.Random(0)
    assert_equal(pair, ["".join(rng.choices(PIECES, k=8)) for _ in range(5000)])


def test_random_texts_have_equal_ids(pair: Pair) -> None:
    """Of characters old enough for every edition of Unicode at hand: what is a letter changes from one to the next."""
    texts = random_texts(10000, 0, "abc'sSTRe\u017f0129\u00bd\u2460")
    old = unicodedata.ucd_3_2_0
    assert_equal(pair, ["".join(mark for mark in text if old.category(mark) != "Cn") for text in texts])
