"""Our ids beside those of the youtokentome package, for models that it has trained itself.

`python -m tests.peers.compare_youtokentome` records the small model and the ids that tests/bpe/test_youtokentome.py
holds ours to.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from bpe.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from tests.peers.texts import SPACES, make_captions, random_texts, read_captions

RECORDED = Path(__file__).resolve().parents[1] / "bpe" / "recorded_youtokentome.json"
SMALL_MODELS: Dict[str, Dict[str, Any]] = {
    "rare characters left out": {"coverage": 0.98},
    "neither start nor end": {"bos_id": -1, "eos_id": -1},
    "special ids among the others": {"unk_id": 40, "bos_id": 7, "eos_id": 301},
}
Pair = Tuple[Any, Tokenizer]


def train(folder: Path, captions: List[str], vocab_size: int, **options: Any) -> Pair:
    """A model of youtokentome, and ours read from its file."""
    import youtokentome

    source, model = folder / "captions.txt", folder / "bpe.model"
    source.write_text("\n".join(" ".join(caption.split()) for caption in captions), encoding="utf-8")
    theirs = youtokentome.BPE.train(str(source), str(model), vocab_size, n_threads=1, **options)
    return theirs, load_tokenizer(str(model))


def alphabet_of(theirs: Any) -> str:
    return "".join(sorted(piece for piece in theirs.vocab() if len(piece) == 1))


def assert_equal(pair: Pair, texts: List[str]) -> None:
    """Ids and what they decode to are equal, for all texts at once and one by one."""
    theirs, ours = pair
    ids = theirs.encode(texts)
    assert [text for text, want, got in zip(texts, ids, ours.encode_batch(texts)) if want != got] == []
    assert [text for text, want in zip(texts, ids) if want != ours.encode(text)] == []
    decoded = theirs.decode(ids, ignore_ids={0})
    assert [text for text, want, got in zip(texts, decoded, ids) if want != ours.decode(got)] == []


@pytest.fixture(scope="module")
def captions() -> List[str]:
    return read_captions()


@pytest.fixture(scope="module")
def pair(captions: List[str], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return train(tmp_path_factory.mktemp("model"), captions, 8192)


def test_captions_have_equal_ids_and_come_back_from_them(pair: Pair, captions: List[str]) -> None:
    theirs, ours = pair
    assert isinstance(ours, HuggingFaceTokenizer)
    assert ours.vocab_size == theirs.vocab_size()
    assert_equal(pair, captions)
    texts = [" ".join(caption.split()) for caption in captions]
    assert [ours.decode(ids) for ids in theirs.encode(captions)] == texts


def test_10000_random_texts_have_equal_ids(pair: Pair) -> None:
    assert_equal(pair, random_texts(10000, 0, alphabet_of(pair[0])))


def test_every_character_has_equal_ids_between_two_letters(pair: Pair) -> None:
    assert_equal(pair, [f"a{chr(code)}a {chr(code)}" for code in range(0x110000) if not 0xD800 <= code < 0xE000])


def test_a_word_of_100000_characters_has_equal_ids(pair: Pair) -> None:
    assert_equal(pair, ["a" * 100001, "the\u732b" * 25000])


def test_random_ids_decode_to_equal_texts(pair: Pair) -> None:
    theirs, ours = pair
    rng = random.Random(1)
    rows = [[rng.randrange(theirs.vocab_size()) for _ in range(rng.randint(1, 20))] for _ in range(5000)]
    decoded = theirs.decode(rows, ignore_ids={0})
    assert [row for row, want in zip(rows, decoded) if want != ours.decode(row)] == []


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_models_of_other_settings_give_equal_ids(name: str, captions: List[str], tmp_path: Path) -> None:
    texts = [*captions[:2000], "caf\u00e9 \u732b\U0001f415 ~"]
    pair = train(tmp_path, texts, 600, **SMALL_MODELS[name])
    assert pair[1].vocab_size == pair[0].vocab_size()
    assert_equal(pair, texts + random_texts(3000, 1, alphabet_of(pair[0])))


def test_models_of_two_letters_give_equal_ids(tmp_path: Path) -> None:
    rng = random.Random(2)
    words = ["".join(rng.choices("ab", k=rng.randint(1, 25))) for _ in range(2000)]
    texts = [" ".join(rng.choices(words, k=6)) for _ in range(1000)]
    assert_equal(train(tmp_path, texts, 2000), texts + random_texts(3000, 2, "ab"))


def test_what_is_recorded_is_what_youtokentome_gives(tmp_path: Path) -> None:
    import youtokentome

    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    (tmp_path / "bpe.model").write_text(recorded["model"], encoding="utf-8")
    theirs = youtokentome.BPE(str(tmp_path / "bpe.model"), n_threads=1)
    ids = theirs.encode([text for text, _, _ in recorded["cases"]])
    assert ids == [row for _, row, _ in recorded["cases"]]
    assert theirs.decode(ids, ignore_ids={0}) == [decoded for _, _, decoded in recorded["cases"]]


def record() -> None:
    """Write a model of 400 ids, and texts with their ids and what those decode to."""
    captions = [*make_captions(2000), "caf\u00e9 \u732b\U0001f415 ~ <UNK> <PAD>"]
    with tempfile.TemporaryDirectory() as folder:
        theirs, _ = train(Path(folder), captions, 400)
        model = (Path(folder) / "bpe.model").read_text(encoding="utf-8")
    texts = [
        *captions[:40],
        *(f"a{space}{space}dog{space}" for space in SPACES),
        *("", " ", "\u2581", "\u2581a\u2581\u2581dog", "<UNK>", "<PAD> <BOS>", "<UNK >", "aaaaaaa", "e\u0301\u00e9"),
        *("\u72ac\u72ac", "\u72aca\u72ac", "a \u72ac", "\U0001f408\U0001f415", "\U0010ffff", "\ufdd0\ufffe", "\r\n"),
        *random_texts(120, 3, alphabet_of(theirs)),
    ]
    ids = theirs.encode(texts)
    cases = [list(case) for case in zip(texts, ids, theirs.decode(ids, ignore_ids={0}))]
    lines = ",\n".join(json.dumps(case) for case in cases)
    RECORDED.write_text(f'{{"model": {json.dumps(model)},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    record()
