"""Traces one forward pass of a model into a graph, as PopTorch's dispatcher does, and refuses what an IPU cannot run.

The model runs once, on the first micro batch, below autograd, so that every ATen operator is seen as it is called.
What differs from a plain run is undone afterwards: parameters, buffers and random numbers are as before.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ipu.simulator.arguments import flatten_output
from ipu.simulator.graph import Graph, Node, Ref, Value, flatten_call
from ipu.simulator.operators import (
    FACTORIES,
    LOSSES,
    RANDOM,
    base_name,
    check_supported,
    compute,
    decompose,
    harmonise,
    is_inplace,
    is_moving,
    narrow_types,
    on_half_grid,
    tensors_in,
    widen_types,
    without_writing,
    written_by_name,
)
from ipu.simulator.placeholders import Slot, device_type, placeholders
from ipu.simulator.poptorch_core import Error, python_error
from ipu.simulator.python_side import PythonSide
from ipu.simulator.stages import Place, Stages, Transfer, check_flow

_log = logging.getLogger("poptorch::python")
_CONVERSIONS = ("to", "_to_copy", "type_as")
_HERE = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_active: List[Tracer] = []


def active_tracer() -> Optional[Tracer]:
    """The tracer that a model runs under just now."""
    return _active[-1] if _active and not _active[-1].on_host else None


class Tracer(TorchDispatchMode):
    """Writes down every operator.

    Args:
        stages: follows the blocks.
    """

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.graph = Graph(stages)
        self.losses: List[int] = []
        self.kept: Dict[int, Tensor] = {}
        self.on_host = False
        self._index: Dict[int, int] = {}
        self._attributes: Dict[int, str] = {}
        self._aliases: List[Tensor] = []  # they live as long as their identities are looked up
        self._handed_on: Dict[int, Any] = {}
        self._sent: Set[Tuple[int, int]] = set()

    def add(self, kind: str, name: str, tensor: Tensor, place: Optional[Place] = None) -> int:
        """Make a tensor known to the graph; returns its value."""
        with self.paused():  # a constant is what it was when it was made
            constant = tensor.clone() if kind == "constant" else None
        value = Value(kind, name, tensor.shape, tensor.dtype, constant, place)
        self.graph.values.append(value)
        index = len(self.graph.values) - 1
        self.kept[index] = tensor
        self._index[id(tensor)] = index
        return index

    def add_alias(self, tensor: Tensor, value: int) -> None:
        """Another tensor that means a value of the graph."""
        self._index[id(tensor)] = value
        self._aliases.append(tensor)

    def add_slots(self, slots: Sequence[Slot]) -> None:
        """Make a model's parameters and buffers known."""
        for slot in slots:
            if self.knows(slot.placeholder):
                continue
            is_weight = isinstance(slot.placeholder, nn.Parameter)
            value = self.add("weight" if is_weight else "buffer", slot.path, slot.placeholder)
            self.add_alias(slot.tensor, value)
            (self.graph.weights if is_weight else self.graph.buffers)[slot.path] = value

    def add_attributes(self, model: nn.Module) -> None:
        """Tensors that modules hold as plain attributes become constants where they are used."""
        for path, module in model.named_modules():
            for name, attribute in vars(module).items():
                if name in ("_parameters", "_buffers", "_modules"):
                    continue
                for tensor in tensors_in(attribute) if isinstance(attribute, (Tensor, list, tuple, dict)) else []:
                    self._attributes[id(tensor)] = f"{path}.{name}"

    def value_of(self, tensor: Tensor) -> int:
        """The graph's value that a tensor stands for.

        Raises:
            Error: none; it lies on the host.
        """
        if id(tensor) in self._index:
            if self._handed_on.pop(id(tensor), None) is not None:
                self.kept[self._index[id(tensor)]] = tensor
            return self._index[id(tensor)]
        if id(tensor) in self._attributes:
            return self.add("constant", self._attributes[id(tensor)], tensor)
        raise python_error(
            f"Expected an IPU tensor but got tensor(device=cpu, shape={tuple(tensor.shape)}, dtype={tensor.dtype}); "
            f"make it a buffer of the model, an input, or create it inside forward [{self.user_line()}]"
        )

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor came from the graph."""
        return id(tensor) in self._index

    def operator_of(self, tensor: Tensor) -> str:
        """The name of the operator that gave a tensor; of weights, buffers and inputs their own."""
        return self.graph.values[self.value_of(tensor)].name

    def mark_loss(self, tensor: Tensor) -> None:
        """The tensor may be what is minimised."""
        if self.knows(tensor):
            self.losses.append(self.value_of(tensor))

    def as_loss(self, function: Callable[[], Any]) -> Any:
        """Call a loss function: its result may be what is minimised, and nothing on the way to it."""
        before = len(self.losses)
        result = function()
        del self.losses[before:]
        if isinstance(result, Tensor):
            self.mark_loss(result)
        return result

    def created(self, function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tensor:
        """Call a function that makes a tensor. What is not random is the same in every pass: a constant.

        Raises:
            Error: it asks for the values of the graph's tensors.
        """
        name = function.__name__
        args, kwargs = narrow_types((args, kwargs))
        given = [tensor for tensor in tensors_in((args, kwargs)) if self.knows(tensor)]
        if name != "normal" and len(given) > name.endswith("_like"):
            raise python_error(
                f"torch.{name} asks for the value of a tensor on the IPU while the graph is made; use torch.stack or "
                f"cat to build on tensors of the graph [{self.user_line()}]"
            )
        with self.paused():
            made = function(*args, **kwargs)
            made = made.to(device_type(made.dtype))
        self._write_factory(name, function, args, kwargs, made)
        return made

    def opaque(
        self,
        name: str,
        function: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        example: Optional[Callable[..., Sequence[Tensor]]] = None,
        own_types: bool = False,
    ) -> List[Tensor]:
        """Write down a Python function of tensors as one operation.

        Args:
            name: of the operation.
            function: called in every pass, with half values as float32.
            tensors: its arguments.
            example: called in place of it while the graph is made.
            own_types: call it with half values as such, and leave its results the types that they have.
        """
        half = not own_types and any(tensor.dtype == torch.half for tensor in tensors)
        with self.paused():
            given = tensors if own_types else [t.float() if t.dtype == torch.half else t for t in tensors]
            found = (example or function)(*given)
            results = [r.clone().to(torch.half if half and r.is_floating_point() else r.dtype) for r in found]
        in_passes = _of_carried(function, [tensor.dtype for tensor in tensors]) if own_types else function
        self._write(name, in_passes, tuple(tensors), {}, results)
        return results

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        """Called by PyTorch in place of every operator."""
        kwargs = dict(kwargs or {})
        name = base_name(func)
        if self.on_host:
            return func(*args, **kwargs)
        if name == "lift_fresh" and not self.knows(args[0]):
            self.add_alias(args[0], self.add("constant", name, args[0].to(device_type(args[0].dtype))))
            return args[0]
        if name == "detach" and is_inplace(func) and self.graph.values[self.value_of(args[0])].kind == "constant":
            return args[0]
        args, kwargs = narrow_types((args, kwargs))
        written = written_by_name(func)
        if written:
            return self._assign(func, args, kwargs, written)
        for tensor in tensors_in((args, kwargs)):
            self.value_of(tensor)
        if name in FACTORIES and not is_inplace(func):
            return self._hand_on(name, func, args, kwargs)
        if not self._is_supported(func, args, kwargs):
            with self:
                return decompose(func, args, kwargs)
        args = harmonise(func, args, self._cast)
        result = compute(func, args, kwargs)
        self._write(name, func, args, kwargs, result, random=name in RANDOM)
        if name in LOSSES and isinstance(result, Tensor):
            self.mark_loss(result)
        return result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within, operators run on the host and nobody follows them."""
        before, self.on_host = self.on_host, True
        try:
            yield
        finally:
            self.on_host = before

    @staticmethod
    def user_line() -> str:
        """Where in the model's own code something was called."""
        for frame in reversed(traceback.extract_stack()):
            if not frame.filename.startswith((_HERE, _TORCH)) and "importlib" not in frame.filename:
                return f"{frame.filename}:{frame.lineno}"
        return "unknown line"

    def _is_supported(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
        try:
            return check_supported(func, args, kwargs)
        except Error as error:
            raise python_error(f"{error.message} [{self.user_line()}]") from None

    def _assign(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], written: List[str]) -> Tensor:
        """An operator with `out=` is the one without, and a copy.

        Raises:
            Error: it has several results.
        """
        if len(written) > 1:
            raise python_error(
                f"{func._schema.name} with several out= cannot be traced; assign its results [{self.user_line()}]"
            )
        target = kwargs.pop(written[0])
        with self:
            return target.copy_(func._overloadpacket(*args, **kwargs))

    def _hand_on(self, name: str, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tensor:
        """Call a factory that a function of PyTorch calls: older ones refuse a result that somebody else holds.

        So the graph holds a copy until the tensor is used, and forgets one that never is.
        """
        made = compute(func, args, kwargs)
        copy = made.clone()
        self._write_factory(name, func, args, kwargs, copy)
        identity, value = id(made), self._index.pop(id(copy))
        self._index[identity] = value
        self._handed_on[identity] = weakref.ref(made, lambda _: self._forget(identity))
        return made

    def _forget(self, identity: int) -> None:
        if self._handed_on.pop(identity, None) is not None:
            del self._index[identity]

    def _write_factory(
        self, name: str, function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], made: Tensor
    ) -> None:
        if name in RANDOM:
            self._write(name, function, args, kwargs, made, random=True)
        else:
            self.add("constant", name, made)

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        result = tensor.to(dtype)
        self._write("to", torch.ops.aten._to_copy.default, (tensor,), {"dtype": dtype}, result)
        return result

    def _write(
        self,
        name: str,
        function: Any,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        result: Any,
        random: bool = False,
    ) -> None:
        inputs, results = tensors_in((args, kwargs)), tensors_in(result)
        fresh = [not any(made is given for given in inputs) for made in results]
        operator = isinstance(function, torch._ops.OpOverload)
        inplace = operator and is_inplace(function)
        if operator and inputs and not inplace and not any(fresh):
            return  # it gave its argument back
        place = self.graph.stages.here()
        values = [self._use(tensor, place) for tensor in inputs]
        shared = self._mark_written(args[0], place) if inplace else set()
        half = any(made.dtype == torch.half for made in results)
        rounded = half and not (operator and _keeps_the_grid(function, inputs, results))
        if half and operator and is_moving(function):
            args = tree_map(on_half_grid, args)
        outputs = [self.add("result", name, made, place) if new else None for made, new in zip(results, fresh)]
        copies_back = False
        if inplace:
            function, outputs, copies_back = self._as_assignment(function, values[0], shared, rounded)
        if operator and name in _CONVERSIONS and not inplace:
            function, args, kwargs = torch.ops.aten._to_copy.default, args[:1], {"dtype": results[0].dtype}
        leaves, structure = flatten_call(*widen_types((args, kwargs)))
        references = iter(values)
        leaves = [Ref(next(references)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.graph.nodes.append(
            Node(
                name, function, leaves, structure, outputs, place, torch.is_grad_enabled(), rounded,
                pure=not inplace or outputs[0] is not None, random=random, copies_back=copies_back,
            )
        )  # fmt: skip

    def _use(self, tensor: Tensor, place: Place) -> int:
        """The value of an argument, brought to where it is used.

        Raises:
            Error: it cannot get there.
        """
        index = self.value_of(tensor)
        value, stages = self.graph.values[index], self.graph.stages
        if value.place is None or (value.kind == "input" and place.stage < value.place.stage):
            value.place = place  # the host brings it to its first use
        if value.kind in ("weight", "buffer") and value.place.ipu != place.ipu and stages.pipelined:
            raise python_error(
                f"{value.kind} {value.name} lies on IPU {value.place.ipu} and is used on IPU {place.ipu}, too; every "
                "IPU has its own memory: tie weights within one IPU only, or move the blocks together"
            )
        if value.kind == "result" and stages.pipelined:
            check_flow(f"{value.kind} {value.name}", value.place, place)
        if value.place.ipu != place.ipu and (index, place.ipu) not in self._sent:
            self._sent.add((index, place.ipu))
            self.graph.transfers.append(Transfer(index, value.place.ipu, place.ipu, value.size))
        return index

    def _as_assignment(
        self, function: Any, target: int, shared: Set[int], rounded: bool
    ) -> Tuple[Any, List[Optional[int]], bool]:
        """How an operator that writes is run: the function, the value that it gives, whether its result is copied back.

        An IPU's graph has no memory to write to. Here, memory is written where others see it, and otherwise the name
        gets a new value, so that the backward pass finds what it kept.
        """
        pure = without_writing(function)
        if pure is not None and shared == {target} and self.graph.values[target].kind in ("result", "constant"):
            return pure, [target], False
        if pure is not None and rounded:
            return pure, [None], True
        return function, [None], False

    def _mark_written(self, tensor: Tensor, place: Place) -> Set[int]:
        """Note that memory changes; returns the values that lie in it."""
        shared = set()
        memory = tensor.untyped_storage().data_ptr()
        for index, other in self.kept.items():
            if other.untyped_storage().data_ptr() == memory:
                shared.add(index)
                if self.graph.values[index].place is not None:
                    self.graph.values[index].place = place  # what it holds now was made here
        self._sent = {(value, ipu) for value, ipu in self._sent if value not in shared}
        self.graph.written |= shared
        return shared


def trace(
    model: nn.Module, call: Any, tensors: Sequence[Tensor], stages: Stages, training: bool
) -> Tuple[Graph, Any, Dict[int, Tensor]]:
    """Run a model once and write down what it does.

    Args:
        model: as it runs; its sub-modules are the user's own.
        call: the arguments of forward, an `arguments.Arguments`.
        tensors: the first micro batch of each tensor argument.
        stages: follows the blocks.
        training: whether a loss is looked for.

    Returns:
        The graph, what forward returned, and the tensors of the trace by value.

    Raises:
        Error: what an IPU cannot run, or cannot reach.
    """
    tracer = Tracer(stages)
    graph = tracer.graph
    inputs = [tensor.detach().to(device_type(tensor.dtype)).clone() for tensor in tensors]
    with placeholders(model) as slots:
        tracer.add_slots(slots)
        tracer.add_attributes(model)
        graph.inputs = [tracer.add("input", f"input {i}", tensor) for i, tensor in enumerate(inputs)]
        before = {value: tracer.kept[value].clone() for value in (*graph.buffers.values(), *graph.inputs)}
        args, kwargs = call.replaced(inputs)
        with _traced(tracer):
            output = model(*args, **kwargs)
            _note_outputs(tracer, output)
    # some operators change a tensor without saying so: statistics of batches
    changed = graph.written | {value for value, copy in before.items() if not _same(tracer.kept[value], copy)}
    graph.written_buffers = {name for name, value in graph.buffers.items() if value in changed}
    graph.written_inputs = {position for position, value in enumerate(graph.inputs) if value in changed}
    graph.loss = _final_loss(tracer) if training else None
    stages.report()
    return graph, output, tracer.kept


def _of_carried(function: Callable[..., Sequence[Tensor]], dtypes: Sequence[torch.dtype]) -> Callable[..., Any]:
    """A function of tensors of these types as one of tensors as programs carry them, halves as float32."""

    def call(*carried: Tensor) -> List[Tensor]:
        found = function(*(t.half() if dtype == torch.half else t for t, dtype in zip(carried, dtypes)))
        return [result.float() if result.dtype == torch.half else result for result in found]

    return call


def _note_outputs(tracer: Tracer, output: Any) -> None:
    for leaf in flatten_output(output):
        if tracer.knows(leaf):
            tracer.graph.outputs.append(tracer.value_of(leaf))
        else:
            _log.warning("an output of forward is a tensor of the host, expected on the IPU; it is returned as it is")
            tracer.graph.outputs.append(None)


def _final_loss(tracer: Tracer) -> Optional[int]:
    """The loss that all others lead to.

    Raises:
        Error: several have nothing to do with each other.
    """
    candidates = set(tracer.losses)
    if not candidates:
        return None
    for candidate in sorted(candidates, reverse=True):
        if candidates <= tracer.graph.ancestors(candidate):
            return candidate
    raise python_error(
        "Multiple independent losses found in graph; wrap the one to minimise in poptorch.identity_loss, which depends "
        "on all others"
    )


@contextlib.contextmanager
def _traced(tracer: Tracer) -> Iterator[None]:
    """Everything is recorded; random numbers and checks of distributions are as before afterwards."""
    validate = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution._validate_args = False
    _active.append(tracer)
    try:
        # below autograd, where composite operators are seen whole; the flag still follows `no_grad` of the model
        with contextlib.ExitStack() as stack:
            below = (torch.random.fork_rng([]), torch.inference_mode(), torch.enable_grad(), PythonSide(tracer), tracer)
            for context in (_no_own_functions(), *below):
                stack.enter_context(context)
            yield
    finally:
        _active.pop()
        torch.distributions.Distribution._validate_args = validate


@contextlib.contextmanager
def _no_own_functions() -> Iterator[None]:
    """Refuse gradients of the model's own: an IPU has operators' only."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise python_error(
            "autograd functions of one's own (torch.autograd.Function) cannot be lowered to an IPU; write it with "
            f"PyTorch's operators, or make it a poptorch.custom_op [{Tracer.user_line()}]"
        )

    functions: Any = torch.autograd.Function
    own = "apply" in vars(functions)
    apply = vars(functions).get("apply")
    functions.apply = refuse
    try:
        yield
    finally:
        if own:
            functions.apply = apply
        else:
            del functions.apply


def _keeps_the_grid(function: Any, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
    """Whether half results hold only values of half inputs."""
    floats = [tensor for tensor in inputs if tensor.is_floating_point()]
    all_half = all(tensor.dtype == torch.half for tensor in floats)
    return (is_moving(function) or (base_name(function) in _CONVERSIONS and bool(floats))) and all_half


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(one.float()), torch.nan_to_num(other.float()))
