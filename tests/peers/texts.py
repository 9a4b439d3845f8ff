"""The texts that tokenizers are compared on: captions, and random ones of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Callable, List

COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco_captions" / "captions_val2017.json"
SPACES = (
    "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff\u2581\x00"
)
_WORDS = [
    "a",
    "the",
    "two",
    "red",
    "green",
    "blue",
    "small",
    "large",
    "man",
    "woman",
    "dog",
    "cat",
    "bird",
    "bus",
    "train",
    "on",
    "under",
    "beside",
    "of",
    "with",
    "rides",
    "holds",
    "eats",
    "café",
    "naïve",
    "über",
    "déjà",
    "猫",
    "犬",
    "собака",
    "12",
    "3.5",
    "it's",
    "street",
    "table",
    "picture",
    "water",
    "field",
    "board",
    "wave",
    "snow",
    "kite",
    "pizza",
    "phone",
    "clock",
    "sign",
    "tower",
    "giraffe",
    "zebra",
    "bench",
    "laptop",
]


def read_captions() -> List[str]:
    """The captions of COCO val2017 where they lie beside the repository, otherwise as many made ones."""
    if COCO.is_file():
        return [annotation["caption"] for annotation in json.loads(COCO.read_text(encoding="utf-8"))["annotations"]]
    return make_captions(25014)


def make_captions(count: int) -> List[str]:
    """Captions of made words."""
    rng = random.Random(0)
    endings = ["", "s", "ing", "er", "ly", "ness"]
    words = [word + ending for word in _WORDS for ending in endings]
    return [" ".join(rng.choices(words, k=rng.randint(4, 14))).capitalize() + "." for _ in range(count)]


def random_texts(count: int, seed: int, alphabet: str) -> List[str]:
    """Texts of up to 40 draws, a draw being one character once or several times.

    A text mixes some of: any character that is no surrogate, ASCII, spaces of all kinds, characters of `alphabet`,
    characters of it beside unusual ones, U+2581 with letters, and two letters alone.
    """
    rng = random.Random(seed)

    def any_character() -> str:
        code = rng.randrange(0x110000 - 0x800) if rng.random() < 0.5 else rng.randrange(0x10000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    kinds: List[Callable[[], str]] = [
        any_character,
        lambda: chr(rng.randrange(128)),
        lambda: rng.choice(SPACES),
        lambda: rng.choice(alphabet),
        lambda: rng.choice(alphabet[:8] + "\u732b\u00e9\U0001f415\u0301"),
        lambda: rng.choice("ab\u2581 "),
        lambda: rng.choice("ae"),
    ]
    texts = []
    for _ in range(count):
        mixed = rng.sample(kinds, rng.randint(1, 4))
        draws = rng.randint(0, 40)
        times = (1 if rng.random() < 0.8 else rng.randint(2, 9) for _ in range(draws))
        texts.append("".join(rng.choice(mixed)() * time for time in times))
    return texts
