"""YouTokenToMe models: the ids of youtokentome 1.0.6, as recorded by tests/peers/compare_youtokentome.py."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Dict, List

import pytest

from bpe.tokenizer import HuggingFaceTokenizer, load_tokenizer, tokenizer_from_json
from options import OptionError

RECORDED = json.loads(Path(__file__).with_name("recorded_youtokentome.json").read_text(encoding="utf-8"))
LINES = RECORDED["model"].splitlines()
CHARACTERS, RULES = map(int, LINES[0].split())


def write(folder: Path, lines: List[str]) -> str:
    path = folder / "bpe.model"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write(tmp_path, LINES)


def test_texts_have_the_ids_that_youtokentome_gives(path: str) -> None:
    tokenizer = load_tokenizer(path)
    texts = [text for text, _, _ in RECORDED["cases"]]
    ids = [ids for _, ids, _ in RECORDED["cases"]]
    assert len(texts) > 180 and any(1 in row for row in ids)
    assert tokenizer.encode_batch(texts) == ids
    assert [tokenizer.encode(text) for text in texts] == ids


def test_ids_decode_to_what_youtokentome_gives(path: str) -> None:
    tokenizer = load_tokenizer(path)
    assert [tokenizer.decode(ids) for _, ids, _ in RECORDED["cases"]] == [text for _, _, text in RECORDED["cases"]]


def test_decoding_passes_over_padding_and_shows_the_names_of_the_other_special_ids(path: str) -> None:
    tokenizer = load_tokenizer(path)
    words = tokenizer.encode("red dog")
    assert tokenizer.decode([0, *words, 0, 1, 2, 3, 400, 9999]) == "red dog<UNK><BOS><EOS>"


def test_the_vocabulary_is_as_large_as_youtokentome_says(path: str) -> None:
    assert load_tokenizer(path).vocab_size == CHARACTERS + RULES + 4 == 400


def test_a_tokenizer_comes_back_whole_from_its_json_without_the_file(path: str) -> None:
    tokenizer = load_tokenizer(path)
    Path(path).unlink()
    again = tokenizer_from_json(tokenizer.to_json())
    assert (again.identity, again.vocab_size) == (tokenizer.identity, tokenizer.vocab_size)
    assert [again.encode(text) for text, _, _ in RECORDED["cases"]] == [ids for _, ids, _ in RECORDED["cases"]]


def test_the_identity_rests_on_the_rules_and_not_on_the_order_of_the_characters(tmp_path: Path, path: str) -> None:
    identity = load_tokenizer(path).identity
    characters = LINES[1 : 1 + CHARACTERS]
    random.Random(0).shuffle(characters)
    assert load_tokenizer(write(tmp_path, [LINES[0], *characters, *LINES[1 + CHARACTERS :]])).identity == identity
    (letter, token), (other_letter, other_token) = (line.split() for line in LINES[1:3])
    swapped = [LINES[0], f"{letter} {other_token}", f"{other_letter} {token}", *LINES[3:]]
    assert load_tokenizer(write(tmp_path, swapped)).identity != identity


def test_a_model_with_lines_that_end_as_on_windows_is_read(tmp_path: Path, path: str) -> None:
    (tmp_path / "windows.model").write_bytes("\r\n".join([*LINES, ""]).encode())
    assert load_tokenizer(str(tmp_path / "windows.model")).identity == load_tokenizer(path).identity


def test_a_word_of_the_vocabulary_named_like_a_special_one_is_apart_from_it(tmp_path: Path) -> None:
    """As after training on captions that hold `<PAD>` often."""
    letters = ["\u2581", *"<PAD>"]
    characters = [f"{ord(letter)} {n + 4}" for n, letter in enumerate(dict.fromkeys(letters))]
    ids = {letter: n + 4 for n, letter in enumerate(dict.fromkeys(letters))}
    rules, piece = [], ids["<"]
    for n, letter in enumerate("PAD>"):
        rules.append(f"{piece} {ids[letter]} {4 + len(ids) + n}")
        piece = 4 + len(ids) + n
    model = [f"{len(characters)} {len(rules)}", *characters, *rules, "1 0 2 3"]
    tokenizer = load_tokenizer(write(tmp_path, model))
    assert tokenizer.encode("<PAD>") == [4, piece]
    assert tokenizer.decode([4, piece]) == "<PAD>"


@pytest.mark.parametrize("special", ["1 2 0 3", "0 1 2 3", "0 -1 2 3"])
def test_a_model_whose_padding_is_not_at_zero_is_refused(tmp_path: Path, special: str) -> None:
    padding = special.split()[1]
    with pytest.raises(OptionError, match=rf"bpe_path=.*bpe\.model has padding at id {padding} .*pad_id=0"):
        load_tokenizer(write(tmp_path, [*LINES[:-1], special]))


DAMAGE: Dict[str, Any] = {
    "cut": LINES[:-40],
    "longer than its first line says": [*LINES, "1"],
    "without rules": LINES[:1],
    "a word among the numbers": [*LINES[:-1], "1 0 two 3"],
    "a number too long": [*LINES[:-1], "1 0 2 " + "3" * 5000],
    "a rule of a piece that is not there": [*LINES[: 1 + CHARACTERS], "5 9999 999", *LINES[2 + CHARACTERS :]],
    "two ids alike": [*LINES[:-1], "1 0 2 2"],
    "an id out of range": [*LINES[:-1], "1 0 2 4000"],
    "a code point that is none": ["2 0", "9601 4", "1114112 5", "1 0 2 3"],
    "a negative code point": ["2 0", "9601 4", "-5 5", "1 0 2 3"],
    "a piece made twice": ["4 4", "9601 4", "97 5", "98 6", "99 7", "5 6 8", "8 7 9", "6 7 10", "5 10 11", "1 0 2 3"],
    "no mark of words": ["1 0", "97 4", "1 0 2 3"],
}


@pytest.mark.parametrize("lines", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_is_an_error_that_names_the_file(tmp_path: Path, lines: List[str]) -> None:
    with pytest.raises(
        OptionError, match=r"bpe_path=.*bpe\.model is no whole YouTokenToMe model: .*train the model again"
    ):
        load_tokenizer(write(tmp_path, lines))


def test_a_surrogate_among_the_characters_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"bpe_path=.*bpe\.model "):
        load_tokenizer(write(tmp_path, ["2 0", "9601 4", f"{0xD800} 5", "1 0 2 3"]))


def test_a_model_is_refused_where_a_hugging_face_json_is_asked_for(path: str) -> None:
    with pytest.raises(OptionError, match=r"bpe_path=.*bpe\.model is no JSON, but hug=True"):
        load_tokenizer(path, hug=True)
    assert isinstance(load_tokenizer(path), HuggingFaceTokenizer)
