"""What train_vae.py and train.py take, write and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch
from PIL import Image

import train
import train_vae
from bpe.train import train_vocabulary
from checkpoint import CheckpointError
from models.openai_vae import OpenAIVAE
from models.vqgan import VQGan
from options import OptionError, UserError
from tests.conftest import SIDE, Run
from tests.models.pretrained_cases import save_as_taming
from training import TrainingError

Train = Callable[..., Run]


@pytest.fixture(scope="session")
def layouts(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Dict[str, Any]]:
    """The options that name the same pairs in each layout."""
    root = tmp_path_factory.mktemp("layouts")
    annotations = scenes / "annotations" / "captions_train2017.json"
    images, together, apart = scenes / "train2017", root / "together", root / "apart"
    apart.mkdir()
    content = json.loads(annotations.read_text())
    for image in content["images"]:
        captions = [a["caption"] for a in content["annotations"] if a["image_id"] == image["id"]]
        (apart / image["file_name"]).with_suffix(".txt").write_text("\n".join(captions))
    shutil.copytree(images, together)
    for file in apart.iterdir():
        shutil.copy(file, together)
    return {
        "COCO's layout": {"input_folder": scenes},
        "COCO JSON": {"input_folder": images, "annotations": annotations},
        "image-text folder": {"input_folder": together},
        "captions folder": {"input_folder": images, "captions_folder": apart},
    }


def test_train_gives_the_same_losses_from_every_layout(
    run_train: Train, layouts: Dict[str, Dict[str, Any]], tmp_path: Path
) -> None:
    losses = {name: run_train(tmp_path / name, **options).series("loss") for name, options in layouts.items()}
    assert len(losses["COCO JSON"]) == 3
    assert all(values == losses["COCO JSON"] for values in losses.values()), losses


def test_train_vae_gives_the_same_losses_from_every_layout(
    run_train_vae: Train, layouts: Dict[str, Dict[str, Any]], tmp_path: Path
) -> None:
    losses = {name: run_train_vae(tmp_path / name, **options).series("loss") for name, options in layouts.items()}
    assert len(losses["COCO JSON"]) == 3
    assert all(values == losses["COCO JSON"] for values in losses.values()), losses


def test_train_learns_a_few_pictures(run_train: Train, tmp_path: Path) -> None:
    losses = run_train(tmp_path, max_steps=60, learning_rate=1e-2).series("loss")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_train_vae_learns_a_few_pictures_and_says_how_many_codes_it_uses(run_train_vae: Train, tmp_path: Path) -> None:
    log = run_train_vae(tmp_path, max_steps=60, learning_rate=1e-2).log()
    assert log[-1]["reconstruction"] < 0.7 * log[0]["reconstruction"]
    assert 0 < log[-1]["codes_used"] <= 1
    assert 1 <= log[-1]["perplexity"] <= 16


def test_a_run_writes_checkpoints_log_samples_and_data_report(run_train: Train, tmp_path: Path) -> None:
    run = run_train(tmp_path, max_steps=5, checkpoint_save_steps=2, sample_steps=3, sample_prompts="a red circle|a cat")
    assert run.saved_steps() == [2, 4, 5]
    assert run.series("step") == [1, 2, 3, 4, 5]
    assert (tmp_path / "data_report.jsonl").exists()
    grids = list((tmp_path / "samples").iterdir())
    assert [grid.name for grid in grids] == ["step_00000003.png"]
    with Image.open(grids[0]) as grid:
        assert grid.width > grid.height, "two prompts lie side by side"


def test_a_vae_run_writes_pictures_above_what_is_left_of_them(run_train_vae: Train, tmp_path: Path) -> None:
    run = run_train_vae(tmp_path, sample_steps=3)
    assert run.saved_steps() == [3]
    assert (tmp_path / "samples" / "step_00000003.png").exists()


def test_an_empty_checkpoint_folder_writes_no_checkpoint(run_train: Train, tmp_path: Path) -> None:
    run_train(tmp_path, checkpoint_output_dir="", checkpoint_save_steps=1)
    assert not list(tmp_path.rglob("*.pt"))


def test_validation_logs_text_and_image_losses_apart_at_the_end_of_every_epoch(
    run_train: Train, tmp_path: Path
) -> None:
    log = run_train(tmp_path, max_steps=6, loss_img_weight=7).log("validation")
    assert [line["step"] for line in log] == [3, 6]
    for line in log:
        assert line["text"] != line["image"]
        assert line["loss"] == pytest.approx((line["text"] + 7 * line["image"]) / 8)


def test_the_figures_of_a_run_do_not_depend_on_how_often_it_validates_or_logs(run_train: Train, tmp_path: Path) -> None:
    often = run_train(tmp_path / "often", max_steps=6, validation_steps=1, ff_dropout=0.1)
    seldom = run_train(tmp_path / "seldom", max_steps=6, validation_samples=0, log_steps=3, ff_dropout=0.1)
    assert often.series("loss")[2::3] == seldom.series("loss")
    assert seldom.log("validation") == []


def test_generated_data_needs_no_dataset(run_train: Train, run_train_vae: Train, tmp_path: Path) -> None:
    assert len(run_train(tmp_path / "dalle", generated_data=True, input_folder="absent").log()) == 3
    assert len(run_train_vae(tmp_path / "vae", generated_data=True, input_folder="absent").log()) == 3


@pytest.fixture
def no_vae(dalle_options: Dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """The options of a tiny run that name no image tokenizer, on a machine without released ones."""
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {name: value for name, value in dalle_options.items() if name != "vae_path"}
    return {**options, "output_dir": tmp_path / "run", "offline": True}


def tiny_vqgan() -> VQGan:
    torch.manual_seed(0)
    return VQGan(12, 4, ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, attn_resolutions=(), resolution=SIDE, z_channels=4)


@pytest.fixture
def vqgan(tmp_path: Path) -> Dict[str, Any]:
    """The options that name a tiny VQGAN of taming's files."""
    model = tiny_vqgan()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    save_as_taming(model, tmp_path)
    return {"vqgan_model_path": tmp_path / "weights.ckpt", "vqgan_config_path": tmp_path / "config.yaml"}


