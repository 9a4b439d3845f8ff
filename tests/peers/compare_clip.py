"""Our CLIP beside DALLE-pytorch's, with its weights: similarities, loss, gradients."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.clip import Clip
from models.dalle_pytorch_format import read_weights
from models.options import ClipOptions
from tests.peers.cases import fill

VALUES, GRADIENTS = 1e-5, 1e-4
WORDS, TEXTS = 23, 4
SMALL: Dict[str, Any] = {
    "dim_text": 12,
    "dim_image": 16,
    "dim_latent": 10,
    "text_enc_depth": 2,
    "text_seq_len": 7,
    "text_heads": 2,
    "visual_enc_depth": 2,
    "visual_heads": 2,
    "visual_image_size": 16,
    "visual_patch_size": 8,
}
CASES: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "deep": {"text_enc_depth": 4, "visual_enc_depth": 3},
    "many heads": {"text_heads": 4, "visual_heads": 3},
    "fine patches": {"visual_patch_size": 4},
    "one patch": {"visual_patch_size": 16},
    "grey": {"channels": 1},
    "one word": {"text_seq_len": 1},
    "wide latents": {"dim_latent": 32, "dim_text": 20},
}
MODULES = {
    "text_emb": "text_embedding",
    "text_pos_emb": "text_position",
    "to_text_latent": "text_encoder.to_latent",
    "to_visual_embedding": "patch_embedding",
    "visual_pos_emb": "patch_position",
    "to_visual_latent": "image_encoder.to_latent",
}
ENCODERS = {"text_transformer": "text_encoder", "visual_transformer": "image_encoder"}
Pair = Tuple[nn.Module, Clip, Tensor, Optional[Tensor], Tensor]


def by_our_names(theirs: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Its weights under our names."""
    ours = {}
    for name, weight in theirs.items():
        module, _, tensor = name.rpartition(".")
        outermost, _, inside = name.partition(".")
        if outermost in ENCODERS:
            for ours_inside, same in read_weights({f"transformer.{inside}": weight}, {}).items():
                ours[f"{ENCODERS[outermost]}.{ours_inside}"] = same
        else:
            ours[f"{MODULES[module]}.{tensor}" if module else name] = weight
    return ours


@pytest.fixture(params=[(name, masked) for name in CASES for masked in (False, True)], ids=str)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Its model, ours with its weights, texts, which of their words count, and pictures."""
    from dalle_pytorch import CLIP

    name, masked = request.param
    options = {**SMALL, **CASES[name]}
    theirs = CLIP(num_text_tokens=WORDS, **options)
    with torch.no_grad():
        for parameter, weight in zip(theirs.parameters(), fill(dict(theirs.named_parameters())).values()):
            parameter.copy_(weight)
    ours = Clip(ClipOptions(**options), WORDS)
    ours.load_state_dict(by_our_names(theirs.state_dict()))
    torch.manual_seed(0)
    text = torch.randint(1, WORDS, (TEXTS, options["text_seq_len"]))
    if masked:
        text[::2, 1:] = 0
    images = torch.rand(TEXTS, options.get("channels", 3), 16, 16)
    yield theirs, ours, text, text != 0 if masked else None, images


def similarities(ours: Clip, text: Tensor, images: Tensor) -> Tensor:
    return ours.similarity(ours.encode_text(text), ours.encode_images(images))


def test_similarities_are_equal(pair: Pair) -> None:
    theirs, ours, text, mask, images = pair
    wanted = theirs(text, images, text_mask=mask)
    assert wanted.std() > 1e-3, "a comparison of equal similarities says nothing"
    torch.testing.assert_close(similarities(ours, text, images), wanted, rtol=VALUES, atol=VALUES)


def test_losses_are_equal(pair: Pair) -> None:
    theirs, ours, text, mask, images = pair
    wanted = theirs(text, images, text_mask=mask, return_loss=True)
    torch.testing.assert_close(ours(text, images)[0], wanted, rtol=VALUES, atol=VALUES)


def test_gradients_of_all_parameters_are_equal(pair: Pair) -> None:
    theirs, ours, text, mask, images = pair
    theirs(text, images, text_mask=mask, return_loss=True).backward()
    ours(text, images)[0].backward()
    wanted = by_our_names({name: p.grad for name, p in theirs.named_parameters()})
    parameters = dict(ours.named_parameters())
    assert set(wanted) == set(parameters)
    wrong = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        # what softmax cancels leaves rounding errors alone, as with one patch all queries and keys
        difference = (parameter.grad - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-5)
        if not difference <= GRADIENTS:
            wrong[name] = float(difference)
    assert wrong == {}
