"""Map-style datasets whose samples depend on nothing but the seed, the epoch and the index.

So a sample is the same with any number of loader workers, after a resume, and on every engine.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from typing import Any, BinaryIO, List, Sequence, Tuple, Union

from torch import Tensor
from torch.utils.data import Dataset

from data.caption_table import CaptionTable
from data.images import MODES, BadImage
from data.options import DataOptions
from data.pairs import Pair
from data.pixels import center_square_crop, load_pixels, random_square_crop
from data.report import DataError, DataReport

Key = Union[int, Tuple[int, int]]  # (epoch, index), or an index in epoch 0


class PictureReader:
    """Makes tensors (C, Y, X) of image files.

    Args:
        options: how they are cropped, and in which type they travel.
        image_size: pixels of a side of the square that is cut out.
        report: where converted images are noted.
        augment: cut a random square; otherwise the largest one in the middle.
        channels: C: 1 (gray), 3 (RGB) or 4 (RGB with transparency).
    """

    def __init__(
        self, options: DataOptions, image_size: int, report: DataReport, augment: bool = True, channels: int = 3
    ) -> None:
        self.options = options
        self.image_size = image_size
        self.report = report
        self.augment = augment
        self.channels = channels
        self.mode = MODES[channels]
        # As many pixels as the smallest crop needs, so that a reduced JPEG is still scaled down, never up.
        self._enough = math.ceil(image_size / math.sqrt(options.random_resize_crop_lower_ratio))

    def read(self, source: Union[str, BinaryIO], place: str, rng: random.Random) -> Tensor:
        """The picture of a file, or of a file's content as a stream; `place` is what the report calls it.

        Raises:
            BadImage: it cannot be used.
        """
        return self.read_crops(source, place, [rng])[0]

    def read_crops(self, source: Union[str, BinaryIO], place: str, rngs: Sequence[random.Random]) -> List[Tensor]:
        """As `read`, once for each of several generators; the file is decoded once."""
        pixels, mode = load_pixels(source, self.options.min_image_side, self._enough, self.mode)
        if mode != self.mode:
            self.report.note(f"image converted from mode {mode}", path=place)
        crops = [self._crop(pixels, rng) for rng in rngs]
        return crops if self.options.byteio else [crop.float() / 255 for crop in crops]

    def _crop(self, pixels: Tensor, rng: random.Random) -> Tensor:
        if not self.augment:
            return center_square_crop(pixels, self.image_size)
        return random_square_crop(pixels, self.image_size, self.options.random_resize_crop_lower_ratio, rng)


class SampleDataset(Dataset):  # type: ignore[type-arg]
    """Samples of pictures. An unusable one is reported, and the next usable one takes its place.

    Args:
        places: what the report calls each picture.
        pictures: makes tensors of them.
        report: where unusable pictures are recorded.
        seed: of all random choices.
    """

    def __init__(self, places: Sequence[str], pictures: PictureReader, report: DataReport, seed: int) -> None:
        self.places = places
        self.pictures = pictures
        self.report = report
        self.seed = seed

    def __len__(self) -> int:
        """Samples."""
        return len(self.places)

    def __getitem__(self, key: Key) -> Any:
        """Return the sample of `(epoch, index)`, or of `index` in epoch 0.

        Raises:
            DataError: not one image can be used.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self.places):
            raise IndexError(f"sample {index} of {len(self.places)}")
        return self._usable(index, self._rng(epoch, index))

    def _usable(self, index: int, rng: random.Random) -> Any:
        """The sample at `index`, or the next usable one after it."""
        total = len(self.places)
        for position in itertools.chain(range(index, total), range(index)):
            try:
                return self._sample(position, rng)
            except BadImage as bad:
                self.report.skip(bad.kind, self.places[position], bad.detail)
        raise DataError(
            f"not one of {total} images can be used, such as {self.places[0]}; {self.report.path} has the reasons"
        )

    def _rng(self, epoch: int, index: int) -> random.Random:
        return random.Random(f"{self.seed}/{epoch}/{index}")  # a text is seeded through SHA-512, alike everywhere

    def _sample(self, position: int, rng: random.Random) -> Any:
        raise NotImplementedError


class ImageDataset(SampleDataset):
    """Pictures alone, for training an image tokenizer. An item is a tensor (C, Y, X)."""

    def __init__(
        self,
        images: Sequence[Path],
        options: DataOptions,
        image_size: int,
        report: DataReport,
        seed: int = 0,
        augment: bool = True,
        channels: int = 3,
    ) -> None:
        """Give access to `images`; the rest is as for `PictureReader` and `SampleDataset`."""
        places = [str(image) for image in images]  # a fraction of the memory of Path objects
        super().__init__(places, PictureReader(options, image_size, report, augment, channels), report, seed)

    def _sample(self, position: int, rng: random.Random) -> Any:
        return self._image(position, rng)

    def _image(self, position: int, rng: random.Random) -> Tensor:
        return self.pictures.read(self.places[position], self.places[position], rng)


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
        channels: int = 3,
    ) -> None:
        """Give access to `pairs`, whose tokenised captions are `captions`; the rest is as for `ImageDataset`."""
        super().__init__([pair.image for pair in pairs], options, image_size, report, seed, augment, channels)
        self.captions = captions

    def _sample(self, position: int, rng: random.Random) -> Tuple[Tensor, Tensor]:
        count = self.captions.count(position)
        if not count:
            raise BadImage("image without captions", "they tokenise to nothing")
        text = self.captions.tokens(position, rng.randrange(count))
        return text, self._image(position, rng)
