"""Rows as a picture: how many times faster ours is, case by case, and curves of cost against size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from PIL import Image, ImageDraw, ImageFont

from bench.report import Row, in_short

PAPER, INK, PALE = (255, 255, 255), (40, 40, 46), (225, 225, 230)
COLORS = ((58, 96, 150), (222, 140, 60), (118, 160, 96), (150, 150, 158))
WIDTH, LEFT, RIGHT, TITLE = 1200, 520, 90, 44  # pixels
BAR, GAP = 18, 8  # of a row, and below it
PANEL, MARGIN = 400, 64  # side of a curve's panel, and the room for its labels
Point = Tuple[float, float]


def draw(rows: List[Row], title: str, path: Path) -> None:
    """Write the chart as PNG."""
    bars = [
        (f"{row.case}: {row.contestant}", rival, ratio)
        for row in rows
        for rival, ratio in row.ratios.items()
        if row.curve is None
    ]
    panels = _curves(rows)
    across = WIDTH // PANEL
    curves_top = TITLE + len(bars) * (BAR + GAP) + (TITLE if bars else 0)
    height = curves_top + -(-len(panels) // across) * PANEL + MARGIN // 2
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((16, 14), title, fill=INK, font=_font(16))
    _draw_bars(pen, bars)
    for index, (name, curves) in enumerate(panels.items()):
        left, top = (index % across) * PANEL, curves_top + (index // across) * PANEL
        _draw_panel(pen, left, top, name, curves)
    image.save(path)


def _draw_bars(pen: ImageDraw.ImageDraw, bars: Sequence[Tuple[str, str, float]]) -> None:
    """One bar a ratio on a logarithmic scale, from the line at 1 on."""
    if not bars:
        return
    ratios = [ratio for _, _, ratio in bars]
    lowest, highest = min(*ratios, 0.5), max(*ratios, 2.0)
    scale = (WIDTH - LEFT - RIGHT) / math.log(highest / lowest)
    one = LEFT + math.log(1 / lowest) * scale
    for index, (name, rival, ratio) in enumerate(bars):
        y, end = TITLE + index * (BAR + GAP), LEFT + math.log(ratio / lowest) * scale
        pen.rectangle((min(one, end), y, max(one, end) + 1, y + BAR), fill=COLORS[ratio < 1])
        pen.text((16, y + 3), f"{name} / {rival}"[:88], fill=INK, font=_font(11))
        pen.text((max(one, end) + 6, y + 3), f"{ratio:.2f}x", fill=INK, font=_font(11))
    pen.line((one, TITLE - 6, one, TITLE + len(bars) * (BAR + GAP)), fill=INK)


def _curves(rows: List[Row]) -> Dict[str, Dict[str, List[Point]]]:
    """By the name of a panel and of a contestant, the points of a curve."""
    panels: Dict[str, Dict[str, List[Point]]] = {}
    for row in rows:
        if row.curve is not None:
            size, value = row.curve
            panels.setdefault(f"seconds of a step against {size}", {}).setdefault(row.contestant, []).append(
                (value, row.seconds)
            )
            if row.memory:
                memory = panels.setdefault(f"peak MiB against {size}", {})
                memory.setdefault(row.contestant, []).append((value, row.memory / 2**20))
    return panels


def _draw_panel(pen: ImageDraw.ImageDraw, left: int, top: int, name: str, curves: Dict[str, List[Point]]) -> None:
    """Curves over two logarithmic axes."""
    points = [point for curve in curves.values() for point in curve]
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    inner, x0, y0 = PANEL - 2 * MARGIN, left + MARGIN, top + MARGIN + PANEL - 2 * MARGIN

    def place(point: Point) -> Point:
        return x0 + _share(point[0], xs) * inner, y0 - _share(point[1], ys) * inner

    pen.text((x0, top + 14), name, fill=INK, font=_font(13))
    pen.rectangle((x0, y0 - inner, x0 + inner, y0), outline=PALE)
    for value in sorted(set(xs)):
        pen.text((place((value, ys[0]))[0] - 8, y0 + 6), in_short(value), fill=INK, font=_font(11))
    for value in (min(ys), max(ys)):
        pen.text((left + 8, place((xs[0], value))[1] - 6), in_short(value), fill=INK, font=_font(11))
    for index, (contestant, curve) in enumerate(curves.items()):
        color, placed = COLORS[index % len(COLORS)], [place(point) for point in sorted(curve)]
        pen.line(placed, fill=color, width=2)
        for x, y in placed:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
        pen.text((x0 + 6, y0 - inner + 6 + 16 * index), contestant, fill=color, font=_font(12))


def _share(value: float, values: Sequence[float]) -> float:
    """Where a value lies between the least and the greatest of all, logarithmically, in 0..1."""
    least, greatest = min(values), max(values)
    return 0.5 if least == greatest else math.log(value / least) / math.log(greatest / least)


def _font(size: int) -> ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except TypeError:  # before Pillow 10.1 there is one size
        return ImageFont.load_default()
