"""OpenAI's discrete VAE (Ramesh et al. 2021), the image tokenizer of the first DALL-E.

Mathematics and parameter names are those of OpenAI's DALL-E package, so that its weights load; encoder and decoder, two
models there, are two modules here. It computes in float32 throughout.
Legend: B batch, C channels, H W picture or features, Y X grid of codes, N codes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import List, Tuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.image_tokenizer import ImageTokenizer, as_unit_range

_MARGIN = 0.1  # pictures are mapped to _MARGIN..1 - _MARGIN: a sigmoid hardly reaches 0 and 1


class Conv(nn.Module):
    """A convolution that keeps the side; its parameters are called w and b."""

    def __init__(self, before: int, after: int, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(after, before, size, size) * (before * size**2) ** -0.5)
        self.b = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Four convolutions of a quarter of the width, each behind a ReLU, added with a small weight to their input.

    Args:
        before, after: channels.
        sizes: of the four convolutions.
        num_blocks: blocks of the whole network, which the weight comes of.
    """

    def __init__(self, before: int, after: int, sizes: Tuple[int, int, int, int], num_blocks: int) -> None:
        super().__init__()
        self.gain = num_blocks**-2
        widths = (before, after // 4, after // 4, after // 4, after)
        self.id_path = Conv(before, after, 1) if before != after else nn.Identity()
        self.res_path = nn.Sequential()
        for number, size in enumerate(sizes, 1):
            self.res_path.add_module(f"relu_{number}", nn.ReLU())
            self.res_path.add_module(f"conv_{number}", Conv(widths[number - 1], widths[number], size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        return self.id_path(x) + self.gain * self.res_path(x)


class Network(nn.Module):
    """Encoder or decoder: a convolution, groups of blocks with a change of resolution between them, a convolution.

    Args:
        ends: channels that go in, and that come out.
        first: channels after the first convolution.
        first_size: its size.
        widths: channels of each group.
        sizes: of the convolutions in a block.
        n_blk_per_group: blocks of a group.
        between: name and module of the change of resolution.
    """

    def __init__(
        self,
        ends: Tuple[int, int],
        first: int,
        first_size: int,
        widths: List[int],
        sizes: Tuple[int, int, int, int],
        n_blk_per_group: int,
        between: Tuple[str, nn.Module],
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(OrderedDict({"input": Conv(ends[0], first, first_size)}))
        before = first
        for number, width in enumerate(widths, 1):
            group = nn.Sequential()
            for index in range(1, n_blk_per_group + 1):
                group.add_module(f"block_{index}", Block(before, width, sizes, len(widths) * n_blk_per_group))
                before = width
            if number < len(widths):
                group.add_module(*between)
            self.blocks.add_module(f"group_{number}", group)
        self.blocks.add_module(
            "output", nn.Sequential(OrderedDict({"relu": nn.ReLU(), "conv": Conv(widths[-1], ends[1], 1)}))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), through all of it."""
        return self.blocks(x)


class OpenAIVAE(ImageTokenizer):
    """OpenAI's discrete VAE as an image tokenizer.

    Args:
        group_count: groups of blocks; each after the first halves the side.
        n_hid: channels of the finest group; each coarser one has twice as many. A multiple of 4.
        n_blk_per_group: blocks of a group.
        input_channels: channels of a picture.
        vocab_size: codes.
        n_init: channels that the decoder begins with.
        image_size: side of the pictures in pixels, a multiple of 2 ** (group_count - 1).

    The defaults are those of the released model.
    """

    kind = "OpenAIVAE"

    def __init__(
        self,
        group_count: int = 4,
        n_hid: int = 256,
        n_blk_per_group: int = 2,
        input_channels: int = 3,
        vocab_size: int = 8192,
        n_init: int = 128,
        image_size: int = 256,
    ) -> None:
        super().__init__()
        side = image_size // 2 ** (group_count - 1)
        self.image_size, self.channels, self.num_tokens, self.grid = (
            image_size,
            input_channels,
            vocab_size,
            (side, side),
        )
        widths = [n_hid * 2**index for index in range(group_count)]
        self.encoder = Network(
            (input_channels, vocab_size), n_hid, 7, widths, (3, 3, 3, 1), n_blk_per_group, ("pool", nn.MaxPool2d(2))
        )
        # twice the channels: a location and a scale each, of which drawing needs the first
        self.decoder = Network(
            (vocab_size, 2 * input_channels), n_init, 1, widths[::-1], (1, 3, 3, 3), n_blk_per_group,
            ("upsample", nn.Upsample(scale_factor=2, mode="nearest")),
        )  # fmt: skip
        self.arguments = {
            "group_count": group_count,
            "n_hid": n_hid,
            "n_blk_per_group": n_blk_per_group,
            "input_channels": input_channels,
            "vocab_size": vocab_size,
            "n_init": n_init,
            "image_size": image_size,
        }

    def encode(self, images: Tensor) -> Tensor:
        """The likeliest codes, see `ImageTokenizer.encode`."""
        return self.encoder((1 - 2 * _MARGIN) * as_unit_range(images) + _MARGIN).argmax(dim=1).flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        """See `ImageTokenizer.decode`."""
        blocks = self.decoder.blocks
        # a 1x1 convolution of one-hot codes takes the code's column of its weights
        columns = F.embedding(tokens, blocks.input.w.flatten(1).t()) + blocks.input.b
        x = rearrange(columns, "b (y x) c -> b c y x", x=self.grid[1])
        for layer in list(blocks)[1:]:
            x = layer(x)
        means = x[:, : self.channels].float().sigmoid()
        return ((means - _MARGIN) / (1 - 2 * _MARGIN)).clamp(0, 1)
