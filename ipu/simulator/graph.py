"""A traced model: its operations in order, each with its place, and the values between them."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ipu.simulator.poptorch_core import python_error
from ipu.simulator.stages import Place, Stages, Transfer

GRADIENT, UPDATED = OBSERVABLE = ("Gradient___", "UpdatedVar___")
"""What PopART calls a weight's gradient in a micro batch, loss scale included, and the weight after an update."""


@dataclasses.dataclass(frozen=True)
class Ref:
    """Stands in an operation's arguments for a value of the graph."""

    value: int


@dataclasses.dataclass
class Value:
    """A tensor of the graph.

    Args:
        kind: "input", "weight", "buffer", "constant" or "result".
        name: of an input, weight or buffer; else of the operation.
        shape, dtype: as the model sees them.
        tensor: of a constant.
        place: where it lies; weights, inputs and constants lie where they are first used.
    """

    kind: str
    name: str
    shape: torch.Size
    dtype: torch.dtype
    tensor: Optional[Tensor] = None
    place: Optional[Place] = None

    @property
    def size(self) -> int:
        """In bytes on the device, where whole numbers of 64 bits have 32."""
        width = 4 if self.dtype in (torch.int64, torch.float32) else torch.empty((), dtype=self.dtype).element_size()
        return self.shape.numel() * width


@dataclasses.dataclass
class Node:
    """One operation.

    Args:
        name: of the operator.
        function: computes it, over float32 carriers of half values.
        leaves, structure: its arguments as a flattened tree, values as `Ref`.
        outputs: the value of each tensor it returns; None where that is one of its arguments.
        place: where it runs.
        differentiable: gradients pass.
        rounded: its results are half and not among its inputs' values.
        pure: it may be left out when nothing uses its results.
        random: it draws random numbers.
        copies_back: its result goes into the memory of its first input.
    """

    name: str
    function: Callable[..., Any]
    leaves: List[Any]
    structure: Any
    outputs: List[Optional[int]]
    place: Place
    differentiable: bool = True
    rounded: bool = False
    pure: bool = True
    random: bool = False
    copies_back: bool = False

    @property
    def inputs(self) -> List[int]:
        """The values it reads."""
        return [leaf.value for leaf in self.leaves if isinstance(leaf, Ref)]

    def arguments(self, values: List[Any]) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """Its arguments with the values filled in."""
        filled = [values[leaf.value] if isinstance(leaf, Ref) else leaf for leaf in self.leaves]
        return tree_unflatten(filled, self.structure)


@dataclasses.dataclass
class Graph:
    """A traced model.

    Args:
        values: all values.
        nodes: all operations, in order.
        stages: the blocks they were traced in.
        transfers: of values between IPUs, of one micro batch.
        inputs: the values of the model's tensor arguments.
        outputs: the values of its tensor results; None for a host tensor.
        loss: the value to minimise, in training.
        weights: names of weights that learn and of those that do not, each with its value.
        buffers: names of buffers with their values.
        written_buffers: those that forward changes.
        written_inputs: positions of the inputs that forward changes.
    """

    stages: Stages
    values: List[Value] = dataclasses.field(default_factory=list)
    nodes: List[Node] = dataclasses.field(default_factory=list)
    transfers: List[Transfer] = dataclasses.field(default_factory=list)
    inputs: List[int] = dataclasses.field(default_factory=list)
    outputs: List[Optional[int]] = dataclasses.field(default_factory=list)
    loss: Optional[int] = None
    weights: Dict[str, int] = dataclasses.field(default_factory=dict)
    buffers: Dict[str, int] = dataclasses.field(default_factory=dict)
    written_buffers: Set[str] = dataclasses.field(default_factory=set)
    written_inputs: Set[int] = dataclasses.field(default_factory=set)
    inference_only: Set[str] = dataclasses.field(default_factory=set)
    """Operations that have no backward pass."""
    overlapped: Set[str] = dataclasses.field(default_factory=set)
    """What is loaded or sent while the device computes: "inputs", "outputs"."""
    written: Set[int] = dataclasses.field(default_factory=set)
    """Values that an operation writes to, and all that share memory with them."""

    anchored: Dict[str, int] = dataclasses.field(default_factory=dict)
    """Values that are fetched beside the outputs, by a name of the user's."""
    observed: Dict[str, Tuple[str, str]] = dataclasses.field(default_factory=dict)
    """What else is: by a name of the user's one of `OBSERVABLE` and a weight's name."""

    def lasting(self) -> List[int]:
        """The values that outlive a run."""
        return [value for value in (*self.outputs, self.loss, *self.anchored.values()) if value is not None]

    def used_weights(self) -> List[str]:
        """Names of the weights that an operation reads."""
        read = {value for node in self.nodes for value in node.inputs}
        return [name for name, value in self.weights.items() if value in read]

    def tensor_names(self) -> List[str]:
        """A name for every value: of weights, buffers and inputs their own."""
        own = ("weight", "buffer", "input")
        names = [v.name if v.kind in own else f"{v.name}:{index}" for index, v in enumerate(self.values)]
        return [*names, *self._observable()]

    def keep(self, anchors: Dict[str, Any]) -> None:
        """Keep the values that an option asks for beside the outputs.

        Args:
            anchors: from a short name to the value's name, alone or first of several.

        Raises:
            Error: there is no such value.
        """
        names = {name: index for index, name in enumerate(self.tensor_names())}
        observable = self._observable()
        for short, anchor in anchors.items():
            name = anchor if isinstance(anchor, str) else anchor[0]
            if name not in names:
                raise python_error(f"anchorTensor: the graph has no tensor {name}; see getTensorNames()")
            if name in observable:
                self.observed[short] = observable[name]
            else:
                self.anchored[short] = names[name]

    def _observable(self) -> Dict[str, Tuple[str, str]]:
        """Names of what belongs to the weights that a loss trains, each with its kind and the weight's name."""
        weights = self.used_weights() if self.loss is not None else []
        return {f"{kind}{weight}": (kind, weight) for weight in weights for kind in OBSERVABLE}

    def prune(self) -> None:
        """Leave out operations whose results nothing needs."""
        needed = set(self.lasting())
        kept = []
        for node in reversed(self.nodes):
            if not node.pure or any(output in needed for output in node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]

    def fold_constants(self, computed: Dict[int, Tensor]) -> None:
        """Keep what depends on constants alone as a constant.

        Args:
            computed: the tensors of the trace by value.
        """
        constant = {index for index, value in enumerate(self.values) if value.kind == "constant"} - self.written
        kept = []
        for node in self.nodes:
            made = [output for output in node.outputs if output is not None]
            foldable = node.pure and not node.random and made and not self.written.intersection(made)
            if foldable and constant.issuperset(node.inputs):
                for output in made:
                    self.values[output].kind, self.values[output].tensor = "constant", computed[output]
                constant.update(made)
            else:
                kept.append(node)
        self.nodes = kept

    def ancestors(self, value: int) -> Set[int]:
        """All values that `value` was computed from, itself included."""
        made_by: Dict[int, List[Node]] = {}
        for node in self.nodes:
            written = [] if node.pure else node.inputs[:1]
            for output in (*(o for o in node.outputs if o is not None), *written):
                made_by.setdefault(output, []).append(node)
        found, open_ = set(), [value]
        while open_:
            index = open_.pop()
            if index not in found:
                found.add(index)
                open_.extend(value for node in made_by.get(index, []) for value in node.inputs)
        return found


def flatten_call(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[List[Any], Any]:
    """The leaves of a call's arguments and their structure."""
    leaves, structure = tree_flatten((args, kwargs))
    return leaves, structure
