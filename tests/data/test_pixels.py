"""Pixels: with the values that Pillow gives, whichever way they are decoded and scaled."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from data import pixels
from data.images import BadImage, load_image
from data.pixels import center_square_crop, load_pixels, random_square_crop, to_pixels

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)
BICUBIC = Image.Resampling.BICUBIC
scaled_by = pytest.mark.parametrize("fast", [True, False], ids=["torch", "Pillow"])


def noise(width: int, height: int) -> Image.Image:
    channels = [Image.effect_noise((width, height), spread) for spread in (40, 80, 120)]
    return Image.merge("RGB", channels)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """Which decoder each picture went through."""
    used: List[str] = []

    def watch(module: Any, name: str, decoder: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: used.append(decoder) or function(*args))

    watch(torchvision.io, "decode_jpeg", "torchvision")
    watch(pixels, "decode_image", "Pillow")
    return used


def scale_by(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    if fast and not pixels._scales_bytes_fast():
        pytest.skip("torch has no vector instructions for this here")
    monkeypatch.setattr(pixels, "_scales_bytes_fast", lambda: fast)


@pytest.mark.parametrize(
    "save",
    [{"quality": 90}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"quality": 50, "optimize": True}],
    ids=str,
)
def test_an_upright_jpeg_is_decoded_by_torchvision_to_the_bytes_that_pillow_gives(
    tmp_path: Path, decoders: List[str], save: Dict[str, Any]
) -> None:
    noise(83, 61).save(tmp_path / "x.jpg", **save)
    found, mode = load_pixels(tmp_path / "x.jpg", enough=40)
    assert (decoders, mode) == (["torchvision"], "RGB")
    assert found.dtype == torch.uint8 and torch.equal(found, to_pixels(load_image(tmp_path / "x.jpg")[0]))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "mode, name, save, wanted",
    [
        ("L", "x.jpg", {}, "RGB"),
        ("CMYK", "x.jpg", {}, "RGB"),
        ("RGB", "x.jpg", {}, "L"),
        ("RGB", "x.jpg", {"exif": turned()}, "RGB"),
        ("RGB", "x.png", {}, "RGB"),
        ("RGBA", "x.png", {}, "RGBA"),
    ],
)
def test_whatever_has_to_be_turned_or_converted_goes_through_pillow(
    tmp_path: Path, decoders: List[str], mode: str, name: str, save: Dict[str, Any], wanted: str
) -> None:
    noise(30, 20).convert(mode).save(tmp_path / name, **save)
    found, stored = load_pixels(tmp_path / name, mode=wanted)
    assert (decoders, stored) == (["Pillow"], mode)
    assert torch.equal(found, to_pixels(load_image(tmp_path / name, mode=wanted)[0]))


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path, decoders: List[str]) -> None:
    noise(640, 480).save(tmp_path / "x.jpg")
    shapes = [load_pixels(tmp_path / "x.jpg", enough=enough)[0].shape for enough in (240, 241)]
    assert shapes == [(3, 240, 320), (3, 480, 640)]
    assert decoders == ["Pillow", "torchvision"]


def test_a_stream_gives_what_the_file_gives(tmp_path: Path) -> None:
    noise(30, 20).save(tmp_path / "x.jpg")
    with (tmp_path / "x.jpg").open("rb") as file:
        assert torch.equal(load_pixels(file)[0], load_pixels(str(tmp_path / "x.jpg"))[0])


def test_a_damaged_jpeg_is_refused_with_pillow_s_reason(tmp_path: Path) -> None:
    noise(64, 64).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:2000])
    reasons = []
    for load in (load_pixels, load_image):
        with pytest.raises(BadImage) as caught:
            load(tmp_path / "x.jpg")  # type: ignore[operator]
        reasons.append((caught.value.kind, caught.value.detail))
    assert reasons[0] == reasons[1] and reasons[0][0] == "unreadable image"


@pytest.mark.parametrize("size", [(320, 240), (90, 120)], ids=["smaller", "larger"])
def test_torch_scales_a_square_as_pillow_does_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, size: Tuple[int, int]
) -> None:
    image = noise(*size)
    scale_by(monkeypatch, fast=True)
    left, top, side = (size[0] - min(size)) // 2, (size[1] - min(size)) // 2, min(size)
    expected = image.crop((left, top, left + side, top + side)).resize((128, 128), BICUBIC)
    difference = (center_square_crop(to_pixels(image), 128).int() - to_pixels(expected).int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 0.05


@pytest.mark.parametrize("channels", ["L", "RGB", "RGBA"])
@scaled_by
def test_a_square_has_the_asked_for_size_and_memory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, fast: bool, channels: str
) -> None:
    scale_by(monkeypatch, fast)
    whole = to_pixels(noise(40, 30).convert(channels))
    for size in (16, 30, 50):
        square = center_square_crop(whole, size)
        assert square.shape == (len(channels), size, size) and square.dtype == torch.uint8
        assert square.untyped_storage().nbytes() == square.numel()
    assert torch.equal(center_square_crop(whole, 30), whole[:, :, 5:35])


@scaled_by
def test_a_random_crop_keeps_between_the_lower_ratio_and_all_of_the_area(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    scale_by(monkeypatch, fast)
    # Left to right the picture counts 0 .. 255, so that the colors at the edges tell where a crop began and ended.
    whole = to_pixels(Image.linear_gradient("L").rotate(90).convert("RGB"))
    widths = []
    for seed in range(200):
        row = random_square_crop(whole, 256, 0.25, random.Random(seed))[0, 0].int()
        widths.append(int(row[-1] - row[0]) + 1)
    assert 122 <= min(widths) < 140
    assert 245 < max(widths) <= 256


def test_ratio_one_cuts_the_largest_square_somewhere_and_the_center_crop_cuts_it_in_the_middle() -> None:
    image = Image.new("RGB", (30, 10), RED)
    image.paste(GREEN, (10, 0, 20, 10))
    whole = to_pixels(image)
    assert torch.equal(center_square_crop(whole, 10), torch.tensor(GREEN).view(3, 1, 1).expand(3, 10, 10))
    corners = {tuple(random_square_crop(whole, 10, 1, random.Random(seed))[:, 0, 0].tolist()) for seed in range(20)}
    assert corners == {RED, GREEN}


def test_pixels_have_channel_row_column() -> None:
    image = Image.new("RGB", (3, 2), (51, 0, 255))
    image.putpixel((2, 1), WHITE)
    found: Tensor = to_pixels(image)
    assert found.shape == (3, 2, 3)
    assert found[:, 0, 0].tolist() == [51, 0, 255]
    assert found[:, 1, 2].tolist() == [255, 255, 255]
