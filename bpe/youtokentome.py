"""YouTokenToMe model files, turned into the JSON of Hugging Face `tokenizers` that gives the same ids.

Such a file is a text of numbers: how many characters and rules follow; a code point and its id for every character; for
every rule the ids of a left and a right piece and of the piece they become, the rules that go first standing first; and
the ids of unknown text, padding, start and end, -1 for one that the model lacks.

YouTokenToMe parts a text into words at the six ASCII spaces and at U+2581, which it also puts before every word. In a
word, a run of characters that the model does not know is one unknown piece; of the rules that fit, the one that stands
first in the file is applied first, at its leftmost place. `tokenizers` does all of this when it is told to.
"""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Tuple

_WORD = "\u2581"
_SPACES = rf"[\t-\r {_WORD}]+"
# In the order of a file's last line. The space keeps them apart from pieces, which have none since it parts words: no
# caption can hold a special piece.
_UNKNOWN = "<UNK >"
_SPECIAL = (_UNKNOWN, "<PAD >", "<BOS >", "<EOS >")
_DAMAGED = "is no whole YouTokenToMe model: {}; copy the file again, or train the model again"

Rule = Tuple[int, int, int]


def is_model(text: str) -> bool:
    """Whether a text begins as a YouTokenToMe model does, with a line of two counts."""
    return re.match(r"\d+ \d+\n", text) is not None


def as_tokenizer_json(text: str) -> str:
    """The tokenizer JSON with the ids of the YouTokenToMe model in `text`.

    It is the same whatever the order of the characters in the file, which YouTokenToMe leaves to chance.

    Raises:
        ValueError: `text` is no whole model, or id 0 is not padding.
    """
    characters, rules, special = _read(text)
    pieces = _pieces(characters, rules)
    if special[1] != 0:
        raise ValueError(f"has padding at id {special[1]} (-1: none), but it has to be id 0; train with pad_id=0")
    vocabulary = {name: token for name, token in zip(_SPECIAL, special) if token != -1}
    vocabulary.update((piece, token) for token, piece in sorted(pieces.items()))
    if sorted(vocabulary.values()) != list(range(len(pieces) + sum(token != -1 for token in special))):
        raise ValueError(_DAMAGED.format("its pieces have not each a text and an id of their own, from 0 on"))
    merges = [f"{pieces[left]} {pieces[right]}" for left, right, _ in rules]
    return json.dumps(_layout(vocabulary, merges), ensure_ascii=False)


def _read(text: str) -> Tuple[Dict[int, int], List[Rule], List[int]]:
    """The characters' ids by code point, the rules, and the special ids."""
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise ValueError(_DAMAGED.format(error)) from None
    first_rule = 2 + 2 * numbers[0]
    last_line = first_rule + 3 * numbers[1]
    if len(numbers) != last_line + len(_SPECIAL):
        raise ValueError(_DAMAGED.format(f"it holds {len(numbers)} numbers, not {last_line + len(_SPECIAL)}"))
    characters = dict(zip(numbers[2:first_rule:2], numbers[3:first_rule:2]))
    parts = (numbers[first_rule + n : last_line : 3] for n in range(3))
    return characters, list(zip(*parts)), numbers[last_line:]


def _pieces(characters: Dict[int, int], rules: List[Rule]) -> Dict[int, str]:
    """The text of every id."""
    try:
        pieces = {token: chr(code) for code, token in characters.items()}
        for left, right, token in rules:
            pieces[token] = pieces[left] + pieces[right]
    except KeyError as error:
        raise ValueError(_DAMAGED.format(f"a rule joins the piece {error}, which no earlier line makes")) from None
    except (ValueError, OverflowError) as error:
        raise ValueError(_DAMAGED.format(f"a character is none ({error})")) from None
    if ord(_WORD) not in characters:
        raise ValueError(_DAMAGED.format("U+2581 is not among its characters"))
    return pieces


def _layout(vocabulary: Dict[str, int], merges: List[str]) -> Dict[str, Any]:
    """The parts of the JSON, in a form that every version of `tokenizers` since 0.15 reads."""

    def replace(pattern: Dict[str, str], content: str) -> Dict[str, Any]:
        return {"type": "Replace", "pattern": pattern, "content": content}

    ends = replace({"Regex": rf"\A{_SPACES}|{_SPACES}\z"}, "")
    inside = replace({"Regex": _SPACES}, _WORD)
    normalizers = [ends, inside, {"type": "Prepend", "prepend": _WORD}]  # nothing is put before an empty text
    # Special pieces lose their space before words get theirs.
    special, words = replace({"String": " "}, ""), replace({"String": _WORD}, " ")
    decoders = [special, words, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": _WORD},
            "behavior": "MergedWithNext",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _UNKNOWN,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
