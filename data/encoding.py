"""The samples of a dataset on their way to an image tokenizer: in order, cut, with their captions tokenised.

A dataset is taken in parts, each of which becomes one shard: pictures in files some thousand at a time, WebDataset
shards one by one. Within a part samples come in batches, and any of them can be the first.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import random
import signal
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple, Union

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from data.archives import Keys, find_shards, import_webdataset, is_remote, parse_keys, read_shard
from data.captions import Pair, Tokenizer
from data.dataset import PictureReader
from data.encoded_format import EncodedRows
from data.images import BadImage
from data.options import DataOptions
from data.pairs import open_pairs
from data.report import DataReport
from data.shard_index import identify
from data.shard_samples import parse_captions
from data.shards import in_order
from options import OptionError

Begin = Tuple[int, int]
"""A part of a dataset, and how many of its samples are done already."""


class Sample(NamedTuple):
    """A sample as it lies in the dataset."""

    number: int
    """in its part"""
    place: str
    """what the report calls it"""
    image: Union[str, bytes]
    """an image file, or its content"""
    captions: Callable[[], Sequence[str]]
    name: str
    """what its random choices are seeded by"""


class Prepared(NamedTuple):
    """A usable sample, ready to be encoded."""

    number: int
    pictures: Tensor
    """uint8 (crops, C, Y, X)"""
    captions: List[str]
    ids: List[List[int]]


class PreparedBatch(NamedTuple):
    """Some samples of a part that follow each other, n of them usable."""

    part: int
    seen: int
    """samples of the part up to the last of these"""
    ended: bool
    """whether these are the last"""
    pictures: Tensor
    """uint8 (n, crops, C, Y, X)"""
    rows: EncodedRows
    """all but the codes"""


class Source(Protocol):
    """A split of a dataset in parts."""

    parts: int
    """how many there are"""
    listed: Optional[int]
    """samples, where that is known beforehand"""
    digest: str
    """sha256 of what it is made of"""

    def batches(self, begins: Sequence[Begin], size: int, workers: int) -> Iterator[PreparedBatch]:
        """The samples of some parts, each from somewhere on, in batches of `size`, prepared by `workers` processes."""

    def batch(self, part: int, begin: int, size: int) -> PreparedBatch:
        """One batch."""


class Preparer:
    """Makes of a sample what is encoded of it.

    Args:
        pictures: makes tensors of image files; of bytes.
        tokenizer: turns captions into ids.
        crops: of each picture that are cut at random, as many epochs of training would cut them; 0: it is cut once.
        report: where unusable samples are recorded.
        seed: of the crops.
    """

    def __init__(
        self, pictures: PictureReader, tokenizer: Tokenizer, crops: int, report: DataReport, seed: int
    ) -> None:
        self.pictures, self.tokenizer, self.crops, self.report, self.seed = pictures, tokenizer, crops, report, seed

    def prepare(self, sample: Sample) -> Optional[Prepared]:
        """The sample, ready to be encoded; None once it is reported as unusable."""
        try:
            captions, ids = self._tokens(sample)
            draws = [random.Random(f"{self.seed}/{epoch}/{sample.name}") for epoch in range(max(self.crops, 1))]
            for rng in draws:
                rng.randrange(len(captions))  # training draws a caption first
            source = sample.image if isinstance(sample.image, str) else io.BytesIO(sample.image)
            pictures = torch.stack(self.pictures.read_crops(source, sample.place, draws))
            return Prepared(sample.number, pictures, captions, ids)
        except BadImage as bad:
            self.report.skip(bad.kind, sample.place, bad.detail)
            return None

    def batch(
        self, part: int, begin: int, prepared: Sequence[Optional[Prepared]], size: int, total: Optional[int] = None
    ) -> PreparedBatch:
        """Put prepared samples together; fewer than `size`, or the last of `total`, end a part."""
        usable = [one for one in prepared if one is not None]
        side = self.pictures.image_size
        empty = torch.empty(0, max(self.crops, 1), self.pictures.channels, side, side, dtype=torch.uint8)
        pictures = torch.stack([one.pictures for one in usable]) if usable else empty
        seen = begin + len(prepared)
        ended = len(prepared) < size if total is None else seen == total
        return PreparedBatch(part, seen, ended, pictures, _rows(usable))

    def _tokens(self, sample: Sample) -> Tuple[List[str], List[List[int]]]:
        captions = list(sample.captions())
        kept = [(text, ids) for text, ids in zip(captions, self.tokenizer.encode_batch(captions)) if ids]
        if len(kept) < len(captions):
            self.report.note("caption that tokenises to nothing", len(captions) - len(kept), sample.place)
        if not kept:
            raise BadImage("image without captions", "they tokenise to nothing")
        return [text for text, _ in kept], [ids for _, ids in kept]


def _rows(samples: Sequence[Prepared]) -> EncodedRows:
    """The rows of samples, without codes."""
    rows = [ids for sample in samples for ids in sample.ids]
    texts = "".join(f"{caption}\n" for sample in samples for caption in sample.captions).encode("utf-8")
    return EncodedRows(
        codes=torch.empty(len(samples), 0, 0),
        numbers=torch.tensor([sample.number for sample in samples], dtype=torch.int32),
        captions=_offsets([len(sample.captions) for sample in samples]),
        starts=_offsets([len(ids) for ids in rows]),
        ids=torch.tensor([token for ids in rows for token in ids], dtype=torch.int32),
        texts=torch.frombuffer(bytearray(texts), dtype=torch.uint8) if texts else torch.empty(0, dtype=torch.uint8),
    )


def _offsets(lengths: List[int]) -> Tensor:
    return torch.tensor([*itertools.accumulate(lengths, initial=0)], dtype=torch.int64)


class PairSource(Dataset):  # type: ignore[type-arg]
    """Image files with their captions; a batch is prepared by one process.

    Args:
        pairs: images with their captions.
        preparer: of the samples.
        samples_per_shard: of each part; the last one may have fewer.
    """

    def __init__(self, pairs: Sequence[Pair], preparer: Preparer, samples_per_shard: int) -> None:
        self.pairs, self.preparer, self.samples_per_shard = pairs, preparer, samples_per_shard
        self.parts = -(-len(pairs) // samples_per_shard)
        self.listed: Optional[int] = len(pairs)
        self.digest = _digest([_of_pair(pair) for pair in pairs])

    def batches(self, begins: Sequence[Begin], size: int, workers: int) -> Iterator[PreparedBatch]:
        """See `Source`."""
        keys = [
            (part, begin, size)
            for part, done in begins
            for begin in range(done, max(self._length(part), done + 1), size)
        ]
        return iter(_loader(self, workers, sampler=keys))

    def batch(self, part: int, begin: int, size: int) -> PreparedBatch:
        """See `Source`."""
        length = self._length(part)
        numbers = range(begin, min(begin + size, length))
        prepared = [self.preparer.prepare(self._sample(part, number)) for number in numbers]
        return self.preparer.batch(part, begin, prepared, size, length)

    def __len__(self) -> int:
        """Samples."""
        return len(self.pairs)

    def __getitem__(self, key: Tuple[int, int, int]) -> PreparedBatch:
        """The batch of a part, a number of samples before it, and a size."""
        return self.batch(*key)

    def _length(self, part: int) -> int:
        return min(self.samples_per_shard, len(self.pairs) - part * self.samples_per_shard)

    def _sample(self, part: int, number: int) -> Sample:
        index = part * self.samples_per_shard + number
        pair = self.pairs[index]
        return Sample(number, str(pair.image), str(pair.image), lambda: pair.captions, str(index))


class TarSource(IterableDataset):  # type: ignore[type-arg]
    """WebDataset shards, read from their beginning by one process, whose threads decode.

    Args:
        shards: their paths and addresses.
        keys: of image and captions in them.
        preparer: of the samples.
    """

    def __init__(self, shards: Sequence[str], keys: Keys, preparer: Preparer) -> None:
        self.shards, self.keys, self.preparer = shards, keys, preparer
        self.parts = len(shards)
        self.listed: Optional[int] = None
        states = ["" if is_remote(shard) else identify(os.stat(shard), keys) for shard in shards]
        self.digest = _digest([keys, *zip(shards, states)])
        self._begins: Sequence[Begin] = ()
        self._size = self._threads = 0

    def batches(self, begins: Sequence[Begin], size: int, workers: int) -> Iterator[PreparedBatch]:
        """See `Source`."""
        self._begins, self._size, self._threads = begins, size, workers
        return iter(_loader(self, min(workers, 1)))

    def batch(self, part: int, begin: int, size: int) -> PreparedBatch:
        """See `Source`."""
        return next(self._part(part, begin, size, threads=0))

    def __iter__(self) -> Iterator[PreparedBatch]:
        """The batches that were asked for."""
        for part, begin in self._begins:
            yield from self._part(part, begin, self._size, self._threads)

    def _part(self, part: int, begin: int, size: int, threads: int) -> Iterator[PreparedBatch]:
        samples = itertools.islice(self._samples(part), begin, None)
        prepared = in_order(self.preparer.prepare, samples, threads)
        while True:
            some = list(itertools.islice(prepared, size))
            yield self.preparer.batch(part, begin, some, size)
            begin += len(some)
            if len(some) < size:
                return

    def _samples(self, part: int) -> Iterator[Sample]:
        shard = self.shards[part]
        for number, stored in enumerate(read_shard(shard, self.keys, self.preparer.report.skip)):
            assert stored.caption is not None, "samples without captions are left out"
            captions = functools.partial(parse_captions, stored.caption)
            name = f"0/{part}/{number}"
            yield Sample(number, f"{shard}#{stored.image.name}", stored.image.data, captions, name)


def _loader(dataset: Any, workers: int, **order: Any) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),  # its own: nothing is drawn from the process's
        collate_fn=_as_it_is,
        worker_init_fn=_leave_interruptions,
        **order,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_interruptions(worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _of_pair(pair: Pair) -> List[Any]:
    try:
        stat = Path(pair.image).stat()
        return [str(pair.image), stat.st_size, stat.st_mtime_ns, pair.captions]
    except OSError:  # reported when it is to be encoded
        return [str(pair.image), 0, 0, pair.captions]


def _digest(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode("ascii") + b"\n")
    return digest.hexdigest()


def open_sources(
    options: DataOptions,
    pictures: Tuple[int, int],
    tokenizer: Tokenizer,
    crops: int,
    samples_per_shard: int,
    report: DataReport,
    seed: int,
) -> Dict[str, Source]:
    """The splits of the dataset that the options name, "train" and, where there is one, "validation".

    Args:
        options: of the data.
        pictures: pixels of their side, and their channels.
        tokenizer, crops, seed: as for `Preparer`; pictures to validate with are cut in the middle.
        samples_per_shard: of parts of image files.
        report: where unusable samples are recorded.

    Raises:
        DataError: the dataset cannot be used.
        OptionError: samples without captions are asked for.
    """
    in_bytes = dataclasses.replace(options, byteio=True)
    sources: Dict[str, Source] = {}
    for split, cuts in (("train", crops), ("validation", 0)):
        reader = PictureReader(in_bytes, pictures[0], report, cuts > 0, pictures[1])
        preparer = Preparer(reader, tokenizer, cuts, report, seed)
        if options.wds:
            name = "input_folder" if split == "train" else "validation_folder"
            if split == "train" or options.validation_folder is not None:
                shards = find_shards(name, getattr(options, name))
                sources[split] = TarSource(shards, _keys(options), preparer)
        else:
            pairs = open_pairs(options, split, report)
            if pairs:
                sources[split] = PairSource(pairs, preparer, samples_per_shard)
    return sources


def _keys(options: DataOptions) -> Keys:
    import_webdataset()
    keys = parse_keys(options.wds)
    if not keys.caption:
        raise OptionError(f"wds={','.join(options.wds)} names no key of captions; give both, as in --wds img,cap")
    return keys
