"""Image tokenizers from their descriptions."""

from __future__ import annotations

import json
from typing import Any, Dict

import pytest
import torch

from models.build import build_image_tokenizer, describe_image_tokenizer
from models.vae import DiscreteVAE


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


def test_an_unknown_image_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'Nameless' is none of DiscreteVAE"):
        build_image_tokenizer({"kind": "Nameless", "arguments": {}})
