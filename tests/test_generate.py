"""What generate.py draws, writes and refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

import drawing
from bpe.train import train_vocabulary
from checkpoint import CheckpointError
from models.decoding import TokenDrawer
from options import OptionError, UserError
from tests.conftest import SIDE, Run

Draw = Callable[..., Path]
CIRCLE, CROSS = "a large red circle at the top", "a small blue cross at the left"
ONE, STRONG = {"cond_scale": 1}, {"cond_scale": 5}


def distance(one: Path, other: Path) -> float:
    """The mean difference of two picture files' values, 0..255."""
    with Image.open(one) as first, Image.open(other) as second:
        return sum(ImageStat.Stat(ImageChops.difference(first, second)).mean) / 3


@pytest.fixture(scope="session")
def checkpoint(dalle: Run) -> Path:
    return dalle.checkpoints.files()[0]


def test_each_prompt_gets_a_folder_with_its_pictures_and_caption(draw: Draw, checkpoint: Path) -> None:
    folder = draw(checkpoint, f"{CIRCLE}|a/b: c?|{CIRCLE} ", num_images=3)
    assert sorted(path.name for path in folder.iterdir()) == ["a_b_c", "a_large_red_circle_at_the_top", "grid.png"]
    for name, caption in (("a_b_c", "a/b: c?"), ("a_large_red_circle_at_the_top", CIRCLE)):
        assert sorted(path.name for path in (folder / name).iterdir()) == ["0.jpg", "1.jpg", "2.jpg", "caption.txt"]
        assert (folder / name / "caption.txt").read_text() == f"{caption}\n"
        with Image.open(folder / name / "2.jpg") as picture:
            assert picture.size == (SIDE, SIDE)


def test_a_picture_depends_on_its_prompt_and_seed_alone(draw: Draw, checkpoint: Path) -> None:
    alone = draw(checkpoint, CIRCLE, num_images=8, seed=5) / CIRCLE.replace(" ", "_")
    among = draw(checkpoint, f"{CROSS}|{CIRCLE}", num_images=10, seed=3, batch_size=3) / CIRCLE.replace(" ", "_")
    redrawn = max(distance(alone / f"{n}.jpg", among / f"{n + 2}.jpg") for n in range(8))
    assert redrawn < 1
    assert max(distance(alone / "0.jpg", alone / f"{n}.jpg") for n in range(1, 8)) > 2
    other = draw(checkpoint, CROSS, num_images=8, seed=5) / CROSS.replace(" ", "_")
    # how far a prompt moves so small a model depends on the torch release; that it does at all does not
    assert max(distance(alone / f"{n}.jpg", other / f"{n}.jpg") for n in range(8)) > redrawn


