"""How much memory a training run will hold, told before its first step."""

from __future__ import annotations

import os
from typing import Dict, Set, Tuple

import torch
from torch import Tensor, nn

from engines.base import Inputs

MOMENTS = 2  # tensors that Adam keeps for each parameter
_SPARE = 0.8  # of the memory that is free: allocators do not fill it
_PEAK = 1.5  # of what a forward pass keeps: what the backward pass holds beside it
_LARGEST_ON_CPU = 16  # samples at once; products of more rows are no faster there


def measure_activations(model: nn.Module, inputs: Inputs) -> int:
    """Bytes that a forward pass keeps for the backward pass, by running one; weights are not counted."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: Dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself it would hold what made it, which holds it: a circle that is never freed

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


def fitting_batch(model: nn.Module, of_sample: float, global_batch: int, device: torch.device) -> int:
    """How many samples a pass may take: the most that divide the global batch and fit into the free memory.

    Args:
        model: on the device; its gradients and moments are not there yet.
        of_sample: bytes of activations that a sample keeps.
        global_batch: samples of an optimizer step.
        device: a CPU or GPU.
    """
    _, trainable = _bytes(model)
    free = _free_memory(device) * _SPARE - (1 + MOMENTS) * trainable
    most = min(max(int(free / (_PEAK * max(of_sample, 1))), 1), global_batch)
    if device.type == "cpu":
        most = min(most, _LARGEST_ON_CPU)
    return next(count for count in range(most, 0, -1) if global_batch % count == 0)


def megabytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / 2**20:,.1f} MiB"


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
