"""What a run says: lines on the terminal, a JSON-lines file always, wandb or TensorBoard when asked for."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Protocol, TextIO

from options import Options, UserError, option


@dataclasses.dataclass(frozen=True)
class LogOptions(Options):
    """What a run writes, where and how often."""

    output_dir: str = option("output", "folder of the log, the samples and the data report")
    checkpoint_output_dir: Optional[str] = option(
        None, "folder of checkpoints (none: ckpt in output_dir; empty: write none)"
    )
    checkpoint_save_steps: int = option(
        1000, "optimizer steps between checkpoints (0: only at the end)", minimum=0, aliases=("save_every_n_steps",)
    )
    keep_n_checkpoints: int = option(0, "how many checkpoints to keep, the newest (0: all)", minimum=0)
    resume: bool = option(False, "go on from the newest whole checkpoint in checkpoint_output_dir, if there is one")
    pretrained_checkpoint: Optional[str] = option(
        None, "go on from this checkpoint; with resume, where the run has none yet", aliases=("dalle_path",)
    )
    log_steps: int = option(1, "optimizer steps between log lines", minimum=1)
    validation_steps: int = option(0, "optimizer steps between validations (0: at the end of every epoch)", minimum=0)
    validation_samples: int = option(1024, "samples of a validation (0: none)", minimum=0)
    sample_steps: int = option(0, "optimizer steps between grids of sample pictures (0: none)", minimum=0)
    sample_prompts: Optional[str] = option(None, "prompts of those pictures, separated by | (none: first captions)")
    wandb: bool = option(False, "track the run with Weights & Biases")
    wandb_project_name: str = option("miniDALL-E", "its project there", aliases=("wandb_name",))
    wandb_run_name: Optional[str] = option(None, "its name there")
    wandb_entity: Optional[str] = option(None, "the user or team that the project belongs to (none: your default)")
    tensorboard: bool = option(False, "track the run with TensorBoard, in output_dir")

    @property
    def checkpoint_folder(self) -> Optional[Path]:
        """Where checkpoints go; None: nowhere."""
        if self.checkpoint_output_dir is None:
            return Path(self.output_dir) / "ckpt"
        return Path(self.checkpoint_output_dir) if self.checkpoint_output_dir else None

    def of_process(self, instance: int) -> LogOptions:
        """The options of one of several processes of a run: the first has them as they are.

        The others keep what they write of their own, log and data report, in a folder `process_<number>`; checkpoints
        are read where the first one writes them.
        """
        if not instance:
            return self
        folder = str(Path(self.output_dir) / f"process_{instance}")
        checkpoints = str(self.checkpoint_folder or "")
        return dataclasses.replace(
            self, output_dir=folder, checkpoint_output_dir=checkpoints, wandb=False, tensorboard=False
        )


class Tracker(Protocol):
    """A place beside the log that scalars and pictures go to."""

    def scalars(self, step: int, values: Dict[str, float]) -> None:
        """Record values of a step."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Record a picture file."""

    def close(self) -> None:
        """Write what is left."""


class WandbTracker:
    """Weights & Biases. Without an account on this machine the run is kept offline, for `wandb sync` later."""

    def __init__(self, options: LogOptions, config: Dict[str, Any]) -> None:
        wandb = _import("wandb", "wandb", "--wandb")
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self.run = wandb.init(
            project=options.wandb_project_name, name=options.wandb_run_name, entity=options.wandb_entity,
            config=config, mode=mode, dir=options.output_dir,
        )  # fmt: skip
        self.image = wandb.Image

    def scalars(self, step: int, values: Dict[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """See `Tracker`."""
        self.run.log({name: self.image(str(path))}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class TensorBoardTracker:
    """TensorBoard event files in the run's output folder."""

    def __init__(self, options: LogOptions) -> None:
        _import("tensorboard", "tensorboard", "--tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(os.path.join(options.output_dir, "tensorboard"))

    def scalars(self, step: int, values: Dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """See `Tracker`."""
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        self.writer.add_image(name, pil_to_tensor(Image.open(path)), step)

    def close(self) -> None:
        """See `Tracker`."""
        self.writer.close()


def _import(module: str, package: str, flag: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{flag} needs the package {package}: pip install {package}, or leave {flag} out") from None


class Log:
    """The account of a run.

    Figures go to standard output, line by line; on a terminal a progress bar stays below them.

    Args:
        options: of the log.
        config: the resolved options, recorded by trackers.
        step: the optimizer step that the run goes on from; what the log says of later ones is dropped.
        quiet: print nothing: another process of the run does.
    """

    def __init__(self, options: LogOptions, config: Dict[str, Any], step: int = 0, quiet: bool = False) -> None:
        self.quiet = quiet
        folder = Path(options.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        _drop_after(self.path, step)
        self.file: TextIO = self.path.open("a", encoding="utf-8")
        self.trackers: List[Tracker] = []
        if options.wandb:
            self.trackers.append(WandbTracker(options, config))
        if options.tensorboard:
            self.trackers.append(TensorBoardTracker(options))
        self.bar: Any = None

    def start_bar(self, step: int, total: int) -> None:
        """Show progress from `step` to `total`, on a terminal only."""
        if sys.stdout.isatty() and not self.quiet:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=step, unit="step", file=sys.stdout, dynamic_ncols=True)

    def say(self, text: str) -> None:
        """Print lines."""
        if self.bar is not None:
            self.bar.write(text)
        elif not self.quiet:
            print(text, flush=True)

    def record(self, step: int, event: str, values: Dict[str, float]) -> None:
        """Record the scalars of an event ("train", "validation") at a step, in the file and with every tracker."""
        self.file.write(json.dumps({"step": step, "event": event, **values}) + "\n")
        self.file.flush()
        named = {f"{event}/{name}": value for name, value in values.items()}
        for tracker in self.trackers:
            tracker.scalars(step, named)
        if self.bar is not None and event == "train":
            self.bar.update(step - self.bar.n)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Tell of a picture that was written."""
        self.say(f"{name} written to {path}")
        for tracker in self.trackers:
            tracker.picture(step, name, path)

    def close(self) -> None:
        """Write what is left."""
        if self.bar is not None:
            self.bar.close()
        self.file.close()
        for tracker in self.trackers:
            tracker.close()


class Throughput:
    """Samples a second, since the start and since the last time it was asked; the clock can be paused."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = 0
        self._last = (0.0, 0)
        self._since: Optional[float] = None

    def start(self) -> None:
        """Let the clock run."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock, for what is not training."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def add(self, samples: int) -> None:
        """Count samples."""
        self.samples += samples

    def recent(self) -> float:
        """Samples a second since the last call."""
        self.pause()
        self.start()
        seconds, samples = self.seconds - self._last[0], self.samples - self._last[1]
        self._last = (self.seconds, self.samples)
        return samples / max(seconds, 1e-9)

    def overall(self) -> float:
        """Samples a second since the start."""
        self.pause()
        return self.samples / max(self.seconds, 1e-9)


def set_up_logging() -> None:
    """Send the program's own notices to standard output, as plain lines."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.name.startswith("poptorch"))  # PopTorch prints its own
    for noisy in ("PIL", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _drop_after(path: Path, step: int) -> None:
    """Remove what a killed run wrote after the checkpoint it goes on from, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept) if step else "", encoding="utf-8")
    os.replace(partial, path)
