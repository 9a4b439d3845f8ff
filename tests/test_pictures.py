"""Pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Tuple

import pytest
import torch
from PIL import Image

from pictures import labelled_grid, save_image, to_images

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
PAPER = (255, 255, 255)


def plain(count: int, size: Tuple[int, int] = (32, 32)) -> List[Image.Image]:
    return [Image.new("RGB", size, color) for color in COLORS[:count]]


def test_what_lies_outside_0_to_1_is_clamped() -> None:
    picture = torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1)
    (image,) = to_images(picture)
    assert image.getpixel((0, 0)) == (0, 127, 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_any_precision_and_of_one_channel_become_rgb(dtype: torch.dtype) -> None:
    images = to_images(torch.ones(2, 1, 3, 4, dtype=dtype))
    assert [(image.mode, image.size) for image in images] == [("RGB", (4, 3))] * 2


@pytest.mark.parametrize("columns", [1, 2, 5, 9])
def test_a_grid_has_every_picture_in_reading_order(columns: int) -> None:
    grid = labelled_grid(plain(5), [""] * 5, columns=columns, side=40)
    used = min(columns, 5)
    cell = 40 + 8
    centers = [(8 + index % used * cell + 20, 8 + index // used * cell + 20) for index in range(5)]
    assert [grid.getpixel(center) for center in centers] == COLORS
    assert grid.size == (used * cell + 8, -(-5 // used) * cell + 8)


def test_a_grid_stands_about_square_on_its_own() -> None:
    width, height = labelled_grid(plain(1) * 64, [""] * 64).size
    assert 0.5 < height / width < 2


def test_a_picture_that_grows_stays_sharp() -> None:
    board = Image.new("RGB", (2, 1), COLORS[0])
    board.putpixel((1, 0), COLORS[2])
    grid = labelled_grid([board], [""], side=100)
    assert {color for _, color in grid.getcolors()} == {PAPER, COLORS[0], COLORS[2]}


def test_labels_stand_under_their_pictures_and_long_ones_are_broken_into_lines() -> None:
    short = labelled_grid(plain(2), ["", "red"], columns=2)
    long = labelled_grid(plain(2), ["", "a large red circle on the left of the picture"], columns=2)
    blank, inked = (short.crop((8 + x, 8 + 128, 8 + x + 128, short.height)) for x in (0, 136))
    assert {color for _, color in blank.getcolors()} == {PAPER}
    assert inked.getcolors(10_000) != blank.getcolors(10_000)
    assert long.height > short.height


def test_a_label_in_any_script_is_drawn() -> None:
    labelled_grid(plain(1), ["ein größerer Kreis, 红色 \N{RED APPLE}"])


@pytest.mark.parametrize("name, kind", [("a.png", "PNG"), ("deep/er/b.jpg", "JPEG")])
def test_an_image_is_saved_in_the_format_of_its_suffix(tmp_path: Path, name: str, kind: str) -> None:
    save_image(plain(1)[0], tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert (image.format, image.size) == (kind, (32, 32))
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_a_failing_save_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image, path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    save_image(plain(1)[0], tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_image(plain(2)[1], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
