"""COCO's layout: one JSON with `images` and `annotations`, and a folder with the images it names.

The JSON may be larger than memory, so its two lists are read member by member.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Tuple

from data.captions import Pair, clean_caption
from data.folder import is_empty
from data.images import EMPTY_FILE
from data.report import DataError, DataReport

_CHUNK = 1 << 20  # bytes read at once
_LONGEST = 1 << 26  # characters of one member; a text that needs more is no COCO file
_SPACE = re.compile(r"[ \t\n\r]*")


class CocoCaptions(NamedTuple):
    """What a caption file says: file names and clean captions by image id, and how many captions were empty."""

    names: Dict[int, str]
    captions: Dict[int, List[str]]
    empty: int


def read_coco(annotations: Path, images_folder: Path, report: DataReport) -> List[Pair]:
    """Return the pairs of a COCO caption file, sorted by path; what has no counterpart is skipped and reported.

    Raises:
        DataError: `annotations` is no JSON, is cut off, or holds something other than captions.
    """
    content = read_coco_captions(annotations, report)
    for image_id in sorted(content.captions.keys() - content.names.keys()):
        report.skip("annotation of unknown image", f"{annotations}#image {image_id}")
    pairs = []
    for image_id, name in content.names.items():
        image = images_folder / name
        captions = content.captions.get(image_id)
        if not image.exists():
            report.skip("image absent", image, f"named by {annotations}")
        elif is_empty(image):
            report.skip(EMPTY_FILE, image)
        elif not captions:
            report.skip("image without captions", image)
        else:
            pairs.append(Pair(image, tuple(captions)))
    return sorted(pairs)


def read_coco_captions(annotations: Path, report: DataReport) -> CocoCaptions:
    """Read a COCO caption file in memory for its captions alone; errors are those of `read_coco`."""
    names: Dict[int, str] = {}
    captions: Dict[int, List[str]] = {}
    known, empty = set(), 0
    try:
        for key, member in iterate_members(annotations, ("images", "annotations")):
            if key == "images":
                names[member["id"]] = member["file_name"]
            elif member["id"] in known:
                report.skip("duplicate annotation", f"{annotations}#annotation {member['id']}")
            else:
                known.add(member["id"])
                caption = clean_caption(member["caption"])
                empty += not caption
                captions.setdefault(member["image_id"], []).extend([caption] if caption else [])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{annotations}: {json.dumps(member)[:200]} in {key!r} is unusable ({error!r}); give a caption file in "
            "COCO's layout"
        ) from None
    if empty:
        report.note("empty caption", empty, annotations)
    return CocoCaptions(names, captions, empty)


def iterate_members(path: Path, keys: Tuple[str, ...]) -> Iterator[Tuple[str, Any]]:
    """Yield `(key, member)` for each member of the lists that the object in a JSON file has under `keys`.

    Raises:
        DataError: the file is no JSON, is cut off, or is no object of such lists; the message has the byte offset.
    """
    with path.open("rb") as file:
        reader = _Reader(file, str(path))
        more = reader.opens("{", "}")
        while more:
            key = reader.value()
            reader.expect(":")
            if reader.peek() == "[":
                members = reader.opens("[", "]")
                while members:
                    member = reader.value()
                    if key in keys:
                        yield key, member
                    members = reader.goes_on("]")
            elif key in keys:
                raise reader.error(f"{key!r} is no list")
            else:
                reader.value()
            more = reader.goes_on("}")
        if reader.peek():
            raise reader.error("text after the end")


class _Reader:
    """Reads one JSON value after another from a file, of which it holds a few members at a time."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0  # in _text
        self._passed = 0  # bytes before _text

    def opens(self, bracket: str, closing: str) -> bool:
        """Pass an opening bracket; whether something stands in it."""
        self.expect(bracket)
        if self.peek() != closing:
            return True
        self.expect(closing)
        return False

    def goes_on(self, closing: str) -> bool:
        """Pass a comma or the closing bracket; whether it was a comma."""
        return self.expect("," + closing) == ","

    def expect(self, characters: str) -> str:
        """Pass one of `characters`, and say which."""
        found = self.peek()
        if not found or found not in characters:
            raise self.error(f"{' or '.join(characters)} expected, {found or 'the end'} found")
        self._at += 1
        return found

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def value(self) -> Any:
        """Pass a whole value and return it."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._read():  # a number may go on beyond what was read
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                failed = error.pos - self._at
                if len(self._text) - self._at > _LONGEST or not self._read():
                    self._at += failed
                    raise self.error(error.msg) from None

    def error(self, message: str) -> DataError:
        """What to raise when the text breaks off or is no JSON at the present place."""
        offset = self._passed + len(self._text[: self._at].encode("utf-8"))
        return DataError(f"{self._name} is not a whole COCO JSON: {message} at byte {offset}; fetch the file again")

    def _read(self) -> bool:
        """Read on, keeping what has not been passed; whether there was more."""
        self._passed += len(self._text[: self._at].encode("utf-8"))
        self._text = self._text[self._at :]
        self._at = 0
        chunk = self._file.read(max(_CHUNK, len(self._text)))
        try:
            self._text += self._utf8.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise self.error(f"{error.reason} after this place") from None
        return bool(chunk)
