"""Train a mini DALL-E: `python train.py --config NAME`, with any option of the entry changed on the command line."""

from __future__ import annotations

from args import read_settings, run_command
from data.options import DataOptions
from engines.options import IpuOptions, TrainingOptions
from log import LogOptions, set_up_logging
from models.options import TokenizerOptions, TransformerOptions

GROUPS = (TransformerOptions, TokenizerOptions, DataOptions, TrainingOptions, IpuOptions, LogOptions)


def main() -> None:
    """Read the options, then train."""
    set_up_logging()
    settings = read_settings("Train a mini DALL-E on pictures with captions.", GROUPS, default_config="unit_test")
    if not settings[IpuOptions].plan:
        settings.check_paths()
    from commands.train import run  # this takes seconds, and what is wrong with an option is told at once

    run(settings)


if __name__ == "__main__":
    run_command(main)
