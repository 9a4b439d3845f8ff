"""What evaluate.py counts and says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable, List, Sequence

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import evaluate
from commands.evaluate import _FRAME
from data.scenes import Scene, caption, draw_scene
from drawing import Drawn
from options import OptionError, UserError
from tests.conftest import HELD_OUT_SCENES, Run

SCENES = [
    Scene("circle", "red", "large", "top left"),
    Scene("square", "blue", "small", "center"),
    Scene("cross", "green", "large", "bottom"),
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of prompts, one a scene."""
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{caption(scene, wording)}\n" for wording, scene in enumerate(SCENES)))
    return path


@pytest.fixture
def evaluated(
    run: Callable[..., None], dalle: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., List[str]]:
    """Runs evaluate.py; returns the lines it prints."""

    def call(**options: Any) -> List[str]:
        run(evaluate, dalle_path=dalle.folder, outputs_dir=tmp_path, device="cpu", dataloader_workers=0, **options)
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def model_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Scene]], None]:
    """Lets the model draw these scenes, whatever the prompts: `model_draws(scenes)`."""

    def replace(scenes: Sequence[Scene]) -> None:
        def draw_pictures(*arguments: Any) -> Drawn:
            pictures = [pil_to_tensor(draw_scene(scene, 64, random.Random(0))) for scene in scenes]
            return Drawn(torch.stack(pictures) / 255, torch.zeros(len(scenes), 1))

        monkeypatch.setattr("commands.evaluate.draw_pictures", draw_pictures)

    return replace


def test_true_pictures_are_all_counted_as_right(
    evaluated: Callable[..., List[str]], model_draws: Callable[..., None], prompts: Path
) -> None:
    model_draws(SCENES)
    assert evaluated(prompts=prompts)[-1] == "held-out prompts drawn right: 3 of 3 (100.0 %)"


def test_pictures_of_other_prompts_are_all_counted_as_wrong(
    evaluated: Callable[..., List[str]], model_draws: Callable[..., None], prompts: Path
) -> None:
    model_draws([*SCENES[1:], SCENES[0]])
    lines = evaluated(prompts=prompts)
    assert lines[-1] == "held-out prompts drawn right: 0 of 3 (0.0 %)"
    assert lines[-2] == "drawn right by part: shape 0 of 3, color 0 of 3, size 1 of 3, place 0 of 3"


def test_a_picture_with_one_wrong_part_is_wrong_and_its_other_parts_are_right(
    evaluated: Callable[..., List[str]], model_draws: Callable[..., None], prompts: Path
) -> None:
    model_draws([SCENES[0], SCENES[1]._replace(color="purple"), SCENES[2]])
    lines = evaluated(prompts=prompts)
    assert lines[-1] == "held-out prompts drawn right: 2 of 3 (66.7 %)"
    assert lines[-2] == "drawn right by part: shape 3 of 3, color 2 of 3, size 3 of 3, place 3 of 3"


def test_the_pictures_lie_in_a_grid_in_green_frames_when_right_and_in_red_ones_when_wrong(
    evaluated: Callable[..., List[str]], model_draws: Callable[..., None], prompts: Path, tmp_path: Path
) -> None:
    model_draws([SCENES[0], SCENES[0], SCENES[0]])
    evaluated(prompts=prompts)
    with Image.open(tmp_path / "held_out.png") as grid:
        corners = [grid.getpixel((8 + cell * 136, 8)) for cell in range(3)]
    assert corners == [_FRAME[True], _FRAME[False], _FRAME[False]]


def test_the_first_prompts_alone_are_drawn_when_asked(
    evaluated: Callable[..., List[str]], model_draws: Callable[..., None], prompts: Path
) -> None:
    model_draws(SCENES[:2])
    assert evaluated(prompts=prompts, num_prompts=2)[-1] == "held-out prompts drawn right: 2 of 2 (100.0 %)"


def test_a_model_that_has_learnt_little_is_judged_by_what_it_draws(
    evaluated: Callable[..., List[str]], prompts: Path
) -> None:
    assert evaluated(prompts=prompts, batch_size=2)[-1].startswith("held-out prompts drawn right: 0 of 3")


def test_the_validation_losses_of_a_dataset_are_those_that_training_logged(
    evaluated: Callable[..., List[str]], dalle: Run, scenes: Path
) -> None:
    logged = dalle.log("validation")[-1]
    losses = " ".join(f"{name} {logged[name]:.4f}" for name in ("loss", "text", "image"))
    assert evaluated(input_folder=scenes, seed=42)[-1] == f"validation on {HELD_OUT_SCENES} samples: {losses}"


def test_nothing_to_measure_is_an_error(evaluated: Callable[..., List[str]]) -> None:
    with pytest.raises(OptionError, match="nothing to measure: give --prompts"):
        evaluated()


@pytest.mark.parametrize("text, message", [("", "holds no prompt"), ("a bowl of fruit", "describes no scene")])
def test_a_file_without_prompts_for_scenes_is_an_error_that_names_it(
    evaluated: Callable[..., List[str]], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "other.txt").write_text(text)
    with pytest.raises(UserError, match=f"prompts=.*other.txt.*{message}"):
        evaluated(prompts=tmp_path / "other.txt")
