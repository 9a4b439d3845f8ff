"""A transformer with its image tokenizer: only the transformer learns."""

from __future__ import annotations

from typing import Callable

import pytest
import torch
from torch import Tensor

from models.dalle import Dalle
from models.image_tokenizer import TextToImage, as_unit_range
from models.vae import DiscreteVAE

TEXT = torch.tensor([[3, 7, 1, 0, 0], [9, 2, 8, 4, 6]])


@pytest.fixture
def model(make_dalle: Callable[..., Dalle]) -> TextToImage:
    """A transformer over the codes of a discrete VAE."""
    vae = DiscreteVAE(image_size=8, num_tokens=13, codebook_dim=4, num_layers=1, hidden_dim=4)
    return TextToImage(make_dalle(grid=vae.grid), vae)


def pictures() -> Tensor:
    return torch.rand(2, 3, 8, 8)


def test_losses_are_those_of_the_picture_s_codes(model: TextToImage) -> None:
    images = pictures()
    assert model(TEXT, images) == model.dalle(TEXT, model.image_tokenizer.encode(images))


def test_the_image_tokenizer_is_in_evaluation_mode_whatever_the_model_is_in(model: TextToImage) -> None:
    assert not any(module.training for module in model.image_tokenizer.modules())
    for mode in (True, False):
        model.train(mode)
        assert all(module.training == mode for module in model.dalle.modules())
        assert not any(module.training for module in model.image_tokenizer.modules())


def test_a_training_step_changes_the_transformer_and_not_the_image_tokenizer(model: TextToImage) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model.train()(TEXT, pictures())[0].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"dalle.{name}" for name, _ in model.dalle.named_parameters()}
    assert not any(parameter.requires_grad for parameter in model.image_tokenizer.parameters())


def test_bytes_are_brought_to_0_to_1_and_shares_are_left_alone() -> None:
    assert as_unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    images = pictures()
    assert as_unit_range(images) is images
