"""Our ids of a vocabulary of BERT beside those of `BertTokenizer`, which DALLE-pytorch's `--chinese` uses.

The vocabulary is made: it has the special words where bert-base-chinese has them. `transformers` has to be below 5.
`python -m tests.peers.compare_chinese_vocabulary` records the ids that tests/bpe/test_chinese.py holds ours to.
"""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from bpe.tokenizer import Tokenizer, load_tokenizer
from tests.bpe.chinese_words import HAN, WORDS
from tests.peers.texts import SPACES, make_captions, random_texts

RECORDED = Path(__file__).resolve().parents[1] / "bpe" / "recorded_chinese.json"
PIECES = ("[MASK]", "[PAD]", "[UNK]", "[mask]", "[", "]", " ", "a", "dog", ".", "'s", "' ", "don't", *HAN[:3])
Pair = Tuple[Any, Tokenizer]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return make_theirs(path), load_tokenizer(str(path), chinese=True)


def make_theirs(path: Path) -> Any:
    from transformers import BertTokenizer

    return BertTokenizer(str(path), do_lower_case=False)  # as the settings of bert-base-chinese say


def make_texts(count: int) -> List[str]:
    """Of characters that Unicode has had since 2002: later ones are known to some editions of it alone."""
    rng = random.Random(0)
    chinese = ["".join(rng.choices([*HAN, *"\u3001\u3002 aB1"], k=rng.randint(1, 30))) for _ in range(count)]
    special = ["".join(rng.choices(PIECES, k=8)) for _ in range(count)]
    old = unicodedata.ucd_3_2_0
    mixed = ["".join(c for c in text if old.category(c) != "Cn") for text in random_texts(count, 0, "".join(HAN))]
    return [*make_captions(count), *chinese, *special, *mixed]


def encode(theirs: Any, text: str) -> List[int]:
    """Their ids without padding, which they give for a caption that holds its name."""
    return [token for token in theirs.encode(text, add_special_tokens=False) if token]


def test_texts_have_equal_ids_and_decode_equally(pair: Pair) -> None:
    theirs, ours = pair
    texts = make_texts(4000)
    ids = [encode(theirs, text) for text in texts]
    assert ours.vocab_size == theirs.vocab_size
    assert [text for text, want, got in zip(texts, ids, ours.encode_batch(texts)) if want != got] == []
    assert [text for text, row in zip(texts, ids) if theirs.decode(row) != ours.decode(row)] == []


def test_what_is_recorded_is_what_transformers_gives(pair: Pair) -> None:
    for text, ids, decoded in json.loads(RECORDED.read_text(encoding="utf-8")):
        assert (encode(pair[0], text), pair[0].decode(ids)) == (ids, decoded)


def record(folder: Path) -> None:
    """Write texts with their ids and what those decode to."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    theirs = make_theirs(folder / "vocab.txt")
    texts = [*make_texts(20), *(f"a{space}dog" for space in SPACES), "e\u0301 \u00e9 E\u0301", "x" * 101, "dogs" * 26]
    cases = [(text, ids, theirs.decode(ids)) for text in texts for ids in [encode(theirs, text)]]
    lines = ",\n".join(json.dumps(case) for case in cases)
    RECORDED.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        record(Path(temporary))
