"""Images: any file that Pillow can read becomes an RGB (or gray, or RGBA) picture, or is refused with a reason."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import BinaryIO, FrozenSet, Iterator, List, Optional, Tuple, Union

from PIL import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name of a picture of so many channels
EMPTY_FILE = "empty image file"

_LIKELIEST = "JPEG"  # tried first: some of the others read a good deal before they know that a file is not theirs

# Pillow recognises these without being able to decode them, or (EPS) runs another program on them.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image that cannot be used: `kind` is the reason in a few words, `detail` what exactly was found."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


def image_formats() -> List[str]:
    """Return the formats that Pillow decodes here, by Pillow's names."""
    Image.init()
    return sorted(set(Image.OPEN) - _NOT_DECODED)


def image_extensions() -> FrozenSet[str]:
    """Return the extensions of the files that Pillow decodes here, in lower case with the dot."""
    formats = set(image_formats())
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def load_image(
    path: Union[str, Path, BinaryIO], min_side: int = 1, enough: Optional[int] = None, mode: str = "RGB"
) -> Tuple[Image.Image, str]:
    """Read a file as an upright picture; transparent parts turn white, of an animation the first frame counts.

    Args:
        path: the file, or its content as a stream.
        min_side: pixels; a picture with a shorter side is refused.
        enough: pixels; a JPEG may be decoded at a fraction of its size as long as both sides keep this many.
        mode: of the picture, one of `MODES`; in "RGBA" transparent parts stay so.

    Returns:
        The picture, and the mode it was stored in.

    Raises:
        BadImage: it is no image, damaged, too small, or so large that decoding it could exhaust the memory.
    """
    with opened_image(path, min_side) as image:
        stored = image.mode
        return decode_image(image, enough, mode), stored


@contextlib.contextmanager
def opened_image(path: Union[str, Path, BinaryIO], min_side: int) -> Iterator[Image.Image]:
    """A file whose header has been read; what goes wrong with it within the block is a `BadImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; the size is checked below
            with Image.open(path, formats=[_LIKELIEST, *image_formats()]) as image:
                _check_size(image, min_side)
                yield image
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("image too large", str(error)) from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise BadImage(
            EMPTY_FILE if _is_empty(path) else "unreadable image", f"{type(error).__name__}: {error}"
        ) from None


def decode_image(image: Image.Image, enough: Optional[int], mode: str) -> Image.Image:
    """The upright picture of an opened file; see `load_image`."""
    if enough is not None:
        image.draft(None, (enough, enough))
    image.load()
    turn = turn_upright(image)
    converted = _convert(image, mode)
    return converted if turn is None else converted.transpose(turn)


def turn_upright(image: Image.Image) -> Optional[Image.Transpose]:
    """How an opened file has to be turned, by what the camera noted; None: not at all."""
    return _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))


def _is_empty(path: Union[str, Path, BinaryIO]) -> bool:
    return isinstance(path, (str, Path)) and Path(path).is_file() and not Path(path).stat().st_size


def _check_size(image: Image.Image, min_side: int) -> None:
    width, height = image.size
    if min(width, height) < min_side:
        raise BadImage("image too small", f"{width}x{height} pixels, min_image_side={min_side}")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise BadImage("image too large", f"{width}x{height} pixels, at most {Image.MAX_IMAGE_PIXELS} are decoded")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a picture of 16 or 32 bits. Where the format does not define white, the least usual value above all."""
    values = image.convert("I").convert("F") if image.mode != "F" else image
    if image.mode.startswith("I;16") or image.format == "PNG":
        white = 65535.0
    else:
        brightest = float(values.getextrema()[1])  # type: ignore[arg-type]
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((value for value in usual if brightest <= value), brightest)
    gray = values.point(lambda value: value * (255 / white) + 0.5).convert("L")
    gray.info.clear()  # a transparent value refers to the old scale
    return gray
