"""A run that was stopped, by whatever means, and resumed is the uninterrupted run, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

import train
from args import run_command
from tests.conftest import Run, as_arguments

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10  # three to an epoch
KILLS = 20

Train = Callable[..., Run]


def differences(one: Any, other: Any, name: str = "") -> List[str]:
    """Where two states of nested containers differ, tensors by a single bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{name}/{key}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def account(run: Run) -> List[Dict[str, Any]]:
    """All that the log says of training and validation, but for the speed."""
    lines = [*run.log("train"), *run.log("validation")]
    return [{name: value for name, value in line.items() if name != "throughput"} for line in lines]


def assert_same_run(run: Run, uninterrupted: Run) -> None:
    assert account(run) == account(uninterrupted)
    one, other = run.state(), uninterrupted.state()
    assert differences({**one, "config": None}, {**other, "config": None}) == []


def copy_as_of(run: Run, step: int, folder: Path) -> Path:
    """A copy of a run as it was when it had just saved `step`."""
    shutil.copytree(run.folder, folder)
    for path in (folder / "ckpt").iterdir():
        if int(path.stem.split("_")[1]) > step:
            path.unlink()
    return folder


TRANSFORMERS: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "in a loader process": {"dataloader_workers": 1},
    "with dropout, average and clipping": {
        "attn_dropout": 0.2,
        "ff_dropout": 0.2,
        "ema_decay": 0.9,
        "clip_grad_norm": 1,
    },
    "with shared layers, tied embeddings and average": {
        "num_hidden_layers": 4,
        "attn_types": "full,axial_row",
        "shared_attn_ids": "a,b",
        "shared_ff_ids": "c",
        "share_input_output_emb": True,
        "ema_decay": 0.9,
    },
    "reversible and rotary, with texts left out": {
        "reversible": True,
        "rotary_emb": True,
        "shift_tokens": True,
        "null_cond_prob": 0.5,
        "attn_dropout": 0.2,
    },
    "sparse, in bfloat16": {"attn_types": "sparse", "sparse_block_size": 4, "bf16": True, "stable": True},
    "two steps a call": {"device_iterations": 2},
    "in micro batches, cosine": {"batch_size": 1, "gradient_accumulation": 4, "lr_scheduler": "cosine"},
    "with a rate that falls when the loss rises": {
        "lr_scheduler": "ReduceLROnPlateau",
        "learning_rate": 50,
        "batch_size": 12,
        "max_steps": 14,
    },
    "more in a batch than in the dataset": {"batch_size": 16, "max_steps": 4},
}


@pytest.mark.parametrize("options", TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def test_a_transformer_resumed_after_any_step_is_the_uninterrupted_one(
    run_train: Train, tmp_path: Path, options: Dict[str, Any]
) -> None:
    options = {"max_steps": STEPS, "checkpoint_save_steps": 1, **options}
    whole = run_train(tmp_path / "whole", **options)
    for step in whole.saved_steps()[:-1:3]:
        assert_same_run(run_train(copy_as_of(whole, step, tmp_path / f"{step}"), resume=True, **options), whole)


VAES: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "in a loader process": {"dataloader_workers": 1, "byteio": True},
    "with codes restarted, annealed": {"restart_codes_steps": 2, "kl_div_loss_weight": 1e-3, "kl_share": 0.5},
    "averaged, two steps a call": {"device_iterations": 2, "ema_decay": 0.9},
}


@pytest.mark.parametrize("options", VAES.values(), ids=VAES.keys())
def test_a_vae_resumed_after_any_step_is_the_uninterrupted_one(
    run_train_vae: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Dict[str, Any]
) -> None:
    monkeypatch.setattr("models.vae.USAGE_DECAY", 0.5)  # codes die within a few steps
    options = {"max_steps": STEPS, "checkpoint_save_steps": 1, **options}
    whole = run_train_vae(tmp_path / "whole", **options)
    for step in whole.saved_steps()[:-1:3]:
        assert_same_run(run_train_vae(copy_as_of(whole, step, tmp_path / f"{step}"), resume=True, **options), whole)


