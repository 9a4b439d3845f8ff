"""Reading vocabularies, and the one that comes with the program."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any, List

import pytest
import tokenizers

from bpe.tokenizer import HuggingFaceTokenizer, load_tokenizer, tokenizer_from_json
from options import OptionError

ROOT = Path(__file__).parents[2]
COCO_8192 = ROOT / "bpe" / "coco8192.json"
COCO_8192_IDS = {
    "A man riding a wave on top of a surfboard.": [65, 311, 469, 257, 806, 273, 394, 275, 257, 721, 14],
    "Two dogs, one frisbee: 1.5 metres!": [374, 1040, 12, 696, 763, 26, 1999, 14, 21, 849, 4824, 1],
    "Caf\u00e9 \u732b \U0001f415": [2250, 70, 128, 103, 221, 164, 235, 105, 221, 173, 254, 239, 244],
}
ODD_TEXTS = [
    "",
    " two  spaces\tand\r\nlines ",
    "\x00\x7f\u200b\ufeff\U0010ffff",
    "CAFE\u0301 J\u030c \u0130 \u212a",  # composed, composed only in lower case, lengthened by lower case, Kelvin
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0e01\u0e33 \u05e9\u05c1 \ud55c\uae00",
    "<pad> <PAD>",
]


def word_level(words: List[str], **parts: Any) -> str:
    """A tokenizer JSON whose words, parted by spaces, have the ids 0, 1, ..."""
    model = {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(words)}, "unk_token": "[UNK]"}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}
    return json.dumps({**whole, **parts})


def test_the_coco_vocabulary_has_8192_ids_and_gives_the_recorded_ones() -> None:
    tokenizer = load_tokenizer(str(COCO_8192))
    assert tokenizer.vocab_size == 8192
    assert {text: tokenizer.encode(text) for text in COCO_8192_IDS} == COCO_8192_IDS
    assert tokenizer.encode_batch(list(COCO_8192_IDS)) == list(COCO_8192_IDS.values())


def test_the_readme_names_the_digest_of_the_coco_vocabulary() -> None:
    digest = hashlib.sha256(COCO_8192.read_bytes()).hexdigest()
    assert digest in (ROOT / "bpe" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_decoding_what_was_encoded_gives_the_text_in_lower_case_and_nfc(text: str) -> None:
    tokenizer = load_tokenizer(str(COCO_8192))
    ids = tokenizer.encode(text)
    assert all(0 < token < 8192 for token in ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text.lower())
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_decoding_passes_over_padding_and_ids_beyond_the_vocabulary() -> None:
    tokenizer = load_tokenizer(str(COCO_8192))
    first, *rest = tokenizer.encode("a dog")
    assert tokenizer.decode([0, first, 0, *rest, 8192, 9000, 0, 0]) == "a dog"


@pytest.mark.parametrize("padding", ["<pad>", "[PAD]", "[UNK]", "<|endoftext|>"])
def test_a_vocabulary_with_a_special_token_at_zero_never_gives_it(padding: str) -> None:
    tokenizer = HuggingFaceTokenizer(word_level([padding, "a", "dog"]).replace("[UNK]", padding))
    assert tokenizer.encode(f"a {padding} strange dog") == [1, 2]


def test_a_token_marked_special_may_be_at_zero_whatever_its_name() -> None:
    special = {"id": 0, "content": "blank", "single_word": False, "lstrip": False, "rstrip": False}
    text = word_level(["blank", "dog"], added_tokens=[{**special, "normalized": False, "special": True}])
    assert HuggingFaceTokenizer(text).encode("blank dog") == [1]


def test_ids_need_not_begin_at_zero_nor_be_without_gaps() -> None:
    model = {"type": "WordLevel", "vocab": {"a": 3, "dog": 7}, "unk_token": "[UNK]"}
    tokenizer = HuggingFaceTokenizer(word_level([], model=model))
    assert tokenizer.vocab_size == 8
    assert tokenizer.decode(tokenizer.encode("a dog")) == "a dog"


def test_a_word_at_zero_is_an_error_that_names_the_file_the_word_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(word_level(["cat", "dog"]))
    with pytest.raises(OptionError, match=r"bpe_path=.*words\.json gives id 0 to the word 'cat'.*python -m bpe\.train"):
        load_tokenizer(str(path))


@pytest.mark.parametrize("content", [b"", b"a dog", b"{}", b"[1]", b'{"annotations": []}', b"\xff\xfe\x00", None])
def test_what_is_no_tokenizer_json_is_an_error_that_names_option_and_file(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "no.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=r"bpe_path=.*no\.json .*python -m bpe\.train"):
        load_tokenizer(str(path))


def test_truncation_padding_and_start_tokens_of_the_file_do_not_touch_the_ids() -> None:
    words = ["<pad>", "<s>", "a", "dog"]
    tokenizer = tokenizers.Tokenizer.from_str(word_level(words))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9, pad_id=3)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    ours = HuggingFaceTokenizer(tokenizer.to_str())
    assert ours.encode("a dog a dog") == [2, 3, 2, 3]
    assert ours.encode_batch(["a", "a dog a dog"]) == [[2], [2, 3, 2, 3]]
    assert ours.identity == HuggingFaceTokenizer(word_level(words)).identity


def test_the_identity_changes_with_what_defines_the_ids() -> None:
    texts = [
        word_level(["<pad>", "a", "dog"]),
        word_level(["<pad>", "dog", "a"]),
        word_level(["<pad>", "a", "dog"], normalizer={"type": "Lowercase"}),
        word_level(["<pad>", "a", "dog"], pre_tokenizer={"type": "Whitespace"}),
    ]
    assert len({HuggingFaceTokenizer(text).identity for text in texts}) == len(texts)


def test_a_tokenizer_comes_back_whole_from_its_json() -> None:
    tokenizer = load_tokenizer(str(COCO_8192))
    again = tokenizer_from_json(tokenizer.to_json())
    assert type(again) is type(tokenizer)
    assert (again.identity, again.vocab_size) == (tokenizer.identity, tokenizer.vocab_size)
    assert again.encode("adog") == tokenizer.encode("adog") != []


def test_a_file_written_with_other_spaces_has_the_same_identity(tmp_path: Path) -> None:
    path = tmp_path / "spaced.json"
    path.write_text(json.dumps(json.loads(COCO_8192.read_text(encoding="utf-8")), indent=1), encoding="utf-8-sig")
    assert load_tokenizer(str(path)).identity == load_tokenizer(str(COCO_8192)).identity


def test_a_hugging_face_json_can_be_insisted_on(tmp_path: Path) -> None:
    assert load_tokenizer(str(COCO_8192), hug=True).identity == load_tokenizer(str(COCO_8192)).identity
    with pytest.raises(OptionError, match=r"hug=True .*--bpe-path"):
        load_tokenizer(None, hug=True)
    (tmp_path / "words.txt").write_text("a dog")
    with pytest.raises(OptionError, match=r"bpe_path=.*words\.txt is no JSON, but hug=True .*leave --hug out"):
        load_tokenizer(str(tmp_path / "words.txt"), hug=True)


def test_a_forked_worker_encodes_without_hanging_or_warning() -> None:
    script = (
        "import os; from bpe.tokenizer import load_tokenizer\n"
        "tokenizer = load_tokenizer('bpe/coco8192.json'); texts = ['a dog'] * 1000\n"
        "ids = tokenizer.encode_batch(texts); child = os.fork()\n"
        "if not child: os._exit(tokenizer.encode_batch(texts) != ids)\n"
        "assert os.waitpid(child, 0)[1] == 0"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env={**environment, "PYTHONPATH": "."}, timeout=60, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
