"""From what a shard stores of a sample to what is trained on: captions to token ids, image files to pictures."""

from __future__ import annotations

import io
import json
import random
from array import array
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from data.archives import Member, ShardSample
from data.captions import Tokenizer, clean_caption, fitted
from data.dataset import PictureReader
from data.images import BadImage
from data.report import DataReport

_REMEMBERED, _LONGEST = 2**16, 512  # captions whose ids a process keeps, some 25 MiB, and characters of one
_CAPTION_FIELDS = ("caption", "captions", "text", "TEXT")  # of a JSON object, the first that is there


class CaptionReader:
    """Makes token ids of one of a sample's captions, by the rules of `data.captions.CaptionTable`.

    It keeps the ids of the first captions it meets. To let the oldest go for newer ones would be worse: each comes once
    an epoch, so that none would still be there when its turn comes again.

    Args:
        tokenizer: turns captions into ids above 0.
        text_seq_len: tokens that a caption may have.
        report: where captions that were cut or left out are noted.
        truncate: cut longer captions rather than refuse them.
    """

    def __init__(self, tokenizer: Tokenizer, text_seq_len: int, report: DataReport, truncate: bool = True) -> None:
        self.tokenizer, self.text_seq_len, self.report, self.truncate = tokenizer, text_seq_len, report, truncate
        self._known: Dict[str, Sequence[int]] = {}

    def read(self, captions: Sequence[str], place: str, rng: random.Random) -> Tensor:
        """Ids of a caption drawn from those of an image, int64 (text_seq_len,), padded with zeros.

        Raises:
            BadImage: none of them has a token.
            DataError: it is too long, and `truncate` is off.
        """
        choice = rng.randrange(len(captions))
        for caption in (*captions[choice:], *captions[:choice]):
            ids = self._encode(caption)
            if ids:
                text = torch.zeros(self.text_seq_len, dtype=torch.int64)
                ids = fitted(ids, self.text_seq_len, place, self.report, self.truncate)
                text[: len(ids)] = torch.tensor(ids)
                return text
            self.report.note("image with a caption that tokenises to nothing", path=place)
        raise BadImage("image without captions", "they tokenise to nothing")

    def _encode(self, caption: str) -> List[int]:
        known = self._known.get(caption)
        if known is not None:
            return list(known)
        ids = self.tokenizer.encode(caption)
        if len(self._known) < _REMEMBERED and len(caption) <= _LONGEST:
            self._known[caption] = array("i", ids)
        return ids


class SampleReader:
    """Makes samples of what shards store: a picture (C, Y, X), before it the ids of a caption when `texts` is given."""

    def __init__(self, pictures: PictureReader, texts: Optional[CaptionReader]) -> None:
        self.pictures, self.texts = pictures, texts

    def read(self, sample: ShardSample, place: str, rng: random.Random) -> Any:
        """Return the sample.

        Raises:
            BadImage: it cannot be used.
            DataError: its caption is refused.
        """
        if self.texts is None:
            return self.pictures.read(io.BytesIO(sample.image.data), place, rng)
        assert sample.caption is not None, "samples without captions are left out when captions are asked for"
        text = self.texts.read(parse_captions(sample.caption), place, rng)
        return text, self.pictures.read(io.BytesIO(sample.image.data), place, rng)


def parse_captions(member: Member) -> List[str]:
    """The captions of a member: a text with one a line, or JSON with a text, a list of them, or a field `caption`.

    Raises:
        BadImage: it cannot be read, or holds none.
    """
    is_json = member.key.endswith("json")
    try:
        text = member.data.decode("utf-8-sig")
        found = _captions_of(json.loads(text)) if is_json or text.lstrip()[:1] in ("{", "[") else None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError) or is_json:
            raise BadImage("unreadable caption file", f"{member.name}: {error}") from None
        found = None
    if found is None:
        if is_json:
            fields = ", ".join(_CAPTION_FIELDS)
            raise BadImage(
                "unreadable caption file", f"{member.name} is neither a text nor a list, nor has it {fields}"
            )
        found = list(io.StringIO(text, newline=None))  # the lines of a text file; a text has other ends of lines, too
    captions = [caption for caption in map(clean_caption, found) if caption]
    if not captions:
        raise BadImage("empty caption file", member.name)
    return captions


def _captions_of(value: Any) -> Optional[List[str]]:
    """The captions of a JSON value; none, when it has no place for them."""
    if isinstance(value, dict):
        field = next((name for name in _CAPTION_FIELDS if name in value), None)
        return None if field is None else _captions_of(value[field]) or []
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    return [value] if isinstance(value, str) else None
