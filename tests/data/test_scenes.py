"""Scenes: what is drawn is what is said."""

from __future__ import annotations

import random

import pytest
from PIL import ImageChops

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
    parse_caption,
)

LARGE_RED_CIRCLE = Scene("circle", "red", "large", "top left")


def test_there_is_one_scene_for_each_choice_from_the_four_tables() -> None:
    scenes = all_scenes()
    assert len(scenes) == len(set(scenes)) == len(SHAPES) * len(COLORS) * len(SIZES) * len(PLACES)


def test_every_caption_in_every_wording_leads_back_to_its_scene() -> None:
    for scene in all_scenes():
        for wording in range(WORDINGS):
            assert parse_caption(caption(scene, wording)) == scene


def test_the_five_wordings_are_english() -> None:
    scene = Scene("circle", "purple", "large", "center")
    assert [caption(scene, wording) for wording in range(WORDINGS)] == [
        "a large purple circle in the center",
        "large purple circle, center",
        "in the center there is a large purple circle",
        "the circle in the center is large and purple",
        "a picture of a large purple circle in the center",
    ]


@pytest.mark.parametrize("place, phrase", [("top left", "at the top left"), ("left", "on the left")])
def test_each_place_has_its_own_preposition(place: str, phrase: str) -> None:
    assert caption(LARGE_RED_CIRCLE._replace(place=place), 0) == f"a large red circle {phrase}"


@pytest.mark.parametrize("text", ["", "a large mauve circle at the top left", "a large red circle", "red"])
def test_a_text_that_is_no_caption_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match="write one like 'a large red circle at the top left'"):
        parse_caption(text)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_shape_fits_into_the_picture_at_every_place(shape: str, place: str) -> None:
    rng = random.Random(0)
    for _ in range(20):
        picture = draw_scene(Scene(shape, "black", "large", place), 64, rng, jitter=1)
        inner = picture.copy()
        inner.paste(BACKGROUND, (1, 1, 63, 63))
        assert inner.getcolors() == [(64 * 64, BACKGROUND)]


def test_a_scene_has_its_color_in_the_middle_of_its_place() -> None:
    for scene in all_scenes():
        picture = draw_scene(scene, 64, random.Random(0))
        x, y = PLACES[scene.place]
        assert picture.getpixel((int(64 * x), int(64 * y))) == COLORS[scene.color]


def test_jitter_makes_pictures_of_one_scene_differ_and_zero_jitter_does_not() -> None:
    rng = random.Random(0)
    jittered = [draw_scene(LARGE_RED_CIRCLE, 64, rng, jitter=1) for _ in range(2)]
    exact = [draw_scene(LARGE_RED_CIRCLE, 64, rng) for _ in range(2)]
    assert ImageChops.difference(*jittered).getbbox()
    assert not ImageChops.difference(*exact).getbbox()


def test_edges_are_antialiased() -> None:
    colors = draw_scene(LARGE_RED_CIRCLE, 64, random.Random(0)).getcolors()
    assert colors is not None and len(colors) > 4
