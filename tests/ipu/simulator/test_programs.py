"""Programs for PopTorch, run as processes in which only the simulator answers to its name, beside plain PyTorch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).resolve().parents[3]


def run(program: str, *words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ipu.simulator", "--force", str(PROGRAMS / program), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROGRAMS, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def load_digits() -> Any:
    specification = importlib.util.spec_from_file_location("digits", PROGRAMS / "digits.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def results(folder: Path) -> Dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def train_plainly(epochs: int) -> Dict[str, List[float]]:
    """The training program without PopTorch: micro batches of 4, 4 to an update."""
    digits = load_digits()
    torch.manual_seed(42)
    model = digits.NetworkWithLoss(digits.Network()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    images, labels = digits.make_digits(160, seed=2).tensors
    losses: List[float] = []
    for _ in range(epochs):
        for number, (x, y) in enumerate(zip(images.split(4), labels.split(4))):
            loss = model(x, y)[1]
            (loss / 4).backward()
            losses.append(loss.item())
            if number % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    model.eval()
    with torch.no_grad():
        return {"losses": losses, "predictions": model(digits.make_digits(80, seed=3).tensors[0]).argmax(-1).tolist()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run("train_digits.py", folder, 3)
    return folder


def test_a_pipelined_training_program_does_what_plain_pytorch_does(trained: Path) -> None:
    found, wanted = results(trained), train_plainly(3)
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-3, abs=1e-4)
    assert found["predictions"] == wanted["predictions"]
    assert sum(found["losses"][-40:]) < 0.7 * sum(found["losses"][:40])
    assert found["module"] == "ipu.simulator"


def test_a_training_program_that_is_resumed_ends_where_the_whole_one_does(trained: Path, tmp_path: Path) -> None:
    run("train_digits.py", tmp_path, 1)
    first = results(tmp_path)["losses"]
    run("train_digits.py", tmp_path, 3)
    assert first + results(tmp_path)["losses"] == results(trained)["losses"]
    assert results(tmp_path)["predictions"] == results(trained)["predictions"]


def test_a_replicated_inference_program_does_what_plain_pytorch_does(tmp_path: Path) -> None:
    done = run("infer_digits.py", tmp_path)
    found = torch.load(tmp_path / "logits.pt")
    digits = load_digits()
    torch.manual_seed(0)
    network = digits.Network().eval()
    with torch.no_grad():
        wanted = network(digits.make_digits(72, seed=4).tensors[0])
        halves = network.half().float()(digits.make_digits(72, seed=4).tensors[0].half().float())
    torch.testing.assert_close(found["logits"], wanted)
    assert torch.equal(found["again"], found["logits"])
    assert found["half"].dtype == torch.half
    torch.testing.assert_close(found["half"].float(), halves, rtol=0.02, atol=0.02)
    assert results(tmp_path) == {"counters": 6}
    printed = [line for line in done.stderr.splitlines() if line.startswith("mean of the logits: ")]
    # twice 18 micro batches, with and without the file; none while compiling
    means = sorted(float(part.mean()) for part in wanted.split(4))
    assert len(printed) == 36
    assert sorted(float(line.split(": ")[1]) for line in printed[:18]) == pytest.approx(means, abs=1e-4)
