"""What is compared with `dalle-pytorch`: combinations of options, and how a model of either side is made of one.

A case is the keywords of its DALLE, and beside them `grid` (side of the image grid), `batch` and `null_cond_prob`. The
kernels of its `sparse` attention need a GPU: its dense attention gets our pattern's mask instead.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.dalle import Dalle
from models.dalle_pytorch_format import VERSION, read_dalle
from models.options import TransformerOptions
from models.patterns import Layout

IMAGE_TOKENS = 19
TEXT_TOKENS = 23
SMALL: Dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 12, "text_seq_len": 5}
LEARNED = {"rotary_emb": False, "shift_tokens": False}
KINDS = ("full", "axial_row", "axial_col", "conv_like")
MIXED = ("axial_row", "axial_row", "axial_col", "conv_like", "full")
REPAIRED = {"cond_scale": 3.0}


def _cases() -> Dict[str, Dict[str, Any]]:
    cases: Dict[str, Dict[str, Any]] = {}

    def add(name: str, **options: Any) -> None:
        assert name not in cases, f"two cases are named {name}"
        cases[name] = options

    for kind in (*KINDS, "sparse"):
        for rotary in (False, True):
            for shift in (False, True):
                name = f"{kind}{'-rotary' * rotary}{'-shift' * shift}"
                add(name, attn_types=(kind,), rotary_emb=rotary, shift_tokens=shift)
        add(f"{kind}-reversible", attn_types=(kind,), reversible=True)
        add(f"{kind}-stable", attn_types=(kind,), stable=True, **LEARNED)
        add(f"{kind}-batch-1", attn_types=(kind,), batch=1, rotary_emb=False)
        add(f"{kind}-no-text-condition", attn_types=(kind,), null_cond_prob=1.0)
    for kinds in (("full", "axial_row"), ("axial_row", "axial_col", "conv_like"), ("conv_like", "sparse")):
        for rotary in (False, True):
            name = "+".join(kinds) + "-rotary" * rotary
            add(name, attn_types=kinds, depth=3, rotary_emb=rotary)
    add("mixed", attn_types=MIXED, depth=5)
    add("mixed-learned", attn_types=MIXED, depth=5, **LEARNED)
    add("mixed-reversible", attn_types=MIXED, depth=5, reversible=True)
    add("mixed-reversible-learned", attn_types=MIXED, depth=4, reversible=True, **LEARNED)
    add("mixed-sandwich", attn_types=MIXED, depth=5, sandwich_norm=True)
    add("mixed-sandwich-learned", attn_types=MIXED, depth=5, sandwich_norm=True, **LEARNED)
    add("mixed-stable", attn_types=MIXED, depth=5, stable=True)
    add("mixed-stable-sandwich-reversible", attn_types=MIXED, stable=True, sandwich_norm=True, reversible=True)
    add("mixed-tied", attn_types=MIXED, depth=5, share_input_output_emb=True)
    add("tied-learned", share_input_output_emb=True, **LEARNED)
    add("tied-reversible-stable", share_input_output_emb=True, reversible=True, stable=True)
    add("shared-attention", shared_attn_ids=(0, 1), depth=4, attn_types=("axial_row", "full"))
    add("shared-feed-forward", shared_ff_ids=(0, 0, 1), depth=4)
    add("shared-both", shared_attn_ids=("a", "a"), shared_ff_ids=(1, 2), depth=4, sandwich_norm=True)
    add("shared-both-reversible", shared_attn_ids=(0, 1, 0), shared_ff_ids=(0,), depth=4, reversible=True, **LEARNED)
    add("shared-tied-stable", shared_attn_ids=(0,), shared_ff_ids=(0,), share_input_output_emb=True, stable=True)
    for grid in (2, 3, 5, 6):
        add(f"grid-{grid}", grid=grid, attn_types=MIXED, depth=4)
        add(f"grid-{grid}-learned", grid=grid, attn_types=MIXED, depth=4, **LEARNED)
    for length in (1, 2, 7, 13):
        add(f"text-{length}", text_seq_len=length, attn_types=MIXED, depth=4)
        add(f"text-{length}-learned", text_seq_len=length, attn_types=MIXED, depth=4, **LEARNED)
    add("one-head", heads=1, dim_head=16, attn_types=MIXED, depth=4)
    add("many-heads", heads=4, dim_head=9, dim=20, attn_types=MIXED, depth=4)
    add("odd-width", dim=18, attn_types=MIXED, depth=4)
    add("one-layer", depth=1)
    add("wide-head", dim_head=64, depth=1, dim=32)
    add("image-loss-only-a-little", loss_img_weight=0.5)
    add("text-loss-only", loss_img_weight=0)
    add("masks-for-inference", attn_types=("axial_row", "axial_col"), optimize_for_inference=True)
    add("masks-for-inference-learned", attn_types=("axial_col", "axial_row"), optimize_for_inference=True, **LEARNED)
    return cases


CASES = _cases()

_BESIDE = ("grid", "batch", "null_cond_prob")

VAE = {"image_size": 16, "num_tokens": 11, "codebook_dim": 6, "num_layers": 2, "hidden_dim": 5}
VAE_CASES: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "residual": {"num_resnet_blocks": 2},
    "deep": {"num_layers": 3, "num_resnet_blocks": 1},
    "shallow": {"num_layers": 1},
    "smooth-l1": {"smooth_l1_loss": True},
    "hard": {"straight_through": True},
    "reinmax": {"straight_through": True, "reinmax": True},
    "reinmax-cold": {"straight_through": True, "reinmax": True, "temperature": 0.4, "kl_div_loss_weight": 0.02},
    "reinmax-soft": {"reinmax": True},
    "divergence": {"kl_div_loss_weight": 0.01},
    "cold": {"temperature": 0.2},
    "grey": {"channels": 1},
    "transparent": {"channels": 4, "num_resnet_blocks": 1},
    "own-normalization": {"normalization": ((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))},
    "no-normalization": {"normalization": None},
    "all-at-once": {
        "num_resnet_blocks": 1,
        "smooth_l1_loss": True,
        "straight_through": True,
        "reinmax": True,
        "kl_div_loss_weight": 0.05,
        "temperature": 0.7,
        "channels": 4,
    },
}


@dataclasses.dataclass
class Inputs:
    """Captions (B, T), with padding at the end of most of them, and codes (B, I)."""

    text: Tensor
    image_tokens: Tensor


def keywords(case: Dict[str, Any]) -> Dict[str, Any]:
    """The keywords of its DALLE."""
    given = {name: value for name, value in case.items() if name not in _BESIDE}
    return {"num_text_tokens": TEXT_TOKENS, **SMALL, **given}


def make_inputs(case: Dict[str, Any]) -> Inputs:
    """Numbers from a formula, the same in every release of torch."""
    batch, length, grid = case.get("batch", 2), keywords(case)["text_seq_len"], case.get("grid", 4)
    text = (torch.arange(batch * length) * 7 + 3).view(batch, length) % (TEXT_TOKENS - 1) + 1
    text[0, length - length // 3 :] = 0
    image_tokens = (torch.arange(batch * grid * grid) ** 2 * 5 + 2).view(batch, grid * grid) % IMAGE_TOKENS
    return Inputs(text, image_tokens)


def fill(weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Weights from a formula by name and shape, strong enough for every part of the model to show."""
    filled = {}
    for name, weight in weights.items():
        count = torch.arange(weight.numel(), dtype=torch.float64)
        wave = torch.sin(count * 1.7 + count**2 * 0.013 + zlib.crc32(name.encode())) * 1.4  # deviation 1
        is_norm = ".norm" in name or name.startswith("to_logits.0.")
        if name.endswith("scale"):
            wave = 0.8 + 0.2 * wave
        elif is_norm and name.endswith("weight"):
            wave = 1 + 0.2 * wave
        elif name.endswith("bias"):
            wave = 0.2 * wave
        elif weight.dim() > 1 and "emb" not in name:
            wave = wave * (weight.numel() / len(weight)) ** -0.5
        filled[name] = wave.view(weight.shape).float()
    return filled


