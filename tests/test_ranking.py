"""Which of the drawn pictures are the best, by each ranker."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, List, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from bpe.tokenizer import Tokenizer
from checkpoint import CheckpointError, find_checkpoint, load_clip, load_text_to_image
from data.captions import Pair
from data.options import DataOptions
from data.pairs import open_pairs
from data.report import DataReport
from data.scenes import WORDINGS
from drawing import encode_prompt
from models.decoding import SamplingOptions, draw_image_tokens, uniform_numbers
from models.image_tokenizer import TextToImage
from options import OptionError, UserError
from ranking import LikelihoodRanker, RankingOptions, best, open_ranker, resize
from tests.conftest import SIDE, TRAIN_SCENES, Run

CPU = torch.device("cpu")
PROMPT = "a large red circle at the top"

Drawer = Tuple[TextToImage, Tokenizer]


@pytest.fixture(scope="module")
def drawer(dalle: Run) -> Drawer:
    """The tiny transformer with its text tokenizer."""
    return load_text_to_image(find_checkpoint(str(dalle.folder), "dalle")[1])


@pytest.fixture(scope="module")
def pairs(scenes: Path) -> List[Pair]:
    """The training scenes."""
    return open_pairs(DataOptions(input_folder=str(scenes)), "train", DataReport())


def pictures_of(pairs: List[Pair], side: int = SIDE) -> Tensor:
    """Their pictures (n, 3, side, side) in 0..1."""
    images = [Image.open(pair.image).resize((side, side)) for pair in pairs]
    return torch.stack([pil_to_tensor(image).float() / 255 for image in images])


def no_tokens(pictures: Tensor) -> Tensor:
    """In place of tokens, where a ranker does not look at them."""
    return torch.empty(len(pictures), 0, dtype=torch.long)


# --- clip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_clip_puts_the_picture_that_fits_the_prompt_first(
    clip: Run, drawer: Drawer, pairs: List[Pair], side: int
) -> None:
    ranker = open_ranker(RankingOptions(ranker="clip", clip_path=str(clip.folder)), *drawer, CPU)
    assert ranker is not None
    pictures, right = pictures_of(pairs, side), 0
    for own, pair in enumerate(pairs):
        for caption in pair.captions:
            scores = ranker.scores(caption, pictures, no_tokens(pictures))
            assert scores.shape == (TRAIN_SCENES,)
            right += int(best(scores, 1)) == own
    assert right >= 0.9 * TRAIN_SCENES * WORDINGS  # chance gives a twelfth


def test_clip_scores_are_its_similarities_whatever_the_batch(clip: Run, drawer: Drawer, pairs: List[Pair]) -> None:
    model, tokenizer = load_clip(str(clip.folder))
    pictures, options = pictures_of(pairs), RankingOptions(ranker="clip", clip_path=str(clip.folder))
    with torch.no_grad():
        text = model.encode_text(torch.tensor([tokenizer.encode(PROMPT)]))
        expected = model.temperature.exp() * (model.encode_images(pictures) @ text[0])
    for batch_size in (1, 5, 64):
        ranker = open_ranker(options, *drawer, CPU, batch_size)
        assert ranker is not None
        torch.testing.assert_close(ranker.scores(PROMPT, pictures, no_tokens(pictures)), expected)


def test_a_prompt_longer_than_clip_reads_is_cut(clip: Run, drawer: Drawer, pairs: List[Pair]) -> None:
    ranker = open_ranker(RankingOptions(ranker="clip", clip_path=str(clip.folder)), *drawer, CPU)
    assert ranker is not None
    pictures = pictures_of(pairs)
    long = ranker.scores(" ".join([PROMPT] * 5), pictures, no_tokens(pictures))
    longer = ranker.scores(" ".join([PROMPT] * 9), pictures, no_tokens(pictures))
    torch.testing.assert_close(long, longer)
    assert (long - ranker.scores(PROMPT, pictures, no_tokens(pictures))).abs().max() > 1e-3


def test_a_clip_of_other_channels_than_the_model_draws_is_refused(
    clip: Run, drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawer[0].image_tokenizer, "channels", 1)
    with pytest.raises(OptionError, match="takes pictures of 3 channels, and the model draws 1"):
        open_ranker(RankingOptions(ranker="clip", clip_path=str(clip.folder)), *drawer, CPU)


def test_what_is_no_clip_is_refused(drawer: Drawer, dalle: Run) -> None:
    file = dalle.checkpoints.files()[0]
    with pytest.raises(CheckpointError, match="holds a dalle, and a clip is needed"):
        open_ranker(RankingOptions(ranker="clip", clip_path=str(file)), *drawer, CPU)


def test_pictures_are_averaged_when_they_are_scaled_down_and_left_alone_when_they_fit() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(8)[None, None, None].expand(2, 3, 16, 16)
    assert resize(stripes, 16) is stripes
    small = resize(stripes, 4)
    assert small.shape == (2, 3, 4, 4)
    assert (small - 0.5).abs().max() < 0.1, "every other pixel would be all black or all white"


# --- likelihood -----------------------------------------------------------------------------------------------------


def draw_tokens(drawer: Drawer, prompt: str, seeds: List[int], **sampling: Any) -> Tensor:
    dalle, ids = drawer[0].dalle, encode_prompt(drawer[1], prompt, drawer[0].dalle.text_seq_len)
    text = F.pad(ids, (0, dalle.text_seq_len - len(ids))).expand(len(seeds), -1)
    return draw_image_tokens(dalle, text, uniform_numbers(seeds, dalle.layout.image_len), SamplingOptions(**sampling))


def test_the_likeliest_tokens_come_before_drawn_ones_and_those_before_random_ones(drawer: Drawer) -> None:
    ranker = open_ranker(RankingOptions(ranker="likelihood"), *drawer, CPU)
    assert ranker is not None
    likeliest = draw_tokens(drawer, PROMPT, [0], temperature=0)
    drawn = draw_tokens(drawer, PROMPT, list(range(8)), top_k=0)
    chance = torch.randint(16, drawn.shape, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat((chance, drawn, likeliest))
    scores = ranker.scores(PROMPT, torch.empty(len(tokens), 3, SIDE, SIDE), tokens)
    assert int(best(scores, 1)) == 16
    assert set(best(scores, 9).tolist()) == set(range(8, 17))
    assert scores[16] < 0


def test_likelihood_is_the_mean_of_the_tokens_log_probabilities_whatever_the_batch(drawer: Drawer) -> None:
    dalle = drawer[0].dalle
    tokens = draw_tokens(drawer, PROMPT, list(range(5)), top_k=0)
    ids = encode_prompt(drawer[1], PROMPT, dalle.text_seq_len)
    text = dalle.number_padding(F.pad(ids, (0, dalle.text_seq_len - len(ids)))[None])
    expected = []
    with torch.no_grad():
        for row in tokens:
            shares = dalle.logits(text, row[None])[1][0].softmax(dim=-1)
            expected.append(sum(shares[place, token].log() for place, token in enumerate(row.tolist())) / len(row))
    for batch_size in (1, 2, 64):
        scores = LikelihoodRanker(*drawer, batch_size).scores(PROMPT, torch.empty(0), tokens)
        torch.testing.assert_close(scores, torch.stack(expected))  # type: ignore[arg-type]


def test_likelihood_depends_on_the_prompt(drawer: Drawer) -> None:
    tokens = draw_tokens(drawer, PROMPT, [0, 1], top_k=0)
    ranker = LikelihoodRanker(*drawer, 4)
    other = ranker.scores("a small blue cross at the left", torch.empty(0), tokens)
    assert (ranker.scores(PROMPT, torch.empty(0), tokens) - other).abs().max() > 1e-4


def test_a_prompt_without_a_word_is_an_error(drawer: Drawer, clip: Run, pairs: List[Pair]) -> None:
    for options in (RankingOptions(ranker="likelihood"), RankingOptions(ranker="clip", clip_path=str(clip.folder))):
        ranker = open_ranker(options, *drawer, CPU)
        assert ranker is not None
        with pytest.raises(UserError, match="holds no word"):
            ranker.scores("", pictures_of(pairs), torch.zeros(TRAIN_SCENES, 16, dtype=torch.long))


# --- open_clip ------------------------------------------------------------------------------------------------------


class RedOrBlue(nn.Module):
    """A model in the manner of open_clip's: how red and how blue texts and pictures are."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return 3 * text.float()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        assert image.shape[1:] == (3, 4, 4), "pictures come as `preprocess` makes them"
        assert not self.training
        return 5 * image.mean(dim=(2, 3))[:, [0, 2]]


