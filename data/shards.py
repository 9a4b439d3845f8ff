"""Datasets of WebDataset shards, whose samples depend on nothing but seed, epoch and position.

- Local shards that are not compressed are indexed once by their headers (`ShardDataset`). The order is computed without
  reading a sample, and any number of loader processes read single samples at their offsets: nothing is read twice, and
  what is skipped is not read at all.
- Compressed and remote shards can only be read from their beginning (`ShardStream`). One process of a rank reads them,
  so that nothing is fetched twice, and its threads decode; Pillow lets other threads run meanwhile. What a resumed run
  skips is read, not decoded. Had each loader process its own shards, the order would depend on how many there are.

Both go through the samples in the order of `data.shard_order`. `epoch_samples` sets how many samples are an epoch; a
rank whose shards hold fewer goes through its own again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import logging
import os
import random
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Callable,
    Deque,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
)

from torch.utils.data import Dataset, IterableDataset

from data.archives import (
    UNREADABLE_SHARD,
    Keys,
    Member,
    ShardSample,
    find_shards,
    import_webdataset,
    is_seekable,
    parse_keys,
    read_shard,
)
from data.dataset import Key, SampleDataset
from data.images import BadImage
from data.options import DataOptions
from data.report import DataError, DataReport
from data.shard_index import INDEX, ShardIndex, ShardTable, check_shards, identify, index_shards
from data.shard_order import Piece, ShardOrder
from data.shard_samples import SampleReader, parse_captions
from options import OptionError

_log = logging.getLogger(__name__)

_CHANGED = "sample of a shard that changed after it was counted"
_FEWEST_JUDGED = 1000  # samples of a stream, before a share of unusable ones means anything
Item = TypeVar("Item")
Span = Tuple[int, int, int]  # number of a pass, and from which of its samples to which


class Stored(NamedTuple):
    """A sample as it is stored, with its shard and its number there."""

    shard: int
    number: int
    sample: ShardSample
    again: int = 0  # how often a pass has gone through all samples before


class StoredSamples(SampleDataset):
    """Samples of shards that can be taken at any index; see `SampleDataset` and `SampleReader`."""

    def __init__(self, places: Sequence[str], reader: SampleReader, report: DataReport, seed: int) -> None:
        super().__init__(places, reader.pictures, report, seed)
        self.reader = reader

    def stored(self, position: int) -> Stored:
        """The sample at a position, as it is stored.

        Raises:
            BadImage: it cannot be read any more.
        """
        raise NotImplementedError

    def prompts(self, count: int) -> List[str]:
        """The first caption of at most `count` samples, spread evenly."""
        found = []
        for position in range(0, len(self.places), max(len(self.places) // count, 1)):
            try:
                sample = self.stored(position).sample
                found += parse_captions(sample.caption)[:1] if sample.caption else []
            except BadImage:
                continue  # reported when it is trained on
        return found[:count]

    def _sample(self, position: int, rng: random.Random) -> Any:
        return self.reader.read(self.stored(position).sample, self.places[position], rng)


class ShardDataset(StoredSamples):
    """Local shards that are not compressed: every sample is read at its offset.

    An index beyond the samples there are goes through them again, cut and captioned anew.

    Args:
        shards: their paths.
        indexes: what each holds.
        keys: of image and captions in them.
        reader, report, seed: see `StoredSamples`.
        order: in which order a rank goes through them.
        epoch_samples: samples of one epoch of all ranks; none: all there are.
    """

    def __init__(
        self,
        shards: Sequence[str],
        indexes: Sequence[ShardIndex],
        keys: Keys,
        reader: SampleReader,
        report: DataReport,
        seed: int,
        order: ShardOrder,
        epoch_samples: Optional[int] = None,
    ) -> None:
        self._table = ShardTable(shards, indexes)
        super().__init__(self._table, reader, report, seed)
        self._keys, self._order = keys, order
        self._epoch_samples = epoch_samples or len(self._table)

    def __len__(self) -> int:
        """Samples of one epoch of this rank."""
        return self._epoch_samples // self._order.world_size

    def __getitem__(self, key: Key) -> Any:
        """Return the sample of `(epoch, index)`, or of `index` in epoch 0, which then is below the length.

        Raises:
            DataError: not one sample can be used.
        """
        if not isinstance(key, tuple) and not 0 <= key < len(self):
            raise IndexError(f"sample {key} of {len(self)}")
        epoch, index = key if isinstance(key, tuple) else (0, key)
        again, position = divmod(index, len(self._table))
        return self._usable(position, _rng(self.seed, epoch, again, *self._table.find(position)))

    def order(self, number: int) -> Iterator[int]:
        """The indices of this rank's samples in pass `number`, and again after they are all through, without end."""
        for again in itertools.count():
            starts = [again * len(self._table) + start for start in self._table.starts]
            pieces = self._order.pieces(number, again)
            indices = (
                starts[shard] + n for shard, first, last, step in pieces for n in range(first, last or first, step)
            )
            yield from self._order.draw(indices, number, again)

    def stored(self, position: int) -> Stored:
        """See `StoredSamples`."""
        shard, number = self._table.find(position)
        image, image_size, caption, caption_size, key, _ = self._table.indexes[shard].members[number].tolist()
        place = self.places[position]
        try:
            with open(self._table.shards[shard], "rb") as file:
                if identify(os.fstat(file.fileno()), self._keys) != self._table.indexes[shard].identity:
                    raise BadImage(_CHANGED, "a resumed run counts it anew")
                picture = _member(file, place, "", image, image_size)
                if not caption_size:
                    return Stored(shard, number, ShardSample(picture, None))
                captions = _member(file, place, self._keys.caption[key], caption, caption_size)
                return Stored(shard, number, ShardSample(picture, captions))
        except OSError as error:
            raise BadImage(_CHANGED, str(error)) from None


