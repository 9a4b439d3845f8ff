"""`python -m models.convert`: files of other programs to checkpoints of ours, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from bpe.tokenizer import load_tokenizer
from checkpoint import read_checkpoint, write_atomically
from conversion import convert_dalle, convert_vae, is_ours, naming, to_dalle_pytorch, vae_state
from models import dalle_pytorch_format
from models.foreign import read_foreign
from models.options import TokenizerOptions
from models.pretrained import load_openai_vae, load_vqgan
from opening import named_image_tokenizer
from options import OptionError


def convert(paths: Sequence[str], conv_window: Optional[str], named: TokenizerOptions) -> Dict[str, Any]:
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


def write(state: Dict[str, Any], out: Path, format: str, axial_package: str) -> None:
    """Write a checkpoint of ours to a file, in a format of `models.convert.FORMATS`; for the rest see its options."""
    written = state if format == "ours" else to_dalle_pytorch(state, axial_package)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, written)
