"""Other programs' checkpoints into ours, and back: `python -m models.convert --from FILE --to FILE`.

Reads DALLE-pytorch's `dalle.pt` and `vae.pt`, Graphcore's `dalle_<epoch>.pt`, taming's `.ckpt` and OpenAI's pair of
`encoder.pkl` and `decoder.pkl`; writes a checkpoint of this program, or with `--format dalle_pytorch` one of ours in
DALLE-pytorch's format.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from args import read_settings, run_command
from bpe.tokenizer import load_tokenizer
from checkpoint import read_checkpoint, write_atomically
from conversion import convert_dalle, convert_vae, is_ours, naming, to_dalle_pytorch, vae_state
from models import dalle_pytorch_format
from models.foreign import read_foreign
from models.options import TokenizerOptions
from models.pretrained import load_openai_vae, load_vqgan
from opening import named_image_tokenizer
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


def _convert(paths: Sequence[str], conv_window: Optional[str], named: TokenizerOptions) -> Dict[str, Any]:
    """The checkpoint of ours that the files are, or become."""
    if len(paths) == 2:
        return vae_state(load_openai_vae(paths[0], paths[1]))
    if len(paths) > 2:
        raise OptionError(f"checkpoint={','.join(paths)} names {len(paths)} files; name one, or OpenAI's two")
    if Path(paths[0]).suffix == ".ckpt" and named.vqgan_config_path:
        return vae_state(load_vqgan(paths[0], named.vqgan_config_path))
    path = Path(paths[0]).expanduser()
    contents = read_foreign(path)
    if is_ours(contents):
        return read_checkpoint(path, contents["kind"])
    if dalle_pytorch_format.is_dalle(contents):
        tokenizer = load_tokenizer(named.bpe_path, named.chinese, named.hug)
        image_tokenizer = named_image_tokenizer(named)
        with naming(paths[0]):
            return convert_dalle(contents, tokenizer, image_tokenizer, conv_window)
    with naming(paths[0]):
        return convert_vae(contents)


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
    state = _convert(options.checkpoint, options.conv_window, settings[TokenizerOptions])
    written = state if options.format == "ours" else to_dalle_pytorch(state, options.axial_package)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, written)
    print(f"wrote {out}: the {state['kind']} of {' and '.join(options.checkpoint)}, format {options.format}")


if __name__ == "__main__":
    run_command(main)
