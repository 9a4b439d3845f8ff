"""`python -m data.encode_images`: what it makes, and that nothing can make it something else."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from PIL import Image
from torch import Tensor

from args import run_command
from bpe.tokenizer import load_tokenizer
from commands.encode_images import PictureEncoder
from data import encode_images
from data.archives import import_webdataset
from data.datasets import DatasetOpener
from data.encoded import EncodedDataset, EncodedFolder
from data.encoded_format import MANIFEST, read_manifest, read_rows
from data.options import DataOptions
from data.report import DataError, DataReport
from data.shard_journal import ShardJournal
from data.shard_writer import main as make_shards
from models.image_tokenizer import ImageTokenizer
from opening import open_vae
from options import OptionError
from tests.conftest import HELD_OUT_SCENES, SIDE, TRAIN_SCENES, Run, as_arguments

Encode = Callable[..., Path]
KILLS = 8


@pytest.fixture(scope="module")
def image_tokenizer(vae: Run) -> ImageTokenizer:
    return open_vae(str(vae.folder))


def open_dataset(folder: Path, split: str = "train", text_seq_len: int = 8, seed: int = 42) -> EncodedDataset:
    dataset = EncodedFolder(folder).dataset(split, text_seq_len, DataReport(), seed)
    assert dataset is not None
    return dataset


def contents(folder: Path) -> Dict[str, bytes]:
    """All that lies in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def codes_of(folder: Path) -> Tensor:
    """All codes of a folder, (pictures, versions, I)."""
    return torch.cat([read_rows(path).codes for path in sorted(folder.glob("train-*.safetensors"))])


# ----------------------------------------------------------------------------------------------------- what it makes


@pytest.mark.parametrize("options", [{}, {"encoded_crops": 3}, {"encoded_crops": 2, "dataloader_workers": 2}])
def test_a_sample_is_what_training_from_pictures_would_encode_in_that_epoch(
    encode: Encode, image_tokenizer: ImageTokenizer, scenes: Path, vocabulary: Path, tmp_path: Path,
    options: Dict[str, Any],
) -> None:  # fmt: skip
    folder = encode(tmp_path / "encoded", **options)
    # where nothing is cut at random, the whole picture is the square in the middle
    ratio = 0.75 if "encoded_crops" in options else 1
    data = DataOptions(input_folder=str(scenes), random_resize_crop_lower_ratio=ratio)
    opener = DatasetOpener(data, DataReport(), 42, tmp_path, 0, 0)
    pictures, held_out, prompts = opener.text_images(SIDE, load_tokenizer(str(vocabulary)), 8)
    for split, wanted in (("train", pictures), ("validation", held_out)):
        found = open_dataset(folder, split)
        assert wanted is not None and len(found) == len(wanted)  # type: ignore[arg-type]
        epochs = range(options.get("encoded_crops", 2) if split == "train" else 1)
        for key in itertools.product(epochs, range(len(found))):
            (text, codes), (wanted_text, image) = found[key], wanted[key]
            assert torch.equal(text, wanted_text)
            assert torch.equal(codes, image_tokenizer.encode(image[None])[0])
    assert open_dataset(folder, "validation").captions(8) == prompts


def test_crops_and_mirror_images_are_versions_of_which_an_epoch_takes_one(
    encode: Encode, image_tokenizer: ImageTokenizer, scenes: Path, tmp_path: Path
) -> None:
    folder = encode(tmp_path / "encoded", encoded_crops=2, encoded_flips=True)
    codes, crops = codes_of(folder), codes_of(encode(tmp_path / "crops", encoded_crops=2))
    assert codes.shape == (TRAIN_SCENES, 4, 16) and crops.shape == (TRAIN_SCENES, 2, 16)
    assert torch.equal(codes[:, ::2], crops)
    assert codes_of(encode(tmp_path / "flips", encoded_flips=True)).shape == (TRAIN_SCENES, 2, 16)
    dataset, taken = open_dataset(folder), []
    for epoch, index in itertools.product(range(40), range(TRAIN_SCENES)):
        drawn = dataset[epoch, index][1]
        versions = [torch.equal(drawn, version.long()) for version in codes[index]]
        assert any(versions[2 * (epoch % 2) : 2 * (epoch % 2) + 2])
        taken.append(versions[2 * (epoch % 2) + 1] and not versions[2 * (epoch % 2)])
    assert 0.2 < sum(taken) / len(taken) < 0.8
    held_out = read_rows(folder / "validation-000000.safetensors").codes
    assert held_out.shape == (HELD_OUT_SCENES, 1, 16)


