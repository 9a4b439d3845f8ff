"""Runs a traced model, micro batch by micro batch, as plain PyTorch operators with autograd.

Half values are carried as float32 tensors that hold only values of the half grid: what an operator computes is rounded
to it, and so is every gradient that comes back through it. Random numbers are drawn from the generator that the caller
sets.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

import torch
from torch import Tensor

from ipu.simulator.graph import Graph, Node, Ref
from ipu.simulator.operators import is_moving, tensors_in
from ipu.simulator.poptorch_core import Error

Rounding = Callable[[Tensor], Tensor]
Step = Callable[[List[Any]], None]
_ORDERING = ("gt", "ge", "lt", "le")  # of what is no number: an invalid operation
PARTIAL_LENGTH = 128
"""Products that are summed in single precision before a partial sum in half precision is rounded: an assumption."""


def carried(tensor: Tensor) -> Tensor:
    """A tensor as programs carry it: floating point numbers as float32."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _own(tensor: Tensor) -> Tensor:
    """A constant's own memory: autograd may keep it, which it refuses for tensors of a trace."""
    return carried(tensor.detach().clone())


class Program:
    """A graph, made ready to run.

    Args:
        graph: of the model.
        round_half: brings float32 values to the half grid, differentiably.
        half_partials: round the partial sums of matrix products and convolutions of half operands, too.
        exceptions: stop where a number leaves the range of its type, or is none.
    """

    def __init__(
        self, graph: Graph, round_half: Rounding, half_partials: bool = False, exceptions: bool = False
    ) -> None:
        self.graph, self.round_half = graph, round_half
        constants = [(i, _own(value.tensor)) for i, value in enumerate(graph.values) if value.tensor is not None]
        # a constant that the model writes to begins afresh with each micro batch
        self._changing = [(i, tensor) for i, tensor in constants if i in graph.written]
        self._template: List[Any] = [None] * len(graph.values)
        for index, tensor in constants:
            self._template[index] = tensor
        if half_partials:
            for node in graph.nodes:
                _use_half_partials(node, round_half)
        self._exceptions = exceptions
        self._steps = [self._step(node, finished) for node, finished in zip(graph.nodes, _last_uses(graph))]

    def run(self, values: Dict[int, Tensor]) -> List[Any]:
        """One forward pass.

        Args:
            values: weights, buffers and inputs by value.

        Returns:
            All values that outlive the pass: the outputs and the loss at their places, None for the rest.
        """
        held = list(self._template)
        for index, tensor in values.items():
            held[index] = tensor
        for index, tensor in self._changing:
            held[index] = tensor.clone()
        for step in self._steps:
            step(held)
        return held

    def _step(self, node: Node, finished: Tuple[int, ...]) -> Step:
        compute = _checked(_computation(node), node) if self._exceptions else _computation(node)
        outputs = node.outputs
        single = outputs[0] if len(outputs) == 1 and not node.rounded else None

        def plain(held: List[Any]) -> None:
            result = compute(held)
            if single is not None and isinstance(result, Tensor):
                held[single] = result
            else:
                self._store(node, held, result)
            for index in finished:
                held[index] = None

        def without_gradient(held: List[Any]) -> None:
            with torch.no_grad():
                plain(held)

        return plain if node.differentiable else without_gradient

    def _store(self, node: Node, held: List[Any], result: Any) -> None:
        results = [result] if isinstance(result, Tensor) else [leaf for leaf in result if isinstance(leaf, Tensor)]
        if node.rounded and node.outputs[0] is None:  # in place
            target = held[node.inputs[0]]
            target.copy_(self.round_half(results[0] if node.copies_back else results[0].clone()))
            return
        for index, tensor in zip(node.outputs, results):
            if index is not None:
                half = node.rounded and self.graph.values[index].dtype == torch.half
                held[index] = self.round_half(tensor) if half else tensor


def _computation(node: Node) -> Callable[[List[Any]], Any]:
    """The call of a node's function, with its arguments looked up as directly as they can be."""
    args, kwargs = node.arguments([Ref(index) for index in range(max(node.inputs, default=-1) + 1)])
    if any(_holds_reference(value) for value in kwargs.values()) or any(
        isinstance(arg, (list, tuple)) and _holds_reference(arg) for arg in args
    ):

        def general(held: List[Any]) -> Any:
            filled, named = node.arguments(held)
            return node.function(*filled, **named)

        return general
    function = functools.partial(node.function, **kwargs) if kwargs else node.function
    places = [(position, arg.value) for position, arg in enumerate(args) if isinstance(arg, Ref)]
    template = list(args)

    def direct(held: List[Any]) -> Any:
        filled = template.copy()
        for position, index in places:
            filled[position] = held[index]
        return function(*filled)

    return direct


