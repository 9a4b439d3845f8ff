"""Stand-in for Horovod's PyTorch face: collectives over the instances that PopRun or mpirun started.

With one instance they change nothing; with several they go through torch.distributed.
"""

from __future__ import annotations

import ctypes
import io
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor

from ipu.simulator.standins import instances

Average, Sum, Adasum, Min, Max, Product = range(6)

_ANYTHING: Dict[str, Any] = {"weights_only": False}  # it comes from the same program on another instance
Parameters = Union[Mapping[str, Any], Iterable[Tuple[str, Any]]]


class _State:
    initialized = False


def init(*args: Any, **kwargs: Any) -> None:
    """Join the other instances; waits for all of them."""
    instances.join()
    _State.initialized = True


def shutdown() -> None:
    """Leave the others."""
    import torch.distributed as distributed

    if _State.initialized and distributed.is_initialized():
        distributed.destroy_process_group()
    _State.initialized = False


def is_initialized() -> bool:
    """Whether `init` was called."""
    return _State.initialized


def size() -> int:
    """How many instances there are."""
    _require_init()
    return instances.number()


def rank() -> int:
    """Which instance this is."""
    _require_init()
    return instances.index()


def local_rank() -> int:
    """Which one it is of those on its host."""
    _require_init()
    return instances.local_index()


def allreduce(
    tensor: Tensor,
    average: Optional[bool] = None,
    name: Optional[str] = None,
    op: Optional[int] = None,
    **ignored: Any,
) -> Tensor:
    """The average of every instance's tensor, or what `op` or `average=False` (the sum) asks for."""
    return allreduce_(tensor.detach().clone(), average, name, op)


def allreduce_(
    tensor: Tensor,
    average: Optional[bool] = None,
    name: Optional[str] = None,
    op: Optional[int] = None,
    **ignored: Any,
) -> Tensor:
    """As `allreduce`, in place."""
    if op is None:
        op = Sum if average is False else Average
    if size() == 1:
        return tensor
    import torch.distributed as distributed

    kinds = distributed.ReduceOp
    known = {Average: kinds.SUM, Sum: kinds.SUM, Min: kinds.MIN, Max: kinds.MAX, Product: kinds.PRODUCT}
    if op not in known:
        raise RuntimeError(
            f"allreduce with op={op}: the simulator's stand-in for horovod has Average, Sum, Min, Max, Product"
        )
    distributed.all_reduce(tensor, known[op])
    if op == Average:
        tensor.copy_(
            tensor / size() if tensor.is_floating_point() else torch.div(tensor, size(), rounding_mode="floor")
        )
    return tensor


def allgather(tensor: Tensor, name: Optional[str] = None, **ignored: Any) -> Tensor:
    """The tensors of all instances, one after the other along the first dimension."""
    if size() == 1:
        return tensor.detach().clone()
    import torch.distributed as distributed

    rows = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    distributed.all_gather(rows, torch.tensor([len(tensor)]))
    longest = int(max(rows))  # everybody has to give equally much
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in rows]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, rows)])


def broadcast(tensor: Tensor, root_rank: int, name: Optional[str] = None, **ignored: Any) -> Tensor:
    """One instance's tensor, on all of them."""
    return broadcast_(tensor.detach().clone(), root_rank, name)


def broadcast_(tensor: Tensor, root_rank: int, name: Optional[str] = None, **ignored: Any) -> Tensor:
    """As `broadcast`, in place."""
    if size() == 1:
        return tensor
    import torch.distributed as distributed

    distributed.broadcast(tensor, root_rank)
    return tensor


def broadcast_parameters(params: Parameters, root_rank: int, **ignored: Any) -> None:
    """Overwrite tensors by those of one instance.

    Args:
        params: by name, such as a `state_dict()` or `named_parameters()`; what is no tensor stays.
        root_rank: whose they become.
    """
    pairs = params.items() if isinstance(params, Mapping) else params
    for _, tensor in sorted(pairs, key=lambda pair: pair[0]):
        if isinstance(tensor, Tensor):
            broadcast_(tensor.detach(), root_rank)


def broadcast_object(obj: Any, root_rank: int = 0, name: Optional[str] = None, **ignored: Any) -> Any:
    """Anything that one instance has and that can be pickled, on all of them."""
    if size() == 1:
        return obj
    written = io.BytesIO()
    if rank() == root_rank:
        torch.save(obj, written)
    length = broadcast_(torch.tensor([written.getbuffer().nbytes]), root_rank)
    content = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == root_rank:
        content = torch.frombuffer(written.getbuffer(), dtype=torch.uint8)
    broadcast_(content, root_rank)
    # torch's own broadcast of objects needs NumPy to come from bytes to tensors and back; this does not.
    received = ctypes.string_at(content.data_ptr(), content.numel())
    return torch.load(io.BytesIO(received), **_ANYTHING)


def broadcast_optimizer_state(optimizer: torch.optim.Optimizer, root_rank: int, **ignored: Any) -> None:
    """Give the optimizer of every instance the state of one."""
    state: Dict[str, Any] = broadcast_object(optimizer.state_dict(), root_rank)
    if rank() != root_rank:
        optimizer.load_state_dict(state)


def barrier(**ignored: Any) -> None:
    """Wait for all instances."""
    if size() > 1:
        import torch.distributed as distributed

        distributed.barrier()


def _require_init() -> None:
    if not _State.initialized:
        raise ValueError("Horovod has not been initialized; call hvd.init() first")


def __getattr__(name: str) -> Any:
    raise AttributeError(f"the simulator's stand-in for horovod.torch has no {name}")