def preprocess(image: Image.Image) -> Tensor:
    assert image.mode == "RGB"
    return pil_to_tensor(image.resize((4, 4))).float() / 255 + 0.25


def make_open_clip(create: Callable[..., Any]) -> ModuleType:
    """A stand-in for the package."""

    def get_tokenizer(name: str) -> Callable[[List[str]], Tensor]:
        return lambda texts: torch.tensor([["red" in text, "blue" in text] for text in texts])

    package = ModuleType("open_clip")
    package.create_model_from_pretrained = create  # type: ignore[attr-defined]
    package.get_tokenizer = get_tokenizer  # type: ignore[attr-defined]
    return package


def test_a_pretrained_clip_scores_by_the_angle_between_text_and_picture(
    drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: List[Tuple[Any, ...]] = []

    def create(name: str, pretrained: str, device: Any, weights_only: bool = True) -> Any:
        asked.append((name, pretrained, device))
        return RedOrBlue(), preprocess

    monkeypatch.setitem(sys.modules, "open_clip", make_open_clip(create))
    options = RankingOptions(ranker="open_clip", open_clip_model="RN50", open_clip_pretrained="openai")
    pictures = torch.zeros(3, 3, 8, 8)
    pictures[1, 2] = pictures[2, 0] = 1
    for batch_size in (1, 2, 3):
        ranker = open_ranker(options, *drawer, CPU, batch_size)
        assert ranker is not None
        scores = ranker.scores("something blue", pictures, no_tokens(pictures))
        torch.testing.assert_close(scores, torch.tensor([0.5**0.5, 1.25 / 1.625**0.5, 0.25 / 1.625**0.5]))
        assert best(scores).tolist() == [1, 0, 2]
        assert best(ranker.scores("something red", pictures, no_tokens(pictures))).tolist() == [2, 0, 1]
    assert asked == [("RN50", "openai", CPU)] * 3


def test_a_missing_package_is_told_with_how_to_get_it(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(OptionError, match="ranker=open_clip needs a package.*pip install open_clip_torch"):
        open_ranker(RankingOptions(ranker="open_clip"), *drawer, CPU)


def test_what_open_clip_cannot_open_is_told_with_both_names(drawer: Drawer, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, pretrained: str, device: Any, weights_only: bool = True) -> Any:
        raise RuntimeError("Failed to download weights:\n no network" + 1000 * "!")

    monkeypatch.setitem(sys.modules, "open_clip", make_open_clip(create))
    with pytest.raises(OptionError) as refused:
        open_ranker(RankingOptions(ranker="open_clip"), *drawer, CPU)
    message = str(refused.value)
    assert message.startswith("open_clip_model=ViT-B-32, open_clip_pretrained=laion2b_s34b_b79k: open_clip cannot open")
    assert "Failed to download weights: no network!" in message and "--open-clip-pretrained" in message
    assert len(message) < 500


def test_a_file_of_weights_that_would_run_something_is_refused_without_torch_s_advice_to_run_it(
    drawer: Drawer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    def create(name: str, pretrained: str, device: Any, weights_only: bool = True) -> Any:
        return torch.load(pretrained, weights_only=weights_only)

    torch.save(Harmful(), tmp_path / "weights.pt")
    monkeypatch.setitem(sys.modules, "open_clip", make_open_clip(create))
    options = RankingOptions(ranker="open_clip", open_clip_pretrained=str(tmp_path / "weights.pt"))
    with pytest.raises(
        OptionError, match="weights.pt is torn, or names something .*nothing of it was run; give another"
    ):
        open_ranker(options, *drawer, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_version_of_open_clip_that_runs_what_files_name_is_not_used(
    drawer: Drawer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, pretrained: str, device: Any) -> Any:
        raise AssertionError("called all the same")

    monkeypatch.setitem(sys.modules, "open_clip", make_open_clip(create))
    with pytest.raises(OptionError, match="this version of open_clip.*pip install -U open_clip_torch"):
        open_ranker(RankingOptions(ranker="open_clip"), *drawer, CPU)


# --- which are kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scores, keep, indices",
    [
        ([0.1, 0.3, 0.2], None, [1, 2, 0]),
        ([0.1, 0.3, 0.2], 2, [1, 2]),
        ([0.1, 0.3, 0.2], 3, [1, 2, 0]),
        ([1.0] * 40, 3, [0, 1, 2]),
        ([0.0] * 20 + [1.0] * 20, 21, [*range(20, 40), 0]),
        ([float("nan"), -5.0, float("inf"), float("-inf")], None, [2, 1, 0, 3]),
    ],
)
def test_the_best_come_first_and_equal_ones_in_their_order(
    scores: List[float], keep: Optional[int], indices: List[int]
) -> None:
    assert best(torch.tensor(scores), keep).tolist() == indices


def test_without_a_ranker_nothing_is_ranked_and_all_are_kept(drawer: Drawer) -> None:
    assert open_ranker(RankingOptions(), *drawer, CPU) is None
    assert RankingOptions().kept(7) == 7


@pytest.mark.parametrize("keep, kept", [(None, 8), (1, 1), (8, 8)])
def test_as_many_are_kept_as_asked_for(keep: Optional[int], kept: int) -> None:
    assert RankingOptions(ranker="likelihood", keep=keep).kept(8) == kept


def test_more_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(OptionError, match="keep=9 is more than num_images=8; lower it"):
        RankingOptions(ranker="likelihood", keep=9).kept(8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ranker": "best"}, "ranker='best' is not one of none, likelihood, clip, open_clip"),
        ({"ranker": "clip"}, "ranker=clip needs clip_path"),
        ({"clip_path": "clip.pt"}, "clip_path=clip.pt has no use with ranker=none; add --ranker clip"),
        ({"clip_path": "clip.pt", "ranker": "open_clip"}, "no use with ranker=open_clip"),
        ({"keep": 4}, "keep=4 keeps the best, and ranker=none knows no better ones; add --ranker"),
        ({"keep": 0, "ranker": "likelihood"}, "keep=0 is below 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RankingOptions(**options)