class HeldSamples(StoredSamples):
    """Samples of shards held in memory as they are stored: those that a stream begins with."""

    def __init__(
        self, shards: Sequence[str], held: Sequence[Stored], reader: SampleReader, report: DataReport, seed: int
    ) -> None:
        super().__init__([_place(shards[s.shard], s.sample) for s in held], reader, report, seed)
        self._held = held

    def stored(self, position: int) -> Stored:
        """See `StoredSamples`."""
        return self._held[position]

    def _rng(self, epoch: int, index: int) -> random.Random:
        return _rng(self.seed, epoch, 0, self._held[index].shard, self._held[index].number)


class ShardStream(Dataset):  # type: ignore[type-arg]
    """Shards that can only be read from their beginning.

    An unusable sample is reported, and the next usable one of the order takes its place.

    Args:
        shards: their paths and addresses.
        keys: of image and captions in them.
        reader, report, seed: see `StoredSamples`.
        order: in which order a rank goes through them.
        epoch_samples: samples of one epoch of all ranks.
        max_bad_share: the share of samples, and of shards, that may be unusable.
    """

    def __init__(
        self,
        shards: Sequence[str],
        keys: Keys,
        reader: SampleReader,
        report: DataReport,
        seed: int,
        order: ShardOrder,
        epoch_samples: int,
        max_bad_share: float,
    ) -> None:
        self.shards, self.keys, self.reader, self.report, self.seed = shards, keys, reader, report, seed
        self._order, self._epoch_samples, self._max_bad_share = order, epoch_samples, max_bad_share
        self._unreadable: Dict[str, str] = {}
        self._judged = 0  # samples that this process has read
        self._no_samples: Set[str] = set()  # what it found beside them

    def __len__(self) -> int:
        """Samples of one epoch of this rank."""
        return self._epoch_samples // self._order.world_size

    def __getitem__(self, index: int) -> Any:
        """The sample at `index` from the beginning of the shards; what lies before it is read."""
        return self.first(index + 1)[index]

    def first(self, count: int) -> HeldSamples:
        """At most `count` samples that the shards begin with, held in memory.

        Raises:
            DataError: there is none.
        """
        pieces = (Piece(shard, 0, None, 1) for shard in range(len(self.shards)))
        held = list(itertools.islice((stored for piece in pieces for stored in self._piece(piece)), count))
        if not held:
            raise self._nothing()
        return HeldSamples(self.shards, held, self.reader, self.report, self.seed)

    def stream(self, spans: Callable[[], Iterator[Span]], threads: int) -> IterableDataset[Any]:
        """The samples of spans of passes, one after the other, decoded by `threads` (0: by the caller)."""
        return _Stream(self, spans, threads)

    def samples(self, number: int, begin: int, end: int, threads: int) -> Iterator[Any]:
        """Samples `begin` to `end` of pass `number`; those before are not decoded."""
        return itertools.islice(self._samples(number, begin, end, threads), end - begin)

    def _samples(self, number: int, begin: int, end: int, threads: int) -> Iterator[Any]:
        """As `samples`; after an unusable last one, some that follow it."""

        def decode(stored: Stored) -> Any:
            place = _place(self.shards[stored.shard], stored.sample)
            rng = _rng(self.seed, number, stored.again, stored.shard, stored.number)
            try:
                return self.reader.read(stored.sample, place, rng)
            except BadImage as bad:
                return _Unusable(place, bad)

        replaced = 0
        stored = itertools.islice(self._stored(number), begin, None)
        wanted = itertools.islice(stored, end - begin)
        for sample in itertools.chain(in_order(decode, wanted, threads), map(decode, stored)):
            if isinstance(sample, _Unusable):
                self.report.skip(sample.reason.kind, sample.place, sample.reason.detail)
                self._check()
                replaced += 1
                if replaced > 2 * max(self._judged, len(self.shards)):
                    raise self._nothing()
                continue
            for _ in range(replaced + 1):
                yield sample
            replaced = 0

    def _stored(self, number: int) -> Iterator[Stored]:
        """What is stored of pass `number`, in order; again after it is all through, without end."""
        for again in itertools.count():
            pieces = self._order.pieces(number, again)
            nothing = True
            for stored in self._order.draw((s for piece in pieces for s in self._piece(piece)), number, again):
                nothing = False
                self._judged += not again
                yield stored._replace(again=again)
            if nothing:
                raise self._nothing()
            if not again:
                _log.info("pass %d: the shards of this rank are through and begin again", number)

    def _piece(self, piece: Piece) -> Iterator[Stored]:
        samples = read_shard(self.shards[piece.shard], self.keys, self._skip)
        for number, sample in itertools.islice(enumerate(samples), piece.first, piece.last, piece.step):
            yield Stored(piece.shard, number, sample)

    def _skip(self, kind: str, place: str, detail: str) -> None:
        """Report what is no sample, and stop when it is too much."""
        self.report.skip(kind, place, detail)
        self._no_samples.add(place)
        if kind == UNREADABLE_SHARD:
            self._unreadable[place] = detail
            check_shards(self._unreadable, len(self.shards), self._max_bad_share)
        self._check()

    def _check(self) -> None:
        """Stop when too much of what was read is unusable; the trainer can only compare it with a whole epoch."""
        listed = max(self._judged, min(self._epoch_samples, _FEWEST_JUDGED)) + len(self._no_samples)
        self.report.check(listed * self._order.world_size, self._max_bad_share)  # the report is that of all ranks

    def _nothing(self) -> DataError:
        return DataError(
            f"not one sample of {len(self.shards)} shards can be used, such as {self.shards[0]}; --wds names the keys "
            f"{';'.join(self.keys.image)} and {';'.join(self.keys.caption) or 'none'}. {self.report.path} has the "
            "reasons"
        )


