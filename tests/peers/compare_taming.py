"""Our VQGAN beside taming-transformers' with its weights, through the formulas of DALLE-pytorch's VQGanVAE.

Random weights are compared in double precision: in single precision either side is about 1e-5 off its own exact result.
A Gumbel quantizer of theirs draws noise even when it is evaluated, so its codes are compared by its logits.
`python -m tests.peers.compare_taming` records the numbers that tests/models/test_vqgan.py holds ours to.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.vqgan import VQGan
from tests.models.pretrained_cases import (
    RELEASED_VQGANS,
    TOLERANCE,
    VQGANS,
    fill_by_formula,
    pictures,
    read_recorded,
    sample_pixels,
    write_recorded,
)

SEEDS = range(3)


def make_theirs(options: Dict[str, Any]) -> nn.Module:
    """The model of one of their configurations, with what its own constructor draws."""
    from taming.models.vqgan import GumbelVQ, VQModel

    outside = ("gumbel", "n_embed", "embed_dim")
    ddconfig = {**{name: value for name, value in options.items() if name not in outside}, "double_z": False}
    given = {"ddconfig": ddconfig, "lossconfig": None, "n_embed": options["n_embed"], "embed_dim": options["embed_dim"]}
    return (GumbelVQ(**given, temperature_scheduler_config=None) if options["gumbel"] else VQModel(**given)).eval()


@torch.no_grad()
def run_theirs(theirs: nn.Module, options: Dict[str, Any], images: Tensor) -> Tuple[Tensor, Tensor]:
    """Codes (B, I) of pictures in 0..1, and what these decode to, as DALLE-pytorch has it."""
    if options["gumbel"]:
        features = theirs.encode_to_prequant(2 * images - 1)
        codes = theirs.quantize(features, return_logits=True)[3].argmax(dim=1).flatten(1)
        vectors = nn.functional.one_hot(codes, theirs.quantize.n_embed).to(images.dtype) @ theirs.quantize.embed.weight
    else:
        codes = theirs.encode(2 * images - 1)[2][2].view(len(images), -1)
        vectors = nn.functional.one_hot(codes, theirs.quantize.n_e).to(images.dtype) @ theirs.quantize.embedding.weight
    side = int(codes.shape[1] ** 0.5)
    decoded = theirs.decode(vectors.view(len(images), side, side, -1).permute(0, 3, 1, 2))
    return codes, (decoded.clamp(-1, 1) + 1) * 0.5


def with_their_weights(theirs: nn.Module, options: Dict[str, Any]) -> VQGan:
    """Ours with their weights."""
    ours = VQGan(**options).eval().to(next(theirs.parameters()).dtype)
    ours.load_state_dict(theirs.state_dict())  # strict
    return ours


def assert_equal(theirs: nn.Module, options: Dict[str, Any], images: Tensor, tolerance: float) -> None:
    """Ours has their parameters, their codes and their reconstructions."""
    ours = with_their_weights(theirs, options)
    codes, decoded = run_theirs(theirs, options, images)
    assert len(codes.unique()) > 3, "a comparison of constant codes says nothing"
    assert ((decoded > 0) & (decoded < 1)).float().mean() > 0.5, "most pixels must not be clamped"
    with torch.no_grad():
        assert torch.equal(ours.encode(images), codes)
        torch.testing.assert_close(ours.decode(codes), decoded, atol=tolerance, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", VQGANS)
def test_codes_and_reconstructions_are_equal_with_random_weights(case: str, seed: int) -> None:
    options = VQGANS[case]
    torch.manual_seed(seed)
    theirs, images = make_theirs(options), torch.rand(2, 3, options["resolution"], options["resolution"])
    with torch.no_grad():
        assert torch.equal(with_their_weights(theirs, options).encode(images), run_theirs(theirs, options, images)[0])
    assert_equal(theirs.double(), options, images.double(), 1e-10)


@pytest.mark.parametrize("case", VQGANS)
def test_codes_and_reconstructions_are_equal_with_weights_of_the_formula(case: str) -> None:
    theirs = make_theirs(VQGANS[case])
    fill_by_formula(theirs)
    assert_equal(theirs, VQGANS[case], pictures(VQGANS[case]["resolution"]), TOLERANCE)


@pytest.mark.parametrize("case", RELEASED_VQGANS)
def test_names_and_shapes_of_all_weights_are_equal_at_full_size(case: str) -> None:
    with torch.device("meta"):
        ours, theirs = VQGan(**RELEASED_VQGANS[case]), make_theirs(RELEASED_VQGANS[case])
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in ours.state_dict().items()} == shapes


@pytest.mark.parametrize("case", VQGANS)
def test_the_recorded_numbers_are_theirs(case: str) -> None:
    recorded, current = read_recorded("taming")[case], record(case)
    assert current["codes"] == recorded["codes"]
    assert current["pixels"] == pytest.approx(recorded["pixels"], abs=TOLERANCE)


def record(case: str) -> Dict[str, Any]:
    """Their numbers with weights of the formula."""
    theirs = make_theirs(VQGANS[case])
    fill_by_formula(theirs)
    codes, decoded = run_theirs(theirs, VQGANS[case], pictures(VQGANS[case]["resolution"]))
    return {"codes": codes.tolist(), "pixels": sample_pixels(decoded)}


if __name__ == "__main__":
    import tests.peers.conftest  # noqa: F401  makes taming importable

    write_recorded("taming", {case: record(case) for case in VQGANS})
