"""Train a discrete VAE: `python train_vae.py --input-folder PICTURES`."""

from __future__ import annotations

from args import read_settings, run_command
from commands.options import CodebookOptions
from data.options import DataOptions
from engines.options import TrainingOptions
from log import LogOptions, set_up_logging
from models.options import DiscreteVAEOptions

GROUPS = (DiscreteVAEOptions, CodebookOptions, DataOptions, TrainingOptions, LogOptions)


def main() -> None:
    """Read the options, then train."""
    set_up_logging()
    settings = read_settings("Train a discrete VAE on pictures.", GROUPS)
    settings.check_paths()
    from commands.train_vae import run  # this takes seconds, and what is wrong with an option is told at once

    run(settings)


if __name__ == "__main__":
    run_command(main)
