"""CLIP's vocabulary, from the file that `open_clip` brings.

Its ids are, in this order: the 256 bytes inside a word, the 256 bytes at a word's end, the pieces that the file's pairs
make, and the names of a text's start and end. A byte stands as the printable character that `tokenizers` writes.

The file is found and read without importing `open_clip`, which would import timm and all of torchvision with it.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from pathlib import Path
from typing import Callable, List, Tuple

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from options import OptionError

_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NAMES = ("<|startoftext|>", "<|endoftext|>")
_PAIRS = 49408 - 2 * 256 - len(_NAMES)  # the file goes on with pairs that CLIP does not use
_WORD_END = "</w>"
_REMEDY = "pip install open_clip_torch, or give another vocabulary with --bpe-path"
# The names, English contractions, runs of letters, single digits, runs of other marks.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_SPLIT = pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)


class ClipVocabulary:
    """Texts to CLIP's ids and back."""

    def __init__(self) -> None:
        """Open the vocabulary.

        Raises:
            OptionError: `open_clip` or `ftfy`, which comes with it, is not installed.
        """
        self._clean = _open_cleaning()
        pairs = _read_pairs()
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = [*letters, *(letter + _WORD_END for letter in letters), *(left + right for left, right in pairs)]
        ids = {piece: token for token, piece in enumerate([*pieces, *_NAMES])}
        self._names = {name: ids[name] for name in _NAMES}
        self._tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs, end_of_word_suffix=_WORD_END))
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_SPLIT, as_bytes])
        self._tokenizer.decoder = decoders.ByteLevel()
        self.size = len(ids)

    def encode(self, text: str) -> List[int]:
        """Ids of a text."""
        cleaned = self._clean(text)
        if not any(name in cleaned for name in _NAMES):
            return self._tokenizer.encode(cleaned).ids
        ids: List[int] = []
        for word, _ in _SPLIT.pre_tokenize_str(cleaned):
            ids += [self._names[word]] if word in self._names else self._tokenizer.encode(word).ids
        return ids

    def decode(self, ids: List[int]) -> str:
        """The text of ids, words parted by spaces."""
        text: str = self._tokenizer.decode(ids)
        return text.replace(_WORD_END, " ").strip()


def _open_cleaning() -> Callable[[str], str]:
    """The function that mends a text's encoding, resolves HTML's character names and lower-cases, as CLIP does."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise OptionError(
            f"bpe_path=None stands for CLIP's vocabulary, whose texts ftfy cleans ({error}); {_REMEDY}"
        ) from None
    return lambda text: html.unescape(html.unescape(fix_text(text))).lower()


def _read_pairs() -> List[Tuple[str, str]]:
    """The pairs of the vocabulary's file, the first to be joined first."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        raise OptionError(f"bpe_path=None stands for CLIP's vocabulary, which comes with open_clip; {_REMEDY}")
    path = Path(found.origin).with_name(_FILE)
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        words = [line.split() for line in lines[1 : 1 + _PAIRS]]  # the first line names a version
        pairs = [(left, right) for left, right in words]
        if len(pairs) < _PAIRS:
            raise ValueError(f"it holds {len(pairs)} pairs of {_PAIRS}")
    except (OSError, EOFError, ValueError) as error:
        raise OptionError(
            f"bpe_path=None stands for CLIP's vocabulary, but {path} is damaged: {error}; {_REMEDY}"
        ) from None
    return pairs
