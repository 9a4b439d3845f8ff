"""Other programs' checkpoints into ours, and back: `python -m models.convert --from FILE --to FILE`.

Reads DALLE-pytorch's `dalle.pt` and `vae.pt`, Graphcore's `dalle_<epoch>.pt`, taming's `.ckpt` and OpenAI's pair of
`encoder.pkl` and `decoder.pkl`; writes a checkpoint of this program, or with `--format dalle_pytorch` one of ours in
DALLE-pytorch's format.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Optional, Sequence, Tuple

from args import read_settings, run_command
from models.options import TokenizerOptions
from options import OptionError, Options, option

FORMATS = ("ours", "dalle_pytorch")


@dataclasses.dataclass(frozen=True)
class ConvertOptions(Options):
    """What to convert, and into what."""

    checkpoint: Optional[Tuple[str, ...]] = option(
        None, "file to read; of OpenAI's VAE both, encoder.pkl and decoder.pkl", aliases=("from",)
    )
    out: Optional[str] = option(None, "file to write", aliases=("to",))
    format: str = option("ours", "what to write: ours, or dalle_pytorch, that of DALLE-pytorch 1.6.6", choices=FORMATS)
    conv_window: Optional[str] = option(
        None,
        "window of conv_like attention, causal or centered, for files that do not tell (none: as their release had it)",
        choices=("causal", "centered"),
    )
    axial_package: str = option(
        "0.3",
        "release of axial-positional-embedding that is to load what is written: before 0.3 it has other names",
        choices=("0.2", "0.3"),
    )


GROUPS = (ConvertOptions, TokenizerOptions)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Convert what the command line names."""
    description = "Convert checkpoints of other programs, and ours to theirs."
    settings = read_settings(description, GROUPS, arguments)
    options = settings[ConvertOptions]
    if not options.checkpoint or not options.out:
        missing = "checkpoint" if not options.checkpoint else "out"
        raise OptionError(f"{missing} is not set; name the file to read with --from and the one to write with --to")
    out = Path(options.out).expanduser()
    if out.exists():
        raise OptionError(f"out={options.out} exists already; remove it, or name another file")
    from commands.convert import convert, write  # this takes seconds, and what is wrong with an option is told at once

    state = convert(options.checkpoint, options.conv_window, settings[TokenizerOptions])
    write(state, out, options.format, options.axial_package)
    print(f"wrote {out}: the {state['kind']} of {' and '.join(options.checkpoint)}, format {options.format}")


if __name__ == "__main__":
    run_command(main)
