"""Batches of prompts to pictures: what the batch's size changes, which is the memory alone."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest
import torch
from torch import Tensor

import drawing
from bpe.tokenizer import Tokenizer
from drawing import FittingBatch, draw_pictures
from models.decoding import TokenDrawer
from models.image_tokenizer import TextToImage
from models.options import SamplingOptions, TokenizerOptions
from opening import open_text_to_image
from options import UserError
from tests.conftest import Run

PROMPTS = ["a large red circle", "a blue cross", "a circle at the top", "a small cross", "a red cross"]
SEEDS = [1, 2, 3, 4, 5]


@pytest.fixture
def model_and_tokenizer(dalle: Run) -> Tuple[TextToImage, Tokenizer]:
    return open_text_to_image(str(dalle.checkpoints.files()[0]), TokenizerOptions(), "cpu")


class Memory:
    """Room for so many rows; more are refused as a GPU refuses them."""

    def __init__(self, room: int) -> None:
        self.room, self.tried = room, [0]

    def work(self, chosen: slice) -> Tensor:
        rows = torch.arange(100)[chosen]
        self.tried.append(len(rows))
        if len(rows) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return rows


@pytest.mark.parametrize("count, size, room", [(10, 4, 4), (10, 4, 3), (10, 16, 1), (7, 7, 5), (1, 8, 1)])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(count: int, size: int, room: int) -> None:
    batch, memory = FittingBatch(size), Memory(room)
    parts = list(batch.split(count, memory.work))
    assert torch.equal(torch.cat(parts), torch.arange(count))
    assert max(len(part) for part in parts) <= room
    assert batch.size == size or room / 2 < batch.size <= room or batch.size == 1


def test_what_was_found_to_fit_is_kept_for_the_next_batch() -> None:
    batch, memory = FittingBatch(8), Memory(2)
    for _ in range(2):
        list(batch.split(8, memory.work))
    assert memory.tried == [0, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]


def test_no_room_for_one_picture_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="GPU's memory does not hold .* use --device cpu"):
        list(FittingBatch(4).split(4, Memory(0).work))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_the_batch_does_not_change_what_is_drawn(
    model_and_tokenizer: Tuple[TextToImage, Tokenizer], batch_size: int
) -> None:
    model, tokenizer = model_and_tokenizer
    done: List[int] = []
    wanted = draw_pictures(model, tokenizer, PROMPTS, SEEDS, SamplingOptions(), 5)
    drawn = draw_pictures(model, tokenizer, PROMPTS, SEEDS, SamplingOptions(), batch_size, done.append)
    assert torch.equal(drawn.tokens, wanted.tokens)
    torch.testing.assert_close(drawn.pictures, wanted.pictures)
    assert sum(done) == 5 and max(done) <= batch_size


def test_pictures_are_drawn_whatever_fits_at_once(
    model_and_tokenizer: Tuple[TextToImage, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    wanted = draw_pictures(model, tokenizer, PROMPTS, SEEDS, SamplingOptions(), 5)

    class SmallDrawer(TokenDrawer):
        def __init__(self, dalle: Any, pictures: int, sampling: SamplingOptions) -> None:
            if pictures > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            super().__init__(dalle, pictures, sampling)

    decode = model.image_tokenizer.decode

    def decode_one(tokens: Tensor) -> Tensor:
        if len(tokens) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(tokens)

    monkeypatch.setattr(drawing, "TokenDrawer", SmallDrawer)
    monkeypatch.setattr(model.image_tokenizer, "decode", decode_one)
    drawn = draw_pictures(model, tokenizer, PROMPTS, SEEDS, SamplingOptions(), 5)
    assert torch.equal(drawn.tokens, wanted.tokens)
    torch.testing.assert_close(drawn.pictures, wanted.pictures)


def test_one_size_of_batches_is_prepared_for_once(
    model_and_tokenizer: Tuple[TextToImage, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = model_and_tokenizer
    prepared: List[int] = []

    def prepare(dalle: Any, pictures: int, sampling: SamplingOptions) -> TokenDrawer:
        prepared.append(pictures)
        return TokenDrawer(dalle, pictures, sampling)

    monkeypatch.setattr(drawing, "TokenDrawer", prepare)
    draw_pictures(model, tokenizer, PROMPTS, SEEDS, SamplingOptions(), 2)
    assert prepared == [2, 1]
