"""The transformer for drawing whose logits a device computes, a fixed number of rows at a time."""

from __future__ import annotations

from typing import List, Tuple

import pytest
import torch
from torch import Tensor

from ipu.drawing import DeviceDalle
from models.decoding import SamplingOptions, draw_image_tokens, uniform_numbers
from tests.parity import GRID, Case, GreyTokenizer, make_model, make_samples

ROWS = 4


class Device:
    """Computes logits of exactly `ROWS` rows, as a compiled program would."""

    def __init__(self) -> None:
        self.dalle = make_model(Case("host")).dalle.eval()
        self.calls: List[Tuple[torch.Size, torch.dtype]] = []

    def __call__(self, text: Tensor, codes: Tensor) -> Tuple[Tensor, Tensor]:
        assert len(text) == len(codes) == ROWS
        self.calls.append((text.shape, text.dtype))
        with torch.no_grad():
            text_logits, image_logits = self.dalle.logits(text, codes)
        return text_logits, image_logits


@pytest.mark.parametrize("count, calls", [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_any_number_of_rows_has_the_logits_of_the_host(count: int, calls: int) -> None:
    device = Device()
    dalle = DeviceDalle(device.dalle, device, ROWS)
    text, images = make_samples(count)
    text, codes = dalle.number_padding(text), GreyTokenizer().encode(images)
    with torch.no_grad():
        expected = device.dalle.logits(text, codes)
    torch.testing.assert_close(dalle.logits(text, codes), expected, rtol=1e-5, atol=1e-5)
    assert len(device.calls) == calls
    assert {dtype for _, dtype in device.calls} == {torch.int32}


@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
def test_it_draws_without_caches_what_the_host_draws(cond_scale: float) -> None:
    device = Device()
    dalle = DeviceDalle(device.dalle, device, ROWS)
    text, _ = make_samples(3)
    uniform = uniform_numbers([1, 2, 3], GRID * GRID)
    sampling = SamplingOptions(top_k=0.0, cond_scale=cond_scale)
    drawn = draw_image_tokens(dalle, text, uniform, sampling)
    assert torch.equal(drawn, draw_image_tokens(device.dalle, text, uniform, sampling))
    assert len(device.calls) == GRID * GRID * (2 if cond_scale != 1 else 1)


def test_it_holds_no_weights_of_its_own() -> None:
    device = Device()
    assert list(DeviceDalle(device.dalle, device, ROWS).parameters()) == []
