"""The account of what the data pipeline left out or mended, kept in a file that all its processes append to.

Loader workers, other ranks and earlier runs write into the same JSON-lines file, one `write` a line, so that a report
needs no channel through the batch; what the file says is what is counted.
"""

from __future__ import annotations

import collections
import json
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any, Counter, Dict, List, Optional, Set, Tuple, Union

from options import UserError

PathLike = Union[str, "os.PathLike[str]"]


class DataError(UserError):
    """Data that cannot be trained on. The message names the place, what is wrong and the remedy."""


class DataReport:
    """What was skipped and why, and what was mended. A file that is met again, by whichever process, counts once."""

    def __init__(self, path: Optional[PathLike] = None) -> None:
        """Open the report at `path`, going on with what it says already; without a path, a temporary file."""
        if path is None:
            handle, name = tempfile.mkstemp(prefix="data-report-", suffix=".jsonl")
            os.close(handle)
            self.path = Path(name)
            self._removal = weakref.finalize(self, _remove, self.path, os.getpid())
        else:
            self.path = Path(path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
        self._read_up_to = 0  # bytes of the file
        self._skipped: Counter[str] = collections.Counter()  # by kind
        self._files: Set[str] = set()
        self._notes: Counter[str] = collections.Counter()
        self._seen: Set[Tuple[str, str]] = set()  # what this process wrote or read, not to write it again
        self._counted: Set[Tuple[str, str]] = set()
        self.refresh()

    def __getstate__(self) -> Dict[str, Any]:
        """All but the removal of a temporary file, which stays with the process that made it."""
        return {name: value for name, value in vars(self).items() if name != "_removal"}

    def skip(self, kind: str, path: PathLike, detail: str = "") -> None:
        """Record that the file `path` is left out; `kind` is the reason in a few words."""
        self._append({"skip": kind, "path": _absolute(path), "detail": detail})

    def note(self, kind: str, n: int = 1, path: PathLike = "") -> None:
        """Record `n` things mended rather than skipped; with a `path`, once a file however often it is said."""
        self._append({"note": kind, "path": _absolute(path) if path else "", "n": n})

    def move(self, path: PathLike) -> None:
        """Keep the account at `path` from now on, going on with what that says already; the old file stays."""
        entries = [json.loads(line) for line in self.path.read_bytes().splitlines()]
        vars(self).update(vars(DataReport(path)))
        for entry in entries:
            self._append(entry)

    def refresh(self) -> None:
        """Read what any process has appended since the last time."""
        with self.path.open("rb") as file:
            file.seek(self._read_up_to)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]  # another process may be in the middle of a line
        self._read_up_to += len(whole)
        for line in whole.splitlines():
            self._count(line)

    @property
    def counts(self) -> Dict[str, int]:
        """Files skipped, by kind."""
        self.refresh()
        return dict(self._skipped)

    @property
    def notes(self) -> Dict[str, int]:
        """Things mended, by kind."""
        self.refresh()
        return dict(self._notes)

    @property
    def skipped(self) -> List[str]:
        """The distinct files skipped, sorted."""
        self.refresh()
        return sorted(self._files)

    def summary(self) -> str:
        """A line a kind, the most frequent first; empty when there is nothing to say."""
        lines = [f"skipped {n}: {kind}" for kind, n in _by_number(self.counts)]
        return "\n".join(lines + [f"mended {n}: {kind}" for kind, n in _by_number(self.notes)])

    def check(self, total: int, max_share: float) -> None:
        """Refuse to go on when too much of the dataset is unusable.

        Args:
            total: files that the dataset holds.
            max_share: the share of them that may be skipped, 0..1.

        Raises:
            DataError: more than that share was skipped.
        """
        self.refresh()
        bad = len(self._files)
        if bad <= max_share * total:
            return
        kinds = ", ".join(f"{n} {kind}" for kind, n in _by_number(self.counts)[:3])
        raise DataError(
            f"{bad} of {total} files ({bad / max(total, 1):.1%}) were skipped, max_bad_share={max_share} allows "
            f"{max_share:.1%}: {kinds}. {self.path} lists them; mend the data, or raise --max-bad-share"
        )

    def _append(self, entry: Dict[str, Any]) -> None:
        key = (entry.get("skip") or entry["note"], entry["path"])
        if key in self._seen:
            return
        if entry["path"]:
            self._seen.add(key)
        # One write with O_APPEND: lines of several processes cannot run into each other.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, json.dumps(entry).encode("ascii") + b"\n")
        finally:
            os.close(handle)

    def _count(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            return  # half a line, left by a process that was killed
        kind, path = entry.get("skip") or entry["note"], entry["path"]
        if (kind, path) in self._counted:
            return
        if path:
            self._counted.add((kind, path))
            self._seen.add((kind, path))
        if "skip" in entry:
            self._skipped[kind] += 1
            self._files.add(path)
        else:
            self._notes[kind] += entry["n"]


def _absolute(path: PathLike) -> str:
    """A path made absolute; an address of something remote as it is."""
    place = os.fspath(path)
    return place if "://" in place or place.startswith("pipe:") else os.path.abspath(place)


def _by_number(counts: Dict[str, int]) -> List[Tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner and path.exists():  # a forked worker inherits the finalizer
        path.unlink()
