"""Pixels of images as tensors: decoded, cut and scaled, with the values that Pillow gives, and several times faster.

An upright JPEG in colour that has to be decoded whole, which is the common case, goes through torchvision's
libjpeg-turbo, without Pillow's copies; squares are scaled by torch where it does that with vector instructions.

Legend: C channels, Y rows, X columns; the channels of a pixel lie side by side in memory.
"""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import BinaryIO, Optional, Tuple, Union

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from data.images import decode_image, opened_image, turn_upright


def load_pixels(
    path: Union[str, Path, BinaryIO], min_side: int = 1, enough: Optional[int] = None, mode: str = "RGB"
) -> Tuple[Tensor, str]:
    """The picture of `data.images.load_image`, with its arguments and errors, as uint8 (C, Y, X); its stored mode."""
    with opened_image(path, min_side) as image:
        stored = image.mode
        pixels = _decode_plain_jpeg(image, enough) if mode == "RGB" else None
        return (to_pixels(decode_image(image, enough, mode)) if pixels is None else pixels), stored


def random_square_crop(pixels: Tensor, size: int, lower_ratio: float, rng: random.Random) -> Tensor:
    """Cut a square that keeps between `lower_ratio` and all of the largest one's area; scale it to `size` pixels.

    Args:
        pixels: uint8 (C, Y, X).
        size: pixels of a side of the result.
        lower_ratio: above 0, at most 1.
        rng: decides the square.

    Returns:
        uint8 (C, size, size).
    """
    height, width = pixels.shape[1:]
    side = max(1, round(min(height, width) * math.sqrt(rng.uniform(lower_ratio, 1))))
    return _cut(pixels, rng.randint(0, width - side), rng.randint(0, height - side), side, size)


def center_square_crop(pixels: Tensor, size: int) -> Tensor:
    """Cut the largest square in the middle of uint8 (C, Y, X) and scale it to (C, size, size)."""
    height, width = pixels.shape[1:]
    side = min(height, width)
    return _cut(pixels, (width - side) // 2, (height - side) // 2, side, size)


def to_pixels(image: Image.Image) -> Tensor:
    """A picture of one of `data.images.MODES` as uint8 (C, Y, X)."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def _decode_plain_jpeg(image: Image.Image, enough: Optional[int]) -> Optional[Tensor]:
    """The pixels (3, Y, X) of an opened file, if it is a JPEG to be neither reduced, turned nor converted.

    None for others, and for damaged ones: Pillow judges those.
    """
    if image.format != "JPEG" or image.mode != "RGB" or turn_upright(image) is not None:
        return None
    size = image.size
    if enough is not None:
        image.draft(None, (enough, enough))
    if image.size != size:
        return None
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and not every run reads pictures

    file: BinaryIO = image.fp  # type: ignore[attr-defined]  # open until Pillow decodes
    file.seek(0)
    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        return decode_jpeg(content, ImageReadMode.RGB)
    except RuntimeError:
        return None


def _cut(pixels: Tensor, left: int, top: int, side: int, size: int) -> Tensor:
    """A square of uint8 (C, Y, X), scaled to (C, size, size): bicubic, and antialiased where it becomes smaller."""
    square = pixels[:, top : top + side, left : left + side]
    if not _scales_bytes_fast():
        from torchvision.transforms.functional import to_pil_image

        return to_pixels(to_pil_image(square).resize((size, size), Image.Resampling.BICUBIC))
    batch = square[None].contiguous(memory_format=torch.channels_last)
    return interpolate(batch, size=(size, size), mode="bicubic", antialias=True)[0]


@functools.lru_cache(maxsize=None)
def _scales_bytes_fast() -> bool:
    """Whether torch scales bytes with vector instructions: from 2.1 on, on processors with AVX2.

    Its filter is Pillow's with weights of fewer bits, which moves some values by 1 of 255. Elsewhere Pillow is faster.
    """
    capability = getattr(getattr(torch.backends, "cpu", None), "get_cpu_capability", str)()
    return capability in ("AVX2", "AVX512") and torch.__version__ >= "2.1"
