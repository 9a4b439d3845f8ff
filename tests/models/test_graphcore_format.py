"""Graphcore's mini DALL-E: its files are read, however the model was cut up for IPUs."""

from __future__ import annotations

import re
from typing import Any, Dict

import pytest
import torch
from torch import Tensor

from models import dalle_pytorch_format
from models.build import build_image_tokenizer
from models.dalle import Dalle
from models.dalle_pytorch_format import FormatError, write_dalle
from models.graphcore_format import is_dalle, join_split_embeddings, read_dalle
from models.options import TransformerOptions
from models.vqgan import VQGan

WORDS, CODES = 11, 13
OPTIONS = TransformerOptions(
    hidden_size=8,
    num_hidden_layers=4,
    num_attention_heads=2,
    dim_head=4,
    text_seq_len=5,
    attn_types=("axial_row", "axial_col", "conv_like", "full"),
    sandwich_norm=True,
    loss_img_weight=5,
    conv_window="centered",
)


def make_vqgan() -> VQGan:
    return VQGan(n_embed=CODES, embed_dim=4, ch=32, ch_mult=(1, 1, 1, 1, 1), num_res_blocks=1, z_channels=4)


def make_file(dalle: Dalle, vqgan: VQGan, splits: int = 1, half: bool = False) -> Dict[str, Any]:
    """What its train.py saves: DALLE-pytorch's names of 2021, shorter paths to the layers, a prefix, splits."""
    causal = TransformerOptions(**{**vars(OPTIONS), "conv_window": "causal"})  # the names do not depend on it
    description = {"kind": "VQGan", "arguments": vqgan.arguments}
    contents = write_dalle(
        causal, WORDS, dalle.layout, dalle.state_dict(), description, vqgan.state_dict(), axial_package="0.2"
    )
    weights: Dict[str, Tensor] = {}
    for name, weight in contents["weights"].items():
        name = re.sub(r"transformer\.layers\.layers\.", "transformer.layers.", name)
        weights["model." + re.sub(r"fn\.fn\.fn\.to_", "fn.fn.to_", name)] = weight
    weights["model.vae.model.loss.discriminator.main.0.weight"] = torch.zeros(2)
    if splits > 1:
        for index, part in enumerate(weights.pop("model.text_emb.weight").chunk(splits)):
            weights[f"model.text_emb.split_embeddings.{index}.weight"] = part
    placed = {"embedding_ipu_id": 0, "embedding_serialization_factor": splits, "layers_per_ipu": [0, 2, 2]}
    names = "num_text_tokens text_seq_len dim depth heads dim_head loss_img_weight attn_types ff_dropout attn_dropout"
    hparams = {name: contents["hparams"][name] for name in [*names.split(), "sandwich_norm"]}
    return {
        "hparams": {**hparams, **placed, "cls_ipu_id": None, "fp16": half, "byteio": False},
        "vae_params": None,
        "epoch": 3,
        "weights": {name: weight.half() for name, weight in weights.items()} if half else weights,
        "opt_state": {},
        "scheduler_state": {},
    }


@pytest.mark.parametrize("splits", [1, 2, 4, 16])
def test_weights_options_and_vqgan_are_read_whatever_the_splits(splits: int) -> None:
    vqgan = make_vqgan()
    dalle = Dalle(OPTIONS, WORDS, CODES, vqgan.grid)
    contents = make_file(dalle, vqgan, splits)
    assert is_dalle(contents)
    assert ("model.text_emb.weight" in contents["weights"]) == (splits == 1)
    parts = read_dalle(contents)
    assert TransformerOptions(**parts.options) == OPTIONS
    assert (parts.text_vocab_size, parts.image_vocab_size) == (WORDS, CODES)
    assert set(parts.weights) == set(dalle.state_dict())
    assert all(torch.equal(parts.weights[name], weight) for name, weight in dalle.state_dict().items())
    assert parts.image_tokenizer is not None
    built = build_image_tokenizer(parts.image_tokenizer)
    built.load_state_dict(parts.image_tokenizer_weights)
    assert {**built.arguments, "attn_resolutions": ...} == {**vqgan.arguments, "attn_resolutions": ...}
    assert all(torch.equal(built.state_dict()[name], weight) for name, weight in vqgan.state_dict().items())


def test_half_precision_becomes_single_precision() -> None:
    vqgan = make_vqgan()
    dalle = Dalle(OPTIONS, WORDS, CODES, vqgan.grid)
    parts = read_dalle(make_file(dalle, vqgan, half=True))
    for name, weight in dalle.state_dict().items():
        assert torch.equal(parts.weights[name], weight.half().float())


def test_more_splits_than_ten_are_joined_by_number() -> None:
    whole = torch.randn(24, 3)
    parts = {f"text_emb.split_embeddings.{index}.weight": part for index, part in enumerate(whole.chunk(12))}
    shuffled = dict(sorted(parts.items()))  # 10 before 2
    assert list(shuffled) != list(parts)
    assert torch.equal(join_split_embeddings(shuffled)["text_emb.weight"], whole)


def test_a_missing_split_is_refused() -> None:
    parts = {f"text_emb.split_embeddings.{index}.weight": torch.zeros(2, 3) for index in (0, 2)}
    with pytest.raises(FormatError, match="lacks a part of text_emb.split_embeddings"):
        join_split_embeddings(parts)


def test_files_of_dalle_pytorch_are_not_taken_for_graphcore_s() -> None:
    vqgan = make_vqgan()
    contents = make_file(Dalle(OPTIONS, WORDS, CODES, vqgan.grid), vqgan)
    plain = {name[len("model.") :]: weight for name, weight in contents["weights"].items()}
    assert dalle_pytorch_format.is_dalle(contents)
    assert not is_dalle({**contents, "weights": plain})
    assert not is_dalle({**contents, "weights": "To get a working standard checkpoint"})
    assert not is_dalle({"state_dict": {}})