def test_a_checkpoint_is_gone_on_from_in_another_folder(run_train: Train, tmp_path: Path) -> None:
    whole = run_train(tmp_path / "whole", max_steps=STEPS, checkpoint_save_steps=4)
    rest = run_train(
        tmp_path / "rest", max_steps=STEPS, pretrained_checkpoint=whole.folder / "ckpt" / "dalle_4.pt", resume=True
    )
    assert rest.series("step") == list(range(5, STEPS + 1))
    assert rest.series("loss") == whole.series("loss")[4:]


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(run_train: Train, tmp_path: Path) -> None:
    whole = run_train(tmp_path / "whole", max_steps=STEPS, checkpoint_save_steps=4)
    torn = copy_as_of(whole, 8, tmp_path / "torn")
    os.truncate(torn / "ckpt" / "dalle_8.pt", 1000)
    assert_same_run(run_train(torn, resume=True, max_steps=STEPS), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_run_and_its_loaders_saves_and_leaves_with_its_number(
    run_train: Train, dalle_options: Dict[str, Any], tmp_path: Path, number: signal.Signals
) -> None:
    options = {"max_steps": 60, "attn_dropout": 0.1, "dataloader_workers": 1, "checkpoint_save_steps": 20}
    arguments = as_arguments({**dalle_options, **options, "output_dir": tmp_path / "stopped"})
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    said = list(itertools.takewhile(lambda line: "Step: 2/" not in line, process.stdout))
    os.killpg(process.pid, number)  # as Ctrl-C and `timeout` do
    said += process.stdout.readlines()
    assert process.wait() == 128 + number, "".join(said)
    assert f"stopped by {number.name} after step" in said[-1] and "go on with --resume" in said[-1], "".join(said)
    stopped = Run(tmp_path / "stopped", "dalle")
    assert stopped.saved_steps()[-1] == stopped.series("step")[-1] < 60
    resumed = run_train(stopped.folder, resume=True, **options)
    assert_same_run(resumed, run_train(tmp_path / "whole", **options))


def train_in_child(arguments: List[str]) -> None:
    """train.py in a process that has imported all it needs; silent."""
    torch.set_num_threads(1)
    sys.argv = ["train.py", *arguments]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        run_command(train.main)


def start(options: Dict[str, Any], folder: Path) -> Any:
    """A child process that trains into `folder`, from where an earlier one left off."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    child = context.Process(target=train_in_child, args=(as_arguments({**options, "output_dir": folder}),))
    child.start()
    return child


def kill_until_done(options: Dict[str, Any], folder: Path, rng: random.Random, longest: float) -> int:
    """Train into `folder` with a process after the other, each killed after up to `longest` seconds; how many were."""
    kills = 0
    while True:
        child = start(options, folder)
        child.join(rng.uniform(0, longest))
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL), f"after {kills} kills, resuming failed"
        if child.exitcode == 0:
            return kills
        kills += 1
        Run(folder, "dalle").checkpoints.newest()  # raises where checkpoints lie and none is whole


def test_a_run_killed_at_any_moment_resumes_to_the_uninterrupted_one(
    dalle_options: Dict[str, Any], tmp_path: Path
) -> None:
    options = {**dalle_options, "resume": True, "max_steps": 30, "checkpoint_save_steps": 1, "keep_n_checkpoints": 2}
    options.update(ff_dropout=0.1, ema_decay=0.9, sample_steps=20, sample_prompts="a red circle")
    for name in ("first", "second"):  # the first waits for the imports
        began = time.monotonic()
        child = start(options, tmp_path / name)
        child.join()
        assert child.exitcode == 0
    duration, rng, kills = time.monotonic() - began, random.Random(0), 0
    for number in itertools.count():
        kills += kill_until_done(options, tmp_path / str(number), rng, duration)
        assert_same_run(Run(tmp_path / str(number), "dalle"), Run(tmp_path / "first", "dalle"))
        if kills >= KILLS:
            return
