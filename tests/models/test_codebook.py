"""The codes of a discrete VAE: where they begin, how their use is measured, and what becomes of unused ones."""

from __future__ import annotations

from typing import Any, List

import pytest
import torch
from torch import Tensor

from models.codebook import codebook_perplexity, dead_codes, restart_dead_codes, start_codes
from models.vae import DiscreteVAE

SIDE, CODES = 8, 6


def vae_of(**options: Any) -> DiscreteVAE:
    sizes = {"image_size": SIDE, "num_tokens": CODES, "codebook_dim": 5, "num_layers": 1, "hidden_dim": 16}
    return DiscreteVAE(**{**sizes, **options})


def plain_pictures(colors: int) -> Tensor:
    """Pictures of one random color each: (colors, 3, SIDE, SIDE)."""
    return torch.rand(colors, 3, 1, 1).expand(-1, -1, SIDE, SIDE)


def middle_codes(vae: DiscreteVAE, images: Tensor) -> List[int]:
    """The code in the middle of each picture, where no border is felt."""
    side = vae.grid[0]
    return vae.encode(images).view(-1, side, side)[:, side // 2, side // 2].tolist()


@pytest.mark.parametrize(
    "usage, perplexity",
    [([1, 1, 1, 1], 4), ([0.25, 0.25, 0.25, 0.25], 4), ([0, 1, 0, 0], 1), ([0, 3, 0, 3], 2), ([2, 1, 1, 0], 8**0.5)],
)
def test_perplexity_is_the_number_of_codes_that_equal_use_would_need(usage: List[float], perplexity: float) -> None:
    torch.testing.assert_close(codebook_perplexity(torch.tensor(usage)), torch.tensor(float(perplexity)))


def test_a_code_is_dead_below_a_twentieth_of_its_even_share() -> None:
    assert dead_codes(torch.full((10,), 0.1)).tolist() == []
    assert dead_codes(torch.tensor([0.0, 0.0049, 0.0051, 0.99])).tolist() == [0, 1, 2]
    assert dead_codes(torch.tensor([0.0, 0.0124, 0.0126, 0.975])).tolist() == [0, 1]


@pytest.mark.parametrize("codebook_dim", [3, 16, 20])
def test_first_codes_tell_different_encodings_apart(codebook_dim: int) -> None:
    vae, images = vae_of(num_tokens=64, codebook_dim=codebook_dim), plain_pictures(6)
    start_codes(vae, images)
    assert len(set(middle_codes(vae, images))) == len(images)
    torch.testing.assert_close(vae.codebook.weight.std(), torch.tensor(1.0))


def test_an_encoding_takes_the_nearest_of_the_first_codes() -> None:
    vae, images = vae_of(num_tokens=12), torch.rand(8, 3, SIDE, SIDE)
    start_codes(vae, images)
    encodings = vae.encoder[:-1](vae.normalize(images)).movedim(1, -1).flatten(0, 2)
    taken = vae.encode(images).flatten()
    within = torch.stack([encodings[taken == code].var(dim=0, unbiased=False).sum() for code in taken.unique()])
    assert within.mean() < 0.8 * encodings.var(dim=0).sum()  # codes at random: as much within as in all


def test_similar_first_codes_have_similar_entries_in_the_codebook() -> None:
    vae, images = vae_of(num_tokens=32, codebook_dim=16), plain_pictures(32)
    start_codes(vae, images)
    rows = vae.get_parameter("encoder.1.weight").detach().flatten(1)
    of_rows, of_codes = torch.pdist(rows), torch.pdist(vae.codebook.weight.detach())
    assert torch.corrcoef(torch.stack((of_rows, of_codes)))[0, 1] > 0.99


def test_fewer_different_encodings_than_codes_leave_all_numbers_finite() -> None:
    vae, images = vae_of(num_tokens=64), torch.full((2, 3, SIDE, SIDE), 0.3)
    start_codes(vae, images)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())
    assert all(loss.isfinite() for loss in vae(images))


def with_dead_codes(images: Tensor, alive: int = CODES // 2) -> DiscreteVAE:
    """A VAE of which only the first codes are ever taken, and counted as such."""
    vae = vae_of()
    start_codes(vae, images)
    vae.get_parameter("encoder.1.bias").data[alive:] = -1e9
    vae.usage.copy_(torch.tensor([1 / alive] * alive + [0.0] * (CODES - alive)))
    return vae


@pytest.mark.parametrize("alive", [1, 2, 3])
def test_restarted_codes_are_taken_at_once_and_change_no_picture(alive: int) -> None:
    images = torch.rand(8, 3, SIDE, SIDE)
    vae = with_dead_codes(images, alive)
    before = vae.encode(images)
    decoded = vae.decode(before)
    assert restart_dead_codes(vae, images) == min(alive, CODES - alive)
    after = vae.encode(images)
    assert set(after.unique().tolist()) > set(before.unique().tolist())
    torch.testing.assert_close(vae.decode(after), decoded)
    assert not set(dead_codes(vae.usage).tolist()) & set(after.unique().tolist())


def test_a_dead_code_begins_where_the_error_is() -> None:
    images = torch.cat((torch.full((1, 3, SIDE, SIDE), 0.5), torch.rand(1, 3, SIDE, SIDE)))
    vae = with_dead_codes(images, alive=CODES - 1)
    for parameter in vae.decoder[-1].parameters():
        torch.nn.init.zeros_(parameter)  # all is decoded as the first picture, in which one code is taken everywhere
    plain, varied = vae.encode(images)
    assert restart_dead_codes(vae, images) == 1
    donors = (vae.codebook.weight[:-1] == vae.codebook.weight[-1]).all(dim=1).nonzero()
    assert len(donors) == 1 and donors.item() in set(varied.tolist()) - set(plain.tolist())
    assert torch.equal(vae.encode(images)[0], plain)


def test_codes_in_use_and_perfect_pictures_are_left_alone() -> None:
    images = torch.full((2, 3, SIDE, SIDE), 0.5)
    vae = vae_of()
    assert len(dead_codes(vae.usage)) == 0 == restart_dead_codes(vae, images)
    vae.usage.copy_(torch.eye(CODES)[0])
    for parameter in vae.decoder[-1].parameters():
        torch.nn.init.zeros_(parameter)  # the decoder gives 0.5 everywhere
    before = [parameter.clone() for parameter in vae.parameters()]
    assert restart_dead_codes(vae, images) == 0
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters()))
