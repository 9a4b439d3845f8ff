"""Image tokenizers that others trained: their files, where released ones are had from, and how they are loaded.

Released files lie in the folder that DALLE-pytorch keeps them in, under its names, so that whoever has used it has
them. Nothing is downloaded before it is asked for. None of these files has a published checksum; that of the first
whole download is recorded beside it and checked from then on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

import yaml
from torch import Tensor, nn
from tqdm import tqdm

from models.foreign import Inert, module_weights, read_foreign
from models.image_tokenizer import ImageTokenizer
from models.openai_vae import OpenAIVAE
from models.vqgan import VQGan
from options import UserError

_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3  # in a row that bring not one byte
_BLOCK = 2**20
_NAMES_SHOWN = 3  # of weights that do not fit
_QUANTIZERS = {"VQModel": False, "VQNoDiscModel": False, "GumbelVQ": True}  # taming's classes; whether Gumbel's
_VQGAN_OPTIONS = (
    "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "in_channels", "out_ch", "resolution", "z_channels",
)  # fmt: skip
_ONLY_FOR_TRAINING = ("loss.", "model_ema.", "colorize")  # weights of a taming checkpoint that no picture passes


FilePath = Union[str, Path]


class PretrainedError(UserError):
    """A pretrained image tokenizer that cannot be had. The message names the file, what is wrong and the remedy."""


class NotAvailableError(PretrainedError):
    """A released file that is not there and cannot be downloaded."""


@dataclasses.dataclass(frozen=True)
class ReleasedFile:
    """A file on the internet.

    Attributes:
        name: of the file in the folder.
        url: where it is had from.
        sha256: its checksum, in hexadecimal, where one is known.
    """

    name: str
    url: str
    sha256: Optional[str] = None


_HEIBOX = "https://heibox.uni-heidelberg.de"
RELEASED: Dict[str, Tuple[ReleasedFile, ReleasedFile]] = {
    "openai": (
        ReleasedFile("encoder.pkl", "https://cdn.openai.com/dall-e/encoder.pkl"),
        ReleasedFile("decoder.pkl", "https://cdn.openai.com/dall-e/decoder.pkl"),
    ),
    "vqgan_f16_1024": (
        ReleasedFile("vqgan.1024.model.ckpt", f"{_HEIBOX}/f/140747ba53464f49b476/?dl=1"),
        ReleasedFile("vqgan.1024.config.yml", f"{_HEIBOX}/f/6ecf2af6c658432c8298/?dl=1"),
    ),
    "vqgan_f16_16384": (
        ReleasedFile("vqgan.16384.model.ckpt", f"{_HEIBOX}/f/867b05fc8c4841768640/?dl=1"),
        ReleasedFile("vqgan.16384.config.yml", f"{_HEIBOX}/f/274fb24ed38341bfa753/?dl=1"),
    ),
    "vqgan_gumbel_f8": (
        ReleasedFile(
            "vqgan.gumbel.8192.model.ckpt", f"{_HEIBOX}/d/2e5662443a6b4307b470/files/?p=%2Fckpts%2Flast.ckpt&dl=1"
        ),
        ReleasedFile(
            "vqgan.gumbel.8192.config.yml", f"{_HEIBOX}/d/2e5662443a6b4307b470/files/?p=%2Fconfigs%2Fmodel.yaml&dl=1"
        ),
    ),
}
"""The two files of each released model: OpenAI's encoder and decoder; a VQGAN's weights and configuration."""


def load_released(name: str, offline: bool = False) -> ImageTokenizer:
    """One of the `RELEASED` models, in evaluation mode; its files are downloaded if they are not there.

    Raises:
        PretrainedError: they are not there and cannot be downloaded, or are not whole.
        ForeignFileError: they cannot be read.
    """
    # the smaller file first, so that what stops a download is found out early
    second, first = (fetch(file, offline=offline) for file in reversed(RELEASED[name]))
    return load_openai_vae(first, second) if name == "openai" else load_vqgan(first, second)


def load_vqgan(model_path: FilePath, config_path: FilePath) -> VQGan:
    """A VQGAN of taming-transformers, in evaluation mode.

    Args:
        model_path: its weights: a `.ckpt` of taming, or the same names in a `.safetensors` file.
        config_path: its configuration in YAML.

    Raises:
        PretrainedError: the configuration is none of a VQGAN, or the weights are not its.
        ForeignFileError: the weights cannot be read.
    """
    model_path, config_path = Path(model_path).expanduser(), Path(config_path).expanduser()
    vqgan = _build_vqgan(config_path)
    contents = read_foreign(model_path)
    weights = contents.get("state_dict", contents) if isinstance(contents, dict) else contents
    kept = {n: w for n, w in _check_weights(weights, model_path).items() if not n.startswith(_ONLY_FOR_TRAINING)}
    _load_weights(vqgan, kept, model_path, f"the VQGAN of {config_path}")
    return vqgan.eval()


def load_openai_vae(encoder_path: FilePath, decoder_path: FilePath, image_size: int = 256) -> OpenAIVAE:
    """OpenAI's discrete VAE, or one of its shape, in evaluation mode.

    Args:
        encoder_path, decoder_path: the released `.pkl` files, or their weights in files of torch.save or safetensors.
        image_size: side of the pictures in pixels.

    Raises:
        PretrainedError: the weights are not those of an encoder and a decoder that fit.
        ForeignFileError: a file cannot be read.
    """
    encoder_path, decoder_path = Path(encoder_path).expanduser(), Path(decoder_path).expanduser()
    encoder, decoder = _network_weights(encoder_path), _network_weights(decoder_path)
    try:
        n_hid, input_channels = encoder["blocks.input.w"].shape[:2]
        vae = OpenAIVAE(
            group_count=_count(encoder, "blocks.group_"),
            n_hid=n_hid,
            n_blk_per_group=_count(encoder, "blocks.group_1.block_"),
            input_channels=input_channels,
            vocab_size=encoder["blocks.output.conv.w"].shape[0],
            n_init=decoder["blocks.input.w"].shape[0],
            image_size=image_size,
        )
    except KeyError as error:
        path = decoder_path if "blocks.output.conv.w" in encoder else encoder_path
        raise PretrainedError(
            f"{path} holds no {error}, so no network of OpenAI's VAE; give its encoder and its decoder"
        ) from None
    _load_weights(vae.encoder, encoder, encoder_path, "the encoder of OpenAI's VAE")
    _load_weights(vae.decoder, decoder, decoder_path, f"the decoder that goes with {encoder_path}")
    return vae.eval()


def cache_folder() -> Path:
    """Where released files lie: DALLE-pytorch's own folder."""
    return Path.home() / ".cache" / "dalle"


