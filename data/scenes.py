"""Scenes of one coloured shape: what they consist of, how they are drawn, and how they are put into words.

A scene is a choice from four short lists, so that "was the prompt drawn?" has an answer that pixels alone can give
(`data/judge.py`). Lengths are shares of the picture's side; y points down.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from typing import Dict, List, NamedTuple, Sequence, Tuple

from PIL import Image, ImageDraw

Color = Tuple[int, int, int]
Point = Tuple[float, float]


class Scene(NamedTuple):
    """One shape on an empty background; each field is a key of the table of the same name below."""

    shape: str
    color: str
    size: str
    place: str


def _spokes(radii: Sequence[float]) -> List[Point]:
    """Corners at equal angles and at the distances `radii` from the origin, the first one straight up."""
    angles = [2 * math.pi * index / len(radii) for index in range(len(radii))]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle, radius in zip(angles, radii)]


def _cross(reach: float, half_width: float) -> List[Point]:
    """An upright cross with arms as long as `reach`."""
    arm = [(-half_width, -half_width), (-half_width, -reach), (half_width, -reach)]
    quarter_turns = [arm, [(-y, x) for x, y in arm], [(-x, -y) for x, y in arm], [(y, -x) for x, y in arm]]
    return [point for arm in quarter_turns for point in arm]


# Outlines around their own centroid for radius 1. They are scaled to look equally large, which is between equal
# width and equal area.
SHAPES: Dict[str, List[Point]] = {
    "circle": _spokes([1.0] * 60),
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": _spokes([1.22] * 3),
    "diamond": [(0.0, -1.22), (0.92, 0.0), (0.0, 1.22), (-0.92, 0.0)],
    "cross": _cross(1.1, 0.42),
}
COLORS: Dict[str, Color] = {
    "red": (208, 38, 48),
    "yellow": (240, 190, 32),
    "green": (44, 156, 76),
    "blue": (36, 96, 216),
    "purple": (128, 58, 172),
    "black": (44, 44, 50),
}
SIZES: Dict[str, float] = {"small": 0.125, "large": 0.185}
_NEAR, _MIDDLE, _FAR = 0.25, 0.5, 0.75  # the outermost at which every large shape still fits, jitter included
PLACES: Dict[str, Point] = {
    "top left": (_NEAR, _NEAR),
    "top": (_MIDDLE, _NEAR),
    "top right": (_FAR, _NEAR),
    "left": (_NEAR, _MIDDLE),
    "center": (_MIDDLE, _MIDDLE),
    "right": (_FAR, _MIDDLE),
    "bottom left": (_NEAR, _FAR),
    "bottom": (_MIDDLE, _FAR),
    "bottom right": (_FAR, _FAR),
}
BACKGROUND: Color = (250, 246, 237)

_CENTER_JITTER = 1 / 256
_RADIUS_JITTER = 0.01  # share of the radius
_SUPERSAMPLING = 4
_PREPOSITIONS = {"left": "on", "right": "on", "center": "in"}  # all other places: "at"
_WORDINGS = (
    "a {size} {color} {shape} {where}",
    "{size} {color} {shape}, {place}",
    "{where} there is a {size} {color} {shape}",
    "the {shape} {where} is {size} and {color}",
    "a picture of a {size} {color} {shape} {where}",
)
WORDINGS = len(_WORDINGS)


def all_scenes() -> List[Scene]:
    """Every scene there is, in the order of the tables."""
    return [Scene(*choice) for choice in itertools.product(SHAPES, COLORS, SIZES, PLACES)]


def draw_shape(shape: str, center: Point, radius: float, image_size: int) -> Image.Image:
    """Coverage of each pixel by `shape`: an antialiased "L" picture of `image_size` pixels a side, 255 inside."""
    side = image_size * _SUPERSAMPLING
    canvas = Image.new("L", (side, side))
    # Pillow's coordinates name the middle of a pixel, hence the half.
    corners = [tuple((c + radius * p) * side - 0.5 for c, p in zip(center, point)) for point in SHAPES[shape]]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return canvas.reduce(_SUPERSAMPLING)


def draw_scene(scene: Scene, image_size: int, rng: random.Random, jitter: float = 0.0) -> Image.Image:
    """An RGB picture of `scene`, `image_size` pixels a side.

    Args:
        rng: where the small deviations from the ideal place and size come from.
        jitter: how large they are: 0 none, 1 up to 1/256 of the side in place and up to 1 % in size.
    """
    x, y = (c + jitter * rng.uniform(-_CENTER_JITTER, _CENTER_JITTER) for c in PLACES[scene.place])
    radius = SIZES[scene.size] * (1 + jitter * rng.uniform(-_RADIUS_JITTER, _RADIUS_JITTER))
    picture = Image.new("RGB", (image_size, image_size), BACKGROUND)
    picture.paste(COLORS[scene.color], mask=draw_shape(scene.shape, (x, y), radius, image_size))
    return picture


def caption(scene: Scene, wording: int) -> str:
    """`scene` in words; `wording`, 0 to WORDINGS - 1, chooses how it is put."""
    where = f"{_PREPOSITIONS.get(scene.place, 'at')} the {scene.place}"
    return _WORDINGS[wording].format(where=where, **scene._asdict())


def parse_caption(text: str) -> Scene:
    """The scene that `text` describes, in any of the wordings of `caption`.

    Raises:
        ValueError: `text` is none of them.
    """
    try:
        return _scenes_by_caption()[text.strip()]
    except KeyError:
        example = caption(Scene("circle", "red", "large", "top left"), 0)
        raise ValueError(f"prompt {text!r} describes no scene of the demo set; write one like {example!r}") from None


@functools.lru_cache(maxsize=None)
def _scenes_by_caption() -> Dict[str, Scene]:
    return {caption(scene, wording): scene for scene in all_scenes() for wording in range(WORDINGS)}
