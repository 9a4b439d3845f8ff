"""What the host engine changes about a model's layers, from outside: they keep their names and weights."""

from __future__ import annotations

import functools
from typing import Any, Callable, ContextManager, List

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.transformer import Layer, ReversibleLayer
from options import OptionError

_KINDS_OF_LAYERS = 64  # that may be compiled: by default PyTorch goes back to plain code after 8


def checkpoint_layers(model: nn.Module, products: Callable[[], ContextManager[Any]]) -> None:
    """Let each layer keep its input alone for the backward pass, which computes the rest of it again.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".

    Args:
        model: with layers of a transformer.
        products: the context that a step's forward pass runs in, and so do the layers when they run again.

    Raises:
        OptionError: the model has no such layers, or reversible ones, which keep even less.
    """
    layers = _layers(model, "checkpoint_activations")
    if any(isinstance(layer, ReversibleLayer) for layer in layers):
        raise OptionError(
            "checkpoint_activations=true and reversible=true both compute activations again; leave one out"
        )
    for layer in layers:
        forward = _within(products, layer.forward)
        layer.forward = functools.partial(checkpoint, forward, use_reentrant=False)  # type: ignore[method-assign]


def compile_layers(model: nn.Module) -> None:
    """Compile each layer by `torch.compile`; layers of one kind share their code.

    Raises:
        OptionError: the model has no such layers.
    """
    import torch._dynamo.config as dynamo

    dynamo.cache_size_limit = max(dynamo.cache_size_limit, _KINDS_OF_LAYERS)
    for layer in _layers(model, "compile"):
        layer.forward = torch.compile(layer.forward, dynamic=False)  # type: ignore[method-assign]


def _within(context: Callable[[], ContextManager[Any]], forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        with context():
            return forward(*args)

    return run


def _layers(model: nn.Module, option: str) -> List[Layer]:
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    if not layers:
        raise OptionError(f"{option}=true is for the layers of a transformer, and this model has none; leave it out")
    return layers
