"""A shard in the making survives whatever happens to its file."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from data.encoded_format import EncodedRows
from data.shard_journal import Entry, ShardJournal


def entry_of(number: int) -> Entry:
    """A batch of two pictures, the second of which has two captions."""
    rows = EncodedRows(
        codes=torch.arange(8, dtype=torch.int16).view(2, 1, 4) + number,
        numbers=torch.tensor([3 * number, 3 * number + 1], dtype=torch.int32),
        captions=torch.tensor([0, 1, 3]),
        starts=torch.tensor([0, 2, 3, 6]),
        ids=torch.arange(6, dtype=torch.int32) + number,
        texts=torch.frombuffer(bytearray(f"a {number}\nb\nc é\n".encode()), dtype=torch.uint8),
    )
    return Entry(rows, 3 * number + 3, number == 2)


def write_journal(path: Path) -> bytes:
    journal = ShardJournal(path)
    for number in range(3):
        journal.append(entry_of(number))
    journal.close()
    return path.read_bytes()


def equal(one: EncodedRows, other: EncodedRows) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other))


def test_a_journal_gives_back_what_was_appended(tmp_path: Path) -> None:
    write_journal(tmp_path / "x.journal")
    journal = ShardJournal(tmp_path / "x.journal")
    assert (journal.seen, journal.ended) == (9, True)
    assert all(equal(found.rows, entry_of(number).rows) for number, found in enumerate(journal.entries))
    rows = journal.rows()
    assert rows.numbers.tolist() == [0, 1, 3, 4, 6, 7]
    assert rows.captions.tolist() == [0, 1, 3, 4, 6, 7, 9]
    assert rows.starts.tolist() == [0, 2, 3, 6, 8, 9, 12, 14, 15, 18]
    assert [rows.text(row) for row in range(6)] == ["a 0", "b", "a 1", "b", "a 2", "b"]


def test_cut_at_any_byte_it_keeps_the_whole_batches_and_is_gone_on_with(tmp_path: Path) -> None:
    content = write_journal(tmp_path / "x.journal")
    size = len(content) // 3
    for length in [*range(0, len(content), 97), size - 1, size, size + 1, 2 * size - 1, 2 * size, len(content) - 1]:
        (tmp_path / "x.journal").write_bytes(content[:length])
        journal = ShardJournal(tmp_path / "x.journal")
        assert journal.seen == length // size * 3
        for number in range(length // size, 3):
            journal.append(entry_of(number))
        journal.close()
        assert (tmp_path / "x.journal").read_bytes() == content


def test_a_damaged_batch_and_what_follows_it_are_done_again(tmp_path: Path) -> None:
    content, rng = write_journal(tmp_path / "x.journal"), random.Random(0)
    size = len(content) // 3
    for _ in range(30):
        place = rng.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        (tmp_path / "x.journal").write_bytes(damaged)
        journal = ShardJournal(tmp_path / "x.journal")
        assert journal.seen == place // size * 3
        journal.close()


def test_a_tail_of_zeros_that_a_power_failure_leaves_is_cut_off(tmp_path: Path) -> None:
    content = write_journal(tmp_path / "x.journal")
    (tmp_path / "x.journal").write_bytes(content + bytes(1000))
    journal = ShardJournal(tmp_path / "x.journal")
    journal.close()
    assert journal.seen == 9 and (tmp_path / "x.journal").read_bytes() == content
