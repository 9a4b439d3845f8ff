"""The judge: right on every true picture, even a damaged one, and on no other."""

from __future__ import annotations

import io
import random
from typing import Callable

import pytest
import torch
from PIL import Image, ImageFilter

from data.judge import is_right, judge
from data.scenes import (
    BACKGROUND,
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    WORDINGS,
    Scene,
    all_scenes,
    caption,
    draw_scene,
    draw_shape,
)

SCENE = Scene("square", "green", "large", "left")
SIDE = 64


def _draw(scene: Scene, seed: int = 0) -> Image.Image:
    return draw_scene(scene, SIDE, random.Random(seed), jitter=1)


def _jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file)


def _blur(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1))


def _noise(picture: Image.Image, deviation: float = 0.05) -> Image.Image:
    noise = torch.randn(SIDE * SIDE * 3, generator=torch.Generator().manual_seed(0)) * deviation * 255
    noisy = torch.tensor(list(picture.tobytes())) + noise
    return Image.frombytes("RGB", (SIDE, SIDE), bytes(noisy.clamp(0, 255).byte().tolist()))


def _blank() -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), BACKGROUND)


def _without(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """`picture` with its object erased within a box given in shares of the side."""
    picture = picture.copy()
    picture.paste(BACKGROUND, (round(SIDE * left), round(SIDE * top), round(SIDE * right), round(SIDE * bottom)))
    return picture


def _both(first: Scene, second: Scene) -> Image.Image:
    """Both scenes in one picture."""
    picture = _draw(first)
    x, y = (round(SIDE * c) for c in PLACES[second.place])
    box = (x - 15, y - 15, x + 15, y + 15)
    picture.paste(_draw(second).crop(box), box)
    return picture


def test_every_scene_is_recognized() -> None:
    rng = random.Random(0)
    assert [scene for scene in all_scenes() if judge(draw_scene(scene, SIDE, rng, jitter=1)) != scene] == []


@pytest.mark.parametrize("damage", [_jpeg, _blur, _noise, lambda picture: _noise(_blur(picture), 0.03)])
def test_scenes_are_recognized_when_damaged_as_by_a_decoder(damage: Callable[[Image.Image], Image.Image]) -> None:
    rng = random.Random(1)
    scenes = rng.sample(all_scenes(), 120)
    assert [scene for scene in scenes if judge(damage(draw_scene(scene, SIDE, rng, jitter=1))) != scene] == []


@pytest.mark.parametrize("image_size", [40, 128, 200])
def test_pictures_of_any_size_are_judged(image_size: int) -> None:
    rng = random.Random(2)
    scenes = rng.sample(all_scenes(), 30)
    assert [scene for scene in scenes if judge(draw_scene(scene, image_size, rng, jitter=1)) != scene] == []


def test_pictures_of_other_modes_are_judged() -> None:
    assert judge(_draw(SCENE).convert("RGBA")) == SCENE


def test_a_picture_is_right_for_its_prompt_in_every_wording() -> None:
    assert all(is_right(_draw(SCENE), caption(SCENE, wording)) for wording in range(WORDINGS))


@pytest.mark.parametrize("field, table", [("shape", SHAPES), ("color", COLORS), ("size", SIZES), ("place", PLACES)])
def test_a_picture_that_differs_in_one_value_is_wrong(field: str, table: dict) -> None:
    others = [SCENE._replace(**{field: name}) for name in table if name != getattr(SCENE, field)]
    assert others
    assert not any(is_right(_draw(other), caption(SCENE, 0)) for other in others)


def test_a_prompt_that_is_no_caption_is_an_error() -> None:
    with pytest.raises(ValueError, match="a bowl of fruit"):
        is_right(_draw(SCENE), "a bowl of fruit")


def test_a_blank_picture_shows_nothing() -> None:
    assert judge(_blank()) is None
    assert judge(Image.new("RGB", (SIDE, SIDE), COLORS["red"])) is None


def test_noise_shows_nothing() -> None:
    noise = torch.randint(256, (SIDE * SIDE * 3,), generator=torch.Generator().manual_seed(0))
    assert judge(Image.frombytes("RGB", (SIDE, SIDE), bytes(noise.tolist()))) is None
    assert judge(_noise(_blank(), 0.3)) is None


def test_a_known_shape_is_none_on_another_background_or_in_another_color() -> None:
    mask = draw_shape("square", PLACES["left"], SIZES["large"], SIDE)
    for background, color in ((COLORS["blue"], COLORS["red"]), (BACKGROUND, (140, 140, 140))):
        picture = Image.new("RGB", (SIDE, SIDE), background)
        picture.paste(color, mask=mask)
        assert judge(picture) is None


def test_another_shape_than_the_known_ones_is_none() -> None:
    upside_down = _draw(Scene("triangle", "blue", "large", "center")).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    ring = _draw(Scene("circle", "blue", "large", "center"))
    ring.paste(BACKGROUND, mask=draw_shape("circle", PLACES["center"], SIZES["large"] / 2, SIDE))
    assert judge(upside_down) is None
    assert judge(ring) is None


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("size", SIZES)
def test_two_objects_are_none(color: str, size: str) -> None:
    second = Scene("circle", color, size, "right")
    assert judge(_both(SCENE, second)) is None
    assert judge(_both(second, SCENE)) is None
    assert judge(_both(SCENE, second._replace(place="top left"))) is None  # touching


def test_an_object_with_a_pale_ghost_beside_it_is_none() -> None:
    scene = SCENE._replace(color="black")
    ghost = _both(scene, scene._replace(place="right"))
    assert judge(Image.blend(_draw(scene), ghost, 0.4)) is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_half_an_object_is_wrong(shape: str, size: str) -> None:
    scene = Scene(shape, "blue", size, "center")
    halves = [(0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1)]
    assert not any(judge(_without(_draw(scene), *half)) == scene for half in halves)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_object_of_two_colors_is_none(shape: str) -> None:
    picture = _draw(Scene(shape, "blue", "large", "center"))
    other = _draw(Scene(shape, "red", "large", "center"))
    half = (0, 0, SIDE // 2, SIDE)
    picture.paste(other.crop(half), half)
    assert judge(picture) is None


def test_an_object_between_two_places_or_two_sizes_is_none() -> None:
    shifted = _blank()
    shifted.paste(_draw(SCENE), (8, 0))  # places are 16 pixels apart
    assert judge(shifted) is None
    medium = _blank()
    medium.paste(COLORS["green"], (7, 23, 25, 41))  # 18 pixels wide: small is 14, large 21
    assert judge(medium) is None


def test_a_smear_is_none() -> None:
    assert judge(_draw(SCENE).filter(ImageFilter.GaussianBlur(8))) is None
