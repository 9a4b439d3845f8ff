"""What train_clip.py takes, learns, writes and refuses."""

from __future__ import annotations

import io
import math
import shutil
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import torch
from PIL import Image
from torch import Tensor

import train_clip
from bpe.tokenizer import load_tokenizer
from bpe.train import train_vocabulary
from checkpoint import CheckpointError, load_clip
from commands.train_clip import ClipTask, pick, whole_batches
from data.caption_table import CaptionTable
from data.dataset import TextImageDataset
from data.options import DataOptions
from data.pairs import open_pairs
from data.report import DataError, DataReport
from options import OptionError
from tests.conftest import SIDE, TRAIN_SCENES, Run
from tests.test_resume import assert_same_run, copy_as_of

Train = Callable[..., Run]


def samples(scenes: Path, vocabulary: Path, split: str, byteio: bool = False) -> TextImageDataset:
    """The pictures of a split of the scenes with a caption each, not augmented, as a run of seed 42 draws them."""
    options, report = DataOptions(input_folder=str(scenes), byteio=byteio), DataReport()
    pairs = open_pairs(options, split, report)
    captions = CaptionTable(pairs, load_tokenizer(str(vocabulary)), 12, report)
    return TextImageDataset(pairs, captions, options, SIDE, report, 42, augment=False)


def test_train_clip_learns_to_tell_a_few_pictures_apart(clip: Run) -> None:
    losses, accuracies = clip.series("loss"), clip.series("accuracy")
    assert losses[-1] < 0.4 * math.log(TRAIN_SCENES)
    assert accuracies[-1] > 0.9 > 0.6 > accuracies[0]
    assert clip.series("similarity_factor")[-1] > clip.series("similarity_factor")[0] > 1


def test_validation_is_of_the_held_out_pictures(clip: Run, scenes: Path, vocabulary: Path) -> None:
    model, _ = load_clip(str(clip.folder))
    texts, pictures = pick(samples(scenes, vocabulary, "validation"), 4)
    with torch.no_grad():
        loss, accuracy = model(texts, pictures)
    assert clip.series("step", "validation") == [80, 160]
    assert clip.series("loss", "validation")[-1] == pytest.approx(float(loss), rel=1e-4)
    assert clip.series("accuracy", "validation")[-1] == pytest.approx(float(accuracy))


RUNS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "averaged, in a loader process, two micro batches": {
        "dataloader_workers": 1,
        "ema_decay": 0.9,
        "gradient_accumulation": 2,
        "lr_scheduler": "ReduceLROnPlateau",
    },
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_a_resumed_run_is_the_uninterrupted_one(
    run_train_clip: Train, vocabulary: Path, tmp_path: Path, options: Dict[str, Any]
) -> None:
    options = {"max_steps": 8, "checkpoint_save_steps": 1, **options}
    whole = run_train_clip(tmp_path / "whole", **options)
    for step in (2, 5):
        resumed = run_train_clip(copy_as_of(whole, step, tmp_path / f"{step}"), resume=True, bpe_path="none", **options)
        assert_same_run(resumed, whole)


def test_a_checkpoint_needs_nothing_beside_it(run_train_clip: Train, vocabulary: Path, tmp_path: Path) -> None:
    shutil.copy(vocabulary, tmp_path / "vocabulary.json")
    run = run_train_clip(tmp_path / "run", bpe_path=tmp_path / "vocabulary.json", ema_decay=0.5)
    (tmp_path / "vocabulary.json").unlink()
    model, tokenizer = load_clip(str(run.folder))
    state = run.state()
    assert not model.training
    assert tokenizer.identity == load_tokenizer(str(vocabulary)).identity
    averaged = state["average"]["weights"]
    assert all(torch.equal(parameter, averaged[name]) for name, parameter in model.named_parameters())
    assert not torch.equal(model.text_embedding.weight, state["weights"]["text_embedding.weight"])
    assert model.options.dim_latent == 32
    latent = model.encode_text(torch.tensor([tokenizer.encode("a large red circle")]))
    assert float(latent.detach().norm()) == pytest.approx(1, rel=1e-5)


def test_samples_are_written_from_validation_pictures_and_given_prompts(run_train_clip: Train, tmp_path: Path) -> None:
    run = run_train_clip(tmp_path, sample_steps=3, sample_prompts="a red circle| a blue cross", max_steps=4)
    (grid,) = (run.folder / "samples").iterdir()
    with Image.open(grid) as picture:
        assert grid.name == "step_00000003.png" and picture.size[0] > 4 * SIDE


@pytest.mark.parametrize("byteio", [False, True])
def test_a_sample_puts_the_nearest_caption_under_each_picture(
    clip: Run, scenes: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, byteio: bool
) -> None:
    shown: List[Tuple[List[Image.Image], List[str]]] = []

    def keep(images: List[Image.Image], labels: List[str]) -> Image.Image:
        shown.append((images, labels))
        return images[0]

    monkeypatch.setattr("commands.train_clip.labelled_grid", keep)
    model, tokenizer = load_clip(str(clip.folder))
    texts, pictures = pick(samples(scenes, vocabulary, "train", byteio), TRAIN_SCENES)
    ClipTask(model, tokenizer, texts.flip(0), pictures).sample(model)
    ((images, labels),) = shown
    own = [tokenizer.decode(text.tolist()) for text in texts]
    assert sum(label == caption for label, caption in zip(labels, own)) >= TRAIN_SCENES - 1
    expected = pictures.float() / 255 if byteio else pictures
    assert [image.getpixel((0, 0)) for image in images] == [
        tuple(int(255 * value) for value in (picture[:, 0, 0] + 1e-4).tolist()) for picture in expected
    ]


