"""Shards: where they lie, how they are opened, and the samples in them.

A shard is a tar archive as webdataset writes it: members whose names agree up to the first dot of their last part, and
which stand one after the other, are one sample; what follows that dot is the member's key (`a/0001.img`, `a/0001.cap`).
Members are read into memory one by one; nothing is ever unpacked to the disk.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import shlex
import shutil
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from data.images import EMPTY_FILE
from data.report import DataError
from options import OptionError

UNREADABLE_SHARD = "unreadable shard"

_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")  # how gzip, bzip2 and xz begin
_LARGEST = 1 << 28  # bytes of a member; what claims more is no picture or caption
_LARGEST_CLAIM = 1 << 50  # bytes of any member; what claims more is damage, and a place that cannot be sought
_LARGEST_PREFIX = 1 << 20  # bytes of what stands before a header and is read whole: long names and pax records
_PREFIXES = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)")
_BROKEN = (OSError, EOFError, tarfile.TarError, zlib.error)  # what reading a damaged or interrupted shard raises
_PAUSES = (1.0, 5.0, 20.0)  # seconds before a remote shard is asked for again
_COMMANDS: Dict[str, Tuple[str, ...]] = {
    "http": ("curl", "--fail", "--location", "--silent", "--show-error", "--globoff", "--connect-timeout", "30",
             "--speed-limit", "1", "--speed-time", "60"),
    "gs": ("gsutil", "cat"),
    "s3": ("aws", "s3", "cp"),
}  # fmt: skip
_COMMANDS["https"] = _COMMANDS["http"]

Skip = Callable[[str, str, str], None]
"""Takes what is left out: the kind, the place and the detail, as `DataReport.skip` does."""


class Keys(NamedTuple):
    """Under which keys a sample's image and captions stand; of several, the first that is there counts."""

    image: Tuple[str, ...]
    caption: Tuple[str, ...]  # none: captions are not asked for


class Member(NamedTuple):
    """A member of a sample; `data` are its bytes, unless it was only looked at."""

    name: str
    key: str
    offset: int
    size: int
    data: bytes


class ShardSample(NamedTuple):
    """What is stored of one sample, whole members both."""

    image: Member
    caption: Optional[Member]


def parse_keys(wds: Sequence[str]) -> Keys:
    """The keys that the option `wds` names: the image's, then the captions'; `jpg;png` names alternatives."""
    parts = [tuple(key.strip().lower().lstrip(".") for key in part.split(";") if key.strip()) for part in wds]
    return Keys(parts[0], parts[1] if len(parts) > 1 else ())


def import_webdataset(module: str = "") -> Any:
    """The package webdataset, which names, expands, opens and writes shards, or one of its modules.

    Raises:
        OptionError: it is not installed.
    """
    try:
        return importlib.import_module("webdataset" + module)
    except ImportError:
        raise OptionError("wds needs the package webdataset: pip install webdataset, or leave --wds out") from None


def find_shards(name: str, address: Optional[str]) -> List[str]:
    """The shards that an address names, in order; local ones as absolute paths.

    Args:
        name: the option that has the address.
        address: a shard, a folder of shards, a brace range of shards, a URL of these, or `pipe:` with a command.

    Raises:
        DataError: there is none, or one of them is missing.
        OptionError: a command that nobody typed, or a kind of address that is not known.
    """
    if address is None:
        raise DataError(f"{name} is not set; give the shards with --{name.replace('_', '-')}")
    path = Path(os.path.abspath(os.path.expanduser(address)))
    if path.is_dir():
        shards = [str(file) for file in _files_below(path) if file.name.lower().endswith(_EXTENSIONS)]
        if not shards:
            raise DataError(f"{name}={address} holds no shard; looked for files that end with {', '.join(_EXTENSIONS)}")
        return shards
    if path.exists():
        return [str(path)]
    return [_known(name, shard) for shard in _expand(name, address)]


def is_remote(shard: str) -> bool:
    """Whether a shard comes through a command rather than from a file."""
    return shard.startswith("pipe:") or "://" in shard


def is_seekable(shard: str) -> bool:
    """Whether a shard is a file whose members can be read at their offsets: a local one, not compressed.

    Raises:
        DataError: it cannot be opened.
    """
    if is_remote(shard):
        return False
    try:
        with open(shard, "rb") as file:
            return file.seekable() and not file.read(8).startswith(_COMPRESSED)
    except OSError as error:
        raise DataError(
            f"the shard {shard} cannot be opened ({error.strerror}); mend that, or take it out of the folder"
        ) from None


