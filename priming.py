"""What drawing keeps of a given picture: its first rows, or all but a masked region."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from commands.options import PrimingOptions
from data.images import BadImage
from data.pixels import center_square_crop, load_pixels
from models.decoding import PRIMED_SHARE, TO_DRAW
from models.image_tokenizer import ImageTokenizer, as_unit_range
from options import OptionError

_REDRAWN = 0.5  # brightness of a mask from which on a pixel is drawn anew


def known_tokens(options: PrimingOptions, image_tokenizer: ImageTokenizer) -> Optional[Tensor]:
    """The image tokens that drawing begins with, (I,), `TO_DRAW` for the others; None without a picture.

    Tokens are drawn in reading order and see only what is before them: what is kept after a masked region stays, but
    does not tell the model what to draw inside it.

    Raises:
        OptionError: the picture or the mask cannot be used, or nothing is left to draw.
    """
    if options.prime is None:
        return None
    size, (rows, columns) = image_tokenizer.image_size, image_tokenizer.grid
    picture = _open("prime", options.prime, size)
    weight = next(image_tokenizer.parameters())
    with torch.no_grad():
        codes = image_tokenizer.encode(picture[None].to(weight.device))[0].cpu()
    drawn = torch.zeros(rows, columns, dtype=torch.bool)
    kept_rows = options.prime_rows
    if options.prime_mask is not None:
        white = as_unit_range(_open("prime_mask", options.prime_mask, size)).mean(dim=0)  # (H, W)
        drawn |= F.adaptive_max_pool2d(white[None], (rows, columns))[0] >= _REDRAWN
    elif kept_rows is None:
        kept_rows = int(PRIMED_SHARE * rows)
    if kept_rows is not None:
        drawn[kept_rows:] = True
    if not drawn.any():
        raise OptionError(
            f"prime_rows={options.prime_rows}, prime_mask={options.prime_mask} keep all {rows} rows of image tokens, "
            "and nothing is left to draw; lower prime_rows, or paint white what the mask should give free"
        )
    return torch.where(drawn.flatten(), TO_DRAW, codes)


def _open(name: str, path: str, size: int) -> Tensor:
    """The largest square in the middle of a picture file, uint8 (3, size, size)."""
    try:
        return center_square_crop(load_pixels(Path(path).expanduser())[0], size)
    except (BadImage, OSError) as error:
        raise OptionError(f"{name}={path} cannot be read as a picture ({error}); give another file") from None
