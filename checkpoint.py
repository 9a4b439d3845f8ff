"""Checkpoints: one file holds all that a run needs to go on, and all that drawing needs.

A file is written beside its place, flushed to the disk and renamed, so that whatever happens, the newest whole one is
there. Nothing is unpickled that is not a tensor or a plain container.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import pickle
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar

import torch
from torch import Tensor, nn

from bpe.tokenizer import Tokenizer, tokenizer_from_json
from models.build import build_image_tokenizer, describe_image_tokenizer
from models.clip import Clip
from models.dalle import Dalle
from models.image_tokenizer import ImageTokenizer, TextToImage
from models.options import ClipOptions, TransformerOptions
from options import Options, UserError, plain_values

_log = logging.getLogger(__name__)

Group = TypeVar("Group", bound=Options)

FORMAT = 1
_PARTIAL = ".partial"


class CheckpointError(UserError):
    """A checkpoint that cannot be used. The message names the file, what is wrong and the remedy."""


class TornCheckpointError(CheckpointError):
    """A checkpoint that was cut off or damaged."""


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: where they lie; created at the first save.
        kind: what they hold, "dalle", "vae" or "clip"; files are named `<kind>_<step>.pt`.
        keep: how many to keep, the newest; 0 keeps all.
    """

    def __init__(self, folder: Path, kind: str, keep: int = 0) -> None:
        self.folder, self.kind, self.keep = folder, kind, keep

    def files(self) -> List[Path]:
        """The checkpoints, the newest first, by number."""
        numbered = []
        for path in self.folder.glob(f"{self.kind}_*.pt") if self.folder.is_dir() else ():
            match = re.fullmatch(rf"{self.kind}_(\d+)\.pt", path.name)
            if match:
                numbered.append((int(match.group(1)), path))
        return [path for _, path in sorted(numbered, reverse=True)]

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Save the state after `step`, then remove what is older than the `keep` newest."""
        path = self.folder / f"{self.kind}_{step}.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, dict(state, format=FORMAT, kind=self.kind))
        for old in self.files()[self.keep :] if self.keep else ():
            old.unlink()
        for partial in self.folder.glob(f"{self.kind}_*{_PARTIAL}"):  # left by a run that was killed while saving
            partial.unlink()
        return path

    def newest(self) -> Optional[Tuple[Path, Dict[str, Any]]]:
        """The newest whole checkpoint with its contents; torn ones are passed over. None when there is none.

        Raises:
            CheckpointError: there are checkpoints, and not one is whole; or the newest whole one cannot be used.
        """
        torn = []
        for path in self.files():
            try:
                return path, read_checkpoint(path, self.kind)
            except TornCheckpointError as error:
                _log.warning("passed over: %s", error)
                torn.append(str(error))
        if torn:
            raise CheckpointError(f"{self.folder} holds no whole checkpoint: {'; '.join(torn)}")
        return None


def write_atomically(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` such that `path` is either the old file or the whole new one, even after a crash."""
    partial = path.with_name(path.name + _PARTIAL)
    try:
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(path: Path, kind: str) -> Dict[str, Any]:
    """The contents of one checkpoint of this program, on the CPU.

    Raises:
        CheckpointError: the file is missing, torn, of another kind, or names anything to run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; check the path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))  # torch's own text advises to run it all the same
        what = f"names {named.group(1)}" if named else "is torn, or names something"
        raise TornCheckpointError(
            f"{path} {what}, which is no tensor or plain container; nothing of it was run"
        ) from None
    except Exception as error:  # torch raises whatever it stumbles on; every one means that the file is not whole
        raise TornCheckpointError(
            f"{path} is torn or no checkpoint ({type(error).__name__}); use another one"
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int) or "kind" not in state:
        raise CheckpointError(f"{path} is no checkpoint of this program; give one that train.py or train_vae.py wrote")
    if state["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}, newer than {FORMAT}; use a newer program")
    if state["kind"] != kind:
        raise CheckpointError(f"{path} holds a {state['kind']}, and a {kind} is needed here; give another file")
    return state


def find_checkpoint(path: str, kind: str) -> Tuple[Path, Dict[str, Any]]:
    """Read the checkpoint at `path`: a file, or the newest whole one of a folder.

    Raises:
        CheckpointError: there is none.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return place, read_checkpoint(place, kind)
    for folder in (place, place / "ckpt"):
        found = CheckpointFolder(folder, kind).newest()
        if found:
            return found
    raise CheckpointError(f"{place} holds no {kind}_<step>.pt; give the folder of a training run, or a file")


