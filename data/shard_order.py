"""The order in which a rank goes through shards: made of places alone, so that it can be entered anywhere.

A pass goes through the shards in a permutation of its own, and draws each sample at random from a buffer of those that
come next. Several ranks share a pass without overlap: where samples are counted, each takes an equal part of the pass,
cut inside a shard if need be; otherwise whole shards in turn, or, of fewer shards than ranks, every n-th sample.
"""

from __future__ import annotations

import random
from typing import Iterable, Iterator, List, NamedTuple, Optional, Sequence, TypeVar

Item = TypeVar("Item")


class Piece(NamedTuple):
    """A part of a shard: samples `first`, `first + step`, ... below `last` (none: to the end)."""

    shard: int
    first: int
    last: Optional[int]
    step: int


class ShardOrder:
    """How one rank goes through shards.

    Args:
        shards: how many there are.
        counts: samples of each, where they are known.
        seed: of all permutations.
        buffer: samples among which the next one is drawn.
        rank, world_size: which part of each pass is taken.
    """

    def __init__(
        self, shards: int, counts: Optional[Sequence[int]], seed: int, buffer: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.shards, self.counts, self.seed, self.buffer = shards, counts, seed, buffer
        self.rank, self.world_size = rank, world_size

    def pieces(self, number: int, again: int = 0) -> List[Piece]:
        """The pieces of pass `number`, in order; going through them `again` changes their order alone."""
        shards = list(range(self.shards))
        random.Random(f"{self.seed}/{number}").shuffle(shards)
        pieces = self._equal_part(shards) if self.counts is not None else self._every_nth(shards)
        if again:
            random.Random(f"{self.seed}/{number}/{again}").shuffle(pieces)
        return pieces

    def draw(self, items: Iterable[Item], number: int, again: int = 0) -> Iterator[Item]:
        """Yield the items of a pass, each drawn from a buffer of those that come next."""
        rng = random.Random(f"{self.seed}/{number}/{again}/{self.rank}")
        buffer: List[Item] = []
        for item in items:
            if len(buffer) < self.buffer:
                buffer.append(item)
                continue
            place = rng.randrange(self.buffer)
            drawn, buffer[place] = buffer[place], item
            yield drawn
        rng.shuffle(buffer)
        yield from buffer

    def _equal_part(self, shards: List[int]) -> List[Piece]:
        assert self.counts is not None
        share = sum(self.counts) // self.world_size
        begin, end = self.rank * share, (self.rank + 1) * share
        pieces, passed = [], 0
        for shard in shards:
            first, last = max(begin - passed, 0), min(end - passed, self.counts[shard])
            if first < last:
                pieces.append(Piece(shard, first, last, 1))
            passed += self.counts[shard]
        return pieces

    def _every_nth(self, shards: List[int]) -> List[Piece]:
        if len(shards) < self.world_size:
            return [Piece(shard, self.rank, None, self.world_size) for shard in shards]
        return [Piece(shard, 0, None, 1) for shard in shards[self.rank :: self.world_size]]
