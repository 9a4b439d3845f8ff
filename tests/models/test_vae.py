"""The discrete VAE: pictures to codes and back, and its losses."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, List, Optional, Tuple

import pytest
import torch
from torch import Tensor

from models.options import DiscreteVAEOptions
from models.vae import HALF, DiscreteVAE, ResidualBlock, reinmax
from options import OptionError

SIDE, CODES = 8, 6


def vae_of(**options: Any) -> DiscreteVAE:
    sizes = {"image_size": SIDE, "num_tokens": CODES, "codebook_dim": CODES, "num_layers": 1, "hidden_dim": 4}
    return DiscreteVAE(**{**sizes, **options})


def pictures(batch: int = 2, channels: int = 3) -> Tensor:
    return torch.rand(batch, channels, SIDE, SIDE)


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("num_resnet_blocks", [0, 2])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_pictures_become_a_grid_of_codes_and_pictures_again(
    num_layers: int, num_resnet_blocks: int, channels: int
) -> None:
    vae = vae_of(num_layers=num_layers, num_resnet_blocks=num_resnet_blocks, channels=channels, codebook_dim=5)
    side = SIDE // 2**num_layers
    assert vae.grid == (side, side)
    codes = vae.encode(pictures(channels=channels))
    assert codes.shape == (2, side * side) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < CODES
    assert vae.decode(codes).shape == (2, channels, SIDE, SIDE)


def test_codes_lie_in_reading_order() -> None:
    vae, picture = vae_of(), pictures(1)
    logits = vae.encoder(vae.normalize(picture))
    assert vae.encode(picture)[0].view(4, 4).tolist() == logits[0].argmax(dim=0).tolist()
    codes = torch.zeros(1, 16, dtype=torch.int64)
    codes[0, 3] = 1  # the end of the first row
    changed = (vae.decode(codes) != vae.decode(torch.zeros_like(codes))).any(dim=1)[0]
    assert changed[:2, 6:].any() and not changed[3:].any() and not changed[:, :5].any()


def test_decoded_pictures_lie_in_0_to_1() -> None:
    vae = vae_of()
    vae.get_parameter("decoder.1.weight").data *= 1000
    decoded = vae.decode(torch.arange(16)[None] % CODES)
    assert (decoded.min(), decoded.max()) == (0, 1)


def test_a_fourth_channel_is_not_normalized_where_nothing_else_is_said() -> None:
    images = pictures(channels=4)
    normalized = vae_of(channels=4).normalize(images)
    torch.testing.assert_close(normalized[:, :3], 2 * images[:, :3] - 1)
    assert torch.equal(normalized[:, 3], images[:, 3])


def test_channels_that_a_normalization_leaves_out_are_not_normalized() -> None:
    images = pictures(channels=6)
    for normalization in (HALF, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))):
        normalized = vae_of(channels=6, normalization=normalization).normalize(images)
        torch.testing.assert_close(normalized[:, :3], images[:, :3] * 2 - 1)
        torch.testing.assert_close(normalized[:, 3:], images[:, 3:])


def test_decoding_undoes_the_normalization() -> None:
    vae = vae_of(normalization=((0.1, 0.2, 0.3), (0.5, 0.25, 0.2)))
    torch.nn.init.zeros_(vae.get_parameter("decoder.1.weight"))
    torch.nn.init.ones_(vae.get_parameter("decoder.1.bias"))
    wanted = torch.tensor([0.6, 0.45, 0.5]).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE)
    torch.testing.assert_close(vae.decode(torch.zeros(1, 16, dtype=torch.int64)), wanted)


def test_a_residual_block_adds_to_its_input() -> None:
    block, x = ResidualBlock(3), pictures()
    for parameter in block.net[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(x), x)


def test_bytes_and_shares_of_one_picture_have_the_same_codes_and_loss() -> None:
    vae, picture = vae_of(), torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert torch.equal(vae.encode(picture), vae.encode(picture / 255))
    torch.manual_seed(1)
    losses = vae(picture)
    torch.manual_seed(1)
    assert vae(picture / 255) == losses


def train_once(vae: DiscreteVAE, images: Tensor) -> Tuple[Tuple[Tensor, ...], Tensor]:
    """The losses, and what the decoder got, one row a place: (B * I, codebook_dim)."""
    seen: List[Tensor] = []
    hook = vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = vae(images)
    hook.remove()
    return losses, seen[0].movedim(1, -1).flatten(0, 2)


@pytest.mark.parametrize("smooth_l1_loss", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("normalization", [None, ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0))], ids=["plain", "normalized"])
def test_losses_are_those_of_their_formulas(
    smooth_l1_loss: bool, weight: float, normalization: Optional[Tuple[Any, Any]]
) -> None:
    vae = vae_of(smooth_l1_loss=smooth_l1_loss, kl_div_loss_weight=weight, normalization=normalization)
    vae.get_parameter("decoder.1.weight").data *= 10  # for errors on both sides of 1, where smooth L1 changes its form
    images = pictures()
    (loss, reconstruction, divergence), decoded = train_once(vae, images)

    means, deviations = (torch.tensor(moments).view(3, 1, 1) for moments in normalization or ((0.0,) * 3, (1.0,) * 3))
    normalized = (images - means) / deviations
    error = vae.decoder(decoded.view(2, 4, 4, CODES).permute(0, 3, 1, 2)) - normalized
    assert error.abs().min() < 1 < error.abs().max()
    smooth = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5)
    torch.testing.assert_close(reconstruction, (smooth if smooth_l1_loss else error**2).mean())
    shares = vae.encoder(normalized).softmax(dim=1)
    torch.testing.assert_close(divergence, (shares * (shares * CODES).log()).sum())
    torch.testing.assert_close(loss, reconstruction + weight * divergence)


def test_straight_through_decodes_one_code_a_place_and_still_teaches_the_encoder() -> None:
    vae = vae_of(straight_through=True, codebook_dim=5)
    (loss, _, _), decoded = train_once(vae, pictures())
    nearest = vae.codebook.weight[torch.cdist(decoded, vae.codebook.weight).argmin(dim=1)]
    torch.testing.assert_close(decoded, nearest)
    loss.backward()
    gradient = vae.get_parameter("encoder.1.weight").grad
    assert gradient is not None and gradient.any()


def test_soft_codes_are_shares_that_are_the_harder_the_lower_the_temperature() -> None:
    hardness = []
    for temperature in (0.01, 1.0, 100.0):
        torch.manual_seed(1)
        vae = vae_of()
        torch.nn.init.eye_(vae.codebook.weight)
        vae.temperature = temperature
        _, shares = train_once(vae, pictures())
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(shares)))
        hardness.append(shares.max(dim=1).values.mean().item())
    assert 1 > hardness[0] > 0.9 > hardness[1] > 0.25 > hardness[2] > 1 / CODES


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_codes_are_sampled_as_often_as_their_probability_says(straight_through: bool, temperature: float) -> None:
    vae = vae_of(straight_through=straight_through, temperature=temperature)
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    vae.get_parameter("encoder.1.weight").data.zero_()
    vae.get_parameter("encoder.1.bias").data.copy_(probabilities.log())
    torch.nn.init.eye_(vae.codebook.weight)
    _, shares = train_once(vae, pictures(500))
    counts, expected = shares.argmax(dim=1).bincount(minlength=CODES), probabilities * len(shares)
    assert ((counts - expected) ** 2 / expected).sum() < 20.6  # chi-square: fair samples exceed it once in 1,000 times


@pytest.mark.parametrize("straight_through", [False, True])
def test_training_on_one_batch_halves_the_loss(straight_through: bool) -> None:
    vae = vae_of(straight_through=straight_through, num_resnet_blocks=1, hidden_dim=16)
    images = (torch.arange(SIDE) < SIDE // 2).float().expand(2, 3, SIDE, SIDE)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss, _, _ = vae(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_moves_the_usage_by_a_twentieth_and_evaluation_leaves_it(dtype: torch.dtype) -> None:
    vae, images = vae_of().to(dtype), pictures().to(dtype)
    before = vae.usage.clone()
    vae.eval()(images)
    assert torch.equal(vae.usage, before)
    vae.train()(images)
    taken = vae.encode(images).flatten().bincount(minlength=CODES).to(dtype)
    torch.testing.assert_close(vae.usage, 0.95 * before + 0.05 * taken / taken.sum())


def test_saved_names_are_those_of_dalle_pytorch_and_the_usage() -> None:
    convolutions = ["encoder.0.0", "encoder.1.0", "encoder.2.net.0", "encoder.2.net.2", "encoder.2.net.4", "encoder.3"]
    convolutions += ["decoder.0", "decoder.1.net.0", "decoder.1.net.2", "decoder.1.net.4", "decoder.2.0", "decoder.3.0"]
    recorded = {f"{module}.{tensor}" for module in [*convolutions, "decoder.4"] for tensor in ("weight", "bias")}
    vae = vae_of(num_layers=2, num_resnet_blocks=1)
    assert set(vae.state_dict()) == recorded | {"codebook.weight", "usage"}


def test_reinmax_gives_the_exact_gradient_of_a_quadratic_function_on_average() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, CODES, 1, 1, dtype=torch.float64, requires_grad=True)
    square, slope = torch.randn(CODES, CODES, dtype=torch.float64), torch.randn(CODES, dtype=torch.float64)

    def function(codes: Tensor) -> Tensor:
        return codes @ square @ codes + slope @ codes

    shares, every = logits.softmax(dim=1), torch.eye(CODES, dtype=torch.float64)
    (exact,) = torch.autograd.grad(sum(p * function(code) for p, code in zip(shares.flatten(), every)), logits)
    estimated = torch.zeros_like(logits)
    for share, code in zip(shares.flatten().tolist(), every):
        value = function(reinmax(code.view_as(logits), logits, 1.0).flatten())
        torch.testing.assert_close(value, function(code))  # forward, the code is what was drawn
        estimated += share * torch.autograd.grad(value, logits)[0]
    torch.testing.assert_close(estimated, exact)


def test_reinmax_changes_the_encoder_s_gradient_and_not_the_loss() -> None:
    losses, gradients = [], []
    for options in ({}, {"reinmax": True}):
        torch.manual_seed(0)
        vae = vae_of(straight_through=True, **options)
        loss = vae(pictures())[0]
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in (vae.encoder[0][0].weight, vae.codebook.weight)])
    assert losses[0] == losses[1]
    assert not torch.allclose(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_reinmax_without_hard_codes_is_refused() -> None:
    with pytest.raises(OptionError, match="reinmax=true changes the gradient of hard codes; add --straight-through"):
        DiscreteVAEOptions(reinmax=True)
    assert DiscreteVAEOptions(reinmax=True, straight_through=True).reinmax


def test_options_and_constructor_have_the_same_names() -> None:
    arguments = set(inspect.signature(DiscreteVAE).parameters)
    assert {field.name for field in dataclasses.fields(DiscreteVAEOptions)} == arguments - {"normalization"}


def test_a_picture_that_cannot_be_halved_as_often_is_refused_with_the_nearest_size_that_can() -> None:
    with pytest.raises(OptionError, match=r"image_size=100 is not a multiple of 2 \*\* num_layers = 8; take 96"):
        DiscreteVAEOptions(image_size=100, num_layers=3)
