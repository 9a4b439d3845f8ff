"""What a command's options name, opened: tokenizers of text and pictures, and whole models, ours or others'."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import torch

from bpe.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json
from checkpoint import CheckpointError, find_checkpoint, identity, inference_weights, load_text_to_image
from conversion import convert_dalle, convert_vae, naming, read_others, rebuild_image_tokenizer
from data.encoded import EncodedFolder
from data.encoded_format import IMAGE_TOKENIZER
from models.build import build_image_tokenizer, describe_image_tokenizer
from models.dalle_pytorch_format import is_dalle
from models.image_tokenizer import ImageTokenizer, TextToImage
from models.openai_vae import OpenAIVAE
from models.options import TextTokenizerOptions, TokenizerOptions
from models.pretrained import NotAvailableError, load_released, load_vqgan
from models.vqgan import VQGan
from options import OptionError


def open_dalle(path: str, named: TokenizerOptions) -> Tuple[Path, Dict[str, Any]]:
    """The checkpoint of kind "dalle" at `path`: ours, or another program's, converted.

    Args:
        path: of a file, or of the folder of a run of ours.
        named: what another program's was trained with, as far as its file does not say.

    Raises:
        CheckpointError: it cannot be read.
        FormatError: it is another program's, and no model that we have.
    """
    try:
        return find_checkpoint(path, "dalle")
    except CheckpointError:
        contents = read_others(path)
        if not is_dalle(contents):
            raise
        tokenizer = load_tokenizer(named.bpe_path, named.chinese, named.hug)
        image_tokenizer = named_image_tokenizer(named)
        with naming(path):
            return Path(path).expanduser(), convert_dalle(contents, tokenizer, image_tokenizer)


def open_text_to_image(path: Optional[str], named: TokenizerOptions, device: str) -> Tuple[TextToImage, Tokenizer]:
    """The model of a checkpoint, in evaluation mode, on "cpu", "cuda" or "auto", and its text tokenizer.

    Args:
        path: as for `open_dalle`.
        named: tokenizers; where the checkpoint has its own, they have to be the same.
        device: to draw with.

    Raises:
        OptionError: no checkpoint is named.
        CheckpointError, FormatError: as `open_dalle`; or it was trained with other tokenizers than those named.
    """
    if path is None:
        raise OptionError("dalle_path is not set; give a checkpoint of train.py, or the folder of its run")
    file, state = open_dalle(path, named)
    open_tokenizer(named, state)
    open_image_tokenizer(named, state)
    kind = state["image_tokenizer"]["kind"]
    if named.taming and kind != "VQGan":
        raise CheckpointError(f"taming=true asks for a VQGAN, and {file} was trained with a {kind}; leave it out")
    model, tokenizer = load_text_to_image(state)
    print(f"read {file}, step {state['step']}", flush=True)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    # convolutions are faster when a pixel's channels lie side by side
    model = model.to(auto if device == "auto" else device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, tokenizer


def open_vae(path: str) -> ImageTokenizer:
    """The image tokenizer at `path`, in evaluation mode: ours, or another program's; errors as `open_dalle`."""
    try:
        _, state = find_checkpoint(path, "vae")
    except CheckpointError:
        contents = read_others(path)
        if contents is None:
            raise
        if is_dalle(contents):
            raise CheckpointError(f"{path} holds a dalle, and a vae is needed here; give another file") from None
        with naming(path):
            state = convert_vae(contents)
    return rebuild_image_tokenizer(state["image_tokenizer"], inference_weights(state))


def open_image_tokenizer(
    options: TokenizerOptions,
    state: Optional[Dict[str, Any]],
    untrained: bool = False,
    encoded: Optional[EncodedFolder] = None,
) -> ImageTokenizer:
    """The image tokenizer that the options name; of a checkpoint's contents, the one it was trained with.

    Args:
        options: of the tokenizers.
        state: the checkpoint.
        untrained: take random weights where none are named: good enough for pictures made of random numbers.
        encoded: pictures that were encoded; where none is named, the one that they were encoded with is taken.

    Raises:
        OptionError: two are named, or a released one is asked for and cannot be had.
        CheckpointError: the one that is named is not the checkpoint's.
        DataError: it is not the one that the pictures were encoded with.
    """
    named = named_image_tokenizer(options)
    if encoded is not None and state is None:
        return _image_tokenizer_of(encoded, named, options)
    if encoded is not None and state is not None:
        encoded.check_image_tokenizer(state["image_tokenizer_identity"], "the checkpoint")
    if state is None:
        return named or (_untrained_image_tokenizer(options) if untrained else _released_image_tokenizer(options))
    if named is not None and identity(named) != state["image_tokenizer_identity"]:
        name = "vae_path" if options.vae_path else "vqgan_model_path"
        raise CheckpointError(
            f"{name}={getattr(options, name)} is not the image tokenizer that the checkpoint was trained with; leave "
            f"{name} out to use the one in the checkpoint"
        )
    return build_image_tokenizer(state["image_tokenizer"])  # its weights come with the checkpoint


