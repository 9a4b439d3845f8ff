"""Reversible residual branches: activation memory that does not grow with depth.

Two streams; each branch reads one and is added to the other, in turn. Backward, a branch is computed once more and
taken off again, so that only the last streams are kept (Gomez et al. 2017; Kitaev et al. 2020, "Reformer").

Legend: B batch, S positions, D width.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.precision import autocast_dtype


class Branch:
    """A residual branch: what it computes, (B, S, D) to the same, and the modules that it computes with."""

    def __init__(self, compute: Callable[[Tensor], Tensor], modules: Sequence[nn.Module]) -> None:
        self.compute = compute
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.is_random = any(
            isinstance(m, nn.Dropout) and m.p > 0 and m.training for module in modules for m in module.modules()
        )


def run_reversibly(x: Tensor, branches: Sequence[Branch]) -> Tensor:
    """Both streams start as x, (B, S, D); their mean comes out, (B, S, D)."""
    parameters = list(dict.fromkeys(p for branch in branches for p in branch.parameters))
    first, second = _Reversible.apply(x, branches, parameters, *parameters)
    return (first + second) / 2


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        context: Any, x: Tensor, branches: Sequence[Branch], parameters: List[nn.Parameter], *inputs: Tensor
    ) -> Tuple[Tensor, Tensor]:
        streams, states = [x, x], []
        for index, branch in enumerate(branches):
            states.append(_RandomState(x) if branch.is_random else None)
            target = index % 2
            streams[target] = streams[target] + branch.compute(streams[1 - target])
        context.branches, context.parameters, context.states = branches, parameters, states
        context.autocast = _autocast_of(x.device.type)
        context.save_for_backward(*streams)
        return streams[0], streams[1]

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(context: Any, *gradients_of_streams: Tensor) -> Tuple[Optional[Any], ...]:
        streams, gradients = list(context.saved_tensors), list(gradients_of_streams)
        of_parameters: Dict[nn.Parameter, Tensor] = {}
        for index in reversed(range(len(context.branches))):
            branch, target = context.branches[index], index % 2
            source = streams[1 - target].detach().requires_grad_()
            with torch.enable_grad(), context.autocast(), _replay(context.states[index]):
                added = branch.compute(source)
            inputs = [source, *branch.parameters]
            found = torch.autograd.grad(added, inputs, gradients[target].to(added.dtype), allow_unused=True)
            streams[target] = streams[target] - added.detach()
            if found[0] is not None:
                gradients[1 - target] = gradients[1 - target] + found[0]
            for parameter, gradient in zip(branch.parameters, found[1:]):
                if gradient is not None:  # layers may share a parameter
                    of_parameters[parameter] = of_parameters.get(parameter, 0) + gradient
        return (gradients[0] + gradients[1], None, None, *(of_parameters.get(p) for p in context.parameters))


class _RandomState:
    """The random numbers to come, for a branch that drops values to drop the same ones again."""

    def __init__(self, x: Tensor) -> None:
        self.cpu = torch.get_rng_state()
        self.device = x.device if x.is_cuda else None
        self.cuda = torch.cuda.get_rng_state(x.device) if x.is_cuda else None


@contextlib.contextmanager
def _replay(state: Optional[_RandomState]) -> Iterator[None]:
    if state is None:
        yield
        return
    with torch.random.fork_rng([state.device] if state.device else []):
        torch.set_rng_state(state.cpu)
        if state.cuda is not None and state.device is not None:
            torch.cuda.set_rng_state(state.cuda, state.device)
        yield


def _autocast_of(device_type: str) -> Callable[[], Any]:
    """A context like the autocast that is in force now."""
    if device_type not in ("cpu", "cuda"):
        return contextlib.nullcontext
    dtype = autocast_dtype(device_type)
    if dtype is None:
        return lambda: torch.autocast(device_type, enabled=False)
    return lambda: torch.autocast(device_type, dtype=dtype)
