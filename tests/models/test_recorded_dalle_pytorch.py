"""Our models beside numbers that DALLE-pytorch 1.6.6 gave; `tests/peers/record.py` recorded them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor

from models.dalle import Dalle
from models.dalle_pytorch_format import (
    VERSION,
    read_vae,
    read_weights,
    write_image_tokenizer_weights,
    write_weights,
)
from models.decoding import SamplingOptions, draw_image_tokens
from models.options import TransformerOptions
from models.vae import DiscreteVAE
from options import plain_values
from tests.peers.cases import (
    IMAGE_TOKENS,
    TEXT_TOKENS,
    VAE,
    fill,
    keywords,
    layout_of,
    make_images,
    make_inputs,
    make_ours,
    uniform_like,
)

RECORDED = json.loads((Path(__file__).parent / "recorded" / "dalle_pytorch.json").read_text(encoding="utf-8"))
DALLE, VAES = RECORDED["dalle"], RECORDED["vae"]
VALUES, GRADIENTS = 1e-5, 1e-4  # relative to the largest
PLACES = 8
OUR_NAMES = {"dim": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}


def their_weights(case: Dict[str, Any]) -> Dict[str, Tensor]:
    """The formula's weights under DALLE-pytorch's names, which come from our own model of the case."""
    given = {"rotary_emb": True, "shift_tokens": True, **keywords(case)}
    del given["num_text_tokens"]
    options = TransformerOptions(**{OUR_NAMES.get(name, name): value for name, value in given.items()})
    layout = layout_of(case)
    fresh = Dalle(options, TEXT_TOKENS, IMAGE_TOKENS, (layout.rows, layout.columns))
    written = write_weights(fresh.state_dict(), options, layout)
    angles = {name: written.pop(name) for name in ("transformer.pos_emb",) if name in written}
    # every place of a shared tensor has the weights of its first one, which is where DALLE-pytorch's parameter is
    read = read_weights(fill(written), plain_values(options))
    return {**angles, **{name: w for name, w in write_weights(read, options, layout).items() if name not in angles}}


def load(case: Dict[str, Any]) -> Dalle:
    """Our transformer, read from what DALLE-pytorch would save."""
    contents = {"hparams": keywords(case), "vae_params": {}, "weights": their_weights(case), "version": VERSION}
    return make_ours(case, contents)


def some(values: Tensor) -> Tensor:
    """The values that were recorded of a tensor."""
    flat = values.detach().flatten()
    return flat[:: max(len(flat) // PLACES, 1)][:PLACES]


def assert_close(values: Tensor, recorded: List[float], tolerance: float) -> None:
    wanted = torch.tensor(recorded)
    torch.testing.assert_close(values, wanted, rtol=tolerance, atol=tolerance * max(float(wanted.abs().max()), 1e-3))


@pytest.mark.parametrize("name", DALLE)
def test_logits_and_loss_are_dalle_pytorchs(name: str) -> None:
    recorded = DALLE[name]
    ours, inputs = load(recorded["options"]).train(), make_inputs(recorded["options"])
    assert_close(ours(inputs.text, inputs.image_tokens)[0], recorded["loss"], VALUES)
    text_logits, image_logits = ours.logits(ours.number_padding(inputs.text), inputs.image_tokens)
    assert_close(some(text_logits), recorded["text_logits"], VALUES)
    assert_close(some(image_logits), recorded["image_logits"], VALUES)


@pytest.mark.parametrize("name", DALLE)
def test_gradients_are_dalle_pytorchs(name: str) -> None:
    case = DALLE[name]["options"]
    ours, inputs = load(case).train(), make_inputs(case)
    ours(inputs.text, inputs.image_tokens)[0].backward()
    by_name = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in ours.named_parameters()}
    written = write_weights(by_name, ours.options, ours.layout)
    # the recorded ones are those of different parameters, in the order of its modules
    kept = {
        read: theirs
        for theirs in written
        for read in read_weights({theirs: written[theirs]}, plain_values(ours.options))
    }
    norms = torch.stack([weight.norm() for theirs, weight in written.items() if theirs in kept.values()])
    assert_close(norms, DALLE[name]["gradients"], GRADIENTS)


@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize("tokens, cond_scale", [("tokens", 1.0), ("guided_tokens", 3.0)])
@pytest.mark.parametrize("name", DALLE)
def test_greedy_tokens_are_dalle_pytorchs(name: str, tokens: str, cond_scale: float, use_cache: bool) -> None:
    case = DALLE[name]["options"]
    ours, inputs = load(case).eval(), make_inputs(case)
    uniform = torch.rand(inputs.image_tokens.shape)
    sampling = SamplingOptions(temperature=0, cond_scale=cond_scale)
    drawn = draw_image_tokens(ours, inputs.text, uniform, sampling, use_cache=use_cache)
    assert drawn.flatten().tolist() == DALLE[name][tokens]


@pytest.mark.parametrize("name", [name for name in DALLE if "names" in DALLE[name]])
def test_written_names_and_shapes_are_dalle_pytorchs(name: str) -> None:
    written = their_weights(DALLE[name]["options"])
    assert {name: list(weight.shape) for name, weight in written.items()} == DALLE[name]["names"]


def load_vae(name: str) -> DiscreteVAE:
    """Our VAE, read from what DALLE-pytorch would save."""
    options = {**VAE, **VAES[name]["options"]}
    names = write_image_tokenizer_weights("DiscreteVAE", DiscreteVAE(**options).state_dict())
    weights = {name: w * 2 if w.dim() == 4 else w / 2 for name, w in fill(names).items()}
    arguments, weights = read_vae({"hparams": options, "weights": weights})
    vae = DiscreteVAE(**arguments)
    vae.load_state_dict(weights)
    return vae


@pytest.mark.parametrize("name", VAES)
def test_vae_loss_and_gradients_are_dalle_pytorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand_like", uniform_like)
    vae, recorded = load_vae(name), VAES[name]
    loss = vae(make_images(recorded["options"]))[0]
    assert_close(loss, recorded["loss"], VALUES)
    loss.backward()
    norms = {name: parameter.grad.norm() for name, parameter in vae.named_parameters() if parameter.grad is not None}
    assert set(norms) == set(recorded["gradients"])
    for name, norm in norms.items():
        assert_close(norm, recorded["gradients"][name], GRADIENTS)


@pytest.mark.parametrize("name", VAES)
def test_vae_indices_and_pictures_are_dalle_pytorchs(name: str) -> None:
    vae, recorded = load_vae(name), VAES[name]
    indices = vae.encode(make_images(recorded["options"]))
    assert indices.flatten().tolist() == recorded["indices"]
    wanted = torch.tensor(recorded["decoded"])
    decoded = vae.decoder(vae.codebook(indices).transpose(1, 2).unflatten(2, vae.grid))
    torch.testing.assert_close(some(decoded), wanted, rtol=VALUES, atol=VALUES)
    torch.testing.assert_close(vae.decode(indices), vae.denormalize(decoded).clamp(0, 1))
