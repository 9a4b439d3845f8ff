"""The datasets that the options name, opened: folders, COCO, shards or generated samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Union

from torch.utils.data import Dataset

from bpe.tokenizer import Tokenizer
from data.caption_table import CaptionTable
from data.dataset import ImageDataset, PictureReader, TextImageDataset
from data.encoded import EncodedFolder
from data.generated import GeneratedImages, GeneratedTextImages
from data.options import DataOptions
from data.pairs import open_images, open_pairs
from data.places import is_encoded
from data.report import DataReport
from data.shard_samples import CaptionReader, SampleReader
from data.shards import ShardDataset, ShardStream, open_shards, open_validation_shards
from options import OptionError

CHANNELS = (1, 3, 4)  # that image files give: gray, RGB, and RGB with transparency
SHOWN = 8  # captions to draw while training


class Datasets(NamedTuple):
    """Samples to train on, samples to validate with (None: there are none), and some captions of either."""

    train: Dataset[Any]
    validation: Optional[Dataset[Any]]
    captions: List[str]


@dataclasses.dataclass(frozen=True)
class DatasetOpener:
    """Opens what the options name.

    Args:
        options: of the data.
        report: where unusable samples are recorded.
        seed: of all random choices.
        folder: where the index of shards is kept from one run to the next.
        validation_samples: how many samples are used of validation shards that can only be streamed.
        generated_samples: how many samples `generated_data` stands for.
    """

    options: DataOptions
    report: DataReport
    seed: int
    folder: Path
    validation_samples: int
    generated_samples: int

    def pictures(self, image_size: int, channels: int = 3) -> Datasets:
        """Pictures (channels, image_size, image_size) alone.

        Raises:
            OptionError: image files have no such channels.
            DataError: the dataset cannot be used.
        """
        _check_channels(channels)
        options, report, seed = self.options, self.report, self.seed
        if options.generated_data:
            generated = GeneratedImages(self.generated_samples, image_size, options.byteio, seed, channels)
            return Datasets(generated, None, [])
        if options.wds:
            return self._shards(image_size, channels, None)
        train, held_out = open_images(options, "train", report), open_images(options, "validation", report)
        rest = (options, image_size, report, seed)
        validation = ImageDataset(held_out, *rest, augment=False, channels=channels) if held_out else None
        return Datasets(ImageDataset(train, *rest, channels=channels), validation, [])

    def text_images(self, image_size: int, tokenizer: Tokenizer, text_seq_len: int, channels: int = 3) -> Datasets:
        """Ids (text_seq_len,) of captions with pictures (channels, image_size, image_size); errors as `pictures`."""
        _check_channels(channels)
        options, report, seed = self.options, self.report, self.seed
        if options.generated_data:
            length, vocab_size = self.generated_samples, tokenizer.vocab_size
            generated = GeneratedTextImages(
                length, text_seq_len, vocab_size, image_size, options.byteio, seed, channels
            )
            return Datasets(generated, None, [tokenizer.decode(generated[0][0].tolist())])
        if options.wds:
            return self._shards(
                image_size, channels, CaptionReader(tokenizer, text_seq_len, report, options.truncate_captions)
            )
        train, held_out = open_pairs(options, "train", report), open_pairs(options, "validation", report)
        datasets = [
            TextImageDataset(
                pairs,
                CaptionTable(pairs, tokenizer, text_seq_len, report, options.truncate_captions),
                options,
                image_size,
                report,
                seed,
                augment=pairs is train,
                channels=channels,
            )
            for pairs in (train, held_out)
            if pairs
        ]
        shown = held_out or train
        captions = [pair.captions[0] for pair in shown[:: max(len(shown) // SHOWN, 1)][:SHOWN]]
        return Datasets(datasets[0], datasets[1] if held_out else None, captions)

    def text_codes(self, encoded: EncodedFolder, text_seq_len: int) -> Datasets:
        """Ids (text_seq_len,) of captions with the codes (I,) of encoded pictures.

        Raises:
            DataError: they cannot be used.
            OptionError: an option asks for something else than what was encoded.
        """
        options, how = self.options, (text_seq_len, self.report, self.seed, self.options.truncate_captions)
        validation = encoded.dataset("validation", *how)
        if options.validation_folder is not None:
            apart = EncodedFolder(options.validation_folder, "validation_folder")
            apart.check_same(encoded)
            validation = apart.dataset("train", *how)
        if options.validation_share and validation is None:
            raise OptionError(
                f"validation_share={options.validation_share} cannot be taken from encoded pictures; encode them with "
                f"--validation-share {options.validation_share}, or leave it out"
            )
        train = encoded.dataset("train", *how)
        assert train is not None, "nothing is encoded without pictures to train on"
        return Datasets(train, validation, (validation or train).captions(SHOWN))

    def _shards(self, image_size: int, channels: int, texts: Optional[CaptionReader]) -> Datasets:
        train, held_out = (
            SampleReader(PictureReader(self.options, image_size, self.report, augment, channels), texts)
            for augment in (True, False)
        )
        dataset = open_shards(self.options, train, self.report, self.seed, self.folder)
        validation = open_validation_shards(self.options, held_out, self.report, self.folder, self.validation_samples)
        return Datasets(dataset, validation, (validation or as_stored(dataset, SHOWN)).prompts(SHOWN) if texts else [])


def open_encoded(options: DataOptions) -> Optional[EncodedFolder]:
    """The encoded pictures that `input_folder` names; None: it names pictures.

    Raises:
        DataError: they cannot be used.
        OptionError: an option asks for pictures as well.
    """
    if options.generated_data or not is_encoded(options.input_folder):
        return None
    for name in ("wds", "captions_folder", "annotations"):
        if getattr(options, name):
            raise OptionError(
                f"{name} says how pictures are read, and input_folder={options.input_folder} holds encoded ones; leave "
                f"{name} out"
            )
    assert options.input_folder is not None
    return EncodedFolder(options.input_folder)


def as_stored(dataset: Union[Dataset[Any], ShardDataset, ShardStream], count: int) -> Any:
    """A dataset whose samples can be taken at any index: of a stream, the first `count` samples."""
    return dataset.first(count) if isinstance(dataset, ShardStream) else dataset


def _check_channels(channels: int) -> None:
    if channels not in CHANNELS:
        raise OptionError(
            f"channels={channels}, and image files give {', '.join(map(str, CHANNELS))} (gray, RGB, RGB with "
            "transparency); take one of these"
        )
