"""Encoded pictures to train from: captions with image tokens that were made once.

`python -m data.encode_images` makes a folder of them, in the format of `encoded_format.py`. Any number of processes
read its shards at random, and none of them loads one: they are mapped into memory.
"""

from __future__ import annotations

import bisect
import itertools
import random
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from bpe.tokenizer import Tokenizer, tokenizer_from_json
from data.dataset import Key
from data.encoded_format import (
    IMAGE_TOKENIZER,
    MANIFEST,
    REMEDY,
    TOKENIZER,
    EncodedRows,
    EncodedShard,
    Encoding,
    read_manifest,
    read_rows,
)
from data.report import DataError, DataReport, PathLike


class EncodedFolder:
    """A folder of encoded pictures to train from.

    Args:
        folder: its path.
        name: of the option that names it.
        in_the_making: whether it may be incomplete.

    Raises:
        DataError: it cannot be read, or is not complete.
    """

    def __init__(self, folder: PathLike, name: str = "input_folder", in_the_making: bool = False) -> None:
        self.folder, self.name = Path(folder).expanduser(), name
        self.manifest = read_manifest(self.folder)
        self.encoding = self.manifest.encoding
        if not (self.manifest.complete or in_the_making):
            raise DataError(
                f"{name}={folder} holds pictures that are not all encoded yet; run `python -m data.encode_images` "
                "again, which goes on where it was stopped"
            )

    @property
    def tokenizer(self) -> Tokenizer:
        """The text tokenizer that the captions were encoded with.

        Raises:
            DataError: its file is missing or damaged.
        """
        path = self.folder / TOKENIZER
        try:
            tokenizer = tokenizer_from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is missing or damaged ({error}); {REMEDY}") from None
        self.check_tokenizer(tokenizer.identity, str(path))
        return tokenizer

    @property
    def image_tokenizer_weights(self) -> Dict[str, Tensor]:
        """The image tokenizer's weights.

        Raises:
            DataError: they are missing or damaged.
        """
        path = self.folder / IMAGE_TOKENIZER
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is missing or damaged ({error}); {REMEDY}") from None

    def check_image_tokenizer(self, identity: str, origin: str) -> None:
        """Refuse an image tokenizer whose codes mean something else.

        Args:
            identity: of its weights.
            origin: what it comes from, as the user knows it.

        Raises:
            DataError: it is not the one that the pictures were encoded with.
        """
        if identity != self.encoding.image_tokenizer_identity:
            raise DataError(
                f"{origin} has another image tokenizer than the pictures in {self.name}={self.folder} were encoded "
                "with; leave it out to train with theirs, or encode the pictures again with it"
            )

    def check_tokenizer(self, identity: str, origin: str) -> None:
        """Refuse a text tokenizer whose ids mean something else; arguments and errors as `check_image_tokenizer`."""
        if identity != self.encoding.tokenizer_identity:
            raise DataError(
                f"{origin} has another vocabulary than the captions in {self.name}={self.folder} were encoded with; "
                "leave it out to train with theirs, or encode them again with it"
            )

    def check_same(self, other: EncodedFolder) -> None:
        """Refuse pictures that were encoded with other tokenizers than `other`'s; errors as `check_image_tokenizer`."""
        other.check_image_tokenizer(self.encoding.image_tokenizer_identity, f"{self.name}={self.folder}")
        other.check_tokenizer(self.encoding.tokenizer_identity, f"{self.name}={self.folder}")

    def dataset(
        self, split: str, text_seq_len: int, report: DataReport, seed: int = 0, truncate: bool = True
    ) -> Optional[EncodedDataset]:
        """The samples of "train" or "validation"; None: there are none.

        Args:
            split: which.
            text_seq_len: tokens of a caption, padding included.
            report: where captions that are cut are noted.
            seed: of all random choices.
            truncate: cut longer captions rather than refuse them.

        Raises:
            DataError: a shard is missing or damaged, or a caption is refused.
        """
        shards = [shard for _, shard in sorted(self.manifest.shards.get(split, {}).items()) if shard.pictures]
        if not shards:
            return None
        for shard in shards:
            self._check_size(shard)
        dataset = EncodedDataset(self.folder, shards, self.encoding, split, text_seq_len, seed)
        over = dataset.over_length()
        if over and not truncate:
            raise DataError(
                f"{over} pictures in {self.name}={self.folder} have a caption of more tokens than text_seq_len="
                f"{text_seq_len}; cut such captions with --truncate-captions, or raise text_seq_len"
            )
        if over:
            report.note("image with a caption cut to text_seq_len", over, f"{self.folder / MANIFEST}#{split}")
        return dataset

    def _check_size(self, shard: EncodedShard) -> None:
        path = self.folder / shard.file
        size = path.stat().st_size if path.is_file() else None
        if size != shard.size:
            found = "missing" if size is None else f"of {size} bytes"
            raise DataError(f"{path} is {found}, and {shard.size} bytes were written; {REMEDY}")


