"""Writes what DALLE-pytorch computes into tests/models/recorded/dalle_pytorch.json: `python -m tests.peers.record`.

The file holds options, numbers, and names with shapes; the weights are a formula's. It keeps the ordinary tests honest
where the package is not installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import tests.peers.conftest  # noqa: F401  before dalle_pytorch is imported
from models.vae import gumbel_softmax
from tests.peers.cases import (
    CASES,
    VAE_CASES,
    make_images,
    make_inputs,
    make_their_vae,
    make_theirs,
    their_greedy_tokens,
    uniform_like,
)

OUT = Path(__file__).resolve().parent.parent / "models" / "recorded" / "dalle_pytorch.json"
RECORDED = (
    "full",
    "full-rotary-shift",
    "full-stable",
    "full-no-text-condition",
    "axial_row",
    "axial_row-rotary",
    "axial_row-batch-1",
    "axial_col-shift",
    "axial_col-stable",
    "conv_like",
    "conv_like-rotary-shift",
    "conv_like-reversible",
    "mixed",
    "mixed-reversible-learned",
    "mixed-sandwich",
    "mixed-stable-sandwich-reversible",
    "tied-learned",
    "tied-reversible-stable",
    "shared-attention",
    "shared-both",
    "shared-both-reversible",
    "grid-3-learned",
    "grid-5",
    "text-1",
    "text-13-learned",
    "many-heads",
    "odd-width",
    "image-loss-only-a-little",
)
NAMED = ("full", "full-rotary-shift", "conv_like-reversible", "tied-learned", "shared-both")
PLACES = 8
"""How many values are taken of a tensor, spread evenly."""


def some(values: Tensor) -> List[float]:
    """Some of the values."""
    flat = values.detach().flatten()
    return rounded(flat[:: max(len(flat) // PLACES, 1)][:PLACES])


def rounded(values: Tensor) -> List[float]:
    """As numbers that keep nine digits."""
    return [float(f"{value:.9g}") for value in values.tolist()]


def norm(parameter: Tensor) -> Tensor:
    """Of its gradient; 0 where it has none."""
    return parameter.new_zeros(()) if parameter.grad is None else parameter.grad.norm()


def record_dalle(name: str) -> Dict[str, Any]:
    """What its DALLE computes in a case."""
    case = CASES[name]
    theirs, _ = make_theirs(case)
    theirs.train()
    inputs, split = make_inputs(case), theirs.text_seq_len
    chance = {"null_cond_prob": case["null_cond_prob"]} if "null_cond_prob" in case else {}
    loss = theirs(inputs.text.clone(), inputs.image_tokens, return_loss=True, **chance)
    loss.backward()
    with torch.no_grad():
        logits = theirs(inputs.text.clone(), inputs.image_tokens)
    parameters = [p for name, p in theirs.named_parameters() if not name.startswith("vae.")]
    weights = theirs.state_dict().items()
    return {
        "options": case,
        "loss": float(f"{loss.item():.9g}"),
        "text_logits": some(logits[:, :split, : theirs.num_text_tokens]),
        "image_logits": some(logits[:, split:, theirs.num_text_tokens :]),
        "gradients": rounded(torch.stack([norm(p) for p in parameters])),
        "tokens": their_greedy_tokens(theirs, inputs.text, 1.0).flatten().tolist(),
        "guided_tokens": their_greedy_tokens(theirs, inputs.text, 3.0).flatten().tolist(),
        **({"names": {n: list(w.shape) for n, w in weights if not n.startswith("vae.")}} if name in NAMED else {}),
    }


def record_vae(name: str) -> Dict[str, Any]:
    """What its DiscreteVAE computes in a case."""
    options = VAE_CASES[name]
    theirs, images = make_their_vae(options), make_images(options)
    with mock.patch.object(torch, "rand_like", uniform_like), mock.patch.object(
        F, "gumbel_softmax", lambda logits, tau, hard, dim: gumbel_softmax(logits, tau, hard)
    ):
        loss = theirs(images, return_loss=True)
    loss.backward()
    indices = theirs.get_codebook_indices(images)
    return {
        "options": options,
        "loss": float(f"{loss.item():.9g}"),
        "gradients": {name: float(f"{p.grad.norm():.9g}") for name, p in theirs.named_parameters()},
        "indices": indices.flatten().tolist(),
        "decoded": some(theirs.decode(indices)),
    }


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    content = {
        "package": "dalle-pytorch 1.6.6",
        "dalle": {name: record_dalle(name) for name in RECORDED},
        "vae": {name: record_vae(name) for name in VAE_CASES},
    }
    lines = json.dumps(content).replace('}, "', '},\n"')  # a case a line
    OUT.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
