"""Random samples made on the host, to measure speed and to try a machine without a dataset."""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.dataset import Key


class GeneratedImages(Dataset):  # type: ignore[type-arg]
    """Random pictures; the one of an index is always the same. An item is as that of `ImageDataset`."""

    def __init__(self, length: int, image_size: int, byteio: bool, seed: int = 0, channels: int = 3) -> None:
        """Stand for `length` pictures of `image_size` pixels a side, as bytes or as float32 in 0..1."""
        self.length = length
        self.shape = (channels, image_size, image_size)
        self.byteio = byteio
        self.seed = seed

    def __len__(self) -> int:
        """Samples."""
        return self.length

    def __getitem__(self, key: Key) -> Any:
        """Return the sample of `(epoch, index)`, the same in every epoch, or of `index`."""
        index = key[1] if isinstance(key, tuple) else key
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._sample(torch.Generator().manual_seed(self.seed * 1_000_003 + index))

    def _sample(self, generator: torch.Generator) -> Any:
        return self._image(generator)

    def _image(self, generator: torch.Generator) -> Tensor:
        pixels = torch.randint(256, self.shape, generator=generator, dtype=torch.uint8)
        return pixels if self.byteio else pixels.float() / 255


class GeneratedTextImages(GeneratedImages):
    """Random pictures with random captions. An item is as that of `TextImageDataset`."""

    def __init__(
        self,
        length: int,
        text_seq_len: int,
        vocab_size: int,
        image_size: int,
        byteio: bool,
        seed: int = 0,
        channels: int = 3,
    ) -> None:
        """Stand for `length` pictures with captions of 1 to `text_seq_len` ids in 1..vocab_size - 1."""
        super().__init__(length, image_size, byteio, seed, channels)
        self.text_seq_len = text_seq_len
        self.vocab_size = vocab_size

    def _sample(self, generator: torch.Generator) -> Tuple[Tensor, Tensor]:
        text = torch.randint(1, self.vocab_size, (self.text_seq_len,), generator=generator)
        words = int(torch.randint(1, self.text_seq_len + 1, (), generator=generator))
        text[words:] = 0
        return text, self._image(generator)
