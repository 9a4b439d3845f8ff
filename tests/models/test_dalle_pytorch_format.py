"""DALLE-pytorch's checkpoints: every option and every release's names are read, and what is written is read back."""

from __future__ import annotations

import re
from typing import Any, Dict, Match

import pytest
import torch
from torch import Tensor

from models.build import build_image_tokenizer
from models.dalle import Dalle
from models.dalle_pytorch_format import (
    FormatError,
    is_dalle,
    is_vae,
    openai_arguments,
    read_dalle,
    read_vae,
    vqgan_arguments,
    vqgan_weights,
    write_dalle,
    write_vae,
)
from models.image_tokenizer import ImageTokenizer
from models.openai_vae import OpenAIVAE
from models.options import TransformerOptions
from models.vae import DiscreteVAE
from models.vqgan import VQGan
from tests.models.pretrained_cases import OPENAI, VQGANS

WORDS, CODES, GRID = 11, 13, (4, 4)
SIZES = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "dim_head": 12, "text_seq_len": 5}
VAE = {"image_size": 16, "num_tokens": CODES, "codebook_dim": 4, "num_layers": 2, "hidden_dim": 4}
OPTIONS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary_emb": True},
    "shifted": {"shift_tokens": True},
    "reversible": {"reversible": True, "shift_tokens": True},
    "stable": {"stable": True, "sandwich_norm": True},
    "tied": {"share_input_output_emb": True},
    "shared": {"shared_attn_ids": ("0", "1"), "shared_ff_ids": ("a", "a", "b")},
    "shared by all, reversible": {"shared_attn_ids": ("0",), "shared_ff_ids": ("0",), "reversible": True},
    "mixed": {"attn_types": ("axial_row", "conv_like", "full", "sparse"), "attn_dropout": 0.1, "ff_dropout": 0.2},
    "weighted": {"loss_img_weight": 3.5},
}


def make_options(name: str) -> TransformerOptions:
    return TransformerOptions(**{**SIZES, **OPTIONS[name]})


def make_file(options: TransformerOptions) -> Dict[str, Any]:
    """What is written of a fresh model with a discrete VAE."""
    dalle, vae = Dalle(options, WORDS, CODES, GRID), DiscreteVAE(**VAE)
    description = {"kind": "DiscreteVAE", "arguments": vae.arguments}
    return write_dalle(options, WORDS, dalle.layout, dalle.state_dict(), description, vae.state_dict())


@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_written_is_read_back(name: str) -> None:
    options = make_options(name)
    dalle, vae = Dalle(options, WORDS, CODES, GRID), DiscreteVAE(**VAE)
    description = {"kind": "DiscreteVAE", "arguments": vae.arguments}
    contents = write_dalle(options, WORDS, dalle.layout, dalle.state_dict(), description, vae.state_dict())
    assert is_dalle(contents) and not is_vae(contents)
    parts = read_dalle(contents)
    assert TransformerOptions(**parts.options) == options
    assert (parts.text_vocab_size, parts.image_vocab_size) == (WORDS, CODES)
    assert parts.image_tokenizer == {"kind": "DiscreteVAE", "arguments": {**vae.arguments, "normalization": ANY}}
    assert_equal(parts.weights, dalle.state_dict())
    assert_equal(parts.image_tokenizer_weights, vae.state_dict())


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True


ANY = _Anything()


def assert_equal(weights: Dict[str, Tensor], wanted: Dict[str, Tensor]) -> None:
    assert set(weights) == set(wanted)
    assert [name for name, weight in wanted.items() if not torch.equal(weights[name], weight)] == []


