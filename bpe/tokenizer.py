"""Tokenizers: what turns a caption into ids and ids into text, read from a vocabulary file.

Id 0 is padding in every vocabulary: `encode` never gives it, `decode` passes over it. A tokenizer says which one it is
(`identity`) and can be written out whole (`to_json`), so that a checkpoint needs no vocabulary file beside it.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import re
from pathlib import Path
from typing import List, Optional, Sequence

import tokenizers

from bpe import chinese as chinese_vocabulary
from bpe import youtokentome
from bpe.clip import ClipVocabulary
from options import OptionError

# Threads of `tokenizers` do not survive a fork: a data worker would hang in encode_batch, or print a warning if nothing
# were set. One thread encodes some 25,000 captions a second; whoever forks no workers may set "true".
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_CLIP = json.dumps({"kind": "clip"})
_DEFINING = ("normalizer", "pre_tokenizer", "model", "added_tokens")  # the parts of a JSON that decide about ids
_SPECIAL_NAME = re.compile(r"<.+>|\[.+\]")  # such as <pad>, [UNK], <|endoftext|>


class Tokenizer(abc.ABC):
    """A vocabulary.

    Attributes:
        vocab_size: the ids lie below it.
        identity: sha256 of what defines the ids, in hexadecimal; where it is equal, texts have equal ids.
    """

    vocab_size: int
    identity: str

    @abc.abstractmethod
    def encode(self, text: str) -> List[int]:
        """Ids of a text, all above 0, without start or end tokens."""

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        """Ids of several texts."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; padding and ids from `vocab_size` on are passed over."""

    @abc.abstractmethod
    def to_json(self) -> str:
        """All there is to know about this tokenizer; `tokenizer_from_json` reads it."""

    def _words(self, ids: Sequence[int]) -> List[int]:
        return [token for token in ids if 0 < token < self.vocab_size]


class HuggingFaceTokenizer(Tokenizer):
    """A vocabulary in the JSON of Hugging Face `tokenizers`, such as `python -m bpe.train` makes.

    Other kinds of vocabulary files become such a JSON when they are read: `bpe/youtokentome.py`, `bpe/chinese.py`.
    """

    def __init__(self, text: str) -> None:
        """Read the JSON in `text`.

        Raises:
            ValueError: it is no such JSON, or a word has id 0.
        """
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library has no class of its own
            raise ValueError(
                f"is no tokenizer JSON that tokenizers {tokenizers.__version__} reads ({error}); make one with "
                "python -m bpe.train, or upgrade tokenizers if a newer version wrote it"
            ) from None
        self._refuse_word_at_zero()
        self._tokenizer.encode_special_tokens = True  # "<pad>" in a caption is five characters, not padding
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._text = text
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=0) + 1
        fields = json.loads(text)
        self.identity = _digest(json.dumps({part: fields.get(part) for part in _DEFINING}, sort_keys=True))

    def encode(self, text: str) -> List[int]:
        """Ids of a text, cleaned as the file's normalizer says; an unknown word whose id would be 0 is left out."""
        return self._words(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        """Ids of several texts."""
        return [self._words(row.ids) for row in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; padding and ids from `vocab_size` on are passed over."""
        return self._tokenizer.decode(self._words(ids))

    def to_json(self) -> str:
        """The JSON, letter by letter as it was read, since versions of `tokenizers` write it differently."""
        return self._text

    def _refuse_word_at_zero(self) -> None:
        word = self._tokenizer.id_to_token(0)
        added = self._tokenizer.get_added_tokens_decoder().get(0)
        if word is None or (added and added.special) or _SPECIAL_NAME.fullmatch(word):
            return
        raise ValueError(
            f"gives id 0 to the word {word!r}, but id 0 is padding; train a vocabulary that keeps it free with "
            "python -m bpe.train"
        )


class ClipTokenizer(Tokenizer):
    """CLIP's vocabulary, as `open_clip` brings it.

    Its id 0 is an exclamation mark inside a word, which happens only between punctuation marks; there it is left out.
    """

    def __init__(self) -> None:
        """Open the vocabulary.

        Raises:
            OptionError: `open_clip` is not installed.
        """
        self._vocabulary = ClipVocabulary()
        self.vocab_size = self._vocabulary.size
        self.identity = _digest(_CLIP)

    def encode(self, text: str) -> List[int]:
        """Ids of a text, lower-cased and cleaned as CLIP does."""
        return self._words(self._vocabulary.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, words and punctuation marks parted by spaces."""
        return self._vocabulary.decode(self._words(ids))

    def to_json(self) -> str:
        """The vocabulary's name alone."""
        return _CLIP


def load_tokenizer(bpe_path: Optional[str], chinese: bool = False, hug: bool = False) -> Tokenizer:
    """Open the vocabulary file `bpe_path`; without one, a vocabulary that has a name.

    Args:
        bpe_path: a Hugging Face tokenizer JSON or a YouTokenToMe model, told apart by what they hold.
        chinese: the file is BERT's Chinese vocabulary; without a file that vocabulary is fetched, not CLIP's opened.
        hug: the file has to be a Hugging Face tokenizer JSON.

    Raises:
        OptionError: the file is absent or unusable, or the named vocabulary cannot be had.
    """
    if bpe_path is None:
        if hug:
            raise OptionError("hug=True asks for a Hugging Face tokenizer JSON; give one with --bpe-path")
        return HuggingFaceTokenizer(chinese_vocabulary.fetch()) if chinese else ClipTokenizer()
    try:
        text = Path(bpe_path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"bpe_path={bpe_path} cannot be read ({error}); give a tokenizer JSON, such as python -m bpe.train makes, "
            "or a YouTokenToMe model"
        ) from None
    try:
        return HuggingFaceTokenizer(_as_tokenizer_json(text, chinese, hug))
    except ValueError as error:
        raise OptionError(f"bpe_path={bpe_path} {error}") from None


def tokenizer_from_json(text: str) -> Tokenizer:
    """Open what `to_json` gave.

    Raises:
        ValueError: `text` comes from elsewhere and is no tokenizer JSON.
    """
    return ClipTokenizer() if text == _CLIP else HuggingFaceTokenizer(text)


def _as_tokenizer_json(text: str, chinese: bool, hug: bool) -> str:
    """What a vocabulary file holds, as the JSON of Hugging Face `tokenizers`."""
    if text.lstrip().startswith("{"):
        return text
    if hug:
        raise ValueError(
            "is no JSON, but hug=True asks for a Hugging Face tokenizer JSON; give one, or leave --hug out"
        )
    if chinese:
        return chinese_vocabulary.as_tokenizer_json(text)
    if chinese_vocabulary.is_vocabulary(text):
        raise ValueError("is a vocabulary of BERT; add --chinese to read it as bert-base-chinese's")
    return youtokentome.as_tokenizer_json(text) if youtokentome.is_model(text) else text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
