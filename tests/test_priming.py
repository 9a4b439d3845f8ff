"""What is kept of a given picture, from its first rows to all but a masked region."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest
import torch
from PIL import Image

from models.decoding import TO_DRAW
from models.image_tokenizer import ImageTokenizer
from opening import open_vae
from options import OptionError
from priming import PrimingOptions, known_tokens
from tests.conftest import SIDE, Run

ROWS = SIDE // 4


@pytest.fixture(scope="module")
def image_tokenizer(vae: Run) -> ImageTokenizer:
    return open_vae(str(vae.folder))


@pytest.fixture
def picture(scenes: Path) -> Path:
    return next((scenes / "val2017").iterdir())


def kept(image_tokenizer: ImageTokenizer, **options: Any) -> List[bool]:
    known = known_tokens(PrimingOptions(**options), image_tokenizer)
    assert known is not None
    image = known_tokens(PrimingOptions(prime=options["prime"], prime_rows=ROWS - 1), image_tokenizer)
    assert image is not None
    both = (known != TO_DRAW) & (image != TO_DRAW)
    assert torch.equal(known[both], image[both])
    return (known != TO_DRAW).tolist()


def mask(folder: Path, *boxes: Any) -> Path:
    image = Image.new("L", (SIDE, SIDE), "black")
    for box in boxes:
        image.paste(255, box)
    image.save(folder / "mask.png")
    return folder / "mask.png"


def test_without_a_picture_everything_is_drawn(image_tokenizer: ImageTokenizer) -> None:
    assert known_tokens(PrimingOptions(), image_tokenizer) is None


@pytest.mark.parametrize("rows, wanted", [(0, 0), (1, 1), (3, 3), (None, 1)])
def test_the_first_rows_are_kept(
    image_tokenizer: ImageTokenizer, picture: Path, rows: Optional[int], wanted: int
) -> None:
    assert kept(image_tokenizer, prime=str(picture), prime_rows=rows) == [i < wanted * ROWS for i in range(ROWS**2)]


def test_what_is_kept_are_the_picture_s_own_codes(image_tokenizer: ImageTokenizer, picture: Path) -> None:
    pixels = torch.tensor(list(Image.open(picture).convert("RGB").tobytes())).view(SIDE, SIDE, 3).permute(2, 0, 1)
    codes = image_tokenizer.encode(pixels[None] / 255)[0]
    known = known_tokens(PrimingOptions(prime=str(picture), prime_rows=3), image_tokenizer)
    assert known is not None and torch.equal(known[: 3 * ROWS], codes[: 3 * ROWS])


def test_a_code_is_drawn_anew_when_any_of_its_pixels_is_white(
    image_tokenizer: ImageTokenizer, picture: Path, tmp_path: Path
) -> None:
    one_pixel_and_a_block = mask(tmp_path, (3, 0, 4, 1), (8, 8, 12, 16))
    wanted = [place not in {(0, 0), (2, 2), (3, 2)} for place in ((y, x) for y in range(ROWS) for x in range(ROWS))]
    options = {"prime": str(picture), "prime_mask": str(one_pixel_and_a_block)}
    assert kept(image_tokenizer, **options) == wanted
    assert kept(image_tokenizer, prime_rows=2, **options) == [w and i < 2 * ROWS for i, w in enumerate(wanted)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prime_rows": 2}, "prime_rows=2 says what to keep of a picture; name it with --prime"),
        ({"prime_mask": "m.png"}, "prime_mask=m.png says what to keep of a picture"),
    ],
)
def test_what_to_keep_needs_a_picture(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PrimingOptions(**options)


def test_unusable_pictures_and_masks_are_refused_by_name(
    image_tokenizer: ImageTokenizer, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(OptionError, match="prime=.*broken.png cannot be read as a picture"):
        known_tokens(PrimingOptions(prime=str(tmp_path / "broken.png")), image_tokenizer)
    with pytest.raises(OptionError, match="prime_mask=.*broken.png cannot be read"):
        known_tokens(PrimingOptions(prime=str(picture), prime_mask=str(tmp_path / "broken.png")), image_tokenizer)
    with pytest.raises(OptionError, match="keep all 4 rows of image tokens, and nothing is left to draw"):
        known_tokens(PrimingOptions(prime=str(picture), prime_mask=str(mask(tmp_path))), image_tokenizer)


def test_generate_keeps_the_first_rows_of_the_picture(
    draw: Callable[..., Path], dalle: Run, image_tokenizer: ImageTokenizer, picture: Path
) -> None:
    folder = draw(dalle.folder, "a circle", prime=picture, prime_rows=2, num_images=3)
    codes = known_tokens(PrimingOptions(prime=str(picture), prime_rows=3), image_tokenizer)
    assert codes is not None
    rebuilt = image_tokenizer.decode(codes.clamp(min=0)[None])[0, :, : SIDE // 4]  # far from the first drawn row
    for number in range(3):
        pixels = Image.open(folder / "a_circle" / f"{number}.jpg").convert("RGB").tobytes()
        drawn = torch.tensor(list(pixels)).view(SIDE, SIDE, 3).permute(2, 0, 1)[:, : SIDE // 4] / 255
        assert float((drawn - rebuilt).abs().mean().detach()) < 0.05
