"""CLIP's vocabulary. Its file and `ftfy` are not asked for by the tests; where they lack, small ones stand in."""

from __future__ import annotations

import gzip
import sys
import types
from pathlib import Path
from typing import List

import pytest

from bpe import clip
from bpe.tokenizer import ClipTokenizer, load_tokenizer, tokenizer_from_json
from options import OptionError

PAIRS = ["t h", "th e</w>", "d o", "do g</w>", "! !</w>", "? !"]
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that stand for themselves, in the order of ids


def inside(letter: str) -> int:
    """The id of a printable byte inside a word; at a word's end it is 256 more."""
    return BYTES.index(ord(letter))


@pytest.fixture
def ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("ftfy")
    module.fix_text = lambda text: text.replace("\u201c", '"')  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ftfy", module)


@pytest.fixture
def open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ftfy: None) -> Path:
    """An `open_clip` that cannot be imported, with a vocabulary of six pairs."""
    folder = tmp_path / "open_clip"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('this package is not to be imported')")
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *PAIRS]).encode()))
    monkeypatch.setattr(clip, "_PAIRS", len(PAIRS))
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def test_ids_are_bytes_then_bytes_at_a_words_end_then_pairs_then_names(open_clip: Path) -> None:
    tokenizer = load_tokenizer(None)
    assert tokenizer.vocab_size == 512 + len(PAIRS) + 2
    assert tokenizer.encode("the dog") == [513, 515]
    assert tokenizer.encode("thx") == [512, 256 + inside("x")]
    assert tokenizer.encode("<|startoftext|> a<|endoftext|>") == [518, 256 + inside("a"), 519]


@pytest.mark.parametrize(
    "text, words",
    [
        ("don't", ["don", "'t"]),
        ("a12", ["a", "1", "2"]),
        ("it'S caf\u00e9?!", ["it", "'s", "caf\u00e9", "?!"]),
        ("\u201cA\u201c &amp;amp;lt; B\t\n", ['"', "a", '"', "&", "lt", ";", "b"]),
        ("?<|startoftext|>", ["?<|", "startoftext", "|>"]),
        ("  ", []),
    ],
)
def test_texts_are_cleaned_and_parted_as_clip_does(open_clip: Path, text: str, words: List[str]) -> None:
    tokenizer = load_tokenizer(None)
    assert tokenizer.decode(tokenizer.encode(text)).split() == words


def test_the_mark_at_id_zero_is_left_out(open_clip: Path) -> None:
    tokenizer = load_tokenizer(None)
    assert tokenizer.encode("!.") == [256 + inside(".")]
    assert tokenizer.decode([0, 513, 520, 9999]) == "the"


def test_decoding_gives_the_words_parted_by_spaces(open_clip: Path) -> None:
    tokenizer = load_tokenizer(None)
    assert tokenizer.decode(tokenizer.encode("The Dog, \u732b!")) == "the dog , \u732b !"
    assert tokenizer.decode([inside("\u00e7")]) == "\ufffd"  # the first of three bytes alone


def test_a_tokenizer_comes_back_from_its_name(open_clip: Path) -> None:
    tokenizer = load_tokenizer(None)
    again = tokenizer_from_json(tokenizer.to_json())
    assert isinstance(again, ClipTokenizer)
    assert (again.identity, again.vocab_size) == (tokenizer.identity, tokenizer.vocab_size)
    assert again.encode_batch(["the dog", "a"]) == [[513, 515], [256 + inside("a")]]


def test_a_missing_open_clip_is_an_error_that_names_both_remedies(monkeypatch: pytest.MonkeyPatch, ftfy: None) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(OptionError, match="bpe_path=None.*pip install open_clip_torch.*--bpe-path"):
        load_tokenizer(None)


def test_a_missing_ftfy_is_an_error_that_names_both_remedies(open_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(OptionError, match="bpe_path=None.*ftfy.*pip install open_clip_torch.*--bpe-path"):
        load_tokenizer(None)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no gzip", gzip.compress(b"#\nt h\nt\n" * 9), gzip.compress(b"a b\n" * 99)[:-9]],
    ids=["absent", "empty", "no-gzip", "a-torn-pair", "cut-off"],
)
def test_an_unusable_file_is_an_error_that_names_it(open_clip: Path, content: bytes) -> None:
    open_clip.unlink() if content is None else open_clip.write_bytes(content)
    with pytest.raises(OptionError, match=r"bpe_path=None.*bpe_simple_vocab_16e6\.txt\.gz.*pip install"):
        load_tokenizer(None)


def test_clip_gives_the_ids_of_its_published_vocabulary() -> None:
    pytest.importorskip("ftfy")
    pytest.importorskip("open_clip")
    tokenizer = load_tokenizer(None)
    assert tokenizer.vocab_size == 49408
    assert tokenizer.encode("A photo  of a Dog!") == [320, 1125, 539, 320, 1929, 256]
    assert tokenizer.decode(tokenizer.encode("A photo of a Dog!")) == "a photo of a dog !"