def fetch(file: ReleasedFile, folder: Optional[Path] = None, offline: bool = False) -> Path:
    """The path of a released file, which is downloaded if it is not there.

    A download that is cut off goes on where it stopped, at once and at the next call. Several processes may ask for one
    file; one of them downloads it.

    Args:
        file: what to get.
        folder: where it lies; default: `cache_folder`.
        offline: never touch the network.

    Raises:
        NotAvailableError: it is not there and cannot be downloaded.
        PretrainedError: it is damaged.
    """
    path = (cache_folder() if folder is None else folder) / file.name
    if not path.is_file():
        if offline:
            raise NotAvailableError(f"{path} is not there, and offline is set; {_remedy(file, path)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                if not path.is_file():  # nobody else brought it in the meantime
                    _download(file, path)
                    return path
        except (OSError, http.client.HTTPException) as error:
            raise NotAvailableError(f"{file.url} cannot be downloaded ({error}); {_remedy(file, path)}") from None
    _check_whole(file, path)
    return path


def _remedy(file: ReleasedFile, path: Path) -> str:
    return f"download {file.url} elsewhere and put it at {path}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from downloading the same file."""
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(file: ReleasedFile, path: Path) -> None:
    """Download beside, check, record the checksum, rename."""
    partial = path.with_name(f"{path.name}.partial")
    failures = 0
    while True:
        before = _size(partial)
        try:
            if _append(file.url, partial):
                break
            raise OSError(f"cut off after {_size(partial)} bytes")
        except urllib.error.HTTPError:
            raise  # the server's answer, which another attempt will not change
        except (OSError, http.client.HTTPException):
            failures = 0 if _size(partial) > before else failures + 1
            if failures == _ATTEMPTS:
                raise
    digest = _digest(partial)
    if file.sha256 and digest != file.sha256:
        partial.unlink()
        raise PretrainedError(
            f"{file.url} has sha256 {digest}, and {file.sha256} is right; nothing of it was kept. Try again, or "
            f"{_remedy(file, path)}"
        )
    _record(path).write_text(f"{digest}  {path.name}\n", encoding="ascii")
    os.replace(partial, path)


def _append(url: str, partial: Path) -> bool:
    """Download what is missing of a file; whether it is whole then."""
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        partial.unlink()  # what lies here is no beginning of that file
        return False
    with response:
        if response.headers.get_content_type() == "text/html":
            raise OSError("a web page came instead of the file")
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # the server sends all of it, whatever was asked for
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with partial.open("ab" if start else "wb") as out, tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=None
        ) as bar:
            for block in iter(lambda: response.read(_BLOCK), b""):
                out.write(block)
                bar.update(len(block))
    return total is None or _size(partial) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_whole(file: ReleasedFile, path: Path) -> None:
    """Refuse a file that is not what it was when it was downloaded."""
    record = _record(path)
    expected = file.sha256 or (record.read_text(encoding="ascii").split()[0] if record.is_file() else None)
    if expected and _digest(path) != expected:
        raise PretrainedError(
            f"{path} is damaged: its sha256 is not {expected}. Remove it to have it downloaded again (and "
            f"{record.name} beside it, if you replaced the file yourself)"
        )


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _build_vqgan(config_path: Path) -> VQGan:
    """The model of a configuration, with fresh weights."""
    config = _read_yaml(config_path)
    model = config["model"] if isinstance(config, dict) and isinstance(config.get("model"), dict) else {}
    target = str(model.get("target")).rsplit(".", 1)[-1]
    if target not in _QUANTIZERS:
        raise PretrainedError(
            f"{config_path} has model.target={model.get('target')}, which is no VQGAN; give the configuration of a "
            f"{' or '.join(_QUANTIZERS)}"
        )
    params = _section(model, "params", config_path, "model")
    ddconfig = _section(params, "ddconfig", config_path, "model.params")
    if ddconfig.get("double_z") or not ddconfig.get("resamp_with_conv", True) or params.get("remap"):
        raise PretrainedError(
            f"{config_path}: double_z, remap and resamp_with_conv=false are no options of a VQGAN; none of its "
            "released models has them. Give the configuration of one"
        )
    missing = [f"ddconfig.{name}" for name in _VQGAN_OPTIONS if name not in ddconfig]
    missing += [name for name in ("n_embed", "embed_dim") if name not in params]
    if missing:
        raise PretrainedError(f"{config_path} lacks {', '.join(missing)} in model.params; give a whole configuration")
    values = {name: ddconfig[name] for name in _VQGAN_OPTIONS}
    try:
        return VQGan(
            params["n_embed"], params["embed_dim"], _QUANTIZERS[target], dropout=ddconfig.get("dropout", 0.0), **values
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise PretrainedError(f"{config_path} describes no VQGAN that can be built: {error}; correct it") from None


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PretrainedError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except yaml.constructor.ConstructorError as error:
        raise PretrainedError(
            f"{path} is no plain YAML: {error.problem}; nothing of it was run. Use a file without object tags"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PretrainedError(f"{path} is no plain YAML: {error}; give the configuration of the VQGAN") from None


def _section(parent: Mapping[str, Any], name: str, path: Path, where: str) -> Mapping[str, Any]:
    if not isinstance(parent.get(name), dict):
        raise PretrainedError(f"{path} has no section {name} in {where}; give the configuration of a VQGAN")
    return parent[name]


def _network_weights(path: Path) -> Dict[str, Tensor]:
    contents = read_foreign(path)
    if isinstance(contents, Inert):
        contents = module_weights(contents)
    return _check_weights(contents, path)


def _check_weights(weights: Any, path: Path) -> Dict[str, Tensor]:
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise PretrainedError(
            f"{path} holds something else than named weights; give a checkpoint of the image tokenizer"
        )
    return weights


def _load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Load weights by their names, all of them.

    Raises:
        PretrainedError: names or shapes are not the module's.
    """
    faults = weight_faults(module, weights)
    if faults:
        raise PretrainedError(f"{path} is not {what}: it {faults}. Give files that belong together")
    module.load_state_dict(dict(weights))


def weight_faults(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """How weights differ from a module's own in names and shapes, as a phrase; empty when they do not."""
    own = module.state_dict()
    shapes = {name: (list(weights[name].shape), list(own[name].shape)) for name in own if name in weights}
    found = {
        "lacks": [name for name in own if name not in weights],
        "has besides": [name for name in weights if name not in own],
        "differs in shape:": [f"{name} {its} for {right}" for name, (its, right) in shapes.items() if its != right],
    }
    return "; ".join(f"{fault} {_first_names(names)}" for fault, names in found.items() if names)


def _first_names(names: List[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many different parts of names follow a prefix."""
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})
