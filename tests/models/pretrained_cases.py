"""The released image tokenizers scaled down, with weights and pictures that a formula gives.

So numbers of the systems they come from can be recorded without their weights: `recorded/*.json` holds for each case
the codes of the pictures, and every n-th pixel of what those codes decode to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import torch
import yaml
from torch import Tensor, nn

from models.vqgan import VQGan

RECORDED = Path(__file__).parent / "recorded"
PIXEL_STEP = 97  # prime, so that every place within a code's square is met
TOLERANCE = 1e-5

_F16 = {"ch": 32, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [4], "embed_dim": 32}
_F8 = {"ch": 32, "ch_mult": [1, 1, 2, 4], "attn_resolutions": [8], "embed_dim": 32}
_VQGAN = {"num_res_blocks": 2, "z_channels": 32, "resolution": 64, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
VQGANS: Dict[str, Dict[str, Any]] = {
    "imagenet_f16_1024": {**_VQGAN, **_F16, "gumbel": False, "n_embed": 64},
    "imagenet_f16_16384": {**_VQGAN, **_F16, "gumbel": False, "n_embed": 1024},
    "gumbel_f8_8192": {**_VQGAN, **_F8, "gumbel": True, "n_embed": 512},
}
_RELEASED = {
    "embed_dim": 256, "ch": 128, "num_res_blocks": 2, "z_channels": 256, "resolution": 256, "in_channels": 3,
    "out_ch": 3, "dropout": 0.0,
}  # fmt: skip
RELEASED_VQGANS: Dict[str, Dict[str, Any]] = {
    "imagenet_f16_1024": {
        **_RELEASED, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16], "gumbel": False, "n_embed": 1024,
    },
    "imagenet_f16_16384": {
        **_RELEASED, "ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [16], "gumbel": False, "n_embed": 16384,
    },
    "gumbel_f8_8192": {
        **_RELEASED, "ch_mult": [1, 1, 2, 4], "attn_resolutions": [32], "gumbel": True, "n_embed": 8192,
    },
}  # fmt: skip
"""What the released configurations say, at full size."""
OPENAI: Dict[str, Dict[str, Any]] = {
    "released": {"n_hid": 64, "n_blk_per_group": 2, "vocab_size": 512, "n_init": 16, "image_size": 64},
    "one_block": {"n_hid": 64, "n_blk_per_group": 1, "vocab_size": 600, "n_init": 8, "image_size": 32},
}


def fill_by_formula(module: nn.Module) -> None:
    """Give every weight of a module a number that depends on its place and its name's place in the alphabet alone."""
    for index, (_, weight) in enumerate(sorted(module.state_dict().items())):
        values = by_formula(weight.shape, index)
        if weight.dim() == 1:  # biases, and the scales of norms
            values = 0.2 * values + (weight.mean() > 0.5)
        elif weight.dim() == 4:
            values = values * (3 / weight[0].numel()) ** 0.5
        weight.data.copy_(values)


def by_formula(shape: Any, seed: int) -> Tensor:
    """Numbers in -1..1 without a visible pattern."""
    count = torch.Size(shape).numel()
    waves = (torch.arange(count, dtype=torch.float64) * 12.9898 + (seed + 1) * 78.233).sin() * 43758.5453
    return (2 * (waves - waves.floor()) - 1).float().view(tuple(shape))


def pictures(side: int) -> Tensor:
    """Two pictures (2, 3, side, side) in 0..1: noise, and noise in squares of 8."""
    noise, coarse = by_formula((3, side, side), 1000), by_formula((3, side // 8, side // 8), 1001)
    return (torch.stack([noise, coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)]) + 1) / 2


def sample_pixels(decoded: Tensor) -> List[float]:
    """The pixels of decoded pictures that are recorded."""
    return [round(value, 7) for value in decoded.flatten()[::PIXEL_STEP].tolist()]


def save_as_taming(model: VQGan, folder: Path) -> None:
    """Save a VQGAN as taming does: `weights.ckpt` and `config.yaml`."""
    weights = dict(model.state_dict(), **{"loss.discriminator.main.0.weight": torch.ones(1)})
    torch.save({"epoch": 3, "global_step": 7, "state_dict": weights, "callbacks": {}}, folder / "weights.ckpt")
    ddconfig = dict(model.arguments, double_z=False)
    target = f"taming.models.vqgan.{'GumbelVQ' if ddconfig.pop('gumbel') else 'VQModel'}"
    params = {"embed_dim": ddconfig.pop("embed_dim"), "n_embed": ddconfig.pop("n_embed"), "ddconfig": ddconfig}
    config = {"model": {"base_learning_rate": 4.5e-6, "target": target, "params": dict(params, lossconfig={})}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def read_recorded(name: str) -> Dict[str, Any]:
    """The recorded numbers of one system, by case."""
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def write_recorded(name: str, cases: Dict[str, Any]) -> None:
    """Record the numbers of one system, a line for every list."""
    RECORDED.mkdir(exist_ok=True)
    rows = ",\n".join(
        f" {json.dumps(case)}: {{\n  "
        + ",\n  ".join(f'"{key}": {json.dumps(value)}' for key, value in parts.items())
        + "\n }"
        for case, parts in cases.items()
    )
    (RECORDED / f"{name}.json").write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
