"""How encoded pictures are stored: a manifest, and shards of image tokens and caption ids that are mapped into memory.

A folder of them holds

- `encoded.json`, the manifest: what was encoded, how, with which tokenizers, and the checksum of every shard;
- `train-000000.safetensors` and so on, `validation-000000.safetensors`: the shards, see `EncodedRows`;
- `image_tokenizer.safetensors` and `tokenizer.json`: the tokenizers, so that nothing else is needed to train.

Nothing in it is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.places import MANIFEST as MANIFEST
from data.report import DataError

IMAGE_TOKENIZER = "image_tokenizer.safetensors"
TOKENIZER = "tokenizer.json"
FORMAT = 1
REMEDY = "remove it and run `python -m data.encode_images` again, which makes what is missing"
_LINE_FEED = ord("\n")
_LARGEST_SHORT = 2**15  # codes that 16 bits tell apart; PyTorch 2.0 knows no unsigned ones


class EncodedRows(NamedTuple):
    """n pictures as a shard holds them."""

    codes: Tensor
    """int16 or int32 (n, versions, I): the versions are crops, each followed by its mirror image if there are any"""
    numbers: Tensor
    """int32 (n,): which sample of its part of the dataset each picture is; unusable ones are left out"""
    captions: Tensor
    """int64 (n + 1,): where each picture's captions begin"""
    starts: Tensor
    """int64 (captions + 1,): where each caption's ids begin"""
    ids: Tensor
    """int32: the ids of all captions, whole and without padding"""
    texts: Tensor
    """uint8: the captions in UTF-8, each ended by a line feed"""

    def text(self, row: int) -> str:
        """The first caption of a picture."""
        caption = int(self.captions[row])
        ends = (self.texts == _LINE_FEED).nonzero().flatten()
        begin = int(ends[caption - 1]) + 1 if caption else 0
        return bytes(self.texts[begin : int(ends[caption])].tolist()).decode("utf-8")


def code_type(num_tokens: int) -> torch.dtype:
    """The type that codes below `num_tokens` are stored in."""
    return torch.int16 if num_tokens <= _LARGEST_SHORT else torch.int32