class EncodedDataset(Dataset):  # type: ignore[type-arg]
    """Captions with the codes of pictures. An item is `(ids int64 (text_seq_len,), codes int64 (I,))`.

    It depends on nothing but the seed, the epoch and the index: the caption is drawn as `TextImageDataset` draws it,
    and epoch e takes crop e, modulo their number, which is cut as that dataset cuts it in epoch e.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[EncodedShard],
        encoding: Encoding,
        split: str,
        text_seq_len: int,
        seed: int,
    ) -> None:
        """Give access to `shards`, none of them empty; the rest is as for `EncodedFolder.dataset`."""
        self.paths = [folder / shard.file for shard in shards]
        self.text_seq_len, self.seed, self.num_tokens = text_seq_len, seed, encoding.num_tokens
        self.flips = split == "train" and encoding.encoded_flips
        self.crops = encoding.versions(split) // (1 + self.flips)
        self._starts = list(itertools.accumulate((shard.pictures for shard in shards), initial=0))
        self._rows: List[Optional[EncodedRows]] = [None] * len(shards)

    def __getstate__(self) -> Dict[str, Any]:
        """All but what is mapped: another process maps it itself."""
        return {**vars(self), "_rows": [None] * len(self.paths)}

    def __len__(self) -> int:
        """Pictures."""
        return self._starts[-1]

    def __getitem__(self, key: Key) -> Tuple[Tensor, Tensor]:
        """Return the sample of `(epoch, index)`, or of `index` in epoch 0.

        Raises:
            DataError: its shard is damaged.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rows, row = self._find(index)
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        first, last = rows.captions[row : row + 2].tolist()
        text = self._text(rows, first + rng.randrange(last - first))
        version = epoch % self.crops * (1 + self.flips) + (self.flips and rng.random() < 0.5)
        codes = rows.codes[row, version].long()
        if int(codes.min()) < 0 or int(codes.max()) >= self.num_tokens:
            path = self.paths[bisect.bisect_right(self._starts, index) - 1]
            raise DataError(f"{path} is damaged: picture {row} has codes beyond {self.num_tokens}; {REMEDY}")
        return text, codes

    def captions(self, count: int) -> List[str]:
        """The first caption of at most `count` pictures, spread evenly."""
        found = (self._find(index) for index in range(0, len(self), max(len(self) // count, 1)))
        return [rows.text(row) for rows, row in itertools.islice(found, count)]

    def over_length(self) -> int:
        """Pictures with a caption of more than `text_seq_len` tokens."""
        total = 0
        for shard in range(len(self.paths)):
            rows = self._mapped(shard)
            too_long = (rows.starts.diff() > self.text_seq_len).nonzero().flatten()
            total += len(torch.bucketize(too_long, rows.captions, right=True).unique())
        return total

    def _text(self, rows: EncodedRows, caption: int) -> Tensor:
        first, last = rows.starts[caption : caption + 2].tolist()
        ids = rows.ids[first : min(last, first + self.text_seq_len)]
        text = torch.zeros(self.text_seq_len, dtype=torch.int64)
        text[: len(ids)] = ids
        return text

    def _find(self, index: int) -> Tuple[EncodedRows, int]:
        shard = bisect.bisect_right(self._starts, index) - 1
        return self._mapped(shard), index - self._starts[shard]

    def _mapped(self, shard: int) -> EncodedRows:
        rows = self._rows[shard]
        if rows is None:
            rows = self._rows[shard] = read_rows(self.paths[shard])
        return rows
