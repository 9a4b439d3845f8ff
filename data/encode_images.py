"""Encode the pictures of a dataset once: `python -m data.encode_images --input-folder PICTURES --out-dir ENCODED`.

`train.py --input-folder ENCODED` then trains from their tokens, on every engine, and neither decodes a picture nor runs
the image tokenizer. Stopped at any moment and started again, the command goes on where it was; the result is, to the
byte, that of a run that was never stopped.
"""

from __future__ import annotations

from args import read_settings, run_command
from commands.options import EncodingOptions
from data.options import DataOptions
from log import set_up_logging
from models.options import TokenizerOptions
from options import OptionError

GROUPS = (EncodingOptions, DataOptions, TokenizerOptions)


def main() -> None:
    """Read the options, then encode."""
    set_up_logging()
    settings = read_settings("Encode the pictures of a dataset once, to train from their tokens.", GROUPS)
    if settings[EncodingOptions].out_dir is None:
        raise OptionError("out_dir is not set; give the folder that gets the encoded pictures with --out-dir")
    if settings[DataOptions].generated_data:
        raise OptionError("generated_data=true makes pictures up at every step; leave it out, and give a dataset")
    settings.check_paths()
    from commands.encode_images import run  # this takes seconds, and what is wrong with an option is told at once

    run(settings)


if __name__ == "__main__":
    run_command(main)