def test_pictures_in_bytes_train_alike(run_train_clip: Train, tmp_path: Path) -> None:
    shares, pixels = (run_train_clip(tmp_path / name, byteio=name == "bytes") for name in ("shares", "bytes"))
    assert pixels.series("loss") == pytest.approx(shares.series("loss"), rel=1e-4)


def test_generated_data_needs_no_dataset(run_train_clip: Train, tmp_path: Path) -> None:
    run = run_train_clip(tmp_path, input_folder="none", generated_data=True, batch_size=6)
    assert all(loss == pytest.approx(math.log(6), abs=1) for loss in run.series("loss"))
    assert run.log("validation") == []


def test_shards_train_as_folders_do(run_train_clip: Train, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    pairs = open_pairs(DataOptions(input_folder=str(scenes)), "train", DataReport())
    with tarfile.open(tmp_path / "pairs.tar", "w") as archive:
        for number, pair in enumerate(pairs):
            for suffix, content in ((".png", pair.image.read_bytes()), (".txt", pair.captions[0].encode())):
                member = tarfile.TarInfo(f"{number:04}{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    shards = {"input_folder": tmp_path / "pairs.tar", "validation_folder": tmp_path / "pairs.tar", "wds": "png,txt"}
    steps = {"batch_size": TRAIN_SCENES, "max_steps": 80, "log_steps": 80, "validation_steps": 80, "sample_steps": 80}
    run = run_train_clip(tmp_path / "run", **shards, **steps)
    assert run.series("accuracy")[-1] > 0.7
    assert run.series("accuracy", "validation")[-1] > 0.7
    assert len(list((run.folder / "samples").iterdir())) == 1


def test_captions_longer_than_text_seq_len_are_cut_or_refused(run_train_clip: Train, tmp_path: Path) -> None:
    assert len(run_train_clip(tmp_path / "cut", text_seq_len=3).series("loss")) == 3
    with pytest.raises(DataError, match="text_seq_len=3; cut such captions"):
        run_train_clip(tmp_path / "refused", text_seq_len=3, truncate_captions=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 1}, "batch_size=1 leaves nothing to tell a picture apart from.*raise batch_size"),
        ({"batch_size": 1, "gradient_accumulation": 8}, "gradient_accumulation does not help"),
        ({"channels": 2}, "channels=2, and image files give 1, 3, 4"),
        ({"batch_size": 13}, "batch_size=13 .*global batches of 13, and the dataset has 12 samples.*lower batch_size"),
        ({"batch_size": 4, "gradient_accumulation": 4}, "with 4 micro batches makes global batches of 16"),
        ({"visual_patch_size": 5}, "visual_image_size=16 is not a multiple of visual_patch_size=5"),
        ({"vae_path": "vae.pt"}, "--vae-path is no option of this command"),
    ],
)
def test_what_clip_cannot_be_trained_with_is_refused(
    run_train_clip: Train, tmp_path: Path, options: Dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        run_train_clip(tmp_path, **options)


def test_without_an_entry_batches_are_those_of_the_entry_clip(run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="batch_size=32 with 1 micro batches"):  # which twelve pictures do not fill
        run(train_clip, input_folder=_twelve(tmp_path), bpe_path=_vocabulary(tmp_path), output_dir=tmp_path / "run")


def test_another_model_or_vocabulary_is_not_gone_on_with(run_train_clip: Train, tmp_path: Path) -> None:
    run_train_clip(tmp_path / "run")
    with pytest.raises(CheckpointError, match="dim_latent=8, but the checkpoint was trained with dim_latent=32"):
        run_train_clip(tmp_path / "run", resume=True, dim_latent=8)
    with pytest.raises(CheckpointError, match="vocabulary.json is not the vocabulary that the checkpoint"):
        run_train_clip(tmp_path / "run", resume=True, bpe_path=_vocabulary(tmp_path))


@pytest.mark.parametrize(
    "length, count, batch_size, kept",
    [(10, 100, 4, 8), (10, 7, 4, 4), (8, 100, 4, 8), (3, 100, 4, 3), (10, 3, 4, 3), (1, 100, 4, None), (9, 0, 4, None)],
)
def test_validation_batches_are_whole_so_that_none_is_easier(
    length: int, count: int, batch_size: int, kept: Optional[int]
) -> None:
    dataset = torch.utils.data.TensorDataset(torch.arange(length))
    found = whole_batches(dataset, count, batch_size)
    numbers: Optional[List[Tensor]] = None if found is None else [found[index][0] for index in range(len(found))]  # type: ignore[arg-type]
    assert numbers == (None if kept is None else list(range(kept)))


def test_without_validation_samples_there_are_no_batches_of_them() -> None:
    assert whole_batches(None, 100, 4) is None


def _twelve(tmp_path: Path) -> Path:
    folder = tmp_path / "twelve"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def _vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocabulary.json"
    path.write_text(train_vocabulary(["another text"], 300))
    return path
