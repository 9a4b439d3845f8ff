"""What a run says, and that what it says can be read by machines."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import log
from data.options import DataOptions
from data.report import DataReport
from engines import open_engine
from engines.options import IpuOptions, TrainingOptions
from log import Log, LogOptions, Throughput
from options import UserError
from training import Trainer

# What runners of benchmarks look for in the output of a run.
COMPILED = re.compile(r"Compiled model in (.*?) secs")
LOSS = re.compile(r"loss: (.*?) ")
THROUGHPUT = re.compile(r"throughput: (.*?) samples/sec")


def entries(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class FakeTracker:
    """Stands for wandb's run and for TensorBoard's writer; notes every call."""

    def __init__(self) -> None:
        self.calls: List[Tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.values()))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in wandb's place; `wandb.run` notes what is logged, `wandb.started` how it began."""
    module: Any = ModuleType("wandb")
    module.run, module.started, module.api = FakeTracker(), {}, SimpleNamespace(api_key=None)
    module.Image = lambda path: f"image {Path(path).name}"
    module.init = lambda **how: (module.started.update(how), module.run)[1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


@pytest.fixture
def summary_writer(monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    """What stands in TensorBoard's place."""
    writer, module = FakeTracker(), ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder: writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return writer


def test_the_log_has_one_json_object_a_line_on_the_disk_at_once(tmp_path: Path) -> None:
    account = Log(LogOptions(output_dir=str(tmp_path / "new" / "folder")), {})
    account.record(1, "train", {"loss": 2.5})
    account.record(1, "validation", {"loss": 3.0, "text": 1.0})
    assert entries(tmp_path / "new" / "folder") == [
        {"step": 1, "event": "train", "loss": 2.5},
        {"step": 1, "event": "validation", "loss": 3.0, "text": 1.0},
    ]


@pytest.mark.parametrize("torn", ["", '{"step": 2, "ev', "{", "\0" * 50, '{"event": "train"}\n'])
@pytest.mark.parametrize("step, kept", [(0, []), (1, [1]), (2, [1, 2]), (9, [1, 2, 3])])
def test_a_resumed_log_keeps_the_lines_up_to_its_step_and_no_torn_one(
    tmp_path: Path, torn: str, step: int, kept: List[int]
) -> None:
    options = LogOptions(output_dir=str(tmp_path))
    first = Log(options, {})
    for number in (1, 2, 3):
        first.record(number, "train", {"loss": 0.0})
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(torn)
    resumed = Log(options, {}, step)
    resumed.record(step + 1, "train", {"loss": 0.0})
    assert [entry["step"] for entry in entries(tmp_path)] == [*kept, step + 1]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def use_all_of(account: Log) -> None:
    account.record(3, "train", {"loss": 2.5})
    account.picture(3, "samples", Path("step_3.png"))
    account.close()


def test_wandb_gets_options_scalars_and_pictures(tmp_path: Path, wandb: Any) -> None:
    options = LogOptions(output_dir=str(tmp_path), wandb=True, wandb_run_name="first", wandb_entity="team")
    use_all_of(Log(options, {"batch_size": 4}))
    assert wandb.started["config"] == {"batch_size": 4}
    assert (wandb.started["project"], wandb.started["name"]) == ("miniDALL-E", "first")
    assert wandb.started["entity"] == "team"
    assert wandb.run.calls == [
        ("log", {"train/loss": 2.5}, 3),
        ("log", {"samples": "image step_3.png"}, 3),
        ("finish",),
    ]


@pytest.mark.parametrize(
    "key, asked, mode", [(None, None, "offline"), ("secret", None, "online"), ("secret", "offline", "offline")]
)
def test_wandb_goes_online_only_with_an_account_and_leave(
    tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, key: Optional[str], asked: Optional[str], mode: str
) -> None:
    wandb.api.api_key = key
    if asked:
        monkeypatch.setenv("WANDB_MODE", asked)
    Log(LogOptions(output_dir=str(tmp_path), wandb=True), {}).close()
    assert wandb.started["mode"] == mode


def test_tensorboard_gets_scalars_and_pictures(tmp_path: Path, summary_writer: FakeTracker) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png")
    account = Log(LogOptions(output_dir=str(tmp_path), tensorboard=True), {})
    account.record(3, "train", {"loss": 2.5, "text": 1.5})
    account.picture(3, "samples", tmp_path / "a.png")
    account.close()
    kind, name, picture, step = summary_writer.calls.pop(2)
    assert (kind, name, picture.shape, step) == ("add_image", "samples", (3, 2, 4), 3)
    assert summary_writer.calls == [
        ("add_scalar", "train/loss", 2.5, 3),
        ("add_scalar", "train/text", 1.5, 3),
        ("close",),
    ]


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_tracker_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"--{package} needs the package {package}: pip install {package}, or leave"):
        Log(LogOptions(output_dir=str(tmp_path), **{package: True}), {})


@pytest.mark.parametrize(
    "given, folder",
    [(None, Path("runs/ckpt")), ("", None), ("elsewhere", Path("elsewhere"))],
    ids=["none", "empty", "a path"],
)
def test_checkpoints_go_beside_the_log_nowhere_or_where_told(given: Optional[str], folder: Optional[Path]) -> None:
    assert LogOptions(output_dir="runs", checkpoint_output_dir=given).checkpoint_folder == folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass: `clock(seconds)`."""
    now = [100.0]
    monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_throughput_is_told_since_the_start_and_since_last_asked(clock: Callable[[float], None]) -> None:
    throughput = Throughput()
    throughput.start()
    for samples, seconds, recent in [(10, 5, 2.0), (90, 15, 6.0)]:
        throughput.add(samples)
        clock(seconds)
        assert throughput.recent() == recent
    assert throughput.overall() == 5.0


def test_what_happens_while_the_clock_is_paused_takes_no_time(clock: Callable[[float], None]) -> None:
    throughput = Throughput()
    clock(50)
    throughput.start()
    clock(2)
    throughput.pause()
    clock(1000)
    throughput.start()
    clock(2)
    throughput.add(8)
    assert throughput.recent() == throughput.overall() == 2.0


def test_throughput_of_no_time_at_all_is_a_number(clock: Callable[[float], None]) -> None:
    assert Throughput().overall() == 0.0


class Line(nn.Module):
    """A straight line through one point; its scalars are those of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        loss = (self.slope * inputs - 1).square().mean()
        return loss, loss * 2, loss * 3


class Ones(Dataset):  # type: ignore[type-arg]
    """Eight times the number one."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: Any) -> Tensor:
        return torch.ones(1)


class LineTask:
    """The least task there is."""

    kind, scalars = "line", ("loss", "text", "image")

    def describe(self) -> Dict[str, Any]:
        return {}

    def before_step(self, step: int, total_steps: int) -> None:
        pass

    def after_step(self, step: int) -> None:
        pass

    def figures(self) -> Dict[str, float]:
        return {"temperature": 0.5}

    def sample(self, model: nn.Module) -> Image.Image:
        return Image.new("RGB", (4, 4))


@pytest.fixture
def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> List[str]:
    """What a run of four steps, validated after two, prints."""
    training = TrainingOptions(device="cpu", batch_size=2, learning_rate=0.1, lr_scheduler="constant")
    logs = LogOptions(output_dir=str(tmp_path), validation_steps=2, sample_steps=4)
    engine = open_engine(Line(), training, IpuOptions(), workers=0)
    Trainer(engine, LineTask(), Ones(), Ones(), DataReport(), training, DataOptions(), logs, {}).run()
    return capsys.readouterr().out.splitlines()


def test_a_run_tells_once_how_long_compiling_took(lines: List[str]) -> None:
    (seconds,) = (match.group(1) for match in map(COMPILED.search, lines) if match)
    assert float(seconds) >= 0


def test_a_run_tells_the_loss_and_the_throughput_of_every_step(lines: List[str], tmp_path: Path) -> None:
    steps = [line for line in lines if line.startswith("Epoch: ")]
    recorded = [entry for entry in entries(tmp_path) if entry["event"] == "train"]
    assert [float(LOSS.search(line).group(1)) for line in steps] == [  # type: ignore[union-attr]
        pytest.approx(entry["loss"], abs=1e-4) for entry in recorded
    ]
    assert [float(THROUGHPUT.search(line).group(1)) for line in steps] == [  # type: ignore[union-attr]
        pytest.approx(entry["throughput"], abs=0.01) for entry in recorded
    ]
    assert len(steps) == 4 and recorded[0]["loss"] == 1.0


def test_the_last_line_tells_the_throughput_of_the_whole_run(lines: List[str]) -> None:
    assert float(THROUGHPUT.fullmatch(lines[-1].rstrip(".")).group(1)) > 0  # type: ignore[union-attr]


def test_no_line_but_that_of_a_training_step_is_read_as_its_loss(lines: List[str], tmp_path: Path) -> None:
    validations = [line for line in lines if line.startswith("validation after step ")]
    assert [line.split(":")[0] for line in validations] == ["validation after step 2", "validation after step 4"]
    assert all(line.startswith("Epoch: ") for line in lines if LOSS.search(line))
    assert all(re.search(r": loss [\d.]+ text [\d.]+ image [\d.]+$", line) for line in validations)
    assert [entry["step"] for entry in entries(tmp_path) if entry["event"] == "validation"] == [2, 4]


def test_each_process_of_a_run_writes_in_a_folder_of_its_own_and_the_first_alone_tracks_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = LogOptions(output_dir=str(tmp_path), wandb=True, tensorboard=True)
    assert logs.of_process(0) is logs
    second = logs.of_process(1)
    assert not second.wandb and not second.tensorboard
    assert second.checkpoint_folder == logs.checkpoint_folder
    log = Log(second, {}, quiet=True)
    log.record(1, "train", {"loss": 1.0})
    log.say("a line")
    log.close()
    assert (tmp_path / "process_1" / "log.jsonl").read_text().startswith('{"step": 1')
    assert capsys.readouterr().out == "" and not (tmp_path / "log.jsonl").exists()
    assert LogOptions(checkpoint_output_dir="").of_process(1).checkpoint_folder is None


def test_poptorch_s_lines_are_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    handlers = logging.getLogger().handlers[:]
    try:
        log.set_up_logging()
        logging.getLogger("poptorch::python").warning("its own handler prints this")
        logging.getLogger("engines.ipu").warning("a notice")
        assert capsys.readouterr().out == "a notice\n"
    finally:
        logging.getLogger().handlers[:] = handlers