def open_shards(
    options: DataOptions,
    reader: SampleReader,
    report: DataReport,
    seed: int,
    folder: Path,
    rank: int = 0,
    world_size: int = 1,
) -> Union[ShardDataset, ShardStream]:
    """The training samples of the shards that `input_folder` names, a `ShardDataset` or a `ShardStream`.

    Args:
        options: of the data; `wds` is set.
        reader: makes the samples; with captions, when it has texts.
        report: where unusable samples are recorded.
        seed: of all random choices.
        folder: where the index is kept from one run to the next.
        rank, world_size: which part of each epoch is taken.

    Raises:
        DataError: a shard is missing, refused, or holds nothing usable.
        OptionError: remote shards without `epoch_samples`, or webdataset is not installed.
    """
    keys, shards = _keys(options, reader), find_shards("input_folder", options.input_folder)
    seekable = all(is_seekable(shard) for shard in shards)
    counts = None
    if seekable or not options.epoch_samples:
        indexes = index_shards(shards, keys, options.max_bad_share, report, folder / INDEX)
        counts = [index.samples for index in indexes]
        _at_least(sum(counts), world_size, shards, keys, report)
    order = ShardOrder(len(shards), counts, seed, options.shuffle_buffer, rank, world_size)
    if options.epoch_samples and options.epoch_samples < world_size:
        raise OptionError(
            f"epoch_samples={options.epoch_samples} is less than one for each of {world_size} ranks; raise it"
        )
    if seekable:
        return ShardDataset(shards, indexes, keys, reader, report, seed, order, options.epoch_samples)
    length = options.epoch_samples or sum(counts or ())
    return ShardStream(shards, keys, reader, report, seed, order, length, options.max_bad_share)


