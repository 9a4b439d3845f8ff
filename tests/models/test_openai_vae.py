"""OpenAI's discrete VAE: pictures to codes and back, as the DALL-E package has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.openai_vae import OpenAIVAE
from tests.models.pretrained_cases import OPENAI, TOLERANCE, fill_by_formula, pictures, read_recorded, sample_pixels

SIDE = 16


def small(**options: Any) -> OpenAIVAE:
    """One whose weights say something; 4x4 codes of pictures of 16 pixels."""
    sizes = {"group_count": 3, "n_hid": 8, "n_blk_per_group": 1, "vocab_size": 20, "n_init": 6, "image_size": SIDE}
    return filled(OpenAIVAE(**{**sizes, **options}).eval())


def filled(vae: OpenAIVAE) -> OpenAIVAE:
    """With weights of the formula, network by network as the peer has them."""
    fill_by_formula(vae.encoder)
    fill_by_formula(vae.decoder)
    return vae


@pytest.mark.parametrize("case", OPENAI)
@torch.no_grad()
def test_codes_and_reconstructions_are_those_recorded_of_the_dall_e_package(case: str) -> None:
    recorded, vae = read_recorded("openai")[case], filled(OpenAIVAE(**OPENAI[case]).eval())
    codes = vae.encode(pictures(vae.image_size))
    assert codes.tolist() == recorded["codes"]
    assert sample_pixels(vae.decode(codes)) == pytest.approx(recorded["pixels"], abs=TOLERANCE)


def test_the_released_shape_is_the_default_and_has_the_released_names() -> None:
    with torch.device("meta"):
        vae = OpenAIVAE()
    shapes = {name: tuple(weight.shape) for name, weight in vae.state_dict().items()}
    known = {
        "encoder.blocks.input.w": (256, 3, 7, 7),
        "encoder.blocks.group_1.block_1.res_path.conv_1.w": (64, 256, 3, 3),
        "encoder.blocks.group_2.block_1.id_path.w": (512, 256, 1, 1),
        "encoder.blocks.group_4.block_2.res_path.conv_4.w": (2048, 512, 1, 1),
        "encoder.blocks.output.conv.b": (8192,),
        "decoder.blocks.input.w": (128, 8192, 1, 1),
        "decoder.blocks.group_1.block_1.id_path.w": (2048, 128, 1, 1),
        "decoder.blocks.group_1.block_1.res_path.conv_1.w": (512, 128, 1, 1),
        "decoder.blocks.group_4.block_2.res_path.conv_4.w": (256, 64, 3, 3),
        "decoder.blocks.output.conv.w": (6, 256, 1, 1),
    }
    assert {name: shapes.get(name) for name in known} == known
    assert (vae.image_size, vae.channels, vae.num_tokens, vae.grid) == (256, 3, 8192, (32, 32))


@torch.no_grad()
def test_decoding_looks_up_what_one_hot_codes_would_give() -> None:
    vae, codes = small(), torch.arange(32).view(2, 16) * 7 % 20
    one_hot = F.one_hot(codes.view(2, 4, 4), 20).permute(0, 3, 1, 2).float()
    means = vae.decoder(one_hot)[:, :3].sigmoid()
    torch.testing.assert_close(vae.decode(codes), ((means - 0.1) / 0.8).clamp(0, 1))


@torch.no_grad()
def test_codes_are_the_likeliest_ones_of_the_picture_drawn_towards_grey() -> None:
    vae, images = small(), pictures(SIDE)
    codes = vae.encode(images)
    assert torch.equal(codes, vae.encoder(0.8 * images + 0.1).argmax(dim=1).flatten(1))
    assert codes.shape == (2, 16) and len(codes.unique()) > 1


@torch.no_grad()
def test_bytes_and_shares_of_one_picture_have_the_same_codes() -> None:
    vae, images = small(), torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert torch.equal(vae.encode(images), vae.encode(images / 255))


@torch.no_grad()
def test_decoded_pictures_lie_in_0_to_1_and_reach_both() -> None:
    vae, codes = small(), torch.arange(16)[None]
    plain = vae.decode(codes)
    vae.decoder.blocks.output.conv.w.data *= 1000
    bright = vae.decode(codes)
    assert plain.shape == (1, 3, SIDE, SIDE)
    assert (bright.min(), bright.max()) == (0, 1)


@torch.no_grad()
def test_any_number_of_channels_is_encoded_and_decoded() -> None:
    vae = small(input_channels=1)
    assert vae.decode(vae.encode(torch.rand(2, 1, SIDE, SIDE))).shape == (2, 1, SIDE, SIDE)
