"""Says from pixels alone which scene of the demo set a picture shows, or that it shows none clearly.

Nothing here is learned, and the judge does not see the prompt. The background is read off the border, the object off
what differs from it; the object is then named by its color, by the outline that covers it best, and by that outline's
size and place. A picture that no single scene explains gets none, not the nearest.

Legend: Y, X rows and columns of pixels, both _SIDE. Colors are RGB from 0 to 1 and their distance is Euclidean; lengths
are shares of the side, as in `data/scenes.py`.
"""

from __future__ import annotations

import math
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import max_pool2d

from data.scenes import BACKGROUND, COLORS, PLACES, SHAPES, SIZES, Color, Point, Scene, draw_shape, parse_caption

_SIDE = 128  # every picture is brought to this many pixels a side
_BORDER = 3  # pixels
_EDGE = 4  # pixels around an object that may lie between its color and the background's: a blur
_VISIBLE = 0.25  # distance from the color expected at which a pixel shows something else
_MOST_UNEXPLAINED = 0.1  # share of the object, and of the border, that may show something else

# How far each part may be from the nearest scene's; beyond it the picture shows no scene.
_BACKGROUND_TOLERANCE = 0.2
_COLOR_TOLERANCE = 0.2  # the two nearest colors are 0.43 apart
_SHAPE_TOLERANCE = 0.15  # one less intersection over union; the two nearest shapes are 0.16 apart
_SIZE_TOLERANCE = 0.12  # share of the size's radius
_PLACE_TOLERANCE = 0.07


class _Object(NamedTuple):
    color: Tensor  # [3]
    mask: Tensor  # [Y, X]


def is_right(image: Image.Image, prompt: str) -> bool:
    """Whether `image` shows the scene that `prompt` describes.

    Raises:
        ValueError: `prompt` describes no scene of the demo set.
    """
    return judge(image) == parse_caption(prompt)


def judge(image: Image.Image) -> Optional[Scene]:
    """The scene that `image`, of any size and mode, shows; `None` where it does not clearly show exactly one."""
    resized = image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    pixels = _to_tensor(resized) / 255  # [Y, X, 3]
    background = _find_background(pixels)
    found = None if background is None else _find_object(pixels, background)
    if found is None:
        return None
    center = _centroid(found.mask)
    fits = {shape: _fit(shape, found.mask, center) for shape in SHAPES}
    shape = _nearest({shape: 1 - overlap for shape, (_, overlap) in fits.items()}, _SHAPE_TOLERANCE)
    if shape is None:
        return None
    radius, _ = fits[shape]
    color = _nearest({name: float(_distance(found.color, _rgb(c))) for name, c in COLORS.items()}, _COLOR_TOLERANCE)
    size = _nearest({name: abs(radius / nominal - 1) for name, nominal in SIZES.items()}, _SIZE_TOLERANCE)
    place = _nearest({name: math.dist(center, point) for name, point in PLACES.items()}, _PLACE_TOLERANCE)
    return Scene(shape, color, size, place) if color and size and place else None


def _nearest(distances: Dict[str, float], tolerance: float) -> Optional[str]:
    """The name at the least distance, or `None` if even that is above `tolerance`."""
    name = min(distances, key=lambda name: distances[name])
    return name if distances[name] <= tolerance else None


def _find_background(pixels: Tensor) -> Optional[Tensor]:
    """The color [3] of the border; `None` if it is of several colors, or unlike the demo set's background."""
    is_border = torch.ones(_SIDE, _SIDE, dtype=torch.bool)
    is_border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    border = pixels[is_border]  # [pixels, 3]
    background = border.median(dim=0).values
    is_familiar = _distance(background, _rgb(BACKGROUND)) <= _BACKGROUND_TOLERANCE
    unexplained = (_distance(border, background) > _VISIBLE).float().mean()
    return background if is_familiar and unexplained <= _MOST_UNEXPLAINED else None


def _find_object(pixels: Tensor, background: Tensor) -> Optional[_Object]:
    """What stands before `background`; `None` if there is nothing, or more than one color can explain."""
    difference = _distance(pixels, background)  # [Y, X]
    is_visible = difference > _VISIBLE
    if not is_visible.any():
        return None
    color = pixels[is_visible & (difference >= difference[is_visible].median())].median(dim=0).values
    axis = color - background
    coverage = ((pixels - background) @ axis / (axis @ axis)).clamp(0, 1)  # [Y, X]
    mask = coverage > 0.5
    coverage *= max_pool2d(mask[None].float(), 2 * _EDGE + 1, stride=1, padding=_EDGE)[0]  # 0 far from the mask
    unexplained = _distance(pixels, background + coverage[..., None] * axis) > _VISIBLE
    return _Object(color, mask) if unexplained.sum() < _MOST_UNEXPLAINED * mask.sum() else None


def _centroid(mask: Tensor) -> Point:
    y, x = ((mask.nonzero().float().mean(dim=0) + 0.5) / _SIDE).tolist()
    return x, y


def _fit(shape: str, mask: Tensor, center: Point) -> Tuple[float, float]:
    """Radius at which `shape` is as large as `mask`, and its overlap (intersection over union) with it at `center`."""
    radius = math.sqrt(float(mask.sum()) / _area(SHAPES[shape])) / _SIDE
    outline = _to_tensor(draw_shape(shape, center, radius, _SIDE))[..., 0] > 127
    return radius, float((mask & outline).sum() / (mask | outline).sum())


def _area(corners: Sequence[Point]) -> float:
    """Area of the polygon with these `corners` (the shoelace formula)."""
    following = [*corners[1:], corners[0]]
    return abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(corners, following))) / 2


def _to_tensor(image: Image.Image) -> Tensor:
    """The bytes of `image` [Y, X, channels]; torchvision would need numpy for this."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, -1)


def _rgb(color: Color) -> Tensor:
    return torch.tensor(color) / 255


def _distance(colors: Tensor, color: Tensor) -> Tensor:
    """Distance of `colors` [..., 3] from `color` [..., 3]."""
    return (colors - color).square().sum(dim=-1).sqrt()
