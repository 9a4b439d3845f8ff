"""A folder of encoded pictures in the making: one process at a time, which goes on where an earlier one was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

from safetensors.torch import save
from torch import Tensor

from data.encoded_format import (
    IMAGE_TOKENIZER,
    MANIFEST,
    TOKENIZER,
    EncodedShard,
    Encoding,
    Manifest,
    differing,
    digest_of,
    read_manifest,
    shard_name,
    write_file,
)
from data.report import DataError, DataReport
from data.shard_journal import ShardJournal

REPORT = "data_report.jsonl"
_LOCK = "encoded.lock"
_OURS = re.compile(
    r"(encoded\.json|encoded\.lock|data_report\.jsonl|tokenizer\.json|[\w-]+\.safetensors)(\.partial)?|[\w-]+\.journal"
)
_SHOWN = 60  # characters of a value


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything else.

    Raises:
        DataError: it does.
    """
    strange = [name for name in (os.listdir(folder) if folder.is_dir() else ()) if not _OURS.fullmatch(name)]
    if strange:
        raise DataError(
            f"out_dir={folder} holds {sorted(strange)[0]}, which is none of encoded pictures; give an empty folder"
        )


class EncodedWriter:
    """Writes shards and manifest.

    Args:
        folder: of the encoded pictures.
        encoding: what decides their tokens.
        listed: samples of each split, where that is known.

    Raises:
        DataError: the folder holds something else, or pictures that were encoded in another way.
    """

    def __init__(self, folder: Path, encoding: Encoding, listed: Dict[str, Optional[int]]) -> None:
        check_folder(folder)
        self.folder = folder
        self.manifest = Manifest(encoding, listed, {split: {} for split in listed}, {}, complete=False)
        self._read(encoding)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out within a `with` block.

        Raises:
            DataError: there is one already.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as lock:
            try:  # such a lock is not inherited by loader processes, which may outlive a killed one by a moment
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DataError(f"another process is encoding into out_dir={self.folder}; wait for it") from None
            self._read(self.manifest.encoding)  # another one may just have ended
            yield

    def begin(self, weights: Dict[str, Tensor], tokenizer: str) -> None:
        """Write the tokenizers and the manifest, if they are not there; forget shards whose files are gone."""
        if not (self.folder / MANIFEST).exists():
            (self.folder / REPORT).unlink(missing_ok=True)
        if not (self.folder / IMAGE_TOKENIZER).exists():
            contiguous = {name: weight.cpu().contiguous() for name, weight in weights.items()}
            write_file(self.folder / IMAGE_TOKENIZER, save(contiguous))
        if not (self.folder / TOKENIZER).exists():
            write_file(self.folder / TOKENIZER, tokenizer.encode("utf-8"))
        shards = {
            split: {number: shard for number, shard in finished.items() if (self.folder / shard.file).exists()}
            for split, finished in self.manifest.shards.items()
        }
        if shards != self.manifest.shards or not (self.folder / MANIFEST).exists():
            self._write(dataclasses.replace(self.manifest, shards=shards, complete=False))

    def unfinished(self, split: str, parts: int) -> List[int]:
        """The numbers of the shards that are not finished."""
        finished = self.manifest.shards[split]
        for number in finished:  # left by a process that was killed just then
            self._journal(split, number).unlink(missing_ok=True)
        return [number for number in range(parts) if number not in finished]

    def progress(self, split: str, number: int) -> Tuple[int, bool]:
        """How many samples of an unfinished shard are done, and whether these are all."""
        if not self._journal(split, number).exists():
            return 0, False
        with contextlib.closing(self.journal(split, number)) as journal:
            return journal.seen, journal.ended

    def journal(self, split: str, number: int) -> ShardJournal:
        """What is done of a shard."""
        return ShardJournal(self._journal(split, number))

    def finish(self, split: str, number: int, journal: ShardJournal) -> EncodedShard:
        """Make the shard of a journal that is ended."""
        rows = journal.rows()
        content = save(rows._asdict())
        name = shard_name(split, number)
        write_file(self.folder / name, content)
        counts = (journal.seen, len(rows.numbers), len(rows.starts) - 1)
        shard = EncodedShard(name, *counts, len(content), digest_of(content))
        finished = {**self.manifest.shards[split], number: shard}
        shards = {**self.manifest.shards, split: dict(sorted(finished.items()))}
        self._write(dataclasses.replace(self.manifest, shards=shards))
        journal.remove()
        return shard

    def complete(self, report: DataReport) -> None:
        """Note that all is there, and what was left out."""
        if not self.manifest.complete:
            self._write(dataclasses.replace(self.manifest, skipped=report.counts, complete=True))

    def _read(self, encoding: Encoding) -> None:
        """Take what the folder holds already."""
        if not (self.folder / MANIFEST).exists():
            return
        self.manifest = read_manifest(self.folder)
        for name, (there, here) in differing(self.manifest.encoding, encoding).items():
            raise DataError(
                f"out_dir={self.folder} holds pictures encoded with {name}={str(there)[:_SHOWN]}, and now {name} is "
                f"{str(here)[:_SHOWN]}; encode as before, or into another folder"
            )

    def _journal(self, split: str, number: int) -> Path:
        return (self.folder / shard_name(split, number)).with_suffix(".journal")

    def _write(self, manifest: Manifest) -> None:
        write_file(self.folder / MANIFEST, manifest.text().encode("utf-8"))
        self.manifest = manifest
