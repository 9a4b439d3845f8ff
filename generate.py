"""Draw pictures from text: `python generate.py --dalle_path CHECKPOINT --text 'a prompt|another one'`."""

from __future__ import annotations

from typing import List, Optional

from args import read_settings, run_command
from commands.options import GenerateOptions, PrimingOptions, RankingOptions
from models.options import SamplingOptions, TokenizerOptions
from options import OptionError

GROUPS = (GenerateOptions, SamplingOptions, PrimingOptions, RankingOptions, TokenizerOptions)


def read_prompts(text: Optional[str]) -> List[str]:
    """The prompts of an option value, in order, each once.

    Raises:
        OptionError: there is none.
    """
    prompts = list(dict.fromkeys(part.strip() for part in (text or "").split("|") if part.strip()))
    if not prompts:
        raise OptionError("text holds no prompt; write what to draw, several prompts separated by |")
    return prompts


def main() -> None:
    """Read the options, then draw."""
    settings = read_settings("Draw pictures from text.", GROUPS)
    options = settings[GenerateOptions]
    prompts, kept = read_prompts(options.text), settings[RankingOptions].kept(options.num_images)
    settings.check_paths()
    from commands.generate import run  # this takes seconds, and what is wrong with an option is told at once

    run(settings, prompts, kept)


if __name__ == "__main__":
    run_command(main)
