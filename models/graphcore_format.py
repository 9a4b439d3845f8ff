"""Graphcore's mini DALL-E: its `dalle_<epoch>.pt` as a model of ours.

The file is DALLE-pytorch's `dalle.pt`, with `model.` before every name, with what places the model on IPUs among its
`hparams`, and with the text embedding cut into `split_embeddings` where `embedding_serialization_factor` asked for it.
The VQGAN's weights are inside; its configuration is not, but for what their shapes tell.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Tuple

import torch
from torch import Tensor

from models import dalle_pytorch_format
from models.dalle_pytorch_format import DalleParts, FormatError, plain_weights

_PREFIX = "model."
_ON_IPUS = (
    "embedding_ipu_id",
    "embedding_serialization_factor",
    "layers_per_ipu",
    "cls_ipu_id",
    "fp16",
    "byteio",
)
_SPLIT = re.compile(r"(.+)\.split_embeddings\.(\d+)\.weight")


def is_dalle(contents: Any) -> bool:
    """Whether a file's contents are a `dalle_<epoch>.pt`."""
    if not dalle_pytorch_format.is_dalle(contents) or not isinstance(contents["weights"], Mapping):
        return False
    return any(name.startswith(f"{_PREFIX}to_logits.") for name in contents["weights"])


def read_dalle(contents: Mapping[str, Any]) -> DalleParts:
    """A `dalle_<epoch>.pt`, as a model of ours.

    Raises:
        FormatError: it holds something that our model does not have.
    """
    keywords = {name: value for name, value in contents["hparams"].items() if name not in _ON_IPUS}
    weights = join_split_embeddings(
        {name[len(_PREFIX) :]: w for name, w in plain_weights(contents["weights"]).items() if name.startswith(_PREFIX)}
    )
    parts = dalle_pytorch_format.read_dalle({"hparams": keywords, "vae_params": None, "weights": weights})
    parts.options["conv_window"] = "centered"
    return parts


def join_split_embeddings(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """The weights, with the parts of each embedding joined, in the order of their numbers.

    Raises:
        FormatError: a part is missing.
    """
    joined: Dict[str, Tensor] = {}
    split: Dict[str, List[Tuple[int, Tensor]]] = {}
    for name, weight in weights.items():
        match = _SPLIT.fullmatch(name)
        if match:
            split.setdefault(match.group(1), []).append((int(match.group(2)), weight))
        else:
            joined[name] = weight
    for module, parts in split.items():
        parts.sort(key=lambda part: part[0])
        if [number for number, _ in parts] != list(range(len(parts))):
            raise FormatError(f"the file lacks a part of {module}.split_embeddings; give the whole checkpoint")
        joined[f"{module}.weight"] = torch.cat([weight for _, weight in parts])
    return joined