def read_shard(shard: str, keys: Keys, skip: Skip) -> Iterator[ShardSample]:
    """Yield the samples of a shard in order, with their bytes; what is unusable is given to `skip`.

    A remote shard that breaks off is asked for again, and gone on with after the samples that were read.

    Raises:
        DataError: a member's name leads out of the archive.
    """
    given = 0
    for pause in (*(_PAUSES if is_remote(shard) else ()), None):
        try:
            with _opened(shard) as file:
                with _streamed(file) as archive:
                    for sample in itertools.islice(_samples(archive, shard, keys, skip, read=True), given, None):
                        given += 1
                        yield sample
                while file.read(1 << 16):  # what follows the archive, so that the command can end by itself
                    pass
            return
        except _BROKEN as error:
            if pause is None:
                skip(UNREADABLE_SHARD, shard, f"after {given} samples: {error}")
            else:
                time.sleep(pause)


def look_into_shard(shard: str, keys: Keys, skip: Skip) -> Iterator[ShardSample]:
    """As `read_shard` for a local file, without the members' bytes; where nothing is compressed, by their headers."""
    try:
        with open(shard, "rb") as file, _sought(file) if is_seekable(shard) else _streamed(file) as archive:
            yield from _samples(archive, shard, keys, skip, read=False)
    except _BROKEN as error:
        skip(UNREADABLE_SHARD, shard, str(error))


class _Ending:
    """A file that ends: to skip what is not there, tarfile would go on reading nothing, as often as its size claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._ended = file, False

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if not data and self._ended:
            raise EOFError("unexpected end of data")
        self._ended = not data
        return data


def _sought(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)


def _streamed(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=_Ending(file), mode="r|*", tarinfo=_Header)  # type: ignore[call-overload, no-any-return]


class _Header(tarfile.TarInfo):
    """A member's header. A damaged one, or none, is a `ReadError`.

    tarfile takes some of these for the end of the archive, goes in circles where a size is below zero, and lets through
    whatever else their bytes lead it to.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        header = super().frombuf(buf, encoding, errors)
        return _plausible(header, _LARGEST_PREFIX if header.type in _PREFIXES else _LARGEST_CLAIM)

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Any:
        try:
            return _plausible(super().fromtarfile(archive), _LARGEST_CLAIM)  # pax records may have changed the size
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of the end
            raise
        except (tarfile.HeaderError, ValueError, LookupError, ArithmeticError) as error:
            raise tarfile.ReadError(f"cut off, or a damaged header ({error})") from None


def _plausible(header: tarfile.TarInfo, most: int) -> tarfile.TarInfo:
    if not 0 <= header.size <= most:
        raise tarfile.ReadError(f"a damaged header, which claims {header.size} bytes")
    return header


def _samples(archive: tarfile.TarFile, shard: str, keys: Keys, skip: Skip, read: bool) -> Iterator[ShardSample]:
    base_plus_ext = import_webdataset(".tariterators").base_plus_ext
    named = ((*base_plus_ext(header.name), header) for header in _headers(archive, shard, skip))
    whole = ((prefix, suffix.lower(), header) for prefix, suffix, header in named if prefix is not None)
    for _, group in itertools.groupby(whole, key=lambda part: part[0]):
        members: Dict[str, Member] = {}
        for _, suffix, header in group:
            place = f"{shard}#{header.name}"
            if suffix in members:
                skip("member that occurs twice", place, "")
            elif suffix in keys.image + keys.caption:
                if header.size > _LARGEST:
                    skip("member too large", place, f"{header.size} bytes, at most {_LARGEST} are read")
                    continue
                data = archive.extractfile(header).read() if read else b""  # type: ignore[union-attr]
                members[suffix] = Member(header.name, suffix, header.offset_data, header.size, data)
        sample = _sample(members, shard, keys, skip)
        if sample is not None:
            yield sample


