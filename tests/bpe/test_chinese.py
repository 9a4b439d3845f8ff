"""BERT's Chinese vocabulary: ids of transformers 4.57.6, as recorded by tests/peers/compare_chinese_vocabulary.py."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any, List

import pytest

from bpe.tokenizer import load_tokenizer, tokenizer_from_json
from options import OptionError
from tests.bpe.chinese_words import HAN, WORDS

RECORDED = json.loads(Path(__file__).with_name("recorded_chinese.json").read_text(encoding="utf-8"))
COCO_8192 = Path(__file__).parents[2] / "bpe" / "coco8192.json"


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return str(file)


class Hub:
    """A `huggingface_hub` that has the file, or keeps one of an earlier fetch, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: List[Any] = []
        self.kept: Any = None
        self.given: Any = None
        module = types.ModuleType("huggingface_hub")
        module.hf_hub_download = self.download  # type: ignore[attr-defined]
        module.try_to_load_from_cache = lambda *_: self.kept  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "huggingface_hub", module)

    def download(self, *arguments: str) -> str:
        self.asked.append(arguments)
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_texts_have_the_ids_that_berts_tokenizer_gives(path: str) -> None:
    tokenizer = load_tokenizer(path, chinese=True)
    texts, ids = [text for text, _, _ in RECORDED], [ids for _, ids, _ in RECORDED]
    assert len(texts) > 80
    assert tokenizer.encode_batch(texts) == ids
    assert [tokenizer.encode(text) for text in texts] == ids


def test_ids_decode_to_what_berts_tokenizer_gives(path: str) -> None:
    tokenizer = load_tokenizer(path, chinese=True)
    assert [tokenizer.decode(ids) for _, ids, _ in RECORDED] == [decoded for _, _, decoded in RECORDED]


def test_every_chinese_character_is_a_word_and_capitals_stay(path: str) -> None:
    tokenizer = load_tokenizer(path, chinese=True)
    assert tokenizer.vocab_size == len(WORDS)
    assert tokenizer.encode(f"{HAN[5]}{HAN[6]}A") == [WORDS.index(word) for word in (HAN[5], HAN[6], "A")]
    assert tokenizer.encode("A") != tokenizer.encode("a")


def test_a_caption_that_holds_the_name_of_padding_does_not_give_id_0(path: str) -> None:
    assert load_tokenizer(path, chinese=True).encode("a[PAD]dog") == [WORDS.index("a"), WORDS.index("dog")]


def test_a_tokenizer_comes_back_whole_from_its_json_without_the_file(path: str) -> None:
    tokenizer = load_tokenizer(path, chinese=True)
    Path(path).unlink()
    again = tokenizer_from_json(tokenizer.to_json())
    assert (again.identity, again.vocab_size) == (tokenizer.identity, tokenizer.vocab_size)
    assert [again.encode(text) for text, _, _ in RECORDED] == [ids for _, ids, _ in RECORDED]


def test_a_tokenizer_json_is_read_as_it_is() -> None:
    assert load_tokenizer(str(COCO_8192), chinese=True).identity == load_tokenizer(str(COCO_8192)).identity


def test_without_a_file_the_vocabulary_comes_from_the_hub(hub: Hub, path: str) -> None:
    hub.given = path
    assert load_tokenizer(None, chinese=True).identity == load_tokenizer(path, chinese=True).identity
    assert hub.asked == [("bert-base-chinese", "vocab.txt")]


def test_a_vocabulary_of_an_earlier_fetch_needs_no_network(hub: Hub, path: str) -> None:
    hub.kept = path
    assert load_tokenizer(None, chinese=True).identity == load_tokenizer(path, chinese=True).identity
    assert hub.asked == []


@pytest.mark.parametrize("failure", [OSError("no route"), ValueError("not found\nnor there"), RuntimeError()])
def test_an_unreachable_hub_is_an_error_that_names_the_file_to_fetch_and_the_option(
    hub: Hub, failure: Exception
) -> None:
    hub.given = failure
    with pytest.raises(
        OptionError, match=r"^chinese=True .*bert-base-chinese/.*vocab\.txt.* --chinese --bpe-path vocab"
    ):
        load_tokenizer(None, chinese=True)


def test_a_missing_hub_package_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OptionError, match=r"chinese=True .*pip install huggingface_hub.*--bpe-path vocab\.txt"):
        load_tokenizer(None, chinese=True)


@pytest.mark.parametrize("words", [["[PAD]", "a"], ["[UNK]", "[PAD]"], ["1 2", "3 4"], [""]])
def test_another_file_is_refused_with_the_name_of_the_right_one(tmp_path: Path, words: List[str]) -> None:
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    with pytest.raises(OptionError, match=r"bpe_path=.*words\.txt is no vocabulary of BERT.*vocab\.txt"):
        load_tokenizer(str(tmp_path / "words.txt"), chinese=True)


def test_berts_file_without_the_option_is_an_error_that_names_it(path: str) -> None:
    with pytest.raises(OptionError, match=r"bpe_path=.*vocab\.txt is a vocabulary of BERT; add --chinese"):
        load_tokenizer(path)
