"""train.py and evaluate.py on encoded pictures, on every engine."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

import evaluate
import train
from bpe.train import train_vocabulary
from data import encode_images
from data.check import main as check
from data.report import DataError, DataReport
from models.vae import DiscreteVAE
from options import OptionError, UserError
from tests.conftest import TRAIN_SCENES, Run
from tests.test_resume import assert_same_run, copy_as_of

Train = Callable[..., Run]
Encode = Callable[..., Path]
IPU: Dict[str, Any] = {
    "engine": "ipu-sim",
    "layers_per_ipu": 2,
    "async_dataloader": False,
    "plan_check": False,
    "batch_size": 2,
    "gradient_accumulation": 2,
}
ENGINES: Dict[str, Dict[str, Any]] = {"host": {}, "ipu-sim": IPU}
WHOLE = {"random_resize_crop_lower_ratio": 1}  # of a square picture: the square in the middle
engines = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())


@pytest.fixture
def train_encoded(run: Callable[..., None], configs: Path, encoded: Path) -> Train:
    """Trains from encoded pictures with no tokenizer named: `train_encoded(folder, **options)`."""

    def call(folder: Path, **options: Any) -> Run:
        given = {"config_file": configs, "config": "dalle", "input_folder": encoded, "output_dir": folder}
        run(train, **{**given, **options})
        return Run(folder, "dalle")

    return call


def losses(run: Run) -> List[List[float]]:
    return [run.series(name) for name in ("loss", "text", "image")]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a picture was encoded")


# ---------------------------------------------------------------------------------------- the same as from the pictures


@engines
def test_losses_are_those_of_training_from_the_pictures(
    run_train: Train, train_encoded: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Dict[str, Any]
) -> None:
    options = {**engine, "max_steps": 7, "validation_steps": 3}
    pictures = run_train(tmp_path / "pictures", **options, **WHOLE)
    monkeypatch.setattr(DiscreteVAE, "encode", refuse)
    monkeypatch.setattr("data.dataset.PictureReader.read_crops", refuse)
    codes = train_encoded(tmp_path / "codes", **options)
    assert losses(codes) == losses(pictures)
    assert codes.series("loss", "validation") == pytest.approx(pictures.series("loss", "validation"), rel=1e-6)


def test_as_many_epochs_as_there_are_crops_are_those_of_training_from_the_pictures(
    run_train: Train, train_encoded: Train, encode: Encode, tmp_path: Path
) -> None:
    ratio = {"random_resize_crop_lower_ratio": 0.3}
    crops = encode(tmp_path / "encoded", encoded_crops=3, **ratio)
    options = {"max_steps": 9}  # three epochs
    pictures = run_train(tmp_path / "pictures", **options, **ratio)
    assert losses(train_encoded(tmp_path / "codes", input_folder=crops, **options)) == losses(pictures)
    other = encode(tmp_path / "other", encoded_crops=3, random_seed=1, **ratio)
    assert losses(train_encoded(tmp_path / "others", input_folder=other, **options)) != losses(pictures)


@pytest.mark.parametrize("workers", [0, 2])
@engines
def test_a_resumed_run_is_the_uninterrupted_one(
    train_encoded: Train, encode: Encode, tmp_path: Path, engine: Dict[str, Any], workers: int
) -> None:
    folder = encode(tmp_path / "encoded", encoded_crops=2, encoded_flips=True)
    options = {**engine, "input_folder": folder, "max_steps": 6, "checkpoint_save_steps": 1}
    whole = train_encoded(tmp_path / "whole", dataloader_workers=workers, **options)
    for step in (1, 4):
        copied = copy_as_of(whole, step, tmp_path / str(step))
        assert_same_run(train_encoded(copied, resume=True, dataloader_workers=2 - workers, **options), whole)


@engines
def test_the_checkpoint_is_complete_and_draws_without_any_other_file(
    train_encoded: Train, draw: Callable[..., Path], encoded: Path, tmp_path: Path, vae: Run, engine: Dict[str, Any]
) -> None:
    copied = Path(shutil.copytree(encoded, tmp_path / "encoded"))
    run = train_encoded(tmp_path / "run", input_folder=copied, sample_steps=3, **engine)
    assert (run.folder / "samples" / "step_00000003.png").exists()
    shutil.rmtree(copied)
    assert len(list(draw(run.folder, "a red circle").rglob("*.jpg"))) == 1
    weights, trained = run.state()["weights"], vae.state()["weights"]
    assert all(torch.equal(weights[f"image_tokenizer.{name}"], weight) for name, weight in trained.items())


@engines
def test_a_run_goes_on_from_pictures_to_codes_and_back(
    run_train: Train, train_encoded: Train, tmp_path: Path, engine: Dict[str, Any]
) -> None:
    options = {**engine, "checkpoint_save_steps": 2}
    whole = run_train(tmp_path / "whole", max_steps=6, **options, **WHOLE)
    copied = copy_as_of(whole, 2, tmp_path / "mixed")
    train_encoded(copied, resume=True, max_steps=4, **options)
    mixed = run_train(copied, resume=True, max_steps=6, **options, **WHOLE)
    assert losses(mixed) == losses(whole)


def test_evaluation_on_codes_is_that_on_pictures(
    run: Callable[..., None], dalle: Run, scenes: Path, encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for folder in (scenes, encoded):
        run(evaluate, dalle_path=dalle.folder, input_folder=folder, dataloader_workers=0, device="cpu")
        found += re.findall(r"validation on 4 samples: loss .*", capsys.readouterr().out)
    assert len(found) == 2 and found[0] == found[1]


def test_a_validation_set_may_be_encoded_apart(
    train_encoded: Train, encode: Encode, scenes: Path, encoded: Path, tmp_path: Path
) -> None:
    apart = tmp_path / "apart"
    (apart / "annotations").mkdir(parents=True)
    shutil.copytree(scenes / "val2017", apart / "train2017")
    shutil.copy(scenes / "annotations" / "captions_val2017.json", apart / "annotations" / "captions_train2017.json")
    folder = encode(tmp_path / "encoded", input_folder=apart)
    one = train_encoded(tmp_path / "one", validation_folder=folder).series("loss", "validation")
    assert one and one == train_encoded(tmp_path / "other").series("loss", "validation")


# --------------------------------------------------------------------------------------------------------------- plan


def test_the_plan_leaves_the_image_tokenizer_out(
    train_encoded: Train, run_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"plan": True, "solve": True, "layers_per_ipu": "0,2", "ipus_per_replica": 2, "gradient_accumulation": 4}
    run_train(tmp_path / "pictures", **options)
    pictures = capsys.readouterr().out
    train_encoded(tmp_path / "codes", **options)
    codes = capsys.readouterr().out
    assert "best split of encoded tokens" in pictures and "best split of encoded tokens" not in codes
    assert "image tokenizer" in pictures and "image tokenizer" not in codes


def test_the_placement_of_a_run_from_codes_has_no_image_tokenizer(
    train_encoded: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_encoded(tmp_path / "codes", **IPU)
    said = capsys.readouterr().out
    assert "embedding" in said and "image_tokenizer" not in said


# ------------------------------------------------------------------------------------------------------------ refusals


def test_another_image_tokenizer_is_refused(
    run_train: Train, run_train_vae: Train, encoded: Path, tmp_path: Path, train_encoded: Train
) -> None:
    other = run_train_vae(tmp_path / "vae", max_steps=1)
    with pytest.raises(DataError, match=rf"vae_path={other.folder} has another image tokenizer than the pictures in"):
        run_train(tmp_path / "run", input_folder=encoded, vae_path=other.folder)
    pictures = run_train(tmp_path / "pictures", vae_path=other.folder)
    with pytest.raises(DataError, match="the checkpoint has another image tokenizer than the pictures in input_folder"):
        train_encoded(pictures.folder, resume=True, max_steps=5)
    assert run_train(tmp_path / "same", input_folder=encoded).log()  # which names the same one


def test_another_vocabulary_is_refused(train_encoded: Train, run_train: Train, tmp_path: Path) -> None:
    other = tmp_path / "vocabulary.json"
    other.write_text(train_vocabulary(["a red circle"], 300), encoding="utf-8")
    with pytest.raises(DataError, match=rf"bpe_path={other} has another vocabulary than the captions in input_folder="):
        train_encoded(tmp_path / "run", bpe_path=other)
    pictures = run_train(tmp_path / "pictures", bpe_path=other)
    with pytest.raises(DataError, match="the checkpoint has another vocabulary than the captions in input_folder"):
        train_encoded(pictures.folder, resume=True, max_steps=5)


def test_evaluation_refuses_what_the_checkpoint_was_not_trained_with(
    run: Callable[..., None], run_train: Train, run_train_vae: Train, encoded: Path, tmp_path: Path
) -> None:
    other = run_train(tmp_path / "run", vae_path=run_train_vae(tmp_path / "vae", max_steps=1).folder)
    with pytest.raises(DataError, match="the checkpoint has another image tokenizer"):
        run(evaluate, dalle_path=other.folder, input_folder=encoded, dataloader_workers=0, device="cpu")


@pytest.mark.parametrize("name", ["image_tokenizer.safetensors", "tokenizer.json", "train-000002.safetensors"])
def test_a_folder_with_a_missing_file_is_refused_by_its_name(
    train_encoded: Train, encoded: Path, tmp_path: Path, name: str
) -> None:
    copied = Path(shutil.copytree(encoded, tmp_path / "encoded"))
    (copied / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing.* run `python -m data.encode_images` again"):
        train_encoded(tmp_path / "run", input_folder=copied)


@pytest.mark.parametrize(
    "name, place, message",
    [
        ("image_tokenizer.safetensors", 0, "image_tokenizer.safetensors is missing or damaged"),
        ("image_tokenizer.safetensors", 10, "image_tokenizer.safetensors: .* lacks codebook.weight"),
        ("image_tokenizer.safetensors", -3, "image_tokenizer.safetensors has another image tokenizer than"),
        ("tokenizer.json", 0, "tokenizer.json is missing or damaged"),
    ],
)
def test_damaged_tokenizers_are_found(
    train_encoded: Train, run: Callable[..., None], encoded: Path, tmp_path: Path, name: str, place: int, message: str
) -> None:
    copied = Path(shutil.copytree(encoded, tmp_path / "encoded"))
    content = bytearray((copied / name).read_bytes())
    content[place] ^= 8
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        train_encoded(tmp_path / "run", input_folder=copied)
    with pytest.raises(UserError, match=message):
        run(encode_images, out_dir=copied, verify=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"wds": "img,cap"}, "wds says how pictures are read, and input_folder=.* holds encoded ones; leave wds out"),
        ({"annotations": __file__}, "annotations says how pictures are read"),
    ],
)
def test_options_of_pictures_are_refused(
    train_encoded: Train, tmp_path: Path, options: Dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        train_encoded(tmp_path / "run", **options)


def test_a_share_for_validation_has_to_be_encoded(
    train_encoded: Train, encode: Encode, scenes: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(scenes, alone)
    shutil.rmtree(alone / "val2017")
    with pytest.raises(OptionError, match="validation_share=0.3 .* encode them with --validation-share 0.3, or leave"):
        folder = encode(tmp_path / "encoded", input_folder=alone)
        train_encoded(tmp_path / "run", input_folder=folder, validation_share=0.3)
    folder = encode(tmp_path / "shared", input_folder=alone, validation_share=0.3)
    assert train_encoded(tmp_path / "run", input_folder=folder, validation_share=0.3).log("validation")


def test_commands_that_need_pictures_say_so(
    run_train_vae: Train, run_train_clip: Train, encoded: Path, tmp_path: Path
) -> None:
    for command in (run_train_vae, run_train_clip):
        with pytest.raises(DataError, match="holds encoded pictures, which train.py and evaluate.py take, and this"):
            command(tmp_path / "run", input_folder=encoded)


def test_captions_that_are_too_long_are_cut_and_counted(train_encoded: Train, tmp_path: Path) -> None:
    run = train_encoded(tmp_path / "run", text_seq_len=3)
    assert (
        DataReport(run.folder / "data_report.jsonl").notes["image with a caption cut to text_seq_len"] >= TRAIN_SCENES
    )
    with pytest.raises(DataError, match="a caption of more tokens than text_seq_len=3; cut such captions with --trunc"):
        train_encoded(tmp_path / "refused", text_seq_len=3, truncate_captions=False)


def test_data_check_says_what_is_there_and_finds_damage(
    encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([str(encoded)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{TRAIN_SCENES} pictures and ") and lines[-1] == "all of it is whole"
    copied = Path(shutil.copytree(encoded, tmp_path / "encoded"))
    content = bytearray((copied / "train-000001.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "train-000001.safetensors").write_bytes(content)
    assert check([str(copied)]) == 1
    assert "train-000001.safetensors has not the checksum" in capsys.readouterr().err