def test_a_mirror_image_has_the_codes_of_the_mirrored_file(encode: Encode, scenes: Path, tmp_path: Path) -> None:
    mirrored = tmp_path / "mirrored"
    shutil.copytree(scenes, mirrored)
    for path in mirrored.rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    codes = codes_of(encode(tmp_path / "encoded", encoded_flips=True))
    assert torch.equal(codes[:, 1], codes_of(encode(tmp_path / "of_mirrored", input_folder=mirrored))[:, 0])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("workers", [0, 1])
def test_codes_depend_on_neither_batches_workers_nor_shards(
    encode: Encode, encoded: Path, tmp_path: Path, batch_size: int, workers: int
) -> None:
    options = {"batch_size": batch_size, "dataloader_workers": workers, "samples_per_shard": 7}
    assert torch.equal(codes_of(encode(tmp_path / "other", **options)), codes_of(encoded))


@pytest.mark.parametrize("form", ["tar", "tar.gz"])
@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_shards_become_a_shard_each_with_the_same_codes(
    encode: Encode, encoded: Path, scenes: Path, tmp_path: Path, form: str, workers: int
) -> None:
    for split in ("train", "validation"):
        arguments = ["--input-folder", str(scenes), "--split", split, "--samples-per-shard", "5"]
        assert make_shards([*arguments, "--out-dir", str(tmp_path / split)]) == 0
        for tar in sorted((tmp_path / split).glob("*.tar")) if form == "tar.gz" else ():
            import_webdataset()
            pack(tar)
    options = {"input_folder": tmp_path / "train", "validation_folder": tmp_path / "validation", "wds": "img,cap"}
    folder = encode(tmp_path / "encoded", dataloader_workers=workers, **options)
    assert [path.name for path in sorted(folder.glob("*-*.safetensors"))] == [
        *(f"train-00000{number}.safetensors" for number in range(3)),
        "validation-000000.safetensors",
    ]
    assert torch.equal(codes_of(folder), codes_of(encoded))
    one, other = open_dataset(folder), open_dataset(encoded)
    assert [one[5, index][0].tolist() for index in range(12)] == [other[5, index][0].tolist() for index in range(12)]


def pack(tar: Path) -> None:
    import gzip

    tar.with_name(tar.name + ".gz").write_bytes(gzip.compress(tar.read_bytes()))
    tar.unlink()


def test_captions_are_kept_whole_with_their_texts(encode: Encode, vocabulary: Path, encoded: Path) -> None:
    tokenizer, rows = load_tokenizer(str(vocabulary)), read_rows(encoded / "train-000000.safetensors")
    texts = bytes(rows.texts.tolist()).decode().splitlines()
    starts = rows.starts.tolist()
    ids = [rows.ids[first:last].tolist() for first, last in zip(starts, starts[1:])]
    assert ids == tokenizer.encode_batch(texts) and len(texts) == int(rows.captions[-1]) > 5


# --------------------------------------------------------------------------------------------------------- bad pictures