@pytest.mark.parametrize("taming, other", [(True, "--no-taming for OpenAI's dVAE"), (False, "--taming for the VQGAN")])
def test_training_without_an_image_tokenizer_is_an_error_that_says_how_to_get_one(
    run: Callable[..., None], no_vae: Dict[str, Any], taming: bool, other: str
) -> None:
    remedies = f"vae_path is not set.*--vae_path.*--vqgan_model_path.*{other}.*train_vae.py"
    with pytest.raises(OptionError, match=remedies):
        run(train, taming=taming, **no_vae)


def test_generated_pictures_are_good_enough_for_an_image_tokenizer_with_random_weights(
    run: Callable[..., None],
    no_vae: Dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("opening.VQGan", tiny_vqgan)  # the released one's size takes too long here
    run(train, taming=True, generated_data=True, **no_vae)
    assert "random weights" in capsys.readouterr().out
    assert image_tokenizer_of(Run(no_vae["output_dir"], "dalle")) == "VQGan"


def image_tokenizer_of(run: Run) -> str:
    """The kind of the image tokenizer in a run's newest checkpoint."""
    return run.state()["image_tokenizer"]["kind"]


def test_a_vqgan_is_trained_with_resumed_and_drawn_with(
    run: Callable[..., None], no_vae: Dict[str, Any], vqgan: Dict[str, Any], draw: Callable[..., Path]
) -> None:
    whole, halves = Run(no_vae["output_dir"], "dalle"), Run(no_vae["output_dir"].with_name("halves"), "dalle")
    run(train, **no_vae, **vqgan)
    assert image_tokenizer_of(whole) == "VQGan"
    for options in ({**vqgan, "max_steps": 2}, {"resume": True}):  # goes on without the files
        run(train, **{**no_vae, **options, "output_dir": halves.folder})
    assert halves.series("loss") == whole.series("loss") and len(whole.log()) == 3
    with Image.open(next(draw(whole.folder, "a red circle").glob("*/0.jpg"))) as picture:
        assert picture.size == (SIDE, SIDE)


@pytest.mark.parametrize("taming", [False, True])
def test_where_no_image_tokenizer_is_named_the_released_ones_are_used(
    run: Callable[..., None], no_vae: Dict[str, Any], vqgan: Dict[str, Any], draw: Callable[..., Path], taming: bool
) -> None:
    cache = Path.home() / ".cache" / "dalle"
    cache.mkdir(parents=True)
    openai = OpenAIVAE(group_count=7, n_hid=4, n_blk_per_group=1, vocab_size=16, n_init=4)
    for name, network in (("encoder", openai.encoder), ("decoder", openai.decoder)):
        torch.save(network.state_dict(), cache / f"{name}.pkl")
    shutil.copy(vqgan["vqgan_model_path"], cache / "vqgan.1024.model.ckpt")
    shutil.copy(vqgan["vqgan_config_path"], cache / "vqgan.1024.config.yml")
    run(train, taming=taming, **no_vae)
    assert image_tokenizer_of(Run(no_vae["output_dir"], "dalle")) == ("VQGan" if taming else "OpenAIVAE")
    with Image.open(next(draw(no_vae["output_dir"], "a red circle").glob("*/0.jpg"))) as picture:
        assert picture.size == ((SIDE, SIDE) if taming else (256, 256))


def test_a_named_image_tokenizer_is_used_where_a_configuration_asks_for_the_released_one(
    run: Callable[..., None], no_vae: Dict[str, Any], vae: Run, vqgan: Dict[str, Any]
) -> None:
    folder = no_vae.pop("output_dir")
    for kind, named in (("DiscreteVAE", {"vae_path": vae.folder}), ("VQGan", vqgan)):
        run(train, taming=True, output_dir=folder / kind, **no_vae, **named)
        assert image_tokenizer_of(Run(folder / kind, "dalle")) == kind
        run(train, taming=True, output_dir=folder / kind, **no_vae, resume=True, max_steps=4)


def test_two_image_tokenizers_and_half_a_one_are_refused(
    run: Callable[..., None], no_vae: Dict[str, Any], vae: Run, vqgan: Dict[str, Any]
) -> None:
    for name in vqgan:
        half = {name: vqgan[name]}
        with pytest.raises(OptionError, match=f"vae_path=.* and {name}=.* name two image tokenizers"):
            run(train, **no_vae, **half, vae_path=vae.folder)
        other = next(other for other in vqgan if other != name)
        with pytest.raises(OptionError, match=f"{other} is not set, and .*{vqgan[name].name} alone is half a VQGAN"):
            run(train, **no_vae, **half)


def test_resuming_with_another_vqgan_is_refused(
    run: Callable[..., None], no_vae: Dict[str, Any], vqgan: Dict[str, Any], dalle: Run
) -> None:
    with pytest.raises(CheckpointError, match="^vqgan_model_path=.*weights.ckpt is not the image tokenizer"):
        run(train, **no_vae, **vqgan, pretrained_checkpoint=dalle.folder)


def test_a_transformer_s_checkpoint_is_no_image_tokenizer(run_train: Train, dalle: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a dalle, and a vae is needed"):
        run_train(tmp_path, vae_path=dalle.checkpoints.files()[0])


def test_a_fresh_run_never_mixes_its_checkpoints_with_those_of_an_earlier_one(run_train: Train, tmp_path: Path) -> None:
    before = run_train(tmp_path).log()
    with pytest.raises(TrainingError, match=r"dalle_3.pt of an earlier run.*--resume"):
        run_train(tmp_path)
    assert run_train(tmp_path, resume=True, max_steps=5).log()[:3] == before


def test_a_run_that_goes_on_from_a_file_never_mixes_its_checkpoints_with_another_one_s(
    run_train: Train, dalle: Run, tmp_path: Path
) -> None:
    run = run_train(tmp_path, max_steps=4, checkpoint_save_steps=2)
    files = {path: path.read_bytes() for path in (tmp_path / "ckpt").iterdir()}
    log = (tmp_path / "log.jsonl").read_bytes()
    for other in (dalle.folder, tmp_path / "ckpt" / "dalle_2.pt"):
        with pytest.raises(TrainingError, match=r"dalle_4.pt of an earlier run; add --resume .* another --output-dir"):
            run_train(tmp_path, pretrained_checkpoint=other, max_steps=160)
    with pytest.raises(TrainingError, match="give another --checkpoint-output-dir"):
        run_train(tmp_path, pretrained_checkpoint=dalle.folder, checkpoint_output_dir=tmp_path / "ckpt")
    assert {path: path.read_bytes() for path in (tmp_path / "ckpt").iterdir()} == files
    assert (tmp_path / "log.jsonl").read_bytes() == log
    # with its own newest one, or resumed, it goes on
    run_train(tmp_path, pretrained_checkpoint=tmp_path / "ckpt" / "dalle_4.pt", max_steps=5)
    run_train(tmp_path, pretrained_checkpoint=dalle.folder, resume=True, max_steps=6)
    assert run.series("step") == [1, 2, 3, 4, 5, 6]


def test_what_cannot_be_written_to_is_found_out_before_training(run_train: Train, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        run_train(tmp_path / "run", checkpoint_output_dir=tmp_path / "file")
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_sample_prompt_without_a_word_is_found_out_before_training(run_train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompt '' holds no word"):
        run_train(tmp_path, sample_prompts="a red circle|", sample_steps=2)
    assert not (tmp_path / "log.jsonl").exists()


def test_resume_begins_anew_where_there_is_nothing_to_resume(run_train: Train, tmp_path: Path) -> None:
    assert run_train(tmp_path, resume=True).series("step") == [1, 2, 3]


def test_resuming_a_finished_run_changes_nothing(
    run_train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run_train(tmp_path).log()
    assert run_train(tmp_path, resume=True).log() == before
    assert "nothing left to train: step 3 of 3 is done" in capsys.readouterr().out


def test_only_the_newest_checkpoints_are_kept_when_asked(run_train: Train, tmp_path: Path) -> None:
    options = {"max_steps": 11, "checkpoint_save_steps": 1, "keep_n_checkpoints": 2}
    assert run_train(tmp_path, **options).saved_steps() == [10, 11]


@pytest.mark.parametrize(
    "name, value",
    [("hidden_size", 24), ("attn_types", "full"), ("loss_img_weight", 1), ("text_seq_len", 9), ("ff_dropout", 0.5)],
)
def test_resuming_with_another_model_is_refused_by_the_option_s_name(
    run_train: Train, dalle: Run, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}=.*trained with {name}="):
        run_train(tmp_path, pretrained_checkpoint=dalle.folder, **{name: value})


@pytest.mark.parametrize("name, value", [("num_tokens", 32), ("image_size", 32), ("codebook_dim", 4)])
def test_resuming_with_another_vae_is_refused_by_the_option_s_name(
    run_train_vae: Train, vae: Run, tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(CheckpointError, match=f"^{name}=.*trained with {name}="):
        run_train_vae(tmp_path, pretrained_checkpoint=vae.folder, **{name: value})


def test_resuming_with_another_image_tokenizer_is_refused(
    run_train: Train, run_train_vae: Train, dalle: Run, tmp_path: Path
) -> None:
    other = run_train_vae(tmp_path / "vae", random_seed=1)
    with pytest.raises(CheckpointError, match="vae_path=.* is not the image tokenizer"):
        run_train(tmp_path / "dalle", pretrained_checkpoint=dalle.folder, vae_path=other.folder)


def test_resuming_with_another_vocabulary_is_refused(run_train: Train, dalle: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(train_vocabulary(["another text"], 300), encoding="utf-8")
    with pytest.raises(CheckpointError, match="bpe_path=.*other.json is not the vocabulary"):
        run_train(tmp_path / "dalle", pretrained_checkpoint=dalle.folder, bpe_path=other)


def test_a_resumed_run_needs_neither_image_tokenizer_nor_vocabulary(
    run: Callable[..., None], dalle_options: Dict[str, Any], dalle: Run, tmp_path: Path
) -> None:
    options = {name: value for name, value in dalle_options.items() if name not in ("vae_path", "bpe_path")}
    run(train, output_dir=tmp_path, pretrained_checkpoint=dalle.folder, max_steps=151, **options)
    assert Run(tmp_path, "dalle").series("step") == [151]


def test_an_unknown_option_is_an_error_that_suggests_the_nearest(run: Callable[..., None]) -> None:
    with pytest.raises(OptionError, match="--num-token.*did you mean --num-tokens"):
        run(train_vae, num_token=3)
