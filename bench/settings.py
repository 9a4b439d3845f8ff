"""The models that are measured, and their inputs: the same numbers for everybody."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
import yaml
from torch import Tensor

from models.dalle import Dalle
from models.options import TransformerOptions
from models.patterns import Layout, Pattern
from models.vae import DiscreteVAE

TEXT_VOCABULARY = 8192
SEED = 0


@dataclasses.dataclass(frozen=True)
class Setting:
    """A transformer, by DALLE-pytorch's keywords, and the batch it is measured with."""

    dim: int
    depth: int
    heads: int
    dim_head: int
    attn_types: Tuple[str, ...]
    batch: int
    grid: int = 16
    text_seq_len: int = 80
    num_text_tokens: int = TEXT_VOCABULARY
    num_tokens: int = 1024

    @property
    def positions(self) -> int:
        """Tokens of a sample, of text and image."""
        return self.text_seq_len + self.grid**2

    @property
    def tokens(self) -> int:
        """Tokens of a batch."""
        return self.batch * self.positions

    @property
    def keywords(self) -> Dict[str, Any]:
        """For DALLE-pytorch's DALLE."""
        beside = ("batch", "grid", "num_tokens")
        given = {name: value for name, value in dataclasses.asdict(self).items() if name not in beside}
        return {**given, "rotary_emb": False, "shift_tokens": False}


def _l16_attention() -> Tuple[str, ...]:
    entry = yaml.safe_load((Path(__file__).parent.parent / "configs.yml").read_text(encoding="utf-8"))["L16"]
    return tuple(kind.strip() for kind in entry["attn_types"].split(","))


S = Setting(256, 8, 8, 64, ("axial_row", "axial_row", "axial_col", "full"), batch=4)
L16 = Setting(512, 16, 16, 64, _l16_attention(), batch=2)
BILLION = Setting(1536, 36, 24, 64, _l16_attention(), batch=16)  # 1.03 billion weights in its layers
TINY = Setting(32, 2, 2, 16, ("axial_row", "full"), batch=2, grid=4, text_seq_len=6, num_text_tokens=50, num_tokens=16)
SETTINGS: Dict[str, Setting] = {"S": S, "L16": L16, "1B": BILLION, "tiny": TINY}


def make_setting(name: str, **changes: Any) -> Setting:
    """The setting of a name, with some values changed; those that are None stay."""
    return dataclasses.replace(SETTINGS[name], **{key: value for key, value in changes.items() if value is not None})


def training_arithmetic(setting: Setting) -> float:
    """Floating point operations that the matrix products of one training step need: three times a forward pass's.

    Attention counts the pairs that its pattern allows, logits the part of the vocabulary that a position meets.
    """
    text, image = setting.text_seq_len, setting.grid**2
    logits = setting.dim * (text * (setting.num_text_tokens + text) + image * setting.num_tokens)
    kinds = [setting.attn_types[layer % len(setting.attn_types)] for layer in range(setting.depth)]
    layout = Layout(text + 1, setting.grid, setting.grid)
    pairs = {kind: int(Pattern(kind, layout).mask(layout.sequence_len).sum()) for kind in set(kinds)}
    attention = sum(2 * pairs[kind] for kind in kinds) * setting.heads * setting.dim_head
    return 3 * 2.0 * setting.batch * (layer_weights(setting) * setting.positions + logits + attention)


def layer_weights(setting: Setting) -> int:
    """Weights of the matrices of all layers: queries, keys, values, their output, and the gated feed-forward layer."""
    return setting.depth * (4 * setting.dim * setting.heads * setting.dim_head + 12 * setting.dim**2)


def drawing_traffic(setting: Setting) -> float:
    """Bytes of float32 weights that have to be read to draw the tokens of one picture, or of one batch."""
    return 4.0 * setting.grid**2 * (layer_weights(setting) + setting.dim * setting.num_tokens)


def make_dalle(setting: Setting) -> Dalle:
    """Our transformer, with weights of a fixed seed."""
    options = TransformerOptions(
        hidden_size=setting.dim,
        num_hidden_layers=setting.depth,
        num_attention_heads=setting.heads,
        dim_head=setting.dim_head,
        text_seq_len=setting.text_seq_len,
        attn_types=tuple(setting.attn_types),
    )
    torch.manual_seed(SEED)
    return Dalle(options, setting.num_text_tokens, setting.num_tokens, (setting.grid, setting.grid))


def make_stand_in(setting: Setting) -> DiscreteVAE:
    """The smallest image tokenizer of the setting's codes; nothing runs it where steps begin at codes."""
    return DiscreteVAE(
        image_size=2 * setting.grid, num_tokens=setting.num_tokens, codebook_dim=1, num_layers=1, hidden_dim=1,
        num_resnet_blocks=0,
    )  # fmt: skip


def make_text(setting: Setting, batch: Optional[int] = None) -> Tensor:
    """Captions (B, T) of one half to all of the positions, then padding."""
    batch, length = batch or setting.batch, setting.text_seq_len
    generator = torch.Generator().manual_seed(SEED)
    text = torch.randint(1, setting.num_text_tokens, (batch, length), generator=generator)
    words = torch.randint(length // 2, length + 1, (batch, 1), generator=generator)
    return text.masked_fill(torch.arange(length) >= words, 0)


def make_codes(setting: Setting) -> Tensor:
    """Image tokens (B, I)."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randint(0, setting.num_tokens, (setting.batch, setting.grid**2), generator=generator)


def make_pictures(setting: Setting, side: int) -> Tensor:
    """Pictures (B, 3, side, side) in 0..1."""
    return torch.rand(setting.batch, 3, side, side, generator=torch.Generator().manual_seed(SEED + 2))