def test_unusable_pictures_are_counted_and_left_out_and_stop_above_the_share(
    encode: Encode, encoded: Path, scenes: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(scenes, bad)
    (bad / "train2017" / "0003.png").write_bytes(b"no picture")
    Image.new("RGB", (2, 2)).save(bad / "train2017" / "0007.png")
    folder = encode(tmp_path / "encoded", input_folder=bad, max_bad_share=0.2, samples_per_shard=5)
    kept = [number for number in range(TRAIN_SCENES) if number not in (3, 7)]
    assert torch.equal(codes_of(folder), codes_of(encoded)[kept])
    assert read_manifest(folder).skipped == {"unreadable image": 1, "image too small": 1}
    assert DataReport(folder / "data_report.jsonl").counts == {"unreadable image": 1, "image too small": 1}
    with pytest.raises(DataError, match="2 of 16 files .*max_bad_share=0.1"):
        encode(tmp_path / "stopped", input_folder=bad, max_bad_share=0.1)
    with pytest.raises(DataError, match="not all encoded yet"):
        EncodedFolder(tmp_path / "stopped")


def test_a_dataset_without_a_usable_picture_is_an_error(encode: Encode, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "a.txt").write_text("a caption")
    with pytest.raises(DataError, match="not one of 1 pictures can be used"):
        encode(tmp_path / "encoded", input_folder=tmp_path / "pictures", max_bad_share=1)


# ------------------------------------------------------------------------------------------------ stopping and resuming


class Stopped(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Let appending fail after some batches."""
    append, count = ShardJournal.append, itertools.count(1)

    def limited(journal: ShardJournal, entry: Any) -> None:
        append(journal, entry)
        if next(count) == batches:
            raise Stopped

    monkeypatch.setattr(ShardJournal, "append", limited)


@pytest.mark.parametrize("batches", [1, 2, 3, 5])
@pytest.mark.parametrize("cut", [0, 1, 300])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes_and_encodes_nothing_again(
    encode: Encode, encoded: Path, tmp_path: Path, batches: int, cut: int
) -> None:
    options = {"samples_per_shard": 5, "batch_size": 2}
    folder = tmp_path / "encoded"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(Stopped):
            encode(folder, **options)
    (journal,) = folder.glob("*.journal")
    os.truncate(journal, journal.stat().st_size - cut)
    done = sum(shard.samples for shard in read_manifest(folder).shards["train"].values())
    with contextlib.closing(ShardJournal(journal)) as left:
        done += left.seen
    pictures = 0
    with pytest.MonkeyPatch.context() as patch:
        whole = PictureEncoder.encode

        def counted(self: PictureEncoder, batch: Tensor, flips: bool) -> Tensor:
            nonlocal pictures
            pictures += len(batch)
            return whole(self, batch, flips)

        patch.setattr(PictureEncoder, "encode", counted)
        patch.setattr("commands.encode_images.encode_again", lambda *_: "")
        encode(folder, **options)
    assert pictures == TRAIN_SCENES + HELD_OUT_SCENES - done
    assert contents(folder) == contents(encoded)


def test_started_again_when_all_is_there_it_changes_nothing(encode: Encode, encoded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoded"
    shutil.copytree(encoded, folder)
    encode(folder, samples_per_shard=5)
    assert contents(folder) == contents(encoded)


def encode_in_child(arguments: List[str]) -> None:
    """The command in a process that has imported all it needs; silent."""
    torch.set_num_threads(1)
    sys.argv = ["encode_images.py", *arguments]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        run_command(encode_images.main)


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    scenes: Path, vocabulary: Path, vae: Run, tmp_path: Path
) -> None:
    options = {"input_folder": scenes, "bpe_path": vocabulary, "vae_path": vae.folder, "device": "cpu"}
    options.update(batch_size=1, samples_per_shard=3, dataloader_workers=0)  # a child is joined after its own children
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def start(folder: Path) -> Any:
        child = context.Process(target=encode_in_child, args=(as_arguments({**options, "out_dir": folder}),))
        child.start()
        return child

    for name in ("first", "second"):  # the first waits for the imports
        began = time.monotonic()
        child = start(tmp_path / name)
        child.join()
        assert child.exitcode == 0
    duration, rng, kills = time.monotonic() - began, random.Random(0), 0
    for number in itertools.count():
        while True:
            child = start(tmp_path / str(number))
            child.join(rng.uniform(0, duration))
            child.kill()
            child.join()
            assert child.exitcode in (0, -signal.SIGKILL), f"after {kills} kills, going on failed"
            if child.exitcode == 0:
                break
            kills += 1
        assert contents(tmp_path / str(number)) == contents(tmp_path / "first")
        if kills >= KILLS:
            return


def test_two_processes_do_not_encode_into_one_folder(encode: Encode, encoded: Path, tmp_path: Path) -> None:
    shutil.copytree(encoded, tmp_path / "encoded")
    holder = multiprocessing.get_context("fork").Process(target=hold_lock, args=(tmp_path / "encoded",))
    holder.start()
    try:
        while not (tmp_path / "encoded" / "locked.partial").exists():
            time.sleep(0.01)
        (tmp_path / "encoded" / "locked.partial").unlink()
        with pytest.raises(DataError, match="another process is encoding into out_dir="):
            encode(tmp_path / "encoded", samples_per_shard=5)
    finally:
        holder.kill()
        holder.join()


def hold_lock(folder: Path) -> None:
    import fcntl

    with (folder / "encoded.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        (folder / "locked.partial").touch()
        time.sleep(60)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoded_crops": 2}, "encoded with encoded_crops=0, and now encoded_crops is 2; encode as before"),
        ({"encoded_flips": True}, "encoded_flips=False, and now encoded_flips is True"),
        ({"samples_per_shard": 6}, "samples_per_shard=5, and now"),
        ({"random_seed": 1}, "random_seed=42, and now random_seed is 1"),
    ],
)
def test_going_on_in_another_way_is_refused(
    encode: Encode, encoded: Path, options: Dict[str, Any], message: str
) -> None:
    before = contents(encoded)
    with pytest.raises(DataError, match=message):
        encode(encoded, **{"samples_per_shard": 5, **options})
    assert contents(encoded) == before


def test_going_on_with_another_dataset_is_refused(encode: Encode, encoded: Path, scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "scenes")
    (tmp_path / "scenes" / "train2017" / "0003.png").write_bytes(b"no picture")
    before = contents(encoded)
    with pytest.raises(DataError, match="encoded with datasets="):
        encode(encoded, input_folder=tmp_path / "scenes", samples_per_shard=5)
    assert contents(encoded) == before


def test_a_folder_with_something_else_in_it_is_refused(encode: Encode, scenes: Path) -> None:
    before = sorted(path.name for path in scenes.iterdir())
    with pytest.raises(DataError, match="holds annotations, which is none of encoded pictures; give an empty folder"):
        encode(scenes)
    assert sorted(path.name for path in scenes.iterdir()) == before


# --------------------------------------------------------------------------------------------------------------- damage


def copy_of(encoded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "copy"))


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 40, 500, -1])
def test_a_damaged_shard_is_named_and_made_again_once_it_is_removed(
    encode: Encode, encoded: Path, tmp_path: Path, place: int
) -> None:
    folder = copy_of(encoded, tmp_path)
    shard = folder / "train-000001.safetensors"
    flip_bit(shard, place)
    for options in ({"verify": True}, {}):
        with pytest.raises(DataError, match="train-000001.safetensors has not the checksum .* remove it and run"):
            encode(folder, samples_per_shard=5, **options)
    shard.unlink()
    with pytest.raises(DataError, match="train-000001.safetensors is missing, and"):
        open_dataset(folder)
    encode(folder, samples_per_shard=5)
    assert contents(folder) == contents(encoded)


def test_verifying_needs_no_dataset_and_with_it_encodes_again(
    encode: Encode, run: Callable[..., None], encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(encode_images, out_dir=encoded, verify=True)
    counted = "12 pictures and .* captions of train in 3 shards, 4 pictures and .* of validation in 1 shard"
    assert matches(f"verified: {counted}\n", capsys.readouterr().out)
    encode(encoded, verify=True, samples_per_shard=5)
    assert matches(f"verified: {counted}; 16 pictures encoded again, 100.00% .* equal\n", capsys.readouterr().out)


def matches(pattern: str, text: str) -> bool:
    import re

    return re.search(pattern, text) is not None


def test_verifying_finds_codes_that_are_not_those_of_the_pictures(
    encode: Encode, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PictureEncoder.encode
    monkeypatch.setattr(PictureEncoder, "encode", lambda self, batch, flips: 15 - whole(self, batch, flips))
    with pytest.raises(DataError, match="are not what they were when they were encoded"):
        encode(copy_of(encoded, tmp_path), verify=True, samples_per_shard=5)


def test_a_torn_manifest_says_what_to_do(encoded: Path, tmp_path: Path) -> None:
    folder = copy_of(encoded, tmp_path)
    os.truncate(folder / MANIFEST, 300)
    with pytest.raises(DataError, match="encoded.json is no manifest of encoded pictures .* encode them again"):
        EncodedFolder(folder)
    (folder / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="format 99, newer than 1; use a newer program"):
        EncodedFolder(folder)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bf16": True}, "bf16=true is for GPUs, and the pictures are encoded on the CPU; leave bf16 out"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"generated_data": True}, "generated_data=true makes pictures up"),
        ({"wds": "img"}, "wds=img names no key of captions"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    encode: Encode, tmp_path: Path, options: Dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        encode(tmp_path / "encoded", **{**options, **({"input_folder": tar_of(tmp_path)} if "wds" in options else {})})
    assert not (tmp_path / "encoded").exists()


def tar_of(tmp_path: Path) -> Path:
    (tmp_path / "x.tar").write_bytes(bytes(10240))
    return tmp_path / "x.tar"


def test_without_a_folder_to_write_to_it_says_so(run: Callable[..., None], scenes: Path) -> None:
    with pytest.raises(OptionError, match="out_dir is not set; give the folder"):
        run(encode_images, input_folder=scenes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu_lower_precision_gives_nearly_the_same_codes(
    encode: Encode, encoded: Path, tmp_path: Path, precision: str
) -> None:
    codes = codes_of(encode(tmp_path / "encoded", device="cuda", **{precision: True}))
    assert (codes == codes_of(encoded)).float().mean() > 0.9


def test_options_of_training_alone_are_named(
    encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(tmp_path / "encoded", byteio=True, shuffle_buffer=10)
    assert "for training only, without effect on encoding: byteio, shuffle_buffer" in capsys.readouterr().out
