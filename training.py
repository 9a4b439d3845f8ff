"""The training loop: set the rate, step, log, validate, draw samples, save. It knows an engine and a task."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Tuple

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, Subset

from checkpoint import CheckpointFolder, find_checkpoint
from data.datasets import DatasetOpener
from data.options import DataOptions
from data.report import DataReport
from engines.base import Engine, as_inputs
from engines.options import IPU_ENGINES, TrainingOptions
from engines.sampler import steps_per_epoch
from log import Log, LogOptions, Throughput
from metrics import Mean
from optim import Schedule
from options import UserError
from pictures import save_image

_GENERATED_STEPS = 16  # of an epoch of generated data


class TrainingError(UserError):
    """Training that cannot go on."""


class Task(Protocol):
    """What is trained: the part of a run that differs between the commands."""

    kind: str
    """Name in the checkpoints' file names."""
    scalars: Tuple[str, ...]
    """Names of the scalars that the model's forward returns, the loss first."""

    def describe(self) -> Dict[str, Any]:
        """What a checkpoint says beside the weights, to build the model again."""

    def before_step(self, step: int, total_steps: int) -> None:
        """Prepare the model for a step."""

    def after_step(self, step: int) -> None:
        """Look after the model between steps."""

    def figures(self) -> Dict[str, float]:
        """More scalars to log."""

    def sample(self, model: nn.Module) -> Image.Image:
        """A picture of what the model can do by now."""


class Interruption:
    """Turns Ctrl-C and SIGTERM into a request to stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: Optional[int] = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the two signals within a `with` block."""
        before = {number: signal.signal(number, self._catch) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: Optional[FrameType]) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


