"""The transformer at one position at a time, against the one over whole sequences."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import native
from models.dalle import Dalle
from models.decoder import Decoder
from models.options import ATTENTION_TYPES
from tests.models.conftest import VARIANTS

TEXTS = torch.tensor([[3, 7, 1, 0, 0], [3, 7, 1, 5, 0], [9, 2, 8, 4, 6]])
MODELS: Dict[str, Dict[str, Any]] = {kind: {"attn_types": kind} for kind in ATTENTION_TYPES}
MODELS.update(VARIANTS)


def sample(dalle: Dalle) -> Tuple[Tensor, Tensor]:
    """Texts (3, 5) with padding numbered, and image tokens (3, I)."""
    return dalle.number_padding(TEXTS), torch.randint(13, (3, dalle.layout.image_len))


@torch.no_grad()
def logits_one_by_one(dalle: Dalle, text: Tensor, image_tokens: Tensor, begun: int) -> Tuple[Tensor, Tensor]:
    """`Dalle.logits`, where the first `begun` tokens are taken together, and the others one by one."""
    decoder, text_len = Decoder(dalle, len(text)), text.shape[1]
    x = decoder.begin(text[:, :begun], image_tokens[:, : max(begun - text_len, 0)])
    outs = [x]
    for index in range(begun, text_len + image_tokens.shape[1] - 1):
        if index < text_len:
            outs.append(decoder.take_text(text[:, index], decoder.place(index + 1)))
        else:
            outs.append(decoder.take_image(image_tokens[:, index - text_len], decoder.place(index + 1)))
    of_text = [decoder.text_logits(x) for x in outs[: max(text_len - begun, 0)]]
    of_image = [decoder.image_logits(x) for x in outs[len(of_text) :]]
    return torch.stack(of_text or [torch.empty(0)], dim=-2), torch.stack(of_image, dim=-2)


@pytest.mark.parametrize("grid", [(3, 4), (5, 2)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("begun", [0, 2, 5, 9])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 1e-4)], ids=str)
def test_logits_of_positions_taken_one_by_one_are_those_of_the_whole_sequence(
    make_dalle: Callable[..., Dalle],
    model: str,
    begun: int,
    grid: Tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    dalle = make_dalle(grid, **MODELS[model])
    text, image_tokens = sample(dalle)
    whole_text, whole_image = dalle.logits(text, image_tokens)
    of_text, of_image = logits_one_by_one(dalle.to(dtype), text, image_tokens, begun)
    close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(of_image.double(), whole_image[:, max(begun - 5, 0) :])
    if begun < 5:
        close(of_text.double(), whole_text[:, begun:])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "pytorch"])
def test_a_lower_precision_reaches_products_and_caches(
    make_dalle: Callable[..., Dalle], model: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "is_for", lambda *_: False)
    dalle = make_dalle(**MODELS[model]).float()
    text, image_tokens = sample(dalle)
    with torch.no_grad():
        wanted = dalle.logits(text, image_tokens)[1]
        with torch.autocast("cpu", torch.bfloat16):
            decoder = Decoder(dalle, 3)
            x = decoder.begin(text, image_tokens[:, :0])
        got = [decoder.image_logits(x)]
        for index in range(dalle.layout.image_len - 1):
            got.append(decoder.image_logits(decoder.take_image(image_tokens[:, index], decoder.place(6 + index))))
    assert {layer.cache.keys.window.dtype for layer in decoder._layers} == {torch.bfloat16}
    spread = float(wanted.std())
    assert float((torch.stack(got, dim=1).float() - wanted).abs().mean()) < 0.1 * spread


def test_layers_that_share_weights_share_what_is_prepared_of_them(make_dalle: Callable[..., Dalle]) -> None:
    decoder = Decoder(make_dalle(num_hidden_layers=4, shared_attn_ids="a,b,a", shared_ff_ids="x"), 1)
    first, _, third, _ = decoder._layers
    assert first.to_qkv is third.to_qkv and first.to_inner is third.to_inner
    assert first.cache.keys is not third.cache.keys


class Work(TorchDispatchMode):
    """Counts the numbers that operations read and write; choosing a part of a tensor reads none but the part."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        read = [a for a in args if isinstance(a, Tensor)]
        written = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        if any(t.untyped_storage().data_ptr() not in places for t in written):
            chooses = function.overloadpacket in (torch.ops.aten.index_select, torch.ops.aten.embedding)
            self.numbers += sum(t.numel() for t in (written if chooses else [*read, *written]))
        return out


@pytest.mark.parametrize("kind, grids", [("axial_row", [(4, 4), (40, 4)]), ("axial_col", [(4, 4), (4, 40)])])
def test_a_step_of_an_axial_layer_costs_the_same_however_many_image_tokens_there_are(
    make_dalle: Callable[..., Dalle], kind: str, grids: List[Tuple[int, int]]
) -> None:
    def step_work(grid: Tuple[int, int], kind: str) -> int:
        dalle = make_dalle(grid, attn_types=kind)
        last = dalle.layout.image_len - 2
        codes = torch.zeros(1, last, dtype=torch.int64)
        with torch.no_grad():
            decoder = Decoder(dalle, 1)
            decoder.begin(TEXTS[:1], codes)
            decoder.image_logits(decoder.take_image(codes[:, 0], decoder.place(6 + last)))  # which makes tables
            with Work() as work:
                decoder.image_logits(decoder.take_image(codes[:, 0], decoder.place(6 + last)))
        return work.numbers

    assert step_work(grids[0], kind) == step_work(grids[1], kind) > 0
    assert step_work(grids[0], "full") < step_work(grids[1], "full")


def test_another_number_of_rows_than_it_was_made_for_is_refused(make_dalle: Callable[..., Dalle]) -> None:
    decoder = Decoder(make_dalle(), 1)
    with pytest.raises(ValueError, match="2 rows for a decoder of 1"):
        decoder.take_text(torch.tensor([3, 7]), decoder.place(1))
