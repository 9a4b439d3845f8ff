"""Our discrete VAE beside DALLE-pytorch's, with its weights and the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dalle_pytorch_format import read_vae, write_vae
from models.vae import DiscreteVAE, gumbel_softmax
from tests.peers.cases import VAE, VAE_CASES, make_images, make_their_vae, uniform_like

VALUES, GRADIENTS = 1e-5, 1e-4
Pair = Tuple[nn.Module, DiscreteVAE, Tensor]


@pytest.fixture(params=sorted(VAE_CASES))
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Its VAE, ours with its weights, and pictures; both draw the same noise."""
    options = VAE_CASES[request.param]
    theirs = make_their_vae(options)
    arguments, weights = read_vae({"hparams": {**VAE, **options}, "weights": theirs.state_dict()})
    ours = DiscreteVAE(**arguments)
    ours.load_state_dict(weights)
    monkeypatch.setattr(torch, "rand_like", uniform_like)
    monkeypatch.setattr(F, "gumbel_softmax", lambda logits, tau, hard, dim: gumbel_softmax(logits, tau, hard))
    yield theirs, ours, make_images(options)


def their_reconstruction_loss(theirs: nn.Module, images: Tensor) -> Tensor:
    """Its reconstruction loss alone."""
    weight, theirs.kl_div_loss_weight = theirs.kl_div_loss_weight, 0.0
    loss = theirs(images, return_loss=True)
    theirs.kl_div_loss_weight = weight
    return loss


def test_losses_are_equal(pair: Pair) -> None:
    theirs, ours, images = pair
    loss, reconstruction, _ = ours(images)
    torch.testing.assert_close(loss, theirs(images, return_loss=True), rtol=VALUES, atol=VALUES)
    torch.testing.assert_close(reconstruction, their_reconstruction_loss(theirs, images), rtol=VALUES, atol=VALUES)


def test_gradients_of_all_parameters_are_equal(pair: Pair) -> None:
    theirs, ours, images = pair
    theirs(images, return_loss=True).backward()
    ours(images)[0].backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert set(wanted) == {name for name, _ in ours.named_parameters()}
    wrong = {}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - wanted[name]).norm() / wanted[name].norm()
        if not difference <= GRADIENTS:
            wrong[name] = float(difference)
    assert wrong == {}


def test_indices_are_equal(pair: Pair) -> None:
    theirs, ours, images = pair
    indices = ours.encode(images)
    assert indices.tolist() == theirs.get_codebook_indices(images).tolist()
    assert len(indices.unique()) > 1


def test_decoded_pictures_are_its_own_in_0_to_1(pair: Pair) -> None:
    theirs, ours, images = pair
    indices = ours.encode(images)
    torch.testing.assert_close(
        ours.decode(indices), ours.denormalize(theirs.decode(indices)).clamp(0, 1), rtol=VALUES, atol=VALUES
    )


def test_normalized_pictures_are_equal(pair: Pair) -> None:
    theirs, ours, images = pair
    torch.testing.assert_close(ours.normalize(images), theirs.norm(images), rtol=VALUES, atol=VALUES)


@pytest.mark.parametrize("name", sorted(VAE_CASES))
def test_it_loads_the_files_that_we_write(name: str, tmp_path: Path) -> None:
    from dalle_pytorch import DiscreteVAE as TheirDiscreteVAE

    ours, images = DiscreteVAE(**{**VAE, **VAE_CASES[name]}), make_images(VAE_CASES[name])
    torch.save(write_vae(ours.arguments, ours.state_dict()), tmp_path / "vae.pt")
    # as its train_dalle.py does
    loaded = torch.load(tmp_path / "vae.pt", weights_only=True)
    theirs = TheirDiscreteVAE(**loaded["hparams"])
    theirs.load_state_dict(loaded["weights"])
    assert theirs.get_codebook_indices(images).tolist() == ours.encode(images).tolist()
    torch.testing.assert_close(theirs.norm(images), ours.normalize(images))