def unwrap_caches(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """As before 1.4: one wrapper around what shifts, and none around attention alone."""
    wrappers = {("to_", 3): 2, ("to_", 5): 3, ("net.", 2): 2, ("net.", 4): 3}

    def unwrap(match: Match[str]) -> str:
        return "fn." * wrappers[match.group(2), match.group(1).count("fn.")] + match.group(2)

    return {re.sub(r"((?:fn\.)+)(to_|net\.)", unwrap, name): weight for name, weight in weights.items()}


RELEASES = {
    "before caches": unwrap_caches,
    "axial-positional-embedding 0.2": lambda w: {n.replace("weights.", "weights_"): t for n, t in w.items()},
    "a wrapper for several GPUs": lambda w: {f"module.{name}": weight for name, weight in w.items()},
    "a saved mask": lambda w: {**w, "logits_mask": torch.ones(1, 20, 40, dtype=torch.bool)},
    "half precision": lambda w: {name: weight.half() for name, weight in w.items()},
}


@pytest.mark.parametrize("release", RELEASES)
def test_names_of_every_release_are_read(release: str) -> None:
    options = make_options("plain")
    contents = make_file(options)
    parts = read_dalle({**contents, "weights": RELEASES[release](contents["weights"])})
    assert TransformerOptions(**parts.options) == options
    wanted = read_dalle(contents).weights
    tolerance = 1e-3 if release == "half precision" else 0
    assert set(parts.weights) == set(wanted)
    for name, weight in wanted.items():
        assert parts.weights[name].dtype == torch.float32
        torch.testing.assert_close(parts.weights[name], weight, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["shifted", "reversible"])
def test_shift_is_seen_in_weights_of_releases_without_caches(name: str) -> None:
    contents = make_file(make_options(name))
    weights = unwrap_caches(contents["weights"])
    assert any(re.search(r"\.(0|f\.net)\.fn\.fn\.fn\.to_qkv", name) for name in weights)
    parts = read_dalle({**contents, "weights": weights})
    assert parts.options["shift_tokens"] is True
    assert_equal(parts.weights, read_dalle(contents).weights)


def test_rotary_angles_without_the_last_pixel_are_read() -> None:
    contents = make_file(make_options("rotary"))
    angles = contents["weights"]["transformer.pos_emb"][:, None, :-1]  # as 1.1 had them
    parts = read_dalle(with_weight(contents, "transformer.pos_emb", angles))
    assert_equal(parts.weights, read_dalle(contents).weights)


def test_what_weights_show_counts_more_than_keywords() -> None:
    contents = make_file(make_options("rotary"))
    wrong = {"rotary_emb": False, "sandwich_norm": True, "shift_tokens": True, "reversible": True}
    parts = read_dalle({**contents, "hparams": {**contents["hparams"], **wrong}})
    assert TransformerOptions(**parts.options) == make_options("rotary")


def test_keywords_that_are_left_out_are_dalle_pytorchs_defaults() -> None:
    options = TransformerOptions(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=8, dim_head=64, text_seq_len=256
    )
    dalle, vae = Dalle(options, 10000, CODES, GRID), DiscreteVAE(**VAE)
    description = {"kind": "DiscreteVAE", "arguments": vae.arguments}
    contents = write_dalle(options, 10000, dalle.layout, dalle.state_dict(), description, vae.state_dict())
    parts = read_dalle({**contents, "hparams": {"dim": 4, "depth": 1}})
    assert TransformerOptions(**parts.options) == options
    assert (parts.text_vocab_size, parts.image_vocab_size) == (10000, CODES)


@pytest.mark.parametrize(
    "version, window",
    [("1.6.6", "causal"), ("1.5.0", "causal"), ("1.4.2", "centered"), ("1.10.0", "causal"), ("0.14.3", "centered")],
)
def test_the_window_of_conv_like_attention_is_that_of_the_release(version: str, window: str) -> None:
    contents = make_file(make_options("mixed"))
    assert read_dalle({**contents, "version": version}).options["conv_window"] == window


def test_without_a_version_the_window_follows_from_the_names() -> None:
    contents = make_file(make_options("mixed"))
    del contents["version"]
    assert read_dalle(contents).options["conv_window"] == "causal"
    older = {**contents, "weights": unwrap_caches(contents["weights"])}
    assert any(".0.fn.fn.to_qkv" in name for name in older["weights"])
    assert read_dalle(older).options["conv_window"] == "centered"


def small_vqgan() -> VQGan:
    sizes = {"num_res_blocks": 1, "n_embed": CODES, "resolution": 256, "attn_resolutions": [32]}
    return VQGan(**{**VQGANS["gumbel_f8_8192"], **sizes})


def small_openai() -> OpenAIVAE:
    return OpenAIVAE(n_hid=4, n_blk_per_group=1, vocab_size=CODES, n_init=4)


@pytest.mark.parametrize(
    "make, name, first",
    [(small_vqgan, "VQGanVAE", "vae.model.encoder."), (small_openai, "OpenAIDiscreteVAE", "vae.enc.blocks.")],
)
def test_pretrained_image_tokenizers_are_written_and_read_with_the_model(make: Any, name: str, first: str) -> None:
    tokenizer: ImageTokenizer = make()
    options = make_options("rotary")
    dalle = Dalle(options, WORDS, CODES, tokenizer.grid)
    description = {"kind": tokenizer.kind, "arguments": tokenizer.arguments}
    contents = write_dalle(options, WORDS, dalle.layout, dalle.state_dict(), description, tokenizer.state_dict())
    assert contents["vae_class_name"] == name and contents["vae_params"] is None
    assert any(name.startswith(first) for name in contents["weights"])
    contents["weights"]["vae.model.loss.discriminator.main.0.weight"] = torch.zeros(1)
    parts = read_dalle(contents)
    assert parts.image_tokenizer is not None
    built = build_image_tokenizer(parts.image_tokenizer)
    assert built.arguments == tokenizer.arguments
    assert_equal(parts.image_tokenizer_weights, tokenizer.state_dict())


@pytest.mark.parametrize("name", VQGANS)
def test_a_vqgan_s_shape_follows_from_its_weights(name: str) -> None:
    weights = dict(VQGan(**VQGANS[name]).state_dict())
    kept = vqgan_weights({**weights, "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1)})
    assert set(kept) == set(weights)
    arguments = vqgan_arguments(kept, VQGANS[name]["resolution"])
    assert {**arguments, "dropout": 0.0} == VQGANS[name]


@pytest.mark.parametrize("name", OPENAI)
def test_the_shape_of_openai_s_vae_follows_from_its_weights(name: str) -> None:
    vae = OpenAIVAE(**{**OPENAI[name], "image_size": 256})
    assert openai_arguments(vae.state_dict()) == vae.arguments


def test_a_file_may_hold_no_image_tokenizer() -> None:
    contents = make_file(make_options("plain"))
    weights = {name: weight for name, weight in contents["weights"].items() if not name.startswith("vae.")}
    parts = read_dalle({**contents, "weights": weights})
    assert parts.image_tokenizer is None and parts.image_tokenizer_weights == {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_resnet_blocks": 2, "channels": 4, "straight_through": True, "reinmax": True},
        {"normalization": None, "smooth_l1_loss": True, "kl_div_loss_weight": 0.1, "temperature": 0.5},
        {"normalization": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), "channels": 3},
    ],
)
def test_a_vae_is_written_and_read_back(options: Dict[str, Any]) -> None:
    vae = DiscreteVAE(**{**VAE, **options}).eval()
    contents = write_vae(vae.arguments, vae.state_dict())
    assert is_vae(contents) and not is_dalle(contents)
    assert all(len(values) == vae.channels for values in contents["hparams"]["normalization"])
    arguments, weights = read_vae(contents)
    again = DiscreteVAE(**arguments).eval()
    again.load_state_dict(weights)
    images = torch.rand(2, vae.channels, 16, 16)
    assert torch.equal(again.encode(images), vae.encode(images))
    assert torch.equal(again.decode(again.encode(images)), vae.decode(vae.encode(images)))
    kept = {name: value for name, value in vae.arguments.items() if name != "normalization"}
    assert {name: arguments[name] for name in kept} == kept


def with_weight(contents: Dict[str, Any], name: str, weight: Any) -> Dict[str, Any]:
    return {**contents, "weights": {**contents["weights"], name: weight}}


def test_what_cannot_be_read_is_refused_by_name() -> None:
    contents = make_file(make_options("rotary"))
    with pytest.raises(FormatError, match="holds a weight 'transformer.extra'"):
        read_dalle(with_weight(contents, "transformer.extra", torch.zeros(1)))
    with pytest.raises(FormatError, match="hparams hold 'num_experts'"):
        read_dalle({**contents, "hparams": {**contents["hparams"], "num_experts": 2}})
    with pytest.raises(FormatError, match="VAE's parameters hold 'depth'"):
        read_dalle({**contents, "vae_params": {"depth": 2}})
    with pytest.raises(FormatError, match="no weights, but 'To get a working.*zero_to_fp32"):
        read_dalle({**contents, "weights": "To get a working standard checkpoint, look elsewhere"})
    angles = contents["weights"]["transformer.pos_emb"] * 1.1
    with pytest.raises(FormatError, match="rotary embedding"):
        read_dalle(with_weight(contents, "transformer.pos_emb", angles))
    with pytest.raises(FormatError, match="none of a DiscreteVAE"):
        read_vae({"hparams": {"dim": 3}, "weights": {}})


def test_what_dalle_pytorch_does_not_have_is_not_written() -> None:
    for values in ({"conv_window": "centered"}, {"conv_kernel_size": 3}, {"conv_dilation": 2}):
        name = next(iter(values))
        with pytest.raises(FormatError, match=name):
            make_file(TransformerOptions(**{**SIZES, **values, "attn_types": "full,conv_like"}))
        make_file(TransformerOptions(**{**SIZES, **values}))  # without such a layer it does not matter
    options = make_options("plain")
    dalle = Dalle(options, WORDS, CODES, (2, 3))
    with pytest.raises(FormatError, match="2x3 codes is no square"):
        write_dalle(options, WORDS, dalle.layout, dalle.state_dict(), {"kind": "DiscreteVAE", "arguments": {}}, {})
    with pytest.raises(FormatError, match="image_size=24 is no power of 2"):
        write_vae({**VAE, "image_size": 24}, {})
