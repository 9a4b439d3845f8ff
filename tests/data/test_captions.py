"""Cleaning and tokenising captions."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

import pytest

from data.caption_table import CaptionTable
from data.captions import Pair, clean_caption
from data.report import DataReport


class WordTokenizer:
    """A word's id is its length; stop words have none."""

    def encode(self, text: str) -> List[int]:
        return [len(word) for word in text.split() if word != "the"]

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        return [self.encode(text) for text in texts]


@pytest.mark.parametrize(
    "raw, clean",
    {
        "  a  dog\t runs ": "a dog runs",
        "a dog\nand\r\na cat": "a dog and a cat",
        "one\u2028two\u2029three\x85four\x0bfive\x0csix": "one two three four five six",
        "a\x00b\x07 c\x1bd": "a b c d",
        "\ufeffsoft\u00adhy\u2060phen\u200d": "softhyphen",
        "two\u200bwords": "two words",
        "no\u00a0break\u3000wide": "no break wide",
        "a dog , a cat ; a cow .": "a dog, a cat; a cow.",
        "wait . . .": "wait...",
        "half a mile is .5 mile, says .NET": "half a mile is .5 mile, says .NET",
        "cafe\u0301": "caf\u00e9",
        "lone \ud800 surrogate": "lone surrogate",
        "\u2603 \U0001f415": "\u2603 \U0001f415",
        " \n\t": "",
    }.items(),
)
def test_a_caption_becomes_one_clean_line(raw: str, clean: str) -> None:
    assert clean_caption(raw) == clean
    assert clean_caption(clean) == clean


def pairs_of(captions: Dict[str, List[str]]) -> List[Pair]:
    return [Pair(Path(name), tuple(texts)) for name, texts in captions.items()]


def test_tokens_are_those_of_the_chosen_caption_padded_with_zeros() -> None:
    pairs = pairs_of({"a.png": ["a big dog", "dog"], "b.png": ["two cats"]})
    table = CaptionTable(pairs, WordTokenizer(), 4, DataReport())
    assert [table.count(pair) for pair in range(len(table))] == [2, 1]
    assert table.tokens(0, 0).tolist() == [1, 3, 3, 0]
    assert table.tokens(0, 1).tolist() == [3, 0, 0, 0]
    assert table.tokens(1, 0).tolist() == [3, 4, 0, 0]


def test_captions_of_several_batches_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.caption_table._ENCODED_AT_ONCE", 2)
    pairs = pairs_of({str(n): ["x" * n] * 2 for n in range(1, 6)})
    table = CaptionTable(pairs, WordTokenizer(), 1, DataReport())
    assert [table.tokens(pair, 1).item() for pair in range(5)] == [1, 2, 3, 4, 5]


def test_an_over_long_caption_is_cut_and_counted_when_that_is_asked_for() -> None:
    report = DataReport()
    table = CaptionTable(pairs_of({"a.png": ["a b c d", "a b c"]}), WordTokenizer(), 3, report)
    assert table.tokens(0, 0).tolist() == [1, 1, 1]
    assert table.cut == 1
    assert sum(report.notes.values()) == 1


def test_an_over_long_caption_is_otherwise_refused_by_name_length_limit_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"a\.png has 4 tokens, text_seq_len=3; .*--truncate-captions.*text_seq_len"):
        CaptionTable(pairs_of({"a.png": ["a b c d"]}), WordTokenizer(), 3, DataReport(), truncate=False)


def test_a_caption_that_tokenises_to_nothing_counts_as_none() -> None:
    report = DataReport()
    table = CaptionTable(pairs_of({"a.png": ["the"], "b.png": ["the", "dog"]}), WordTokenizer(), 3, report)
    assert [table.count(pair) for pair in range(2)] == [0, 1]
    assert table.tokens(1, 0).tolist() == [3, 0, 0]
    assert report.notes == {"caption that tokenises to nothing": 2}