def uniform_like(like: Tensor, **_: Any) -> Tensor:
    """Numbers in 0..1 from a formula, in place of `torch.rand_like`."""
    count = torch.arange(like.numel(), dtype=torch.float64)
    return (torch.sin(count * 12.9898 + 78.233) * 43758.5453).frac().abs().view(like.shape).to(like.dtype)


def make_images(options: Dict[str, Any]) -> Tensor:
    """Pictures (B, C, H, W) in 0..1 for a discrete VAE, with waves of several lengths."""
    shape = (2, {**VAE, **options}.get("channels", 3), 16, 16)
    places = (torch.arange(length, dtype=torch.float64) for length in shape)
    picture, channel, row, column = torch.meshgrid(*places, indexing="ij")
    wave = torch.sin((0.3 + 0.2 * channel) * row + (0.5 - 0.4 * picture) * column + 2 * channel)
    return (0.5 + 0.4 * wave + 0.1 * uniform_like(wave)).float()


def make_theirs(case: Dict[str, Any]) -> Tuple[nn.Module, Dict[str, Any]]:
    """Its DALLE with its own DiscreteVAE, weights from the formula; and the contents of the file it would save."""
    from dalle_pytorch import DALLE, DiscreteVAE

    given, grid = keywords(case), case.get("grid", 4)
    vae = DiscreteVAE(image_size=16, num_tokens=IMAGE_TOKENS, codebook_dim=4, num_layers=2, hidden_dim=4)
    vae.image_size = 4 * grid  # it admits powers of 2 alone, and needs them nowhere
    kinds = tuple("full" if kind == "sparse" else kind for kind in given.get("attn_types", ("full",)))
    theirs = DALLE(vae=vae, **{**given, "attn_types": kinds})
    parameters = {name: p for name, p in theirs.named_parameters() if not name.startswith("vae.")}
    with torch.no_grad():
        for name, weight in fill(parameters).items():
            parameters[name].copy_(weight)
    contents = {
        "hparams": given,
        "vae_params": {"image_size": 4 * grid, "num_tokens": IMAGE_TOKENS, "num_layers": 2},
        "weights": theirs.state_dict(),
        "version": VERSION,
    }
    return theirs, contents


