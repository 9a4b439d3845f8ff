"""Makes other programs importable: what they import and no comparison uses is replaced by a module of a few names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict

import torch
from torch import nn


class _Unused:
    """A class that is named and never used."""


STAND_INS: Dict[str, Dict[str, Any]] = {
    "omegaconf": {"OmegaConf": _Unused},
    "requests": {},
    "pytorch_lightning": {"LightningModule": nn.Module},
    "taming.main": {"instantiate_from_config": lambda config: nn.Identity()},  # of losses
    "taming.models.vqgan": {"VQModel": _Unused, "GumbelVQ": _Unused},
}
ALWAYS_REPLACED = ("taming.main",)  # it imports what trains models

torch.set_num_threads(1)


def replace_missing_modules() -> None:
    """Put a stand-in in place of every module whose package is not installed."""
    for path, contents in STAND_INS.items():
        package = path.split(".")[0]
        installed = importlib.util.find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
        if installed is not None and path not in ALWAYS_REPLACED:
            continue
        parts = path.split(".")
        for length in range(1 if installed is None else len(parts), len(parts) + 1):
            name = ".".join(parts[:length])
            sys.modules.setdefault(name, ModuleType(name))
        vars(sys.modules[path]).update(contents)


def repair_training_at_batch_1() -> None:
    """Let DALLE-pytorch's axial and convolutional attention train at batch 1 without rotary embedding.

    They scale their queries in place, which torch refuses for one of several views of a tensor, as they then are.
    """
    if importlib.util.find_spec("dalle_pytorch") is None:
        return
    from dalle_pytorch import attention

    rearrange = attention.rearrange
    attention.rearrange = lambda *arguments, **sizes: rearrange(*arguments, **sizes).clone()


# Some releases of pytest load this file for the ordinary suite, too, which must not see stand-ins.
if any("peers" in Path(argument).parts for argument in sys.argv):
    replace_missing_modules()
    repair_training_at_batch_1()
