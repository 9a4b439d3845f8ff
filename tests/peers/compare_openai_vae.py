"""Our OpenAI VAE beside OpenAI's DALL-E package with its weights, through the formulas of DALLE-pytorch.

`python -m tests.peers.compare_openai_vae` records the numbers that tests/models/test_openai_vae.py holds ours to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.openai_vae import OpenAIVAE
from models.pretrained import load_openai_vae
from tests.models.pretrained_cases import (
    OPENAI,
    TOLERANCE,
    fill_by_formula,
    pictures,
    read_recorded,
    sample_pixels,
    write_recorded,
)

Networks = Tuple[nn.Module, nn.Module]
MIN_SHARE = 0.5


def make_theirs(options: Dict[str, Any]) -> Networks:
    """Their encoder and decoder, with what their own constructors draw."""
    from dall_e import Decoder, Encoder

    shared = {name: options[name] for name in ("n_hid", "n_blk_per_group", "vocab_size")}
    return Encoder(**shared).eval(), Decoder(**shared, n_init=options["n_init"]).eval()


@torch.no_grad()
def run_theirs(theirs: Networks, images: Tensor) -> Tuple[Tensor, Tensor]:
    """Codes (B, I) of pictures in 0..1, and what these decode to."""
    from dall_e import map_pixels, unmap_pixels

    encoder, decoder = theirs
    codes = encoder(map_pixels(images)).argmax(dim=1)
    one_hot = nn.functional.one_hot(codes, encoder.vocab_size).permute(0, 3, 1, 2).float()
    return codes.flatten(1), unmap_pixels(torch.sigmoid(decoder(one_hot).float()[:, :3]))


def assert_equal(ours: OpenAIVAE, theirs: Networks, images: Tensor) -> None:
    """Ours has their codes and their reconstructions."""
    codes, decoded = run_theirs(theirs, images)
    assert len(codes.unique()) > 3, "a comparison of constant codes says nothing"
    assert ((decoded > 0) & (decoded < 1)).float().mean() > MIN_SHARE, "most pixels must not be clamped"
    with torch.no_grad():
        assert torch.equal(ours.encode(images), codes)
        torch.testing.assert_close(ours.decode(codes), decoded, atol=TOLERANCE, rtol=0)


def with_their_weights(options: Dict[str, Any], theirs: Networks) -> OpenAIVAE:
    """Ours with their weights."""
    ours = OpenAIVAE(**options).eval()
    ours.encoder.load_state_dict(theirs[0].state_dict())  # strict
    ours.decoder.load_state_dict(theirs[1].state_dict())
    return ours


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", OPENAI)
def test_codes_and_reconstructions_are_equal_with_random_weights(case: str, seed: int) -> None:
    torch.manual_seed(seed)
    theirs, side = make_theirs(OPENAI[case]), OPENAI[case]["image_size"]
    assert_equal(with_their_weights(OPENAI[case], theirs), theirs, torch.rand(2, 3, side, side))


@pytest.mark.parametrize("case", OPENAI)
def test_codes_and_reconstructions_are_equal_with_weights_of_the_formula(case: str) -> None:
    theirs = make_theirs(OPENAI[case])
    for network in theirs:
        fill_by_formula(network)
    assert_equal(with_their_weights(OPENAI[case], theirs), theirs, pictures(OPENAI[case]["image_size"]))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "older format"])
def test_their_pickled_networks_load_and_are_equal(zipped: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = OPENAI["released"]
    theirs = make_theirs(options)
    for name, network in zip(("encoder", "decoder"), theirs):
        torch.save(network, tmp_path / f"{name}.pkl", _use_new_zipfile_serialization=zipped)
    ours = load_openai_vae(tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", options["image_size"])
    assert ours.arguments == OpenAIVAE(**options).arguments
    assert_equal(ours, theirs, torch.rand(2, 3, options["image_size"], options["image_size"]))


def test_names_and_shapes_of_all_weights_are_equal_at_full_size() -> None:
    from dall_e import Decoder, Encoder

    with torch.device("meta"):
        ours = OpenAIVAE()
    for own, theirs in ((ours.encoder, Encoder()), (ours.decoder, Decoder())):
        shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
        assert {name: weight.shape for name, weight in own.state_dict().items()} == shapes


@pytest.mark.parametrize("case", OPENAI)
def test_the_recorded_numbers_are_theirs(case: str) -> None:
    recorded, current = read_recorded("openai")[case], record(case)
    assert current["codes"] == recorded["codes"]
    assert current["pixels"] == pytest.approx(recorded["pixels"], abs=TOLERANCE)


def record(case: str) -> Dict[str, Any]:
    """Their numbers with weights of the formula."""
    theirs = make_theirs(OPENAI[case])
    for network in theirs:
        fill_by_formula(network)
    codes, decoded = run_theirs(theirs, pictures(OPENAI[case]["image_size"]))
    return {"codes": codes.tolist(), "pixels": sample_pixels(decoded)}


if __name__ == "__main__":
    write_recorded("openai", {case: record(case) for case in OPENAI})
