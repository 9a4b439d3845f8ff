"""DALLE-pytorch as it is measured: its own modules, with the weights of ours, and what is repaired for fairness.

Two arguments of its `generate_images` do not do what they say. `use_cache` is dropped on the way without guidance
(`forward_with_cond_scale` does not pass the cache on), and where it arrives, all axial layers keep their inputs in one
and the same place. `cond_scale` gives the pass without text a copy of the other pass's keys, and sets the caller's
texts to zero. `repair` mends this from outside. Even so its axial layers keep their inputs alone and compute all keys
anew; built with `optimize_for_inference` they are masked dense ones, which keep keys and values.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any, Dict, Iterator, List, Optional
from unittest import mock

import torch
from torch import Tensor, nn

from bench.settings import Setting, make_dalle
from models.dalle_pytorch_format import write_weights
from models.vqgan import VQGan

NAME = "dalle-pytorch"


def are_installed() -> bool:
    """Whether this environment has DALLE-pytorch."""
    return importlib.util.find_spec("dalle_pytorch") is not None


def make_theirs(setting: Setting, vae: Optional[nn.Module] = None, masked: bool = False) -> nn.Module:
    """Its DALLE with the weights of `make_dalle`.

    Args:
        setting: sizes.
        vae: its image tokenizer; None: the smallest of its discrete VAEs with so many codes.
        masked: axial layers as masked dense ones, so that they can be drawn with a cache.
    """
    _make_importable()
    from dalle_pytorch import DALLE, DiscreteVAE

    if vae is None:
        vae = DiscreteVAE(
            image_size=2 * setting.grid, num_tokens=setting.num_tokens, codebook_dim=1, num_layers=1, hidden_dim=1
        )
    theirs = DALLE(vae=vae, optimize_for_inference=masked, **setting.keywords)
    ours = make_dalle(setting)
    weights = write_weights(ours.state_dict(), ours.options, ours.layout)
    missing, unknown = theirs.load_state_dict(weights, strict=False)
    assert not unknown and all(name.startswith("vae.") for name in missing), "every weight has its counterpart"
    return theirs


def make_their_vqgan(**sizes: Any) -> nn.Module:
    """Its VQGanVAE of the released shape around taming's model, with the weights of our VQGan of seed 0."""
    _make_importable()
    from dalle_pytorch import VQGanVAE
    from taming.models.vqgan import VQModel

    torch.manual_seed(0)
    ours = VQGan(**sizes)
    inside = ("n_embed", "embed_dim", "gumbel")
    shape = {name: value for name, value in ours.arguments.items() if name not in inside}
    model = VQModel(
        ddconfig={**shape, "double_z": False}, lossconfig=None, n_embed=ours.arguments["n_embed"],
        embed_dim=ours.arguments["embed_dim"],
    )  # fmt: skip
    model.load_state_dict(ours.state_dict())
    vae = VQGanVAE.__new__(VQGanVAE)  # its constructor downloads the weights
    nn.Module.__init__(vae)
    vae.model, vae.is_gumbel = model.eval(), False
    vae.image_size, vae.channels, vae.num_tokens = ours.image_size, 3, ours.num_tokens
    vae.num_layers = (ours.image_size // ours.grid[0]).bit_length() - 1
    return vae.requires_grad_(False)


def repair(theirs: nn.Module) -> None:
    """Let the cache and guidance of its `generate_images` do what their arguments say."""
    from dalle_pytorch.transformer import NonCached

    for name, module in theirs.named_modules():
        if isinstance(module, NonCached):
            module.forward = functools.partial(module.forward, cache_key=name)

    def forward_with_cond_scale(
        text: Tensor, image: Tensor, cond_scale: float = 1, cache: Optional[Dict[str, Any]] = None, **rest: Any
    ) -> Tensor:
        if cond_scale == 1:
            return theirs(text, image, cache=cache, **rest)
        without_text = None if cache is None else cache.setdefault("without text", {})
        logits = theirs(text, image, cache=cache, **rest)
        null_logits = theirs(text.clone(), image, null_cond_prob=1.0, cache=without_text, **rest)
        return null_logits + (logits - null_logits) * cond_scale

    theirs.forward_with_cond_scale = forward_with_cond_scale


def their_tokens(theirs: nn.Module, text: Tensor, **sampling: Any) -> Tensor:
    """The image tokens (B, I) that its `generate_images` draws, without decoding them."""
    drawn: List[Tensor] = []
    with mock.patch.object(theirs.vae, "decode", lambda tokens: drawn.append(tokens) or tokens):
        theirs.generate_images(text.clone(), **sampling)
    return drawn[0]


@torch.no_grad()
def steps_as_shipped(
    theirs: nn.Module, text: Tensor, lengths: List[int], filter_thres: float, cond_scale: float
) -> Iterator[Tensor]:
    """The loop of its `generate_images` for some lengths of the drawn part only, which holds any tokens."""
    from dalle_pytorch.dalle_pytorch import gumbel_sample, top_k

    theirs.eval()
    for length in lengths:
        image = torch.zeros(len(text), length, dtype=torch.long, device=text.device)
        logits = theirs.forward_with_cond_scale(text, image, cond_scale=cond_scale, cache=None)[:, -1, :]
        yield gumbel_sample(top_k(logits, thres=filter_thres), temperature=1.0, dim=-1)


def _make_importable() -> None:
    """Put stand-ins in place of what it imports and nothing here uses."""
    threads = torch.get_num_threads()
    from tests.peers.conftest import repair_training_at_batch_1, replace_missing_modules  # and then there is one

    replace_missing_modules()
    repair_training_at_batch_1()
    torch.set_num_threads(threads)
