"""VQGAN (Esser et al. 2021): a convolutional autoencoder whose every place takes one vector of a codebook.

Mathematics and parameter names are those of taming-transformers' VQModel and GumbelVQ, so that their checkpoints load.
Trained there, used here: losses and discriminator are left out, and a Gumbel quantizer takes its likeliest code.
Legend: B batch, C channels, H W picture or features, P = H * W places, Y X grid of codes, I = Y * X, N codes,
E width of a code.
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.image_tokenizer import ImageTokenizer, as_unit_range

_GROUPS = 32  # of channels that are normalised together
_DISTANCES = 2**24  # held at once while the nearest codes are looked for


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each behind a norm and a SiLU, added to their input."""

    def __init__(self, before: int, after: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = _norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttentionBlock(nn.Module):
    """Attention with a single head between all places, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        h = self.norm(x)
        q, k, v = (rearrange(part(h), "b c h w -> b (h w) c") for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, P, P)
        return x + self.proj_out(rearrange(weights @ v, "b (h w) c -> b c h w", w=x.shape[-1]))


class Downsample(nn.Module):
    """Half the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2); the missing border is that below and on the right."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks at one resolution, and the step to the next one if there is any."""

    def __init__(self, before: int, after: int, blocks: int, dropout: float, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(before if i == 0 else after, after, dropout) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(after) for _ in range(blocks if attends else 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W), before the step."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class Middle(nn.Module):
    """The blocks at the codes' resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, dropout)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, Y, X) to the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """A picture (B, C, H, W) to features (B, z_channels, Y, X); arguments as `VQGan`."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in (1, *ch_mult)]
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for index, (before, after) in enumerate(zip(widths, widths[1:])):
            level = Level(before, after, num_res_blocks, dropout, resolution // 2**index in attn_resolutions)
            if index < len(ch_mult) - 1:
                level.downsample = Downsample(after)
            self.down.append(level)
        self.mid = Middle(widths[-1], dropout)
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures in -1..1 to features."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features (B, z_channels, Y, X) to a picture (B, out_ch, H, W); arguments as `VQGan`."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        out_ch: int,
        resolution: int,
        z_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [ch * factor for factor in (*ch_mult, ch_mult[-1])]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], dropout)
        self.up = nn.ModuleList()  # in the encoder's order, the finest first
        for index, (after, before) in enumerate(zip(widths, widths[1:])):
            level = Level(before, after, num_res_blocks + 1, dropout, resolution // 2**index in attn_resolutions)
            if index:
                level.upsample = Upsample(after)
            self.up.append(level)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Features to pictures in about -1..1."""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class NearestQuantizer(nn.Module):
    """Features to the nearest vectors of the codebook."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / n_embed, 1 / n_embed)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E, Y, X) to codes (B, I)."""
        places = rearrange(features, "b e y x -> (b y x) e").float()
        codes = self.embedding.weight.float()
        # cdist stays in float32 where mixed precision would blur near neighbours into one
        parts = places.split(max(_DISTANCES // len(codes), 1))
        nearest = torch.cat([torch.cdist(part, codes).argmin(dim=1) for part in parts])
        return nearest.view(len(features), -1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codes to their vectors (..., E)."""
        return self.embedding(tokens)


class GumbelQuantizer(nn.Module):
    """Features to the likeliest codes. The Gumbel noise of training is no part of the code a picture has."""

    def __init__(self, n_embed: int, embed_dim: int, z_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(z_channels, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embed_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, E, Y, X) to codes (B, I)."""
        return self.proj(features).argmax(dim=1).flatten(1)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codes to their vectors (..., E)."""
        return self.embed(tokens)


class VQGan(ImageTokenizer):
    """VQGAN as an image tokenizer; arguments have the names of taming's configuration files.

    Args:
        n_embed: codes.
        embed_dim: width of a code.
        gumbel: quantize as GumbelVQ does, by logits; otherwise by the nearest vector, as VQModel.
        ch: channels at full resolution; a multiple of 32.
        ch_mult: channels of every level, in units of `ch`; each level after the first halves the side.
        num_res_blocks: residual blocks of a level.
        attn_resolutions: sides at which every residual block is followed by attention.
        in_channels: channels of a picture.
        out_ch: channels of a decoded picture.
        resolution: side of the pictures in pixels.
        z_channels: channels between encoder and quantizer.
        dropout: inside the residual blocks, for whoever trains them.

    The defaults are those of the released ImageNet model with 1,024 codes.

    Raises:
        ValueError: the resolution cannot be halved that often, or `ch` is no multiple of 32.
    """

    kind = "VQGan"

    def __init__(
        self,
        n_embed: int = 1024,
        embed_dim: int = 256,
        gumbel: bool = False,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,),
        in_channels: int = 3,
        out_ch: int = 3,
        resolution: int = 256,
        z_channels: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        side, rest = divmod(resolution, 2 ** (len(ch_mult) - 1))
        if rest:
            raise ValueError(f"resolution={resolution} cannot be halved {len(ch_mult) - 1} times")
        self.image_size, self.channels, self.num_tokens, self.grid = resolution, in_channels, n_embed, (side, side)
        shape = (ch, ch_mult, num_res_blocks, attn_resolutions)
        self.encoder = Encoder(*shape, in_channels, resolution, z_channels, dropout)
        self.decoder = Decoder(*shape, out_ch, resolution, z_channels, dropout)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.quantize = (
            GumbelQuantizer(n_embed, embed_dim, z_channels) if gumbel else NearestQuantizer(n_embed, embed_dim)
        )
        self.arguments = {
            "n_embed": n_embed,
            "embed_dim": embed_dim,
            "gumbel": gumbel,
            "ch": ch,
            "ch_mult": list(ch_mult),
            "num_res_blocks": num_res_blocks,
            "attn_resolutions": list(attn_resolutions),
            "in_channels": in_channels,
            "out_ch": out_ch,
            "resolution": resolution,
            "z_channels": z_channels,
            "dropout": dropout,
        }

    def encode(self, images: Tensor) -> Tensor:
        """See `ImageTokenizer.encode`."""
        return self.quantize(self.quant_conv(self.encoder(as_unit_range(images) * 2 - 1)))

    def decode(self, tokens: Tensor) -> Tensor:
        """See `ImageTokenizer.decode`."""
        codes = rearrange(self.quantize.lookup(tokens), "b (y x) e -> b e y x", x=self.grid[1])
        return (self.decoder(self.post_quant_conv(codes)).clamp(-1, 1) + 1) / 2