def check_same_model(options: Options, saved: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Refuse to go on with another model than the checkpoint's, whose options are `saved`.

    Args:
        options: of the model.
        saved: those of the checkpoint.
        free: names of options that may differ.

    Raises:
        CheckpointError: names all options that differ, and how the checkpoint's are typed.
    """
    values, defaults = plain_values(options), plain_values(type(options)())
    then = {name: saved.get(name, default) for name, default in defaults.items()}
    differing = [name for name in values if values[name] != then[name] and name not in free]
    if differing:
        here, there = (", ".join(f"{name}={each[name]}" for name in differing) for each in (values, then))
        typed = " ".join(_as_typed(name, then[name]) for name in differing)
        raise CheckpointError(f"{here}, but the checkpoint was trained with {there}; use the latter: {typed}")


def _as_typed(name: str, value: Any) -> str:
    """An option as it is typed on the command line."""
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, (list, tuple)):
        return f"--{name} {','.join(map(str, value))}"
    return f"--{name} {'none' if value is None else value}"


def inference_weights(state: Mapping[str, Any]) -> Dict[str, Tensor]:
    """The weights to draw with: the averaged ones where there are any."""
    weights = dict(state["weights"])
    if state["average"]:
        weights.update(state["average"]["weights"])
    return weights


def identity(module: nn.Module) -> str:
    """A digest of a module's weights: equal only for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def describe_vae(vae: ImageTokenizer) -> Dict[str, Any]:
    """What a checkpoint of kind "vae" says beside the weights."""
    return {"image_tokenizer": describe_image_tokenizer(vae)}


def describe_clip(clip: Clip, tokenizer: Tokenizer) -> Dict[str, Any]:
    """What a checkpoint of kind "clip" says beside the weights: enough to build the model and to read text."""
    return {
        "clip": plain_values(clip.options),
        "tokenizer": tokenizer.to_json(),
        "tokenizer_identity": tokenizer.identity,
    }


def load_clip(path: str) -> Tuple[Clip, Tokenizer]:
    """The CLIP of a checkpoint, in evaluation mode, and its text tokenizer. Errors as `find_checkpoint`."""
    _, state = find_checkpoint(path, "clip")
    tokenizer = tokenizer_from_json(state["tokenizer"])
    clip = Clip(_restore(ClipOptions, state["clip"]), tokenizer.vocab_size)
    clip.load_state_dict(inference_weights(state))
    return clip.eval(), tokenizer


def describe_text_to_image(model: TextToImage, options: Dict[str, Any], tokenizer: Tokenizer) -> Dict[str, Any]:
    """What a checkpoint of kind "dalle" says beside the weights: enough to build the model and to read text."""
    return {
        "transformer": options,
        "image_tokenizer": describe_image_tokenizer(model.image_tokenizer),
        "image_tokenizer_identity": identity(model.image_tokenizer),
        "tokenizer": tokenizer.to_json(),
        "tokenizer_identity": tokenizer.identity,
    }


def load_text_to_image(state: Mapping[str, Any]) -> Tuple[TextToImage, Tokenizer]:
    """The model of a checkpoint's contents, in evaluation mode, and its text tokenizer."""
    tokenizer = tokenizer_from_json(state["tokenizer"])
    image_tokenizer = build_image_tokenizer(state["image_tokenizer"])
    options = _restore(TransformerOptions, state["transformer"])
    model = TextToImage(
        Dalle(options, tokenizer.vocab_size, image_tokenizer.num_tokens, image_tokenizer.grid), image_tokenizer
    )
    model.load_state_dict(inference_weights(state))
    return model.eval(), tokenizer


def _restore(group: Type[Group], saved: Mapping[str, Any]) -> Group:
    """The options of a checkpoint; those that it does not have yet have their default.

    Raises:
        CheckpointError: it has one that this program does not know.
    """
    known = [field.name for field in dataclasses.fields(group)]  # type: ignore[arg-type]
    unknown = [name for name in saved if name not in known]
    if unknown:
        raise CheckpointError(
            f"the checkpoint was trained with the option {unknown[0]}, unknown here; use a newer program"
        )
    return group(**saved)