def check_finite(tensor: Tensor, what: str) -> None:
    """Stop as the device does when floating point exceptions are on.

    Raises:
        Error: a number of the tensor is infinite or none.
    """
    if not bool(tensor.isfinite().all()):
        raise Error(
            "poplar_runtime_error",
            f"floating point exception: {what} holds numbers that are infinite or none (overflow, division by zero or "
            "an invalid operation); lower the learning rate or the loss scaling, or keep such values out of the model",
        )


def _checked(compute: Callable[[List[Any]], Any], node: Node) -> Callable[[List[Any]], Any]:
    """Look at what is computed from finite numbers: infinity may be passed on, as masks do, and not arise."""
    if isinstance(node.function, torch._ops.OpOverload) and is_moving(node.function):
        return compute

    def checked(held: List[Any]) -> Any:
        floats = [held[value] for value in node.inputs if held[value].is_floating_point()]
        finite = all(bool(tensor.isfinite().all()) for tensor in floats)
        if node.name in _ORDERING and not finite and any(bool(tensor.isnan().any()) for tensor in floats):
            check_finite(torch.full((), math.nan), f"an operand of {node.name}")
        result = compute(held)
        for tensor in tensors_in(result):
            if tensor.is_floating_point() and (finite or bool(tensor.isnan().any())):
                check_finite(tensor, f"the result of {node.name}")
        return result

    return checked


def _holds_reference(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_reference(member) for member in value)
    return isinstance(value, Ref)


def _last_uses(graph: Graph) -> List[Tuple[int, ...]]:
    """After each node, the results that nothing needs any more."""
    lasting = set(graph.lasting())
    seen: Set[int] = set()
    uses: List[Tuple[int, ...]] = []
    for node in reversed(graph.nodes):
        here = {*node.inputs, *(output for output in node.outputs if output is not None)}
        uses.append(tuple(i for i in here - seen - lasting if graph.values[i].kind == "result"))
        seen.update(here)
    return uses[::-1]


def _use_half_partials(node: Node, round_half: Rounding) -> None:
    """Let a product with a half result round its partial sums. Those of its gradients stay in single precision."""
    if not node.rounded:
        return
    if node.name in ("conv2d", "convolution"):
        node.function = _convolution_in_parts(node, round_half)
    elif node.name == "linear":
        node.function = functools.partial(_linear_in_parts, round_half)
    elif node.name in ("matmul", "mm", "bmm"):
        node.function = functools.partial(_product_in_parts, round_half)


def _product_in_parts(round_half: Rounding, a: Tensor, b: Tensor) -> Tensor:
    parts = zip(a.split(PARTIAL_LENGTH, dim=-1), b.split(PARTIAL_LENGTH, dim=-2 if b.dim() > 1 else 0))
    return _sum_in_half((x @ y for x, y in parts), round_half)


def _linear_in_parts(round_half: Rounding, x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    result = _product_in_parts(round_half, x, weight.t())
    return result if bias is None else result + bias


def _convolution_in_parts(node: Node, round_half: Rounding) -> Callable[..., Tensor]:
    function = node.function

    def convolution(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, *rest: Any, **named: Any) -> Tensor:
        if x.shape[1] != weight.shape[1]:  # groups, or transposed: few channels are summed
            return function(x, weight, bias, *rest, **named)
        channels = max(PARTIAL_LENGTH // weight[0, 0].numel(), 1)
        parts = zip(x.split(channels, dim=1), weight.split(channels, dim=1))
        result = _sum_in_half((function(x, w, None, *rest, **named) for x, w in parts), round_half)
        return result if bias is None else result + bias.view(-1, *[1] * (weight.dim() - 2))

    return convolution


def _sum_in_half(parts: Iterable[Tensor], round_half: Rounding) -> Tensor:
    total: Optional[Tensor] = None
    for part in parts:
        total = round_half(part if total is None else total + part)
    assert total is not None
    return total
