"""A plan as a picture: what every IPU holds, and what it does in the first cycles and in a full one."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Dict, Tuple

from PIL import Image, ImageDraw, ImageFont

from ipu.machine import MB
from ipu.plan import Plan
from ipu.planning.memory import NAMES
from ipu.planning.schedule import Work, timeline

Color = Tuple[int, int, int]
PAPER, INK, PALE, LIMIT = (255, 255, 255), (40, 40, 46), (225, 225, 230), (200, 30, 40)
COLORS: Dict[str, Color] = {
    "weights": (58, 96, 150),
    "optimizer": (104, 146, 196),
    "gradients": (164, 194, 226),
    "stashed": (222, 140, 60),
    "layer": (240, 184, 110),
    "logits": (247, 216, 164),
    "products": (118, 160, 96),
    "input": (178, 204, 160),
    "code": (150, 150, 158),
    "forward": (104, 146, 196),
    "backward": (222, 140, 60),
}
WIDTH, LEFT, RIGHT = 1120, 70, 40  # pixels
BAR, GAP = 34, 10  # of a row, and below it
TITLE = 30  # height of a line of text with its space


def draw(plan: Plan, path: Path) -> None:
    """Write the chart of a plan as PNG; a crash leaves no half file under that name."""
    image = chart(plan)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.png")
    image.save(partial, format="PNG")
    os.replace(partial, path)


def chart(plan: Plan) -> Image.Image:
    """The chart: above memory per IPU, below the schedule."""
    rows = len(plan.memory)
    panel = 2 * TITLE + rows * (BAR + GAP)
    image = Image.new("RGB", (WIDTH, 3 * TITLE + 2 * panel + TITLE), PAPER)
    pen = _Pen(image)
    pen.text(LEFT, 10, _title(plan))
    _draw_memory(pen, plan, 2 * TITLE)
    _draw_schedule(pen, plan, 2 * TITLE + panel + TITLE)
    return image


class _Pen:
    def __init__(self, image: Image.Image) -> None:
        self.draw, self.font = ImageDraw.Draw(image), ImageFont.load_default()

    def text(self, x: float, y: float, text: str) -> None:
        self.draw.text((x, y), text, fill=INK, font=self.font)

    def box(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        self.draw.rectangle((x, y, max(x + width - 1, x), y + height - 1), fill=color)

    def legend(self, y: float, names: Tuple[str, ...]) -> None:
        x = float(LEFT)
        for name in names:
            self.box(x, y + 1, 10, 10, COLORS[name])
            self.text(x + 14, y, name)
            x += 30 + 7 * len(name)


def _title(plan: Plan) -> str:
    options = plan.options
    return (
        f"{plan.machine.name}, {options.replication_factor} x {options.ipus_per_replica} IPUs, layers_per_ipu "
        f"{list(options.layers_per_ipu)}: {plan.throughput:,.0f} samples/s predicted, bubble {plan.bubble:.1%}, "
        f"balance {plan.balance:.0%}"
    )


def _draw_memory(pen: _Pen, plan: Plan, top: float) -> None:
    limit = plan.machine.ipu.memory
    scale = (WIDTH - LEFT - RIGHT) / max(limit * 1.05, *(memory.total for memory in plan.memory))
    pen.legend(top, NAMES)
    pen.text(LEFT + limit * scale - 130, top, f"limit {limit / MB:,.1f} MB")
    y = top + TITLE
    for index, memory in enumerate(plan.memory):
        pen.text(10, y + 10, f"IPU {index}")
        x = float(LEFT)
        sizes = dataclasses.asdict(memory)
        sizes["layer" if memory.layer < memory.logits else "logits"] = 0.0  # they take turns in the same place
        for name in NAMES:
            if sizes[name] * scale >= 1:
                pen.box(x, y, sizes[name] * scale, BAR, COLORS[name])
            x += sizes[name] * scale
        pen.text(min(x + 6, WIDTH - 90), y + 10, f"{memory.total / MB:,.0f} MB")
        y += BAR + GAP
    pen.draw.line((LEFT + limit * scale, top + TITLE - 4, LEFT + limit * scale, y - GAP + 4), fill=LIMIT, width=2)


def _draw_schedule(pen: _Pen, plan: Plan, top: float) -> None:
    cycles = 2 * len(plan.stages) + 2
    work = timeline(plan.times, plan.options.gradient_accumulation, cycles)
    end = max(item.end for item in work)
    scale = (WIDTH - LEFT - RIGHT) / end
    pen.legend(top, ("forward", "backward"))
    pen.text(
        LEFT + 220,
        top,
        f"the first {cycles} cycles, {end * 1e3:.1f} ms; a full one takes {max(plan.busy) * 1e3:.2f} ms",
    )
    for index in range(len(plan.memory)):
        y = top + TITLE + index * (BAR + GAP)
        pen.text(10, y + 10, f"IPU {index}")
        pen.box(LEFT, y, WIDTH - LEFT - RIGHT, BAR, PALE)
        for item in (item for item in work if item.ipu == index):
            _draw_work(pen, item, y, scale)


def _draw_work(pen: _Pen, item: Work, y: float, scale: float) -> None:
    width = (item.end - item.start) * scale
    pen.box(LEFT + item.start * scale, y, max(width - 1, 1), BAR, COLORS[item.kind])
    if width > 16:
        pen.text(LEFT + item.start * scale + 3, y + 10, str(item.micro_batch))
