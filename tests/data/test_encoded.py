"""Encoded pictures as a dataset."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, List, Tuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from data.encoded import EncodedDataset, EncodedFolder
from data.encoded_format import code_type, read_rows
from data.report import DataError, DataReport
from engines.sampler import EpochSampler
from tests.conftest import TRAIN_SCENES

MAPS = Path("/proc/self/maps")


def open_dataset(folder: Path, text_seq_len: int = 8, report: Any = None, **options: Any) -> EncodedDataset:
    dataset = EncodedFolder(folder).dataset("train", text_seq_len, report or DataReport(), **options)
    assert dataset is not None
    return dataset


def test_an_item_is_the_padded_ids_of_a_caption_and_the_codes(encoded: Path) -> None:
    text, codes = open_dataset(encoded, text_seq_len=40)[3]
    assert text.dtype == codes.dtype == torch.int64
    assert text.shape == (40,) and codes.shape == (16,)
    assert text[0] > 0 and text[-1] == 0 and 0 <= codes.min() <= codes.max() < 16


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_do_not_depend_on_workers_or_on_what_was_read_before(encoded: Path, workers: int) -> None:
    dataset = open_dataset(encoded)
    keys = list(EpochSampler(len(dataset), 4, epochs=3))
    wanted = {key: dataset[key] for key in reversed(keys)}
    texts, codes = (torch.cat(parts) for parts in zip(*DataLoader(dataset, 4, sampler=keys, num_workers=workers)))
    assert torch.equal(texts, torch.stack([wanted[key][0] for key in keys]))
    assert torch.equal(codes, torch.stack([wanted[key][1] for key in keys]))


def test_epochs_and_seeds_change_captions_and_a_plain_index_means_epoch_0(encoded: Path) -> None:
    dataset, other = open_dataset(encoded, text_seq_len=40), open_dataset(encoded, text_seq_len=40, seed=1)
    drawn = [tuple(dataset[epoch, 0][0].tolist()) for epoch in range(30)]
    assert 1 < len(set(drawn)) <= 5
    assert torch.equal(dataset[0][0], dataset[0, 0][0])
    assert drawn != [tuple(other[epoch, 0][0].tolist()) for epoch in range(30)]


def mapped() -> List[str]:
    """The shards that this process has mapped."""
    return [line.split()[-1] for line in MAPS.read_text().splitlines() if line.endswith(".safetensors")]


class Mapped(EncodedDataset):
    """Gives, in place of a sample, how many shards its process has mapped from files."""

    def __getitem__(self, key: Any) -> Tuple[Tensor, Tensor]:
        super().__getitem__(key)
        return torch.tensor(len(set(mapped()))), torch.tensor(0)


@pytest.mark.skipif(not MAPS.exists(), reason="this system does not say what is mapped")
def test_shards_are_mapped_when_they_are_needed_in_each_worker(encoded: Path) -> None:
    dataset = open_dataset(encoded)
    one = Mapped.__new__(Mapped)
    vars(one).update(dataset.__getstate__())
    del dataset
    keys = [0, 1, 5, 11]  # of three shards
    counts = [int(count) for count, _ in DataLoader(one, None, sampler=keys, num_workers=1)]
    assert counts == [1, 1, 2, 3] and mapped() == []


def test_a_pickled_dataset_holds_no_codes(encoded: Path) -> None:
    dataset = open_dataset(encoded)
    dataset[0]
    content = pickle.dumps(dataset)
    assert len(content) < 2000
    assert torch.equal(pickle.loads(content)[2, 7][1], dataset[2, 7][1])


def test_another_text_seq_len_is_honoured_and_what_it_cuts_is_counted(encoded: Path) -> None:
    report = DataReport()
    long, short = open_dataset(encoded, 40, report), open_dataset(encoded, 3, report)
    for epoch in range(5):
        assert torch.equal(long[epoch, 4][0][:3], short[epoch, 4][0])
    assert report.notes == {"image with a caption cut to text_seq_len": TRAIN_SCENES}
    with pytest.raises(DataError, match=rf"{TRAIN_SCENES} pictures in input_folder=.* text_seq_len=3; cut such"):
        open_dataset(encoded, 3, report, truncate=False)


def test_pictures_with_a_caption_that_is_too_long_are_counted_once_each(encoded: Path) -> None:
    dataset = open_dataset(encoded)
    for text_seq_len in range(3, 20):
        dataset.text_seq_len = text_seq_len
        rows = [read_rows(path) for path in dataset.paths]
        expected = 0
        for shard in rows:
            lengths = shard.starts.diff().tolist()
            bounds = shard.captions.tolist()
            expected += sum(max(lengths[a:b]) > text_seq_len for a, b in zip(bounds, bounds[1:]))
        assert dataset.over_length() == expected


def test_codes_beyond_the_vocabulary_are_found_before_they_are_looked_up(encoded: Path, tmp_path: Path) -> None:
    dataset = open_dataset(encoded)
    tensors = load_file(dataset.paths[1])
    tensors["codes"] = tensors["codes"].clone()
    tensors["codes"][2, 0, 5] = 16
    dataset.paths[1] = tmp_path / "train-000001.safetensors"
    save_file(tensors, dataset.paths[1])
    dataset = pickle.loads(pickle.dumps(dataset))  # which maps its shards anew
    assert len(dataset[6]) == 2
    with pytest.raises(DataError, match="train-000001.safetensors is damaged: picture 2 has codes beyond 16; remove"):
        dataset[7]


def test_codes_take_two_bytes_as_long_as_they_fit() -> None:
    assert [code_type(size) for size in (2, 8192, 2**15, 2**15 + 1)] == [torch.int16] * 3 + [torch.int32]


def test_captions_of_pictures_are_spread_evenly(encoded: Path) -> None:
    dataset = open_dataset(encoded)
    rows = [read_rows(path) for path in dataset.paths]
    every = [shard.text(row) for shard in rows for row in range(len(shard.numbers))]
    assert dataset.captions(100) == every and dataset.captions(4) == every[::3]
    text = bytes(rows[0].texts.tolist()).decode()
    assert every[0] == text.split("\n")[0]
