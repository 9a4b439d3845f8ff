"""Map-style datasets whose samples depend on nothing but the seed, the epoch and the index.

So a sample is the same with any number of loader workers, after a resume, and on every engine.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, Sequence, Tuple, Union

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.captions import CaptionTable
from data.images import BadImage, center_square_crop, load_image, random_square_crop, to_tensor
from data.options import DataOptions
from data.pairs import Pair
from data.report import DataError, DataReport

Key = Union[int, Tuple[int, int]]  # (epoch, index), or an index in epoch 0


class ImageDataset(Dataset):  # type: ignore[type-arg]
    """Pictures alone, for training an image tokenizer. An item is a tensor (C, Y, X).

    An unusable image is reported, and the next usable one takes its place.
    """

    def __init__(
        self,
        images: Sequence[Path],
        options: DataOptions,
        image_size: int,
        report: DataReport,
        seed: int = 0,
        augment: bool = True,
    ) -> None:
        """Give access to `images`.

        Args:
            images: the files.
            options: how they are cropped, and in which type they travel.
            image_size: pixels of a side of the square that is cut out.
            report: where unusable images are recorded.
            seed: of all random choices.
            augment: cut a random square; otherwise the largest one in the middle.
        """
        self.images = [str(image) for image in images]  # a fraction of the memory of Path objects
        self.options = options
        self.image_size = image_size
        self.report = report
        self.seed = seed
        self.augment = augment

    def __len__(self) -> int:
        """Images."""
        return len(self.images)

    def __getitem__(self, key: Key) -> Any:
        """Return the sample of `(epoch, index)`, or of `index` in epoch 0.

        Raises:
            DataError: not one image can be used.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = random.Random(f"{self.seed}/{epoch}/{index}")  # a text is seeded through SHA-512, alike everywhere
        for position in (*range(index, len(self)), *range(index)):
            try:
                return self._sample(position, rng)
            except BadImage as bad:
                self.report.skip(bad.kind, self.images[position], bad.detail)
        raise DataError(
            f"not one of {len(self)} images can be used, such as {self.images[0]}; {self.report.path} has the reasons"
        )

    def _sample(self, position: int, rng: random.Random) -> Any:
        return self._image(position, rng)

    def _image(self, position: int, rng: random.Random) -> Tensor:
        path = self.images[position]
        # As many pixels as the smallest crop needs, so that a reduced JPEG is still scaled down, never up.
        enough = math.ceil(self.image_size / math.sqrt(self.options.random_resize_crop_lower_ratio))
        image, mode = load_image(path, self.options.min_image_side, enough)
        if mode != "RGB":
            self.report.note(f"image converted from mode {mode}", path=path)
        return to_tensor(self._crop(image, rng), self.options.byteio)

    def _crop(self, image: Image.Image, rng: random.Random) -> Image.Image:
        if not self.augment:
            return center_square_crop(image, self.image_size)
        return random_square_crop(image, self.image_size, self.options.random_resize_crop_lower_ratio, rng)


class TextImageDataset(ImageDataset):
    """Pictures with one of their captions each. An item is `(ids int64 (text_seq_len,), picture (C, Y, X))`."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        captions: CaptionTable,
        options: DataOptions,
        image_size: int,
        report: DataReport,
        seed: int = 0,
        augment: bool = True,
    ) -> None:
        """Give access to `pairs`, whose tokenised captions are `captions`; the rest is as for `ImageDataset`."""
        super().__init__([pair.image for pair in pairs], options, image_size, report, seed, augment)
        self.captions = captions

    def _sample(self, position: int, rng: random.Random) -> Tuple[Tensor, Tensor]:
        count = self.captions.count(position)
        if not count:
            raise BadImage("image without captions", "they tokenise to nothing")
        text = self.captions.tokens(position, rng.randrange(count))
        return text, self._image(position, rng)