def join_rows(parts: Sequence[EncodedRows]) -> EncodedRows:
    """The pictures of several, one after the other."""
    return EncodedRows(
        codes=torch.cat([part.codes for part in parts]),
        numbers=torch.cat([part.numbers for part in parts]),
        captions=_join_offsets([part.captions for part in parts]),
        starts=_join_offsets([part.starts for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        texts=torch.cat([part.texts for part in parts]),
    )


def _join_offsets(parts: Sequence[Tensor]) -> Tensor:
    begins = itertools.accumulate((int(part[-1]) for part in parts), initial=0)
    return torch.cat([torch.zeros(1, dtype=torch.int64), *(part[1:] + begin for part, begin in zip(parts, begins))])


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What decides the tokens: where all of this is equal, so are the shards, to the byte."""

    image_tokenizer: Dict[str, Any]
    """what `models.build.build_image_tokenizer` needs"""
    image_tokenizer_identity: str
    tokenizer_identity: str
    num_tokens: int
    """codes lie below it"""
    grid: List[int]
    """rows and columns of codes"""
    encoded_crops: int
    """random crops of each training picture; 0: the square in the middle"""
    encoded_flips: bool
    random_seed: int
    random_resize_crop_lower_ratio: float
    min_image_side: int
    precision: str
    """what the image tokenizer computed in"""
    samples_per_shard: int
    datasets: Dict[str, str]
    """sha256 of what each split was made of"""

    def versions(self, split: str) -> int:
        """Crops and mirror images of each picture of a split; of validation there is one."""
        return 1 if split != "train" else max(self.encoded_crops, 1) * (1 + self.encoded_flips)


@dataclasses.dataclass(frozen=True)
class EncodedShard:
    """A finished shard."""

    file: str
    samples: int
    """of the dataset that it was made of, unusable ones included"""
    pictures: int
    captions: int
    size: int
    """in bytes"""
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a folder holds, and how far it is made."""

    encoding: Encoding
    listed: Dict[str, Optional[int]]
    """samples of each split, where that is known beforehand"""
    shards: Dict[str, Dict[int, EncodedShard]]
    """the finished ones of each split, by number"""
    skipped: Dict[str, int]
    """what was left out as unusable, by kind"""
    complete: bool

    def text(self) -> str:
        """The manifest as JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        DataError: it cannot be read, or belongs to a newer program.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} holds no encoded pictures: {MANIFEST} is missing; `python -m data.encode_images` makes them"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            raise DataError(f"{path} has format {content['format']}, newer than {FORMAT}; use a newer program")
        shards = {
            split: {int(number): EncodedShard(**shard) for number, shard in finished.items()}
            for split, finished in content["shards"].items()
        }
        rest = (content["skipped"], content["complete"])
        return Manifest(Encoding(**content["encoding"]), content["listed"], shards, *rest)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no manifest of encoded pictures ({type(error).__name__}: {error}); encode them again with "
            "`python -m data.encode_images`"
        ) from None


def shard_name(split: str, number: int) -> str:
    """The file of a shard."""
    return f"{split}-{number:06}.safetensors"


def read_rows(path: Path) -> EncodedRows:
    """The rows of a shard, mapped into memory.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return EncodedRows(**load_file(path))
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise DataError(f"{path} is missing or damaged ({error}); {REMEDY}") from None


def verify_shard(folder: Path, shard: EncodedShard, encoding: Encoding, split: str) -> EncodedRows:
    """Read a shard whole and hold it to its manifest; returns its rows.

    Raises:
        DataError: it is missing or damaged, or not what the manifest says.
    """
    path = folder / shard.file
    try:
        found = digest_of(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from None
    if found != shard.sha256:
        raise DataError(f"{path} has not the checksum that it was written with; {REMEDY}")
    rows = read_rows(path)
    shape = (shard.pictures, encoding.versions(split), encoding.grid[0] * encoding.grid[1])
    in_range = not rows.codes.numel() or 0 <= int(rows.codes.min()) <= int(rows.codes.max()) < encoding.num_tokens
    counts = (len(rows.numbers), len(rows.captions) - 1, len(rows.starts) - 1, int(rows.captions[-1]))
    lines = int((rows.texts == _LINE_FEED).sum())
    if (
        tuple(rows.codes.shape) != shape
        or not in_range
        or counts != (shard.pictures, shard.pictures, shard.captions, shard.captions)
        or lines != shard.captions
        or int(rows.starts[-1]) != len(rows.ids)
    ):
        raise DataError(f"{path} does not hold what {folder / MANIFEST} says; {REMEDY}")
    return rows


def describe_splits(manifest: Manifest) -> List[str]:
    """How much there is of each split."""
    lines = []
    for split, shards in manifest.shards.items():
        pictures, captions = (sum(getattr(s, name) for s in shards.values()) for name in ("pictures", "captions"))
        versions = manifest.encoding.versions(split)
        times = f" in {versions} versions" if versions > 1 else ""
        files = f"{len(shards)} shard{'s' if len(shards) != 1 else ''}"
        lines.append(f"{pictures} pictures{times} and {captions} captions of {split} in {files}")
    return lines


def digest_of(source: Union[Path, bytes]) -> str:
    """sha256 of a file, or of bytes, in hexadecimal."""
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        digest.update(source)
        return digest.hexdigest()
    with source.open("rb") as file:
        while True:
            block = file.read(1 << 22)
            if not block:
                return digest.hexdigest()
            digest.update(block)


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside its place, flush it to the disk and rename it: it is there whole, or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def differing(one: Encoding, other: Encoding) -> Mapping[str, Tuple[Any, Any]]:
    """The values of two encodings where they differ, by name."""
    names = [field.name for field in dataclasses.fields(Encoding)]
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