def make_their_vae(options: Dict[str, Any]) -> nn.Module:
    """Its DiscreteVAE, weights from the formula."""
    from dalle_pytorch import DiscreteVAE

    given = {**VAE, **options}
    without = "normalization" in given and given["normalization"] is None  # its class means it, and cannot be given it
    theirs = DiscreteVAE(**{name: value for name, value in given.items() if not without or name != "normalization"})
    if without:
        theirs.normalization = None
    theirs.load_state_dict({n: w * 2 if w.dim() == 4 else w / 2 for n, w in fill(theirs.state_dict()).items()})
    return theirs


def their_greedy_tokens(theirs: nn.Module, text: Tensor, cond_scale: float) -> Tensor:
    """The tokens (B, I) that its `generate_images` draws when only the likeliest one is left.

    Under guidance it empties the caller's texts at the first token, and all later ones go without: it gets copies.
    """
    drawn: List[Tensor] = []
    forward, decode = theirs.forward, theirs.vae.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "forward", lambda text, *args, **rest: forward(text.clone(), *args, **rest))
        patch.setattr(theirs.vae, "decode", lambda tokens: drawn.append(tokens) or decode(tokens))
        theirs.generate_images(text.clone(), filter_thres=1.0, cond_scale=cond_scale, use_cache=False)
    return drawn[0]


def make_ours(case: Dict[str, Any], contents: Dict[str, Any]) -> Dalle:
    """Our transformer of the contents of a file."""
    parts, grid = read_dalle(contents), case.get("grid", 4)
    options = TransformerOptions(**parts.options, **_ours_alone(case))
    ours = Dalle(options, parts.text_vocab_size, parts.image_vocab_size, (grid, grid))
    ours.load_state_dict(parts.weights)
    return ours


def give_masks(theirs: nn.Module, ours: Dalle, case: Dict[str, Any]) -> None:
    """Let its dense attention see what our pattern allows, in the layers of kind `sparse`."""
    from dalle_pytorch.attention import Attention

    kinds = case.get("attn_types", ("full",))
    attentions = [module for module in theirs.modules() if isinstance(module, Attention)]
    patterns = [layer.attention.pattern for layer in ours.layers]
    dense = [number for number in range(len(patterns)) if kinds[number % len(kinds)] in ("full", "sparse")]
    if "sparse" not in kinds:
        return
    assert len(attentions) == len(dense), "one attention a layer"
    for attention, number in zip(attentions, dense):
        if kinds[number % len(kinds)] == "sparse":
            attention.static_mask = patterns[number].mask(ours.layout.sequence_len)


def layout_of(case: Dict[str, Any]) -> Layout:
    """Where text and picture lie."""
    grid = case.get("grid", 4)
    return Layout(keywords(case)["text_seq_len"] + 1, grid, grid)


def names(selected: str = "") -> List[str]:
    """Names of the cases, those alone that contain `selected`."""
    return [name for name in CASES if selected in name]


def _ours_alone(case: Dict[str, Any]) -> Dict[str, Any]:
    small_blocks = {"sparse_block_size": 2, "sparse_random_blocks": 1, "sparse_seed": 3}
    sparse = small_blocks if "sparse" in case.get("attn_types", ()) else {}
    return {**sparse, "null_cond_prob": case.get("null_cond_prob", 0.0)}