def describe_named(
    options: TokenizerOptions, state: Optional[Mapping[str, Any]], encoded: Optional[EncodedFolder] = None
) -> Dict[str, Any]:
    """The shape of the image tokenizer that `open_image_tokenizer` would open; nothing is downloaded for it.

    Raises:
        OptionError: two are named.
    """
    if state is not None:
        return state["image_tokenizer"]
    if encoded is not None:
        return encoded.encoding.image_tokenizer
    named = named_image_tokenizer(options)
    if named is not None:
        return describe_image_tokenizer(named)
    return {"kind": VQGan.kind if options.taming else OpenAIVAE.kind, "arguments": {}}


def named_image_tokenizer(options: TokenizerOptions) -> Optional[ImageTokenizer]:
    """The one whose files the options give; None where they give none."""
    model, config = options.vqgan_model_path, options.vqgan_config_path
    if options.vae_path and (model or config):
        path = f"vqgan_model_path={model}" if model else f"vqgan_config_path={config}"
        raise OptionError(f"vae_path={options.vae_path} and {path} name two image tokenizers; leave one out")
    if options.vae_path:
        return open_vae(options.vae_path)
    if model and config:
        return load_vqgan(model, config)
    if model or config:
        missing, given = ("vqgan_config_path", model) if model else ("vqgan_model_path", config)
        raise OptionError(f"{missing} is not set, and {given} alone is half a VQGAN; give weights and configuration")
    return None


def _image_tokenizer_of(
    encoded: EncodedFolder, named: Optional[ImageTokenizer], options: TokenizerOptions
) -> ImageTokenizer:
    """`named` if pictures were encoded with it; where it is none, the one that they were encoded with."""
    if named is None:
        return kept_image_tokenizer(encoded)
    name = "vae_path" if options.vae_path else "vqgan_model_path"
    encoded.check_image_tokenizer(identity(named), f"{name}={getattr(options, name)}")
    return named


def kept_image_tokenizer(encoded: EncodedFolder) -> ImageTokenizer:
    """The image tokenizer that lies with encoded pictures.

    Raises:
        DataError: its file is missing or damaged.
    """
    path, weights = str(encoded.folder / IMAGE_TOKENIZER), encoded.image_tokenizer_weights
    with naming(path):
        kept = rebuild_image_tokenizer(encoded.encoding.image_tokenizer, weights)
    encoded.check_image_tokenizer(identity(kept), path)
    return kept


def _untrained_image_tokenizer(options: TokenizerOptions) -> ImageTokenizer:
    """One of the shape of the released one that the options mean."""
    print("generated_data=true: the image tokenizer has random weights, of the released one's shape", flush=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return (VQGan() if options.taming else OpenAIVAE()).eval()


def _released_image_tokenizer(options: TokenizerOptions) -> ImageTokenizer:
    """The one that is meant where no file is named; DALLE-pytorch means the same."""
    try:
        return load_released("vqgan_f16_1024" if options.taming else "openai", options.offline)
    except NotAvailableError as error:
        meant, other = ("the VQGAN of 1,024 codes", "--no-taming for OpenAI's dVAE")
        if not options.taming:
            meant, other = ("OpenAI's dVAE", "--taming for the VQGAN of 1,024 codes")
        raise OptionError(
            f"vae_path is not set, which means {meant}, and that cannot be had: {error}. Or name another image "
            "tokenizer: --vae_path CHECKPOINT, --vqgan_model_path WEIGHTS with --vqgan_config_path CONFIGURATION, or "
            f"{other}. Or train one with `python train_vae.py --input-folder PICTURES --image-size 256 --num-layers 4 "
            "--num-tokens 1024` (16x16 codes a picture, as the L16 configurations have)"
        ) from None


def open_tokenizer(
    options: TextTokenizerOptions, state: Optional[Mapping[str, Any]], encoded: Optional[EncodedFolder] = None
) -> Tokenizer:
    """The text tokenizer that the options name; of a checkpoint's contents, the one it was trained with.

    Args:
        options: of the tokenizer.
        state: the checkpoint.
        encoded: pictures that were encoded; where none is named, the one of their captions is taken.

    Raises:
        OptionError: it cannot be opened.
        CheckpointError: the one that is named is not the checkpoint's.
        DataError: it is not the one that the captions were encoded with.
    """
    tokenizer = _open_tokenizer(options, state, encoded)
    if encoded is not None:
        encoded.check_tokenizer(tokenizer.identity, _origin(options, state))
    return tokenizer


def _open_tokenizer(
    options: TextTokenizerOptions, state: Optional[Mapping[str, Any]], encoded: Optional[EncodedFolder]
) -> Tokenizer:
    is_named = options.bpe_path or options.chinese
    if state is None and encoded is not None and not is_named:
        return encoded.tokenizer
    if state is None:
        return load_tokenizer(options.bpe_path, options.chinese, options.hug)
    tokenizer = tokenizer_from_json(state["tokenizer"])
    if is_named:
        named = load_tokenizer(options.bpe_path, options.chinese, options.hug)
        if named.identity != tokenizer.identity:
            what = _origin(options, None)
            raise CheckpointError(f"{what} is not the vocabulary that the checkpoint was trained with; leave it out")
    return tokenizer


def _origin(options: TextTokenizerOptions, state: Optional[Mapping[str, Any]]) -> str:
    """What the text tokenizer comes from, as the user knows it."""
    if state is not None:
        return "the checkpoint"
    return f"bpe_path={options.bpe_path}" if options.bpe_path or not options.chinese else "chinese=True"
