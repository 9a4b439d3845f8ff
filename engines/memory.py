"""How much memory a training run will hold, told before its first step."""

from __future__ import annotations

from typing import Dict, Set, Tuple

import torch
from torch import Tensor, nn

from engines.base import Inputs

MOMENTS = 2  # tensors that Adam keeps for each parameter


def measure_activations(model: nn.Module, inputs: Inputs) -> int:
    """Bytes that a forward pass keeps for the backward pass, by running one; weights are not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: Dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    devices = [inputs[0].device] if inputs[0].is_cuda else []
    with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(*inputs)
    del outputs
    return sum(kept.values())


def estimate_memory(model: nn.Module, activations: int, averaged: bool) -> str:
    """One line: bytes of weights, gradients, optimizer state, average and activations of a micro batch."""
    weights, trainable = _bytes(model)
    parts = {
        "weights": weights,
        "gradients": trainable,
        "optimizer": MOMENTS * trainable,
        "weight average": trainable if averaged else 0,
        "activations of a micro batch": activations,
    }
    named = ", ".join(f"{name} {megabytes(size)}" for name, size in parts.items() if size)
    return f"memory estimate: {megabytes(sum(parts.values()))} ({named})"


def megabytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / 2**20:,.1f} MiB"


def _bytes(model: nn.Module) -> Tuple[int, int]:
    """Bytes of all weights and of those that learn; shared ones once."""
    seen: Set[int] = set()
    total = trainable = 0
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        size = tensor.numel() * tensor.element_size()
        total += size
        trainable += size if tensor.requires_grad else 0
    return total, trainable
