"""What the training loop does between the first step and the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import torch

from checkpoint import find_checkpoint, load_text_to_image
from data.options import DataOptions
from data.report import DataReport
from engines.options import TrainingOptions
from log import LogOptions
from options import OptionError
from tests.conftest import Run
from training import TrainingError, dataset_opener

Train = Callable[..., Run]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2, "gradient_accumulation": 3},
        {"batch_size": 1, "gradient_accumulation": 2, "replication_factor": 3},
        {"batch_size": 3, "replication_factor": 2},
    ],
)
def test_a_global_batch_trains_alike_however_it_is_divided(
    run_train: Train, tmp_path: Path, options: Dict[str, int]
) -> None:
    whole, divided = run_train(tmp_path / "whole", batch_size=6), run_train(tmp_path / "divided", **options)
    assert divided.series("loss") == pytest.approx(whole.series("loss"), rel=1e-4)
    assert divided.series("text", "validation") == pytest.approx(whole.series("text", "validation"), rel=1e-4)


def test_several_steps_a_call_train_as_one_a_call_and_log_their_mean(run_train: Train, tmp_path: Path) -> None:
    single, double = run_train(tmp_path / "1", max_steps=6), run_train(tmp_path / "2", max_steps=6, device_iterations=2)
    losses = single.series("loss")
    assert double.series("step") == [2, 4, 6]
    assert double.series("loss") == pytest.approx([(a + b) / 2 for a, b in zip(losses[::2], losses[1::2])])
    assert all(torch.equal(w, double.state()["weights"][name]) for name, w in single.state()["weights"].items())


def test_steps_that_calls_of_several_cannot_make_up_are_refused(run_train: Train, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="max_steps=5 is not a multiple of device_iterations=2.*take 6"):
        run_train(tmp_path, max_steps=5, device_iterations=2)


def test_epochs_count_whole_global_batches(run_train: Train, tmp_path: Path) -> None:
    assert run_train(tmp_path, max_steps="none", epochs=2, batch_size=5).series("step") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "options, rates",
    [
        ({"lr_scheduler": "constant", "warmup_steps": 2}, [1, 2, 2, 2]),
        ({"lr_scheduler": "multi_step", "warmup_steps": 0}, [2, 2, 0.2, 0.2]),
        ({"lr_scheduler": "cosine", "warmup_steps": 0}, [2, 1.7071067811865475, 1, 0.2928932188134525]),
    ],
)
def test_the_rate_follows_the_schedule(run_train: Train, tmp_path: Path, options: Dict[str, Any], rates: Any) -> None:
    logged = run_train(tmp_path, max_steps=4, learning_rate=2e-3, **options).series("learning_rate")
    assert logged == pytest.approx([rate * 1e-3 for rate in rates])


def test_the_plateau_schedule_halves_the_rate_after_eleven_epochs_without_progress(
    run_train: Train, tmp_path: Path
) -> None:
    options = {"lr_scheduler": "ReduceLROnPlateau", "learning_rate": 50, "batch_size": 12, "max_steps": 14}
    run = run_train(tmp_path, **options)
    assert min(run.series("loss")[1:]) > run.series("loss")[0], "the rate is far too high to make progress"
    assert run.series("learning_rate") == [50] * 12 + [25] * 2


def test_the_temperature_of_a_vae_falls_to_its_least(run_train_vae: Train, tmp_path: Path) -> None:
    run = run_train_vae(tmp_path, max_steps=5, temperature=1, temperature_min=0.25, anneal_share=0.4)
    assert run.series("temperature") == pytest.approx([1, 0.5, 0.25, 0.25, 0.25])


def test_validation_and_drawing_use_the_averaged_weights(run_train: Train, tmp_path: Path) -> None:
    plain = run_train(tmp_path / "plain", learning_rate=1e-2)
    averaged = run_train(tmp_path / "averaged", learning_rate=1e-2, ema_decay=0.99)
    assert averaged.series("loss") == plain.series("loss")
    assert averaged.series("loss", "validation") != plain.series("loss", "validation")
    drawing, trained = load_text_to_image(averaged.state())[0].state_dict(), averaged.state()["weights"]
    average = averaged.state()["average"]["weights"]
    assert all(torch.equal(drawing[name], average.get(name, trained[name])) for name in trained)
    assert not torch.equal(drawing["dalle.to_logits.weight"], trained["dalle.to_logits.weight"])


def test_the_encoder_rests_as_long_as_it_is_told(run_train_vae: Train, tmp_path: Path) -> None:
    options = {"max_steps": 4, "checkpoint_save_steps": 1, "keep_n_checkpoints": 9, "encoder_rest_share": 0.5}
    run_train_vae(tmp_path, **options)
    files = [tmp_path / "ckpt" / f"vae_{step}.pt" for step in (1, 2, 3)]
    weights = [find_checkpoint(str(file), "vae")[1]["weights"] for file in files]
    encoders = [{name: w for name, w in state.items() if name.startswith("encoder.")} for state in weights]
    assert all(torch.equal(w, encoders[1][name]) for name, w in encoders[0].items())
    assert not any(torch.equal(w, encoders[2][name]) for name, w in encoders[1].items())
    assert not torch.equal(weights[0]["decoder.0.0.weight"], weights[1]["decoder.0.0.weight"])


def test_dead_codes_are_restarted(run_train_vae: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.vae.USAGE_DECAY", 0.5)  # codes die within a few steps
    options = {"max_steps": 12, "num_tokens": 64}
    restarted = run_train_vae(tmp_path / "restarted", restart_codes_steps=5, **options)
    left = run_train_vae(tmp_path / "left", restart_codes_steps=0, **options)
    assert restarted.series("loss")[:5] == left.series("loss")[:5]
    assert restarted.series("loss")[-1] != left.series("loss")[-1]
    assert restarted.series("perplexity")[-2] > left.series("perplexity")[-2]


@pytest.mark.parametrize("log_steps", [1, 10])
def test_a_loss_that_turns_into_no_number_stops_training_and_leaves_only_sound_checkpoints(
    run_train: Train, tmp_path: Path, log_steps: int
) -> None:
    options = {"checkpoint_save_steps": 1, "keep_n_checkpoints": 1, "log_steps": log_steps, "max_steps": 10}
    with pytest.raises(TrainingError, match=r"learning_rate=1e\+20"):
        run_train(tmp_path, learning_rate=1e20, **options)
    weights = Run(tmp_path, "dalle").state()["weights"]
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    "engine, byteio, dtype",
    [
        ("host", False, torch.uint8),
        ("auto", False, torch.uint8),
        ("ipu-sim", False, torch.float32),
        ("ipu-sim", True, torch.uint8),
    ],
)
def test_pictures_travel_as_bytes_unless_ipus_are_to_get_them_scaled(
    tmp_path: Path, engine: str, byteio: bool, dtype: torch.dtype
) -> None:
    data, logs = DataOptions(generated_data=True, byteio=byteio), LogOptions(output_dir=str(tmp_path))
    opener = dataset_opener(data, TrainingOptions(engine=engine), logs, DataReport())
    assert opener.pictures(8).train[0].dtype == dtype
