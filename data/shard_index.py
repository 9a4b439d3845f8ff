"""The index of local shards: how many samples each holds and, where nothing is compressed, where they stand in it.

It is made once, by reading headers where that is enough, and kept in a file for the next run; a shard that has changed
since is looked into again.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from data.archives import UNREADABLE_SHARD, Keys, is_remote, is_seekable, look_into_shard
from data.report import DataError, DataReport
from options import OptionError

_log = logging.getLogger(__name__)

INDEX = "shard_index.pt"
COLUMNS = ("image offset", "image bytes", "captions offset", "captions bytes", "captions key", "end in names")


class ShardIndex(NamedTuple):
    """What a local shard holds."""

    identity: str  # of the file that was looked into, see `identify`
    samples: int
    names: str  # of the images, one after the other; empty when the shard is compressed
    members: Tensor  # int64 (samples, 6), see `COLUMNS`; (0, 6) when the shard is compressed
    findings: List[List[str]]  # kind, place and detail of what is left out


class ShardTable(Sequence[str]):
    """The samples of indexed shards, numbered through, as what the report calls them."""

    def __init__(self, shards: Sequence[str], indexes: Sequence[ShardIndex]) -> None:
        self.shards, self.indexes = shards, indexes
        self.starts = list(itertools.accumulate([0, *(index.samples for index in indexes)]))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, position: Any) -> Any:
        shard, number = self.find(position)
        ends, names = self.indexes[shard].members[:, -1], self.indexes[shard].names
        return f"{self.shards[shard]}#{names[int(ends[number - 1]) if number else 0 : int(ends[number])]}"

    def find(self, position: int) -> Tuple[int, int]:
        """The shard of a sample, and its number there."""
        shard = bisect.bisect_right(self.starts, position) - 1
        return shard, position - self.starts[shard]


def index_shards(
    shards: Sequence[str], keys: Keys, max_bad_share: float, report: DataReport, cache: Optional[Path]
) -> List[ShardIndex]:
    """What each of the shards holds; those that have not changed since are taken from the file `cache`.

    Raises:
        DataError: a shard is refused, or more than `max_bad_share` of them cannot be read.
        OptionError: one of them is remote.
    """
    remote = next((shard for shard in shards if is_remote(shard)), None)
    if remote is not None:
        raise OptionError(
            f"epoch_samples is not set, and {remote} cannot be counted without fetching it; say with --epoch-samples "
            "how many samples an epoch has (`python -m data.check` with --wds counts them)"
        )
    known, fresh = _load_index(cache), 0
    indexes = []
    for shard in shards:
        if known.get(shard, {}).get("identity") != identify(os.stat(shard), keys):
            if not fresh:
                _log.info("counting the samples of %d shards", len(shards))
            known[shard], fresh = _look_into(shard, keys)._asdict(), fresh + 1
        indexes.append(ShardIndex(*(known[shard][name] for name in ShardIndex._fields)))
        for finding in indexes[-1].findings:
            report.skip(*finding)
    if cache is not None and fresh:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
        torch.save(known, partial)
        os.replace(partial, cache)
    findings = [finding for index in indexes for finding in index.findings]
    check_shards(
        {place: detail for kind, place, detail in findings if kind == UNREADABLE_SHARD}, len(shards), max_bad_share
    )
    return indexes


def check_shards(unreadable: Dict[str, str], total: int, max_share: float) -> None:
    """Refuse to go on when too many shards cannot be read; each may hold thousands of samples.

    Args:
        unreadable: what was found, by shard.
        total: shards there are.
        max_share: the share of them that may be unreadable, 0..1.

    Raises:
        DataError: more than that share is.
    """
    if len(unreadable) > max_share * total:
        shard, detail = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable)} of {total} shards ({len(unreadable) / total:.1%}) cannot be read to their end, "
            f"max_bad_share={max_share} allows {max_share:.1%}, such as {shard}: {detail}. Fetch them anew, or raise "
            "--max-bad-share"
        )


def _look_into(shard: str, keys: Keys) -> ShardIndex:
    findings: List[List[str]] = []
    names: List[str] = []
    rows: List[List[int]] = []
    identity = identify(os.stat(shard), keys)
    count, end, seekable = 0, 0, is_seekable(shard)
    for image, caption in look_into_shard(shard, keys, lambda *finding: findings.append(list(finding))):
        count += 1
        if seekable:
            end += len(image.name)
            names.append(image.name)
            text = [caption.offset, caption.size, keys.caption.index(caption.key)] if caption else [0, 0, 0]
            rows.append([image.offset, image.size, *text, end])
    members = torch.tensor(rows, dtype=torch.int64).view(-1, len(COLUMNS))
    return ShardIndex(identity, count, "".join(names), members, findings)


def identify(stat: os.stat_result, keys: Keys) -> str:
    """What an index holds for: the file as it is, and the keys."""
    return f"{stat.st_size}/{stat.st_mtime_ns}/{';'.join(keys.image)},{';'.join(keys.caption)}"


def _load_index(cache: Optional[Path]) -> Dict[str, Dict[str, Any]]:
    if cache is None or not cache.exists():
        return {}
    try:
        known: Dict[str, Dict[str, Any]] = torch.load(cache, weights_only=True)
    except Exception as error:  # torn, or no such file: torch raises whatever its bytes lead it to
        _log.info("%s cannot be read (%s); the shards are counted anew", cache, error)
        return {}
    return known
