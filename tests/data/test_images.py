"""Images of every kind become RGB, or are refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Tuple

import pytest
from PIL import Image

from data.images import BadImage, load_image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def load(path: Path) -> Image.Image:
    return load_image(path)[0]


def gray_of(path: Path) -> List[int]:
    """The gray values of a picture that has no other colors."""
    image = load(path)
    channels = [list(channel.tobytes()) for channel in image.split()]
    assert image.mode == "RGB" and channels[0] == channels[1] == channels[2]
    return channels[0]


@pytest.mark.parametrize(
    "mode, name", [("CMYK", "x.jpg"), ("CMYK", "x.tif"), ("P", "x.png"), ("P", "x.gif"), ("RGBA", "x.png")]
)
def test_other_color_models_become_rgb_and_the_mode_is_told(tmp_path: Path, mode: str, name: str) -> None:
    Image.new("RGB", (16, 16), RED).convert(mode).save(tmp_path / name)
    image, stored = load_image(tmp_path / name)
    assert stored == mode
    pixel = image.crop((8, 8, 9, 9)).tobytes()
    assert all(abs(value - wanted) < 6 for value, wanted in zip(pixel, RED))


@pytest.mark.parametrize("mode, color", [("RGBA", (*RED, 0)), ("LA", (0, 0))])
def test_transparent_parts_turn_white(tmp_path: Path, mode: str, color: Tuple[int, ...]) -> None:
    Image.new(mode, (2, 2), color).save(tmp_path / "x.png")
    assert load(tmp_path / "x.png").getpixel((0, 0)) == WHITE


def test_a_transparent_palette_entry_turns_white_and_the_others_keep_their_color(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=0)
    loaded = load(tmp_path / "x.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32896, 65535)):
        image.putpixel((x, 0), value)
    image.save(tmp_path / name)
    assert gray_of(tmp_path / name) == [0, 128, 255]


@pytest.mark.parametrize(
    "mode, values, wanted",
    [
        ("F", (0.0, 0.5, 1.0), [0, 128, 255]),
        ("F", (-5.0, 128.0, 255.0), [0, 128, 255]),
        ("F", (0.0, 0.0, 0.0), [0, 0, 0]),
        ("I", (0, 128, 255), [0, 128, 255]),
        ("I", (0, 500_000, 1_000_000), [0, 128, 255]),
    ],
)
def test_thirty_two_bits_are_scaled_by_the_range_they_use(
    tmp_path: Path, mode: str, values: Tuple[Any, ...], wanted: List[int]
) -> None:
    image = Image.new(mode, (3, 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "x.tif")
    assert gray_of(tmp_path / "x.tif") == wanted


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png")
    assert gray_of(tmp_path / "x.png") == [0, 255]


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (1, 2)), (6, (2, 0)), (8, (0, 1)), (2, (1, 0))])
def test_the_camera_s_orientation_is_applied(tmp_path: Path, orientation: int, corner: Tuple[int, int]) -> None:
    image = Image.new("RGB", (2, 3), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    assert load(tmp_path / "x.png").getpixel(corner) == RED


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), GREEN)
    first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
    assert load(tmp_path / name).getpixel((0, 0)) == RED


def refused(path: Path, min_side: int = 1) -> str:
    with pytest.raises(BadImage) as error:
        load_image(path, min_side)
    assert error.value.detail
    return error.value.kind


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert refused(tmp_path / name) == "unreadable image"


def test_a_text_named_jpg_a_file_without_bytes_and_none_at_all_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "empty.jpg").touch()
    assert refused(tmp_path / "text.jpg") == "unreadable image"
    assert refused(tmp_path / "empty.jpg") == "empty image file"
    assert refused(tmp_path / "absent.jpg") == "unreadable image"


def test_a_program_for_a_printer_is_refused_rather_than_run(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.jpg")
    assert refused(tmp_path / "x.jpg") == "unreadable image"


@pytest.mark.parametrize("size", [(1, 1), (100, 7)])
def test_a_picture_with_a_side_below_the_least_is_refused(tmp_path: Path, size: Tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "x.png")
    assert refused(tmp_path / "x.png", min_side=8) == "image too small"
    assert load_image(tmp_path / "x.png", min_side=min(size))[0].size == size


@pytest.mark.parametrize("limit", [99, 20])
def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert refused(tmp_path / "x.png") == "image too large"


def test_a_large_jpeg_is_decoded_no_smaller_than_needed(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((1600, 800)).convert("RGB").save(tmp_path / "x.jpg")
    assert load_image(tmp_path / "x.jpg", enough=150)[0].size == (400, 200)
    assert load_image(tmp_path / "x.jpg", enough=801)[0].size == (1600, 800)