class Trainer:
    """Trains one task on one engine.

    Args:
        engine: runs the steps.
        task: what is trained.
        dataset: the training samples.
        validation: samples for the validation loss; may be empty.
        report: of the data.
        training, data, logs: options.
        config: all resolved options, for the checkpoint and the trackers.
        state: the checkpoint to go on from.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        dataset: Dataset[Any],
        validation: Optional[Dataset[Any]],
        report: DataReport,
        training: TrainingOptions,
        data: DataOptions,
        logs: LogOptions,
        config: Dict[str, Any],
        state: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self.engine, self.task, self.dataset, self.report = engine, task, dataset, report
        self.training, self.data, self.logs, self.config = training, data, logs, config
        self.validation = _first(validation, logs.validation_samples)
        self.listed = len(dataset) + len(report.skipped)  # type: ignore[arg-type]
        self.epoch_steps = steps_per_epoch(len(dataset), training.global_batch)  # type: ignore[arg-type]
        self.total_steps = training.max_steps or training.epochs * self.epoch_steps
        self.schedule = Schedule(training, self.total_steps)
        folder = logs.checkpoint_folder
        self.checkpoints = CheckpointFolder(folder, task.kind, logs.keep_n_checkpoints) if folder else None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)  # what cannot be written to is found out before training
        self.step, self.samples, self.epoch_loss = 0, 0, Mean()
        if state:
            self._load(state)
        self.log = Log(logs, config, self.step, quiet=not engine.is_main)
        self.interruption = Interruption()
        self.throughput = Throughput()
        self._saved_step = self.step if state else -1

    def run(self) -> None:
        """Train to the end, or until interrupted.

        Raises:
            TrainingError: the loss is no number any more.
            DataError: more of the data is unusable than `max_bad_share` admits.
            SystemExit: on Ctrl-C or SIGTERM, after saving.
        """
        with self.interruption.listening():
            try:
                if self.step < self.total_steps:
                    self._compile()
                    if self.engine.compile_only:
                        return
                    self._train()
                self._finish()
            finally:
                self.log.close()
                self.engine.close()

    def _train(self) -> None:
        self.log.start_bar(self.step, self.total_steps)
        self.throughput.start()
        epochs = math.ceil(self.total_steps / self.epoch_steps)
        for batch in self.engine.loader(self.dataset, self.samples, epochs):
            rate = self.schedule.rate(self.step)
            self.engine.set_learning_rate(rate)
            self.task.before_step(self.step, self.total_steps)
            scalars = self.engine.step(batch)
            self._count(scalars)
            self.task.after_step(self.step)
            if self._due(self.logs.log_steps):
                self._log_step(scalars, rate)
            self._between_steps()
            if self.interruption.signal is not None or self.step >= self.total_steps:
                return

    def _count(self, scalars: torch.Tensor) -> None:
        updates = min(self.training.device_iterations, self.total_steps - self.step)
        self.step += updates
        self.samples += updates * self.training.global_batch
        self.throughput.add(updates * self.training.global_batch)
        self.epoch_loss.add(scalars[:1])
        if self.step % self.epoch_steps < updates:
            self.schedule.end_epoch(float(self.epoch_loss.value()))
            self.epoch_loss = Mean()

    def _between_steps(self) -> None:
        validation = self._due(self.logs.validation_steps or self.epoch_steps) and self.validation is not None
        sample, save = self._due(self.logs.sample_steps), self._due(self.logs.checkpoint_save_steps)
        if not (validation or sample or save):
            return
        self.throughput.pause()
        if validation:
            self._validate()
        if sample:
            self._sample()
        if save:
            self._save()
        self.throughput.start()

    def _due(self, every: int) -> bool:
        """Whether the last call of the engine passed a multiple of `every` steps; 0 is never due."""
        return bool(every) and self.step % every < self.training.device_iterations

    def _compile(self) -> None:
        placement = self.engine.describe()
        if placement:
            self.log.say(placement)
        started = time.perf_counter()
        example = torch.utils.data.default_collate([self.dataset[0]] * self.training.batch_size)
        memory = self.engine.compile(as_inputs(example))
        self.log.say(memory)
        self.log.say(f"Compiled model in {time.perf_counter() - started:.2f} secs")

    def _log_step(self, scalars: torch.Tensor, rate: float) -> None:
        values = dict(zip(self.task.scalars, scalars.tolist()))
        loss = values["loss"]
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        speed = self.throughput.recent()
        self.log.record(
            self.step, "train", {**values, "learning_rate": rate, "throughput": speed, **self.task.figures()}
        )
        more = "".join(f" {name}: {value:.4f}" for name, value in values.items() if name != "loss")
        more += "".join(f" {name}: {value:.3g}" for name, value in self.task.figures().items())
        self.log.say(
            f"Epoch: {self.step / self.epoch_steps:.2f}/{math.ceil(self.total_steps / self.epoch_steps)} "
            f"Step: {self.step}/{self.total_steps} Lr: {rate:.6f} loss: {loss:.4f} "
            f"throughput: {speed:.2f} samples/sec{more}"
        )
        self.report.check(self.listed, self.data.max_bad_share)

    def _diverged(self, finding: str) -> TrainingError:
        return TrainingError(
            f"{finding} at step {self.step}; lower learning_rate={self.training.learning_rate}, set "
            "--clip-grad-norm 1, or compute in a higher precision. Checkpoints saved so far are untouched"
        )

    def _validate(self) -> None:
        mean = Mean()
        assert self.validation is not None
        with self.engine.inference():
            for inputs in self.engine.validation_loader(self.validation):
                inputs = as_inputs(inputs)
                mean.add(self.engine.evaluate(inputs), weight=len(inputs[0]))
        values = dict(zip(self.task.scalars, mean.value().tolist()))
        self.log.record(self.step, "validation", values)
        # no "loss:" here: benchmark runners read that as the training loss
        shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.log.say(f"validation after step {self.step}: {shown}")

    def _sample(self) -> None:
        path = Path(self.logs.output_dir) / "samples" / f"step_{self.step:08d}.png"
        with self.engine.inference() as model:
            save_image(self.task.sample(model), path)
        self.log.picture(self.step, "samples", path)

    def _save(self) -> None:
        if self.checkpoints is None or not self.engine.is_main or self._saved_step == self.step:
            return
        state = {
            **self.engine.state_dict(),
            **self.task.describe(),
            "step": self.step,
            "samples": self.samples,
            "schedule": self.schedule.state_dict(),
            "epoch_loss": self.epoch_loss.state_dict(),
            "config": self.config,
        }
        for name, weight in state["weights"].items():
            if not torch.isfinite(weight).all():  # between log lines nobody looks at the loss
                raise self._diverged(f"the weight {name} holds values that are no numbers")
        path = self.checkpoints.save(self.step, state)
        self._saved_step = self.step
        self.log.say(f"saved {path}")

    def _load(self, state: Mapping[str, Any]) -> None:
        self.engine.load_state_dict(dict(state))
        if state["optimizer"] is None:  # weights alone, from another program: training begins anew
            return
        self.schedule.load_state_dict(state["schedule"])
        self.epoch_loss.load_state_dict(state["epoch_loss"])
        self.step, self.samples = state["step"], state["samples"]

    def _finish(self) -> None:
        self._save()
        summary = self.report.summary()
        if summary:
            self.log.say(f"data report ({self.report.path}):\n{summary}")
        if self.interruption.signal is not None:
            name = signal.Signals(self.interruption.signal).name
            self.log.say(f"stopped by {name} after step {self.step} of {self.total_steps}; go on with --resume")
            raise SystemExit(128 + self.interruption.signal)
        self.report.check(self.listed, self.data.max_bad_share)
        if self.throughput.samples:
            self.log.say(f"throughput: {self.throughput.overall():5f} samples/sec.")
        else:
            self.log.say(f"nothing left to train: step {self.step} of {self.total_steps} is done")


def open_report(logs: LogOptions) -> DataReport:
    """The data report of a run, empty: what an earlier one found may have been mended."""
    path = Path(logs.output_dir) / "data_report.jsonl"
    path.unlink(missing_ok=True)
    return DataReport(path)


def open_state(
    logs: LogOptions, kind: str, find: Callable[[str, str], Tuple[Path, Dict[str, Any]]] = find_checkpoint
) -> Optional[Dict[str, Any]]:
    """The checkpoint that the options ask to go on from, if any.

    Args:
        logs: the options.
        kind: of the checkpoint.
        find: reads `pretrained_checkpoint`.

    Raises:
        CheckpointError: it cannot be read.
        TrainingError: the run would mix its checkpoints with those of an earlier one.
    """
    folder = CheckpointFolder(logs.checkpoint_folder, kind) if logs.checkpoint_folder else None
    newest = folder.newest() if folder and logs.resume else None
    if newest is None and logs.pretrained_checkpoint is None:
        _refuse_to_mix(logs, folder, None)
        return None
    path, state = newest or find(str(logs.pretrained_checkpoint), kind)
    if newest is None:
        _refuse_to_mix(logs, folder, path)
    print(f"going on from {path}, step {state['step']}", flush=True)
    return state


def _refuse_to_mix(logs: LogOptions, folder: Optional[CheckpointFolder], begin: Optional[Path]) -> None:
    """Refuse checkpoints of an earlier run in the folder, unless the newest is what the run begins with.

    Raises:
        TrainingError: there are some.
    """
    files = folder.files() if folder else []
    if folder and files and (begin is None or begin.resolve() != files[0].resolve()):
        place = "output-dir" if logs.checkpoint_output_dir is None else "checkpoint-output-dir"
        raise TrainingError(
            f"checkpoint_output_dir={folder.folder} holds {files[0].name} of an earlier run; add --resume to go on "
            f"from it, or give another --{place}"
        )


def dataset_opener(data: DataOptions, training: TrainingOptions, logs: LogOptions, report: DataReport) -> DatasetOpener:
    """What opens the datasets of a run; to other engines than IPUs pictures always travel as bytes.

    They scale a whole micro batch at once, to the same numbers.
    """
    data = dataclasses.replace(data, byteio=data.byteio or training.engine not in IPU_ENGINES)
    generated = _GENERATED_STEPS * training.global_batch
    return DatasetOpener(data, report, training.random_seed, Path(logs.output_dir), logs.validation_samples, generated)


def _first(dataset: Optional[Dataset[Any]], count: int) -> Optional[Dataset[Any]]:
    """The first `count` samples of a dataset; None when that is none."""
    length = min(len(dataset), count) if dataset is not None else 0  # type: ignore[arg-type]
    if dataset is None or not length:
        return None
    indices: List[int] = list(range(length))
    return Subset(dataset, indices)
