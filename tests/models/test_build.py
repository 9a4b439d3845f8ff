"""Image tokenizers from their descriptions."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest
import torch

from models.build import IMAGE_TOKENIZERS, build_image_tokenizer, describe_image_tokenizer
from models.image_tokenizer import ImageTokenizer
from models.openai_vae import OpenAIVAE
from models.vae import DiscreteVAE
from models.vqgan import VQGan


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 8, "channels": 1, "normalization": ((0.3,), (0.2,))},
        {"image_size": 16, "num_layers": 2, "num_resnet_blocks": 1, "smooth_l1_loss": True, "normalization": None},
        {"straight_through": True, "temperature": 0.5, "kl_div_loss_weight": 0.1, "codebook_dim": 7},
    ],
)
def test_an_image_tokenizer_is_built_again_from_its_description_and_weights(options: Dict[str, Any]) -> None:
    sizes = {"image_size": 8, "num_layers": 1, "num_tokens": 5, "hidden_dim": 4, "codebook_dim": 6}
    vae = DiscreteVAE(**{**sizes, **options})
    description = json.loads(json.dumps(describe_image_tokenizer(vae)))
    rebuilt = build_image_tokenizer(description)
    rebuilt.load_state_dict(vae.state_dict())
    images = torch.rand(2, vae.channels, vae.image_size, vae.image_size)
    codes = vae.encode(images)
    assert torch.equal(rebuilt.encode(images), codes)
    assert torch.equal(rebuilt.decode(codes), vae.decode(codes))
    torch.manual_seed(1)
    losses = vae(images)
    torch.manual_seed(1)
    assert rebuilt(images) == losses


@pytest.mark.parametrize(
    "image_tokenizer",
    [
        VQGan(7, 5, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), resolution=8, z_channels=6),
        VQGan(7, 5, True, ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=5),
        OpenAIVAE(2, 8, 1, input_channels=1, vocab_size=7, n_init=5, image_size=8),
    ],
    ids=["VQGan", "Gumbel VQGan", "OpenAIVAE"],
)
@torch.no_grad()
def test_a_pretrained_one_is_built_again_from_its_description_and_weights(image_tokenizer: ImageTokenizer) -> None:
    description = json.loads(json.dumps(describe_image_tokenizer(image_tokenizer)))
    rebuilt = build_image_tokenizer(description)
    rebuilt.load_state_dict(image_tokenizer.state_dict())
    assert describe_image_tokenizer(rebuilt) == description
    images = torch.rand(2, image_tokenizer.channels, image_tokenizer.image_size, image_tokenizer.image_size)
    codes = image_tokenizer.encode(images)
    assert codes.shape == (2, image_tokenizer.grid[0] * image_tokenizer.grid[1])
    assert torch.equal(rebuilt.encode(images), codes)
    assert torch.equal(rebuilt.decode(codes), image_tokenizer.decode(codes))


def test_every_kind_is_known_by_its_name() -> None:
    assert {"DiscreteVAE": DiscreteVAE, "VQGan": VQGan, "OpenAIVAE": OpenAIVAE} == IMAGE_TOKENIZERS


def test_an_unknown_image_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'Nameless' is none of DiscreteVAE, VQGan, OpenAIVAE"):
        build_image_tokenizer({"kind": "Nameless", "arguments": {}})
