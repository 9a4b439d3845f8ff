"""BERT's Chinese vocabulary, turned into the JSON of Hugging Face `tokenizers` that gives the same ids.

Its file, `vocab.txt`, holds a word a line; a line's number, from 0 on, is the word's id. Every Chinese character is a
word of its own. The others end at spaces and punctuation marks and are cut, from the left, into the longest pieces that
the file has; a piece that does not begin a word stands there with `##` before it. Capitals and accents stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

from options import OptionError

_REPOSITORY, _FILE = "bert-base-chinese", "vocab.txt"
_PADDING, _UNKNOWN = "[PAD]", "[UNK]"
_SPECIAL = (_PADDING, _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
# Decoding takes the space before these away, in this order, and those on both sides of an apostrophe.
_CLOSING = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")


def is_vocabulary(text: str) -> bool:
    """Whether a text begins as BERT's vocabularies do."""
    return text.startswith(f"{_PADDING}\n")


def fetch() -> str:
    """The tokenizer JSON of bert-base-chinese's vocabulary, from Hugging Face's hub or from an earlier fetch.

    Raises:
        OptionError: the hub cannot be reached, or the package that does it is not installed.
    """
    remedy = (
        f"fetch https://huggingface.co/{_REPOSITORY}/resolve/main/{_FILE} where there is a network and give the file "
        f"with --chinese --bpe-path {_FILE}"
    )
    try:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
    except ImportError as error:
        raise OptionError(
            f"chinese=True needs a vocabulary ({error}); pip install huggingface_hub, or {remedy}"
        ) from None
    try:
        kept = try_to_load_from_cache(_REPOSITORY, _FILE)  # without asking the hub whether it has a newer one
        path = kept if isinstance(kept, str) else hf_hub_download(_REPOSITORY, _FILE)
    except Exception as error:  # each version of that package has classes of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OptionError(f"chinese=True needs a vocabulary that the hub does not give ({reason}); {remedy}") from None
    return as_tokenizer_json(Path(path).read_text(encoding="utf-8"))


def as_tokenizer_json(text: str) -> str:
    """The tokenizer JSON with the ids of the vocabulary in `text`.

    Raises:
        ValueError: `text` is no such vocabulary.
    """
    words = text[:-1].split("\n") if text.endswith("\n") else text.split("\n")
    vocabulary = {word: token for token, word in enumerate(words)}
    if words[0] != _PADDING or _UNKNOWN not in vocabulary:
        raise ValueError(
            f"is no vocabulary of BERT, which begins with the line {_PADDING} and has a line {_UNKNOWN}; give the "
            f"{_FILE} of {_REPOSITORY}"
        )
    # The pieces of a text are those of `normalizer`, then of `pre_tokenizer`. As in BERT, a special word that a text
    # holds is itself and not cut at its brackets.
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    clean = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    unassigned = _replace({"Regex": r"\p{Cn}"}, "")  # which BERT's own cleaning leaves out, and `tokenizers` does not
    normalizers = [unassigned, {**clean, "strip_accents": False, "lowercase": False}, {"type": "NFC"}]
    closing = [_replace({"String": f" {mark}"}, mark) for mark in _CLOSING]
    closing.insert(4, _replace({"String": " ' "}, "'"))
    decoders = [{"type": "WordPiece", "prefix": "##", "cleanup": False}, {"type": "Fuse"}, *closing]
    layout = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[word], "content": word, **added} for word in _SPECIAL if word in vocabulary],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "WordPiece",
            "unk_token": _UNKNOWN,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }
    return json.dumps(layout, ensure_ascii=False)


def _replace(pattern: Dict[str, str], content: str) -> Dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}
