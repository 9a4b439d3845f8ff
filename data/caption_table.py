"""The captions of a dataset, tokenised once at start-up and kept ragged in flat tensors."""

from __future__ import annotations

from typing import Iterator, List, Sequence, Tuple

import torch
from torch import Tensor

from data.captions import Pair, Tokenizer, fitted
from data.report import DataReport

_ENCODED_AT_ONCE = 8192  # captions


class CaptionTable:
    """The token ids of every caption of every pair: flat int32 ids, with offsets of captions and of pairs into them.

    A caption that tokenises to nothing is left out and reported; a pair may therefore have `count` 0.
    """

    def __init__(
        self, pairs: Sequence[Pair], tokenizer: Tokenizer, text_seq_len: int, report: DataReport, truncate: bool = True
    ) -> None:
        """Tokenise the captions of `pairs`.

        Args:
            pairs: images with their captions.
            tokenizer: turns captions into ids above 0.
            text_seq_len: tokens that a caption may have.
            report: where captions that were cut or left out are noted.
            truncate: cut longer captions rather than refuse them.

        Raises:
            DataError: a caption is longer than `text_seq_len` and `truncate` is off.
        """
        self.text_seq_len = text_seq_len
        self.cut = 0  # captions longer than text_seq_len
        self._truncate = truncate
        self._report = report
        ids, lengths, counts = [torch.zeros(0, dtype=torch.int32)], [], [0] * len(pairs)
        for owners, encoded in _encoded(pairs, tokenizer):
            kept = [(owner, self._fitted(pairs[owner], row)) for owner, row in zip(owners, encoded) if row]
            for owner, row in kept:
                counts[owner] += 1
                lengths.append(len(row))
            ids.append(torch.tensor([token for _, row in kept for token in row], dtype=torch.int32))
        self._ids = torch.cat(ids)
        self._captions = _offsets(lengths)
        self._pairs = _offsets(counts)
        for pair, count in zip(pairs, counts):
            if len(pair.captions) > count:
                report.note("caption that tokenises to nothing", len(pair.captions) - count, pair.image)

    def __len__(self) -> int:
        """Pairs."""
        return len(self._pairs) - 1

    def count(self, pair_index: int) -> int:
        """How many captions pair `pair_index` has."""
        return int(self._pairs[pair_index + 1] - self._pairs[pair_index])

    def tokens(self, pair_index: int, choice: int) -> Tensor:
        """Ids of caption `choice` (from 0 below `count`) of a pair, int64 (text_seq_len,), padded with zeros."""
        caption = int(self._pairs[pair_index]) + choice
        ids = self._ids[self._captions[caption] : self._captions[caption + 1]]
        text = torch.zeros(self.text_seq_len, dtype=torch.int64)
        text[: len(ids)] = ids
        return text

    def _fitted(self, pair: Pair, ids: List[int]) -> List[int]:
        self.cut += len(ids) > self.text_seq_len
        return fitted(ids, self.text_seq_len, pair.image, self._report, self._truncate)


def _encoded(pairs: Sequence[Pair], tokenizer: Tokenizer) -> Iterator[Tuple[List[int], List[List[int]]]]:
    """Yield owners (indices of pairs) and ids of the captions, in order, as many as are encoded at once."""
    owners: List[int] = []
    texts: List[str] = []
    for index, pair in enumerate(pairs):
        owners += [index] * len(pair.captions)
        texts += pair.captions
        if len(texts) >= _ENCODED_AT_ONCE:
            yield owners, tokenizer.encode_batch(texts)
            owners, texts = [], []
    yield owners, tokenizer.encode_batch(texts)


def _offsets(lengths: List[int]) -> Tensor:
    """Where each part begins in the whole, int64 (parts + 1,)."""
    return torch.cumsum(torch.tensor([0] + lengths), 0)