def test_pictures_in_bfloat16_are_pictures_too(draw: Draw, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    types = []
    decode = drawing.TokenDrawer.draw

    def noting(drawer: TokenDrawer, *arguments: Any) -> torch.Tensor:
        types.append(drawer.decoder.dtype)
        return decode(drawer, *arguments)

    monkeypatch.setattr(drawing.TokenDrawer, "draw", noting)
    monkeypatch.setattr("commands.generate.has_bf16_instructions", lambda: True)
    for bf16 in (False, True):
        folder = draw(checkpoint, CIRCLE, num_images=2, bf16=bf16, seed=5) / CIRCLE.replace(" ", "_")
        assert len(list(folder.glob("*.jpg"))) == 2
    monkeypatch.setattr("commands.generate.has_bf16_instructions", lambda: False)
    draw(checkpoint, CIRCLE, num_images=2, bf16=True)
    assert types == [torch.float32, torch.bfloat16, torch.float32]


def test_without_a_seed_every_call_draws_other_pictures_and_says_from_which_seed(
    draw: Draw, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [draw(checkpoint, CIRCLE, num_images=2, seed="none") for _ in range(2)]
    seeds = [line.split("with seed ")[1].split()[0] for line in capsys.readouterr().out.splitlines() if "seed" in line]
    assert seeds[0] != seeds[1]
    again = draw(checkpoint, CIRCLE, num_images=2, seed=seeds[1])
    name = CIRCLE.replace(" ", "_")
    assert distance(folders[1] / name / "1.jpg", again / name / "1.jpg") == 0


def test_a_prompt_is_completed_before_it_is_drawn_when_asked(draw: Draw, checkpoint: Path) -> None:
    folder = draw(checkpoint, "a large", gentxt=True) / "a_large"
    caption = (folder / "caption.txt").read_text().strip()
    assert caption.startswith("a large") and len(caption) > len("a large")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_drawing_needs_nothing_but_the_checkpoint(
    run_train: Callable[..., Run], vae: Run, vocabulary: Path, draw: Draw, tmp_path: Path, batch_size: int
) -> None:
    shutil.copytree(vae.folder, tmp_path / "vae")
    shutil.copy(vocabulary, tmp_path / "vocabulary.json")
    run_train(tmp_path / "run", vae_path=tmp_path / "vae", bpe_path=tmp_path / "vocabulary.json")
    shutil.rmtree(tmp_path / "vae")
    (tmp_path / "vocabulary.json").unlink()
    assert (draw(tmp_path / "run", CIRCLE, batch_size=batch_size) / "grid.png").exists()


def test_the_folder_of_a_run_stands_for_its_newest_whole_checkpoint(
    dalle: Run, checkpoint: Path, draw: Draw, tmp_path: Path
) -> None:
    shutil.copytree(dalle.folder, tmp_path / "run")
    torn = tmp_path / "run" / "ckpt" / "dalle_999.pt"
    shutil.copy(checkpoint, torn)
    os.truncate(torn, 1000)
    name = CIRCLE.replace(" ", "_")
    one, other = draw(tmp_path / "run", CIRCLE), draw(checkpoint, CIRCLE)
    assert distance(one / name / "0.jpg", other / name / "0.jpg") == 0


def _absent(path: Path, checkpoint: Path, vae: Run) -> None:
    pass


def _torn(path: Path, checkpoint: Path, vae: Run) -> None:
    path.write_bytes(checkpoint.read_bytes()[:1000])


def _text(path: Path, checkpoint: Path, vae: Run) -> None:
    path.write_text("no checkpoint")


def _foreign(path: Path, checkpoint: Path, vae: Run) -> None:
    torch.save({"model": torch.zeros(1)}, path)


def _newer(path: Path, checkpoint: Path, vae: Run) -> None:
    torch.save({**torch.load(checkpoint), "format": 99}, path)


def _another_kind(path: Path, checkpoint: Path, vae: Run) -> None:
    shutil.copy(vae.checkpoints.files()[0], path)


def _empty_folder(path: Path, checkpoint: Path, vae: Run) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make, message",
    [
        (_absent, "given.pt does not exist"),
        (_torn, "given.pt is torn"),
        (_text, "given.pt .*torn"),
        (_foreign, "given.pt is no checkpoint of this program"),
        (_newer, "given.pt has format 99, newer than"),
        (_another_kind, "given.pt holds a vae, and a dalle is needed"),
        (_empty_folder, "given.pt holds no dalle_<step>.pt"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_its_name_and_what_is_wrong(
    draw: Draw, checkpoint: Path, vae: Run, tmp_path: Path, make: Callable[[Path, Path, Run], None], message: str
) -> None:
    make(tmp_path / "given.pt", checkpoint, vae)
    with pytest.raises(UserError, match=message):
        draw(tmp_path / "given.pt", CIRCLE)


def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(draw: Draw, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"format": 1, "kind": "dalle", "weights": Harmful()}, tmp_path / "given.pt")
    with pytest.raises(CheckpointError, match="no tensor or plain container; nothing of it was run"):
        draw(tmp_path / "given.pt", CIRCLE)
    assert not (tmp_path / "ran").exists()


def test_another_vocabulary_than_the_checkpoint_s_is_refused(draw: Draw, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(train_vocabulary(["another text"], 300))
    with pytest.raises(CheckpointError, match="other.json is not the vocabulary that the checkpoint was trained with"):
        draw(checkpoint, CIRCLE, bpe_path=tmp_path / "other.json")


def test_another_image_tokenizer_than_the_checkpoint_s_is_refused(
    draw: Draw, run_train_vae: Callable[..., Run], checkpoint: Path, vae: Run, tmp_path: Path
) -> None:
    draw(checkpoint, CIRCLE, vae_path=vae.folder)
    other = run_train_vae(tmp_path / "other", random_seed=7)
    with pytest.raises(CheckpointError, match="vae_path=.*other is not the image tokenizer that the checkpoint was"):
        draw(checkpoint, CIRCLE, vae_path=other.folder)
    with pytest.raises(CheckpointError, match="taming=true asks for a VQGAN, and .* was trained with a DiscreteVAE"):
        draw(checkpoint, CIRCLE, taming=True)


def test_guidance_changes_the_pictures_and_a_scale_of_1_does_not(draw: Draw, checkpoint: Path) -> None:
    plain, one, guided = (draw(checkpoint, CIRCLE, num_images=2, **options) for options in ({}, ONE, STRONG))
    name = CIRCLE.replace(" ", "_")
    assert [distance(plain / name / f"{n}.jpg", one / name / f"{n}.jpg") for n in (0, 1)] == [0, 0]
    assert max(distance(plain / name / f"{n}.jpg", guided / name / f"{n}.jpg") for n in (0, 1)) > 0


def test_the_best_candidates_are_kept_the_best_first(draw: Draw, checkpoint: Path) -> None:
    name = CIRCLE.replace(" ", "_")
    everything = draw(checkpoint, CIRCLE, num_images=5, ranker="likelihood") / name
    scores = json.loads((everything / "scores.json").read_text())
    assert len(scores) == 5 and scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    kept = draw(checkpoint, CIRCLE, num_images=5, ranker="likelihood", keep=2) / name
    assert sorted(path.name for path in kept.iterdir()) == ["0.jpg", "1.jpg", "caption.txt", "scores.json"]
    assert json.loads((kept / "scores.json").read_text()) == scores[:2]
    assert [distance(kept / f"{n}.jpg", everything / f"{n}.jpg") for n in (0, 1)] == [0, 0]


def test_a_trained_clip_ranks(draw: Draw, checkpoint: Path, clip: Run) -> None:
    folder = draw(checkpoint, CIRCLE, num_images=3, ranker="clip", clip_path=clip.folder, keep=1)
    scores = json.loads((folder / CIRCLE.replace(" ", "_") / "scores.json").read_text())
    assert len(scores) == 1


def test_no_more_is_kept_than_is_drawn(draw: Draw, checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="keep=3 is more than num_images=2; lower it, or draw more"):
        draw(checkpoint, CIRCLE, num_images=2, ranker="likelihood", keep=3)


@pytest.mark.parametrize("text", ["", " | "])
def test_no_prompt_is_an_error(draw: Draw, checkpoint: Path, text: str) -> None:
    with pytest.raises(OptionError, match="text holds no prompt"):
        draw(checkpoint, text)


def test_a_seed_that_no_generator_takes_is_refused(draw: Draw, checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="seed=9{23} is above"):
        draw(checkpoint, CIRCLE, seed="9" * 23)


def test_scores_of_pictures_that_were_replaced_go(draw: Draw, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    draw(checkpoint, CIRCLE, num_images=2, ranker="likelihood", outputs_dir=folder)
    assert list(folder.rglob("scores.json"))
    draw(checkpoint, CIRCLE, num_images=2, outputs_dir=folder)
    assert not list(folder.rglob("scores.json"))


def test_a_folder_that_cannot_be_written_to_is_found_out_before_drawing(
    draw: Draw, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("commands.generate.draw_pictures", lambda *_: pytest.fail("drawn"))
    with pytest.raises(OSError):
        draw(checkpoint, CIRCLE, outputs_dir=tmp_path / "file")
