"""Pictures as files: single ones, and grids with a label under each."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import List, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 8  # pixels between the cells of a grid
_LINE = 13  # pixels of a line of text
_CHARACTER = 6.2  # pixels of a character, on average
_PAPER, _INK = (255, 255, 255), (40, 40, 46)


def to_images(pictures: Tensor) -> List[Image.Image]:
    """Tensors (B, C, H, W) in 0..1 to Pillow images."""
    from torchvision.transforms.functional import to_pil_image  # takes a second, and not every run shows pictures

    return [to_pil_image(picture).convert("RGB") for picture in pictures.float().clamp(0, 1).cpu()]


def labelled_grid(images: Sequence[Image.Image], labels: Sequence[str], columns: int = 0, side: int = 0) -> Image.Image:
    """One picture of all `images`, row by row, each with its label underneath.

    Args:
        images: of any size; each is scaled to `side` pixels a side, sharply when it grows.
        labels: one an image; broken into lines.
        columns: 0 takes as many as make the grid about square.
        side: 0 takes the images' own width, at least 128.
    """
    side = side or max(128, max(image.width for image in images))
    columns = columns or max(1, round(len(images) ** 0.5 * 1.3))
    columns = min(columns, len(images))
    wrapped = [textwrap.wrap(label, max(int(side / _CHARACTER), 8)) for label in labels]
    text_height = _LINE * max((len(lines) for lines in wrapped), default=0)
    cell_width, cell_height = side + _GAP, side + text_height + _GAP
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default()
    for index, (image, lines) in enumerate(zip(images, wrapped)):
        x, y = _GAP + index % columns * cell_width, _GAP + index // columns * cell_height
        how = Image.Resampling.NEAREST if image.width < side else Image.Resampling.LANCZOS
        grid.paste(image.convert("RGB").resize((side, side), how), (x, y))
        for number, line in enumerate(lines):
            # the built-in font knows Latin letters only
            text = line.encode("latin-1", "replace").decode("latin-1")
            pen.text((x, y + side + 2 + number * _LINE), text, fill=_INK, font=font)
    return grid


def save_image(image: Image.Image, path: Path) -> None:
    """Write `image` to `path`, in the format of its suffix; a crash leaves no half file under that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    image.save(partial, quality=95)
    os.replace(partial, path)
