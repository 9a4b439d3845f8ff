"""VQGAN: pictures to codes and back, as taming-transformers has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models import vqgan
from models.vqgan import NearestQuantizer, VQGan
from tests.models.pretrained_cases import (
    RELEASED_VQGANS,
    TOLERANCE,
    VQGANS,
    fill_by_formula,
    pictures,
    read_recorded,
    sample_pixels,
)

SIDE = 32
GRIDS = {"imagenet_f16_1024": (16, 16), "imagenet_f16_16384": (16, 16), "gumbel_f8_8192": (32, 32)}


def small(**options: Any) -> VQGan:
    """A VQGAN whose weights say something; 8x8 codes of pictures of 32 pixels."""
    sizes = {"n_embed": 20, "embed_dim": 8, "ch": 32, "ch_mult": (1, 1, 2), "num_res_blocks": 1, "z_channels": 8}
    model = VQGan(**{**sizes, "attn_resolutions": (8,), "resolution": SIDE, **options}).eval()
    fill_by_formula(model)
    return model


@pytest.mark.parametrize("case", VQGANS)
@torch.no_grad()
def test_codes_and_reconstructions_are_those_recorded_of_taming(case: str) -> None:
    recorded, model = read_recorded("taming")[case], VQGan(**VQGANS[case]).eval()
    fill_by_formula(model)
    codes = model.encode(pictures(model.image_size))
    assert codes.tolist() == recorded["codes"]
    assert sample_pixels(model.decode(codes)) == pytest.approx(recorded["pixels"], abs=TOLERANCE)


@pytest.mark.parametrize("case", RELEASED_VQGANS)
def test_the_released_shapes_can_be_built(case: str) -> None:
    options = RELEASED_VQGANS[case]
    with torch.device("meta"):
        model = VQGan(**options)
    assert (model.image_size, model.channels, model.num_tokens) == (256, 3, options["n_embed"])
    assert model.grid == GRIDS[case]


def test_weights_have_the_names_that_taming_gives_them() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(weight.shape) for name, weight in VQGan().state_dict().items()}
    gumbel = set(small(gumbel=True).state_dict()) - set(small().state_dict())
    known = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.1.norm2.bias": (128,),
        "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.3.downsample.conv.weight": (256, 256, 3, 3),
        "encoder.down.4.attn.1.proj_out.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "encoder.mid.block_2.conv1.weight": (512, 512, 3, 3),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (256, 512, 3, 3),
        "quant_conv.weight": (256, 256, 1, 1),
        "quantize.embedding.weight": (1024, 256),
        "post_quant_conv.bias": (256,),
        "decoder.up.4.attn.2.v.bias": (512,),
        "decoder.up.3.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.1.upsample.conv.bias": (128,),
        "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {name: shapes.get(name) for name in known} == known
    assert "encoder.down.4.downsample.conv.weight" not in shapes and "decoder.up.0.upsample.conv.weight" not in shapes
    assert len(shapes) == 343
    assert gumbel == {"quantize.proj.weight", "quantize.proj.bias", "quantize.embed.weight"}


@pytest.mark.parametrize("held", [1, 50, 2**24])
def test_every_place_takes_the_code_that_is_nearest(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqgan, "_DISTANCES", held)
    quantizer, features = NearestQuantizer(17, 5), torch.randn(3, 5, 4, 6)
    torch.nn.init.normal_(quantizer.embedding.weight)
    distances = (features.movedim(1, -1)[..., None, :] - quantizer.embedding.weight).square().sum(dim=-1)
    assert torch.equal(quantizer(features), distances.argmin(dim=-1).flatten(1))


def test_mixed_precision_leaves_the_search_for_the_nearest_code_exact() -> None:
    quantizer, features = NearestQuantizer(512, 8), torch.randn(2, 8, 16, 16)
    torch.nn.init.normal_(quantizer.embedding.weight, std=0.02)
    exact = quantizer(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(features), exact)


@torch.no_grad()
def test_a_gumbel_vqgan_takes_the_likeliest_code_every_time() -> None:
    model, images = small(gumbel=True), pictures(SIDE)
    logits = model.quantize.proj(model.quant_conv(model.encoder(2 * images - 1)))
    assert torch.equal(model.encode(images), logits.argmax(dim=1).flatten(1))
    assert torch.equal(model.encode(images), model.encode(images))


@pytest.mark.parametrize("gumbel", [False, True])
@torch.no_grad()
def test_bytes_and_shares_of_one_picture_have_the_same_codes(gumbel: bool) -> None:
    model, images = small(gumbel=gumbel), torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    codes = model.encode(images)
    assert codes.shape == (2, 64) and len(codes.unique()) > 1
    assert torch.equal(codes, model.encode(images / 255))


@torch.no_grad()
def test_decoded_pictures_lie_in_0_to_1_and_reach_both() -> None:
    model, codes = small(), torch.arange(64)[None] % 20
    plain = model.decode(codes)
    model.decoder.conv_out.weight.data *= 100
    bright = model.decode(codes)
    assert plain.shape == (1, 3, SIDE, SIDE)
    assert (bright.min(), bright.max()) == (0, 1)


@torch.no_grad()
def test_decoding_takes_the_codes_in_reading_order() -> None:
    model = small()
    seen = []
    model.post_quant_conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    codes = torch.arange(64)[None] % 20
    model.decode(codes)
    assert torch.equal(seen[0][0].flatten(1).t(), model.quantize.embedding.weight[codes[0]])


def test_dropout_changes_nothing_but_training() -> None:
    def reconstruct(model: VQGan) -> Tensor:
        return model.decode(model.encode(pictures(SIDE)))

    with torch.no_grad():
        assert torch.equal(reconstruct(small(dropout=0.5)), reconstruct(small()))
        assert not torch.equal(reconstruct(small(dropout=0.5).train()), reconstruct(small()))


def test_a_side_that_cannot_be_halved_often_enough_is_refused() -> None:
    with pytest.raises(ValueError, match="resolution=30 cannot be halved 2 times"):
        small(resolution=30)