def open_validation_shards(
    options: DataOptions, reader: SampleReader, report: DataReport, folder: Optional[Path], most: int
) -> Optional[StoredSamples]:
    """The samples of the shards that `validation_folder` names, in order; of streams the first `most`, in memory.

    The rest is as for `open_shards`; without a `folder`, no index is kept.
    """
    if options.validation_folder is None or not most:
        return None
    keys, shards = _keys(options, reader), find_shards("validation_folder", options.validation_folder)
    if all(is_seekable(shard) for shard in shards):
        indexes = index_shards(shards, keys, options.max_bad_share, report, folder and folder / INDEX)
        _at_least(sum(index.samples for index in indexes), 1, shards, keys, report)
        order = ShardOrder(len(shards), [index.samples for index in indexes], 0, 1)
        return ShardDataset(shards, indexes, keys, reader, report, 0, order)
    order = ShardOrder(len(shards), None, 0, 1)
    return ShardStream(shards, keys, reader, report, 0, order, most, options.max_bad_share).first(most)


class _Unusable(NamedTuple):
    """A sample that is to be left out."""

    place: str
    reason: BadImage


class _Stream(IterableDataset):  # type: ignore[type-arg]
    """What a loader goes through: spans of passes of a `ShardStream`."""

    def __init__(self, shards: ShardStream, spans: Callable[[], Iterator[Span]], threads: int) -> None:
        self._shards, self._spans, self._threads = shards, spans, threads

    def __iter__(self) -> Iterator[Any]:
        for number, begin, end in self._spans():
            yield from self._shards.samples(number, begin, end, self._threads)


def _keys(options: DataOptions, reader: SampleReader) -> Keys:
    import_webdataset()
    keys = parse_keys(options.wds)
    if reader.texts is None:
        return Keys(keys.image, ())
    if not keys.caption:
        raise OptionError(f"wds={','.join(options.wds)} names no key of captions; give both, as in --wds img,cap")
    return keys


def _at_least(samples: int, world_size: int, shards: Sequence[str], keys: Keys, report: DataReport) -> None:
    if samples < world_size:
        raise DataError(
            f"{len(shards)} shards, such as {shards[0]}, hold {samples} samples under the keys "
            f"{';'.join(keys.image)},{';'.join(keys.caption)}, and {world_size} ranks need one each; name the keys "
            "that are in them with --wds, or give more shards"
            + (f". Skipped:\n{report.summary()}" if report.skipped else "")
        )


def in_order(function: Callable[[Item], Any], items: Iterator[Item], threads: int) -> Iterator[Any]:
    """`map` in `threads` threads, a few items ahead."""
    if not threads:
        yield from map(function, items)
        return
    pending: Deque[concurrent.futures.Future[Any]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 4 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _member(file: BinaryIO, place: str, key: str, offset: int, size: int) -> Member:
    file.seek(offset)
    return Member(place, key, offset, size, file.read(size))


def _place(shard: str, sample: ShardSample) -> str:
    return f"{shard}#{sample.image.name}"


def _rng(seed: int, number: int, again: int, shard: int, sample: int) -> random.Random:
    # a text is seeded through SHA-512, alike everywhere
    return random.Random(f"{seed}/{number}/{again}/{shard}/{sample}")


if __name__ == "__main__":
    import sys

    from data.shard_writer import main

    sys.exit(main())
