"""Measure a trained model: `python evaluate.py --dalle_path CHECKPOINT --prompts FILE`.

Draws the prompts of a file of demo scenes and has the pictures judged by their pixels alone; with a dataset, computes
the validation losses as well.
"""

from __future__ import annotations

from args import read_settings, run_command
from commands.options import EvaluateOptions
from data.options import DataOptions
from models.options import SamplingOptions, TokenizerOptions
from options import OptionError

GROUPS = (EvaluateOptions, SamplingOptions, DataOptions, TokenizerOptions)


def main() -> None:
    """Read the options, then measure."""
    settings = read_settings("Measure a trained model.", GROUPS)
    data = settings[DataOptions]
    if not settings[EvaluateOptions].prompts and not data.input_folder and not data.validation_folder:
        raise OptionError("nothing to measure: give --prompts FILE, --input-folder DATASET, or both")
    settings.check_paths()
    from commands.evaluate import run  # this takes seconds, and what is wrong with an option is told at once

    run(settings)


if __name__ == "__main__":
    run_command(main)