def _headers(archive: tarfile.TarFile, shard: str, skip: Skip) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive's plain files."""
    size = os.path.getsize(shard) if is_seekable(shard) else None
    while True:
        header = archive.next()
        archive.members = []  # type: ignore[attr-defined]  # it would keep them all
        if header is None:
            return
        if _OUTSIDE.search(header.name):
            raise DataError(
                f"{shard} has the member {header.name!r}, whose name leads out of the archive; such shards are "
                "refused. Nothing was unpacked; make the shard anew from a source you trust"
            )
        if header.isdir():
            continue
        if not header.isreg() or header.issparse():
            skip("member that is no file", f"{shard}#{header.name}", "")
            continue
        if size is not None and header.offset_data + header.size > size:
            raise tarfile.ReadError("unexpected end of data")
        yield header


def _sample(members: Dict[str, Member], shard: str, keys: Keys, skip: Skip) -> Optional[ShardSample]:
    """A sample of its members, or `None` once it is given to `skip` as useless."""
    image = next((members[key] for key in keys.image if key in members), None)
    caption = next((members[key] for key in keys.caption if key in members), None)
    if image is None:
        if caption is not None:
            skip("captions without image", f"{shard}#{caption.name}", "")
    elif not image.size:
        skip(EMPTY_FILE, f"{shard}#{image.name}", "")
    elif keys.caption and caption is None:
        skip("image without captions", f"{shard}#{image.name}", "")
    elif caption is not None and not caption.size:
        skip("empty caption file", f"{shard}#{caption.name}", "")
    else:
        return ShardSample(image, caption)
    return None


@contextlib.contextmanager
def _opened(shard: str) -> Iterator[BinaryIO]:
    """A shard as a stream of bytes; a command that fails is an `OSError` once the stream has been read to its end."""
    if not is_remote(shard):
        with open(shard, "rb") as file:
            yield file
        return
    stream = import_webdataset(".gopen").gopen(_command(shard), bufsize=1 << 16)
    try:
        yield stream
    except BaseException:  # left before its end: nobody waits for the command, and that it fails says nothing
        with contextlib.suppress(OSError):
            stream.proc.terminate()
            stream.close()
        raise
    stream.close()


def _command(shard: str) -> str:
    """The `pipe:` address of a remote shard. An address goes into a command as one quoted word."""
    if shard.startswith("pipe:"):
        return shard
    words = _COMMANDS[shard.split("://")[0].lower()]
    if shutil.which(words[0]) is None:
        raise OptionError(f"{shard} is fetched with {words[0]}, which is not installed here; install it")
    rest = (shard, "-") if words[0] == "aws" else (shard,)
    return "pipe:" + " ".join(shlex.quote(word) for word in (*words, *rest))


def _expand(name: str, address: str) -> List[str]:
    """The addresses of a brace range."""
    try:
        shards: List[str] = import_webdataset(".shardlists").expand_urls(address)
    except (AssertionError, ValueError) as error:
        raise OptionError(f"{name}={address} cannot be expanded ({error}); write ranges as {{000..123}}") from None
    # judged as expanded: a range can begin with a brace, and `::` puts addresses one after the other
    if any(shard.startswith("pipe:") for shard in shards) and not _is_typed(address):
        raise OptionError(
            f"{name}={address} is a command, and it does not stand on the command line; commands are taken from there "
            f"only, never from a file. Type it: --{name.replace('_', '-')} '{address}'"
        )
    return shards


def _is_typed(address: str) -> bool:
    return any(address in (argument, argument.partition("=")[2]) for argument in sys.argv)


def _known(name: str, shard: str) -> str:
    """An address of a range, checked; a local one as an absolute path."""
    if shard.startswith("pipe:"):
        return shard
    if shard.lower().startswith("file://"):
        shard = shard[len("file://") :]
    if "://" in shard:
        if shard.split("://")[0].lower() not in _COMMANDS:
            known = ", ".join(f"{scheme}://" for scheme in _COMMANDS)
            raise OptionError(f"{name}={shard} is no address that is understood; give a path, {known} or pipe:COMMAND")
        return shard
    path = os.path.abspath(os.path.expanduser(shard))
    if not os.path.exists(path):
        raise DataError(f"{name}: the shard {shard} does not exist; check the path (looked for {path})")
    return path


def _files_below(folder: Path) -> List[Path]:
    """The files below a folder, sorted, without hidden ones; links are followed, but no folder is entered twice."""
    found, entered = [], set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(root, name) for name in files if not name.startswith(".")]
    return sorted(found)
