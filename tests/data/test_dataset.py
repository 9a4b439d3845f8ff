"""Samples: what an item is, what decides it, and what takes the place of an unusable one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.caption_table import CaptionTable
from data.captions import Pair
from data.dataset import ImageDataset, TextImageDataset
from data.options import DataOptions
from data.report import DataError, DataReport
from engines.sampler import EpochSampler

SIZE = 8


class LetterTokenizer:
    """A letter's id is its code."""

    def encode(self, text: str) -> List[int]:
        return [ord(letter) for letter in text]

    def encode_batch(self, texts: List[str]) -> List[List[int]]:
        return [self.encode(text) for text in texts]


def noise_pairs(root: Path, count: int) -> List[Pair]:
    """Pictures of noise with three captions each, which begin with the picture's own letter."""
    pairs = []
    for n in range(count):
        path = root / f"{n:02}.png"
        Image.effect_noise((24, 16), 90).convert("RGB").save(path)
        pairs.append(Pair(path, tuple(chr(ord("a") + n) + mark for mark in "123")))
    return pairs


def dataset_of(pairs: List[Pair], report: DataReport, **kwargs: Any) -> TextImageDataset:
    table = CaptionTable(pairs, LetterTokenizer(), 4, report)
    return TextImageDataset(pairs, table, DataOptions(byteio=True), SIZE, report, **kwargs)


def test_an_item_is_the_padded_ids_of_a_caption_and_the_picture(tmp_path: Path) -> None:
    text, image = dataset_of(noise_pairs(tmp_path, 2), DataReport())[1]
    assert text.dtype == torch.int64
    assert text[0] == ord("b") and text[2:].tolist() == [0, 0]
    assert image.dtype == torch.uint8 and image.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_workers_or_on_what_was_loaded_before(tmp_path: Path, workers: int) -> None:
    dataset = dataset_of(noise_pairs(tmp_path, 6), DataReport())
    keys = list(EpochSampler(len(dataset), 2, epochs=2))
    wanted = {key: dataset[key] for key in reversed(keys)}
    loader = DataLoader(dataset, batch_size=2, sampler=keys, num_workers=workers)
    texts, images = (torch.cat(parts) for parts in zip(*loader))
    assert torch.equal(texts, torch.stack([wanted[key][0] for key in keys]))
    assert torch.equal(images, torch.stack([wanted[key][1] for key in keys]))


def test_epochs_and_seeds_change_captions_and_crops_and_a_plain_index_means_epoch_0(tmp_path: Path) -> None:
    pairs = noise_pairs(tmp_path, 1)
    dataset = dataset_of(pairs, DataReport())
    epochs = [dataset[epoch, 0] for epoch in range(30)]
    assert len({tuple(text.tolist()) for text, _ in epochs}) == 3
    assert len({bytes(image.flatten().tolist()) for _, image in epochs}) > 10
    assert torch.equal(dataset[0][1], epochs[0][1])
    assert not torch.equal(dataset_of(pairs, DataReport(), seed=1)[0][1], epochs[0][1])


def test_without_augmentation_the_picture_is_the_same_in_every_epoch(tmp_path: Path) -> None:
    dataset = dataset_of(noise_pairs(tmp_path, 1), DataReport(), augment=False)
    assert torch.equal(dataset[0, 0][1], dataset[1, 0][1])


def spoil(pairs: List[Pair]) -> None:
    """Turn the first five pictures into files of the kinds that real datasets are spoiled with."""
    truncated = pairs[0].image.with_suffix(".jpg")
    Image.effect_noise((64, 64), 90).save(truncated)
    pairs[0].image.write_bytes(truncated.read_bytes()[:500])
    pairs[1].image.write_bytes(b"")
    pairs[2].image.write_text("a text")
    Image.new("RGB", (1, 1)).save(pairs[3].image)
    pairs[4].image.unlink()


def test_an_unusable_picture_is_reported_and_the_next_usable_pair_takes_its_place(tmp_path: Path) -> None:
    pairs, report = noise_pairs(tmp_path, 7), DataReport()
    spoil(pairs)
    dataset = dataset_of(pairs, report, augment=False)
    text, image = dataset[0]
    assert text[0] == ord("f")
    assert torch.equal(image, dataset[5][1])
    assert report.counts == {"unreadable image": 3, "empty image file": 1, "image too small": 1}
    assert report.skipped == [str(pair.image) for pair in pairs[:5]]


def test_after_the_last_pair_the_first_takes_the_place(tmp_path: Path) -> None:
    pairs = noise_pairs(tmp_path, 2)
    pairs[1].image.unlink()
    assert dataset_of(pairs, DataReport())[1][0][0] == ord("a")


def test_what_a_loader_worker_skips_or_mends_reaches_the_main_process(tmp_path: Path) -> None:
    pairs, report = noise_pairs(tmp_path, 7), DataReport()
    spoil(pairs)
    Image.new("CMYK", (16, 16)).save(tmp_path / "06.tif")
    pairs[6] = pairs[6]._replace(image=tmp_path / "06.tif")
    dataset = dataset_of(pairs, report)
    loader = DataLoader(dataset, batch_size=1, num_workers=2, sampler=EpochSampler(7, 1, epochs=2))
    assert sum(1 for _ in loader) == 14
    assert len(report.skipped) == 5
    assert report.notes == {"image converted from mode CMYK": 1}
    with pytest.raises(DataError, match="5 of 7"):
        report.check(len(dataset), max_share=0.5)


def test_a_pair_whose_captions_tokenise_to_nothing_is_skipped(tmp_path: Path) -> None:
    pairs, report = noise_pairs(tmp_path, 2), DataReport()
    pairs[0] = pairs[0]._replace(captions=("",))
    assert dataset_of(pairs, report)[0][0][0] == ord("b")
    assert report.counts == {"image without captions": 1}


def test_a_dataset_without_a_usable_picture_is_an_error(tmp_path: Path) -> None:
    pairs = noise_pairs(tmp_path, 2)
    for pair in pairs:
        pair.image.unlink()
    with pytest.raises(DataError, match="not one of 2 images"):
        dataset_of(pairs, DataReport())[0]


def test_an_image_dataset_gives_pictures_alone_in_0_to_1(tmp_path: Path) -> None:
    images = [pair.image for pair in noise_pairs(tmp_path, 3)]
    dataset = ImageDataset(images, DataOptions(), SIZE, DataReport())
    assert len(dataset) == 3
    assert dataset[4, 2].dtype == torch.float32 and dataset[4, 2].shape == (3, SIZE, SIZE)
    assert 0.5 < float(dataset[0].max()) <= 1
