"""Train CLIP, which says how well texts and pictures go together: `python train_clip.py --input-folder DATASET`.

A text is told apart from the other texts of its micro batch, and a picture from the other pictures: what CLIP learns
depends on `batch_size`, which gradient accumulation does not replace.
"""

from __future__ import annotations

from args import read_settings, run_command
from data.options import DataOptions
from engines.options import TrainingOptions
from log import LogOptions, set_up_logging
from models.options import ClipOptions, TextTokenizerOptions
from options import OptionError

GROUPS = (ClipOptions, TextTokenizerOptions, DataOptions, TrainingOptions, LogOptions)


def check_batch_size(training: TrainingOptions) -> None:
    """Refuse batches in which there is nothing to tell apart.

    Raises:
        OptionError: always then.
    """
    if training.batch_size < 2:
        raise OptionError(
            f"batch_size={training.batch_size} leaves nothing to tell a picture apart from, and gradient_accumulation "
            "does not help; raise batch_size, the more the better"
        )


def main() -> None:
    """Read the options, then train."""
    set_up_logging()
    settings = read_settings("Train CLIP on pictures with captions.", GROUPS, default_config="clip")
    check_batch_size(settings[TrainingOptions])
    settings.check_paths()
    from commands.train_clip import run  # this takes seconds, and what is wrong with an option is told at once

    run(settings)


if __name__ == "__main__":
    run_command(main)
