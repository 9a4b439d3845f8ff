"""What drawing keeps of a given picture: its first rows, or all but a masked region."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data.images import BadImage, center_square_crop, load_image, to_tensor
from models.decoding import PRIMED_SHARE, TO_DRAW
from models.image_tokenizer import ImageTokenizer
from options import OptionError, Options, option

_REDRAWN = 0.5  # brightness of a mask from which on a pixel is drawn anew


@dataclasses.dataclass(frozen=True)
class PrimingOptions(Options):
    """A picture to begin with."""

    prime: Optional[str] = option(None, "picture to begin with; its largest square in the middle is taken")
    prime_rows: Optional[int] = option(
        None, "rows of image tokens to keep of it (none: 14 of 32; with prime_mask, all)", minimum=0
    )
    prime_mask: Optional[str] = option(
        None, "picture of the same shape: what is white in it is drawn anew, what is black is kept"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prime_rows", "prime_mask"):
            if self.prime is None and getattr(self, name) is not None:
                raise OptionError(f"{name}={getattr(self, name)} says what to keep of a picture; name it with --prime")


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
        codes = image_tokenizer.encode(to_tensor(picture, byteio=False)[None].to(weight.device))[0].cpu()
    drawn = torch.zeros(rows, columns, dtype=torch.bool)
    kept_rows = options.prime_rows
    if options.prime_mask is not None:
        white = to_tensor(_open("prime_mask", options.prime_mask, size), byteio=False).mean(dim=0)  # (H, W)
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


def _open(name: str, path: str, size: int) -> Image.Image:
    try:
        return center_square_crop(load_image(Path(path).expanduser())[0], size)
    except (BadImage, OSError) as error:
        raise OptionError(f"{name}={path} cannot be read as a picture ({error}); give another file") from None
