"""Drawing: tokens from logits, pictures from texts, texts from their beginnings."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.dalle import Dalle
from models.decoding import (
    TO_DRAW,
    SamplingOptions,
    TokenDrawer,
    complete_text,
    draw_image_tokens,
    draw_token,
    filter_top_k,
    filter_top_p,
    log_likelihood,
    uniform_numbers,
)
from models.options import ATTENTION_TYPES
from tests.models.conftest import VARIANTS

PLAIN, GUIDED = SamplingOptions(top_k=0), SamplingOptions(top_k=0, cond_scale=3)
TEXTS = torch.tensor([[3, 7, 1, 0, 0], [3, 7, 1, 5, 0], [9, 2, 8, 4, 6]])
SEEDS = [5, 6, 7]
MODELS: Dict[str, Dict[str, Any]] = {kind: {"attn_types": kind} for kind in ATTENTION_TYPES}
MODELS["centered"] = {"attn_types": "conv_like", "conv_kernel_size": 3, "conv_dilation": 2, "conv_window": "centered"}
MODELS["small-blocks"] = {"attn_types": "sparse", "sparse_block_size": 2, "sparse_random_blocks": 1}
MODELS["mixed"] = {"attn_types": ATTENTION_TYPES, "num_hidden_layers": 5, "sandwich_norm": True}
MODELS.update(VARIANTS)


@pytest.fixture(params=MODELS)
def dalle(request: pytest.FixtureRequest, make_dalle: Callable[..., Dalle]) -> Dalle:
    """Models of every kind of attention, and one of all together."""
    return make_dalle(**MODELS[request.param])


def draw(
    dalle: Dalle, text: Tensor = TEXTS, seeds: List[int] = SEEDS, sampling: SamplingOptions = PLAIN, **options: Any
) -> Tensor:
    return draw_image_tokens(dalle, text, uniform_numbers(seeds, dalle.layout.image_len), sampling, **options)


@pytest.mark.parametrize("grid", [(3, 4), (5, 2), (1, 3), (1, 1)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sampling", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_drawing_with_a_cache_gives_the_tokens_of_drawing_without(
    make_dalle: Callable[..., Dalle], model: str, grid: Tuple[int, int], sampling: SamplingOptions
) -> None:
    dalle = make_dalle(grid, **MODELS[model])
    assert torch.equal(draw(dalle, sampling=sampling), draw(dalle, sampling=sampling, use_cache=False))


@pytest.mark.parametrize("use_cache", [True, False])
def test_guidance_moves_the_logits_of_every_image_token(dalle: Dalle, use_cache: bool) -> None:
    tokens = draw(dalle, sampling=SamplingOptions(temperature=0, cond_scale=3), use_cache=use_cache)
    _, with_text = dalle.logits(dalle.number_padding(TEXTS), tokens)
    _, without = dalle.logits(dalle.number_padding(torch.zeros_like(TEXTS)), tokens)
    assert torch.equal((without + 3 * (with_text - without)).argmax(dim=-1), tokens)
    assert (with_text != without).any(dim=-1).all()


def test_guidance_of_1_is_none_and_the_texts_stay_what_they_were(dalle: Dalle) -> None:
    texts = TEXTS.clone()
    assert torch.equal(draw(dalle, texts, sampling=SamplingOptions(top_k=0, cond_scale=1)), draw(dalle))
    draw(dalle, texts, sampling=GUIDED)
    assert torch.equal(texts, TEXTS)


def test_known_tokens_stay_and_the_others_are_drawn_after_them(dalle: Dalle) -> None:
    drawn = draw(dalle)
    beginning = torch.where(torch.arange(12) < 5, drawn, TO_DRAW)
    assert torch.equal(draw(dalle, known=beginning), drawn)
    scattered = torch.where(torch.arange(12) % 3 == 1, (drawn + 1) % 13, TO_DRAW)
    completed = draw(dalle, known=scattered)
    assert torch.equal(completed[:, 1::3], scattered[:, 1::3])
    assert torch.equal(completed, draw(dalle, known=scattered, use_cache=False))
    assert torch.equal(draw(dalle, known=drawn), drawn)


def test_the_likelihood_of_a_picture_is_that_of_its_tokens_one_after_the_other(dalle: Dalle) -> None:
    tokens = draw(dalle)
    _, logits = dalle.logits(dalle.number_padding(TEXTS), tokens)
    wanted = [[float(logits[row, i].detach().log_softmax(-1)[tokens[row, i]]) for i in range(12)] for row in range(3)]
    got = log_likelihood(dalle, TEXTS, tokens)
    torch.testing.assert_close(got, torch.tensor(wanted).mean(dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sampling", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_steps_of_fixed_shapes_draw_the_same_tokens(
    make_dalle: Callable[..., Dalle], model: str, sampling: SamplingOptions
) -> None:
    dalle = make_dalle(**MODELS[model])
    drawer = TokenDrawer(dalle, len(TEXTS), sampling, fixed_shapes=True)
    known = torch.full((3, 12), TO_DRAW)
    for texts, seeds in ((TEXTS, SEEDS), (TEXTS.flip(0), [1, 2, 3])):
        drawn = drawer.draw(texts, uniform_numbers(seeds, 12), known)
        assert torch.equal(drawn, draw(dalle, texts, seeds, sampling))


def test_a_step_of_fixed_shapes_done_twice_is_one_done_once(dalle: Dalle) -> None:
    drawer, known = TokenDrawer(dalle, 3, PLAIN, fixed_shapes=True), torch.full((3, 12), TO_DRAW)
    wanted, step = draw(dalle), drawer._step_in_fixed_shapes
    drawer._step_in_fixed_shapes = lambda: [step() for _ in range(2)]  # type: ignore[method-assign, assignment]
    assert torch.equal(drawer.draw(TEXTS, uniform_numbers(SEEDS, 12), known), wanted)


def test_a_step_of_fixed_shapes_asks_for_the_same_work_at_every_pixel(dalle: Dalle) -> None:
    drawer = TokenDrawer(dalle, 3, GUIDED, fixed_shapes=True)
    drawer.draw(TEXTS, uniform_numbers(SEEDS, 12), torch.full((3, 12), TO_DRAW))
    asked = []
    for index in (0, 3, 4, 10):
        with torch.no_grad(), Asked() as operations:
            drawer._take_and_draw(index)
        asked.append(operations.names)
    assert asked[0] and all(names == asked[0] for names in asked)
    assert not {"_local_scalar_dense", "nonzero", "item"} & {name for name, _ in asked[0]}  # which wait for the device


def test_one_drawer_draws_batch_after_batch(dalle: Dalle) -> None:
    drawer, drawn = TokenDrawer(dalle, 3, PLAIN), draw(dalle)
    scattered = torch.where(torch.arange(12) % 3 == 1, drawn, TO_DRAW)
    beginning = torch.where(torch.arange(12) < 7, drawn, TO_DRAW)
    for known in (torch.full_like(drawn, TO_DRAW), beginning, scattered, drawn):
        tokens = drawer.draw(TEXTS, uniform_numbers(SEEDS, 12), known)
        assert torch.equal(tokens, drawn)
        tokens.zero_()  # what was handed out is nobody else's


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("sampling", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_greedy_tokens_in_single_precision_are_those_of_drawing_without_a_cache(
    make_dalle: Callable[..., Dalle], batch: int, sampling: SamplingOptions
) -> None:
    kinds = "axial_row,axial_col,conv_like,full"
    dalle = make_dalle(
        hidden_size=64, dim_head=32, num_attention_heads=8, attn_types=kinds, num_hidden_layers=4
    ).float()
    greedy = SamplingOptions(temperature=0, cond_scale=sampling.cond_scale)
    texts = torch.randint(1, 11, (batch, 5))
    cached, uncached = (draw(dalle, texts, [0] * batch, greedy, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached, uncached)


class Asked(TorchDispatchMode):
    """Notes operations, and the shapes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: List[Tuple[str, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        shapes = [t.shape for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        self.names.append((function.overloadpacket.__name__, shapes))
        return out


def test_a_picture_is_the_same_alone_and_in_any_batch(dalle: Dalle) -> None:
    together = draw(dalle)
    assert torch.equal(draw(dalle, TEXTS.flip(0), SEEDS[::-1]), together.flip(0))
    for text, seed, tokens in zip(TEXTS, SEEDS, together):
        assert torch.equal(draw(dalle, text[None], [seed])[0], tokens)


def test_another_seed_and_another_text_give_other_pictures(dalle: Dalle) -> None:
    seeds = list(range(10))
    pictures = torch.stack([draw(dalle, text.expand(10, -1), seeds) for text in TEXTS])  # (texts, seeds, I)
    assert len(pictures.unique(dim=0)) == len(TEXTS)
    assert len(pictures.unique(dim=1)[0]) == len(seeds)


def test_temperature_0_draws_the_likeliest_tokens_whatever_the_seed(make_dalle: Callable[..., Dalle]) -> None:
    dalle, greedy = make_dalle(), SamplingOptions(temperature=0)
    tokens = draw_image_tokens(dalle, TEXTS, uniform_numbers(SEEDS, 12), greedy)
    assert torch.equal(draw_image_tokens(dalle, TEXTS, uniform_numbers([0, 1, 2], 12), greedy), tokens)
    _, logits = dalle.logits(dalle.number_padding(TEXTS), tokens)
    assert torch.equal(logits.argmax(dim=-1), tokens)


def test_a_seed_s_numbers_do_not_depend_on_the_other_seeds() -> None:
    numbers = uniform_numbers([4, 9, 4], 100)
    assert torch.equal(numbers[0], numbers[2]) and not torch.equal(numbers[0], numbers[1])
    assert torch.equal(uniform_numbers([9], 100)[0], numbers[1])
    assert numbers.min() >= 0 and numbers.max() < 1


@pytest.mark.parametrize("share, kept", [(0.0, 16), (0.25, 12), (0.5, 8), (0.9375, 1), (1.0, 1)])
@pytest.mark.parametrize("not_drawn", [0, 48])
def test_top_k_drops_the_stated_share_of_all_tokens_the_least_first(share: float, kept: int, not_drawn: int) -> None:
    logits = torch.randn(3, 16)
    kept = min(kept * (16 + not_drawn) // 16, 16) if share < 1 else 1
    filtered = filter_top_k(logits, share, 16 + not_drawn)
    ranks = logits.argsort(descending=True).argsort()
    assert torch.equal(filtered, torch.where(ranks < kept, logits, -torch.inf))


@pytest.mark.parametrize(
    "probability, kept",
    [(1e-6, [3]), (0.49, [3]), (0.51, [0, 3]), (0.74, [0, 3]), (0.76, [0, 2, 3]), (0.95, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_least_set_that_reaches_the_probability(probability: float, kept: List[int]) -> None:
    logits = torch.tensor([[0.25, 0.1, 0.15, 0.5], [0.5, 0.15, 0.1, 0.25]]).log()
    filtered = filter_top_p(logits, probability)
    assert filtered[0].isfinite().nonzero().squeeze(1).tolist() == kept
    assert torch.equal(filtered[0, kept], logits[0, kept])
    assert torch.equal(filtered[1], filtered[0].flip(0))


SHARES = torch.tensor([0.05, 0.3, 0.0, 0.1, 0.2, 0.35])


@pytest.mark.parametrize(
    "sampling, wanted",
    [
        (PLAIN, SHARES),
        (SamplingOptions(top_k=0, temperature=0.5), SHARES**2),
        (SamplingOptions(top_k=0, temperature=2), SHARES**0.5),
        (SamplingOptions(top_k=0.5), torch.tensor([0, 0.3, 0, 0, 0.2, 0.35])),
        (SamplingOptions(top_k=0, top_p=0.6), torch.tensor([0, 0.3, 0, 0, 0, 0.35])),
        (SamplingOptions(top_k=0.5, top_p=0.7), torch.tensor([0, 0.3, 0, 0, 0, 0.35])),
    ],
    ids=["plain", "cold", "hot", "top-k", "top-p", "top-k-then-top-p"],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(sampling: SamplingOptions, wanted: Tensor) -> None:
    draws = 20_000
    tokens = draw_token(SHARES.log().expand(draws, -1), uniform_numbers([1], draws)[0], sampling, 6)
    counts, expected = tokens.bincount(minlength=6), draws * wanted / wanted.sum()
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum()
    assert chi_square < 18.5  # fair draws exceed it once in 1,000 times where five tokens are possible, else less often


@pytest.mark.parametrize("uniform", [0.0, 1e-30, 0.5, 0.9999999, 1 - 2**-24])
@pytest.mark.parametrize("size", [3, 100, 8192])
def test_a_token_without_probability_is_never_drawn(uniform: float, size: int) -> None:
    logits = torch.randn(200, size)
    logits[torch.rand(logits.shape) < 0.6] = -torch.inf
    logits[:, 0] = logits[:, -1] = -torch.inf
    logits[:, size // 2] = 0
    tokens = draw_token(logits, torch.full((200,), uniform), PLAIN, size)
    assert logits.gather(1, tokens[:, None]).isfinite().all()


def completed(dalle: Dalle, text: Tensor, uniform: Tensor) -> Tensor:
    """The completion of one text (1, n), computed anew at every token and cut at the first padding."""
    no_picture = torch.zeros(1, dalle.layout.image_len, dtype=torch.int64)
    tokens = torch.zeros(1, dalle.text_seq_len, dtype=torch.int64)
    tokens[:, : text.shape[1]] = text
    for index in range(text.shape[1], dalle.text_seq_len):
        logits, _ = dalle.logits(tokens, no_picture)
        tokens[:, index] = draw_token(logits[:, index], uniform[:, index], PLAIN, 0)
    for index, token in enumerate(tokens[0].tolist()):
        if token == 0 or token >= dalle.padding_start:
            tokens[:, index:] = 0
            break
    return tokens


@pytest.mark.parametrize("given", [1, 3, 4])
def test_a_completed_text_keeps_its_beginning_and_equals_one_computed_anew(dalle: Dalle, given: int) -> None:
    seeds = list(range(12))
    text, uniform = torch.randint(1, 11, (len(seeds), given)), uniform_numbers(seeds, 5)
    got = complete_text(dalle, text, uniform, PLAIN)
    assert torch.equal(got[:, :given], text)
    for row in range(len(seeds)):
        assert torch.equal(got[row : row + 1], completed(dalle, text[row : row + 1], uniform[row : row + 1]))


@pytest.mark.parametrize("padding", [0, 11, 15])
def test_a_text_ends_for_good_at_any_of_the_padding_ids(make_dalle: Callable[..., Dalle], padding: int) -> None:
    dalle = make_dalle()
    torch.nn.init.zeros_(dalle.to_logits.weight)
    torch.nn.init.constant_(dalle.to_logits.bias, -torch.inf)
    dalle.to_logits.bias.data[[6, padding]] = 0  # these two are equally likely, the lower id below a half
    word, end = (0.2, 0.8) if padding > 6 else (0.8, 0.2)
    uniform = torch.tensor([[0, 0, word, end, word]])
    assert complete_text(dalle, TEXTS[2:, :2], uniform, PLAIN).tolist() == [[9, 2, 6, 0, 0]]
