"""PopTorch's own operations, as they appear in models."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ipu.simulator.arguments import flatten_output, rebuild_output
from ipu.simulator.enums import MatMulSerializationMode, MultiConvPlanType, OverlapMode
from ipu.simulator.poptorch_core import python_error
from ipu.simulator.tracing import active_tracer

Implementation = Callable[..., Sequence[Tensor]]
_PLANNED = frozenset(
    """
    addmm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution dot einsum linear matmul mm mv
    """.split()
)
_NEW_LINE = "\n"
_custom_ops: Dict[Tuple[str, str, int], Tuple[Implementation, bool]] = {}


def register_custom_op(
    name: str, domain: str, domain_version: int, implementation: Implementation, own_types: bool = False
) -> None:
    """Say what a custom operator computes in the simulator, which has no compiled operators to load.

    Args:
        name, domain, domain_version: as in `custom_op`.
        implementation: takes the input tensors, then the attributes by keyword, and returns the output tensors;
            gradients go through it as through any PyTorch code.
        own_types: halves come to it as torch.float16, and its outputs have the types that it gives them. Otherwise
            halves come as float32, and where one input is half, so is every floating point output.
    """
    _custom_ops[domain, name, domain_version] = (implementation, own_types)


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """Mark a tensor as the loss to minimise: its sum, mean, or (none) a copy."""
    assert reduction in ("sum", "mean", "none"), f"reduction={reduction!r} is not one of sum, mean, none"
    result = x.sum() if reduction == "sum" else x.mean() if reduction == "mean" else x.clone()
    tracer = active_tracer()
    if tracer is not None:
        tracer.mark_loss(result)
    return result


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Keep these values for the backward pass where the others are computed again; the values are the same."""
    given = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else list(tensors)
    if not all(isinstance(tensor, Tensor) for tensor in given):
        raise ValueError("All inputs must be tensors")
    if len(tensors) == 1:
        return tensors[0]
    return tuple(given)


def serializedMatMul(
    lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> Tensor:
    """The product of two matrices, computed part after part to need less memory at a time.

    Raises:
        AssertionError: arguments of other types.
        Error: shapes that cannot be cut.
    """
    assert isinstance(keep_precision, bool) and isinstance(factor, int), "factor is a whole number"
    assert isinstance(mode, MatMulSerializationMode), "mode is a MatMulSerializationMode"
    if mode is not MatMulSerializationMode.Disabled and factor > 1:
        _check_serialization(lhs, rhs, mode, factor)
    return lhs @ rhs


def set_available_memory(tensor: Tensor, available_memory_proportion: float) -> Tensor:
    """Plan the product or convolution that gave this tensor within a share of the memory."""
    _check_tensor(tensor, "set_available_memory")
    tracer = active_tracer()
    if tracer is not None and tracer.operator_of(tensor) not in _PLANNED:
        raise python_error(
            "set_available_memory takes the result of a matrix product or convolution, which is what is planned, and "
            f"got that of {tracer.operator_of(tensor)}; call it right after the product"
        )
    return tensor


def nop(tensor: Tensor) -> Tensor:
    """A copy."""
    _check_tensor(tensor, "nop")
    return tensor.clone()


def ipu_print_tensor(
    tensor: Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> Tensor:
    """The tensor itself; its values, and its gradient's, are printed on the error stream when they are computed.

    The result must be used, or nothing is printed.
    """
    _check_tensor(tensor, "ipu_print_tensor")
    if float_format not in ("auto", "fixed", "scientific", "none"):
        raise python_error(f"float_format={float_format!r} is not one of auto, fixed, scientific, none")

    number = {"scientific": f"{{:.{digits}e}}", "none": "{}"}.get(float_format, f"{{:.{digits}f}}")
    edges = edge_items if tensor.numel() > summarise_threshold else tensor.numel()

    def text(values: Any) -> str:
        if not isinstance(values, list):
            return number.format(values) if isinstance(values, float) else str(values)
        parts = [text(value) for value in values]
        if len(parts) > 2 * edges:
            parts[edges:-edges] = ["..."]
        whole = f"{open_bracket}{separator.join(parts)}{close_bracket}"
        fits = len(whole) <= max_line_width or not isinstance(values[0] if values else None, list)
        return whole if fits else f"{open_bracket}{f'{separator.rstrip()}{_NEW_LINE} '.join(parts)}{close_bracket}"

    def show(values: Tensor, name: str) -> None:
        print(f"{name}: {text(values.tolist())}", file=sys.stderr, flush=True)

    def printed(values: Tensor) -> List[Tensor]:
        show(values.detach(), title)
        result = values.clone()
        if print_gradient and result.requires_grad:
            result.register_hook(lambda gradient: show(gradient, f"{title}_gradient"))
        return [result]

    if active_tracer() is None:
        return printed(tensor)[0]
    return _opaque("ipu_print_tensor", printed, [tensor], example=lambda values: [values])[0]


def custom_op(
    inputs: Sequence[Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Sequence[Tensor],
    attributes: Optional[Dict[str, Any]] = None,
) -> List[Tensor]:
    """An operator of one's own; outside of a graph it gives its example outputs, filled with zeros.

    Raises:
        ValueError: an attribute of a kind that cannot be passed.
        Error: the simulator does not know what it computes.
    """
    attributes = dict(attributes or {})
    _check_attributes(attributes)
    examples = list(example_outputs)
    tracer = active_tracer()
    if tracer is None:
        return [torch.zeros_like(example) for example in examples]
    _check_range(attributes)
    if (domain, name, domain_version) not in _custom_ops:
        raise python_error(
            f"no implementation of the custom operator {domain}.{name}:{domain_version}; tell the simulator what it "
            "computes: ipu.simulator.register_custom_op"
        )
    implementation, own_types = _custom_ops[domain, name, domain_version]
    function = functools.partial(implementation, **attributes)
    results = tracer.opaque(f"{domain}.{name}", function, inputs, own_types=own_types)
    for result, example in zip(results, examples):
        if result.shape != example.shape or result.dtype != example.dtype:
            raise python_error(
                f"custom operator {domain}.{name} gave {tuple(result.shape)} {result.dtype} where its example output "
                f"is {tuple(example.shape)} {example.dtype}"
            )
    return results


class CPU:
    """A part of a model that runs on the host; for inference.

    Args:
        layer_to_call: a module or function.
        ID: its name.
    """

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        self.layer, self.ID = layer_to_call, ID
        if isinstance(layer_to_call, nn.Module):
            layer_to_call.requires_grad_(False)

    def __call__(self, *tensors: Tensor) -> Any:
        """Call it with tensors of the graph."""
        tracer = active_tracer()
        if tracer is None:
            return self.layer(*tensors)
        tracer.graph.inference_only.add("poptorch.CPU")
        structure: List[Any] = []
        dtypes = [tensor.dtype for tensor in tensors]

        def call(*values: Tensor) -> List[Tensor]:
            structure[:] = [self.layer(*(value.to(dtype) for value, dtype in zip(values, dtypes)))]
            return flatten_output(structure[0])

        results = tracer.opaque(f"CPU {self.ID}", call, tensors)
        return rebuild_output(structure[0], list(results))


def for_loop(count: int, body: Callable[..., Any], inputs: Sequence[Tensor]) -> List[Tensor]:
    """Call `body` `count` times, each time with what it returned before.

    Raises:
        ValueError: the inputs are not a list of tensors.
        Error: the body returns other tensors than it takes.
    """
    if not isinstance(inputs, list):
        raise ValueError("for_loop takes its inputs as a list of tensors (Object is not list)")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                "for_loop takes its inputs as a list of tensors (Object contained in list at index "
                f"{index} is not torch.tensor)"
            )
    tracer = active_tracer()
    if tracer is not None:
        tracer.graph.inference_only.add("poptorch.for_loop")
    values = [tensor.clone() for tensor in inputs]  # what the body writes to is its own
    for _ in range(count):
        given = body(*values)
        found = list(given) if isinstance(given, (list, tuple)) else [given]
        _check_alike(found, values, "the body of for_loop returns")
        values = found
    return values


def cond(
    condition: Tensor,
    then_body: Callable[..., Any],
    then_inps: Sequence[Tensor],
    else_body: Callable[..., Any],
    else_inps: Sequence[Tensor],
) -> List[Tensor]:
    """One of two bodies, by a value of the graph; for inference.

    Raises:
        Error: the two return different kinds of tensors.
    """
    tracer = active_tracer()
    if tracer is None:
        chosen = then_body(*then_inps) if bool(condition) else else_body(*else_inps)
        return list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]
    tracer.graph.inference_only.add("poptorch.cond")
    then, other = then_body(*then_inps), else_body(*else_inps)
    ones = list(then) if isinstance(then, (list, tuple)) else [then]
    others = list(other) if isinstance(other, (list, tuple)) else [other]
    _check_alike(others, ones, "the second body of cond returns")
    return [torch.where(condition.reshape(()).bool(), a, b) for a, b in zip(ones, others)]


def dynamic_slice(tensor: Tensor, dim: int, start_tensor: Tensor, size: int, step: int = 1) -> Tensor:
    """`size` entries of a dimension, from one that is known on the device only."""
    _check_tensor(tensor, "dynamic_slice")
    if not isinstance(start_tensor, Tensor):
        raise python_error("dynamic_slice takes its start as a tensor; a known one is tensor[start:start + size]")
    index = start_tensor.reshape(()).long() + torch.arange(0, size, step, device=tensor.device)
    return tensor.index_select(dim, index)


def dynamic_update(input: Tensor, src: Tensor, dim: int, start: Tensor, size: int) -> Tensor:
    """A copy of `input` with `src` in `size` entries of a dimension, from one known on the device only."""
    _check_tensor(input, "dynamic_update")
    _check_tensor(src, "dynamic_update")
    if not isinstance(start, Tensor):
        raise python_error("dynamic_update takes its start as a tensor")
    if src.shape[dim] != size:
        raise python_error(f"dynamic_update: src has {src.shape[dim]} entries in dimension {dim}, and size is {size}")
    index = start.reshape(()).long() + torch.arange(size, device=input.device)
    shape = [1] * input.dim()
    shape[dim] = size
    return input.scatter(dim, index.reshape(shape).expand_as(src), src)


def set_overlap_for_input(tensors: Any, mode: Union[OverlapMode, str]) -> Any:
    """Load inputs while the last ones are computed with; the values are the same."""
    return _set_overlap(tensors, mode, "inputs")


def set_overlap_for_output(tensors: Any, mode: Union[OverlapMode, str]) -> Any:
    """Send outputs while the next ones are computed; the values are the same."""
    return _set_overlap(tensors, mode, "outputs")


def ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> Tuple[Tensor, Tensor, Tensor]:
    """Not simulated: nothing in PyTorch computes it.

    Raises:
        Error: always.
    """
    raise python_error("ctc_beam_search_decoder is not simulated; run it on IPUs, or decode on the host")


def fps(src: Tensor, ptr: Sequence[int], ratio: float = 0.5, random_start: bool = False) -> Tensor:
    """Farthest point sampling: indices of points of each cloud, each the farthest from those before.

    Args:
        src: (N, K) points, cloud after cloud.
        ptr: where each cloud begins, and N.
        ratio: share of the points to take.
        random_start: begin with a random point in place of the first.
    """

    def sample(points: Tensor) -> List[Tensor]:
        return [torch.cat([_fps_one(points, a, b, ratio, random_start) for a, b in zip(ptr, ptr[1:])])]

    return _opaque("fps", sample, [src])[0]


def nearest(x: Tensor, y: Tensor, batch_x: Optional[Tensor] = None, batch_y: Optional[Tensor] = None) -> Tensor:
    """For each of the points x (N, K) the index of the nearest of y (M, K), within the same example of a batch."""

    def find(x: Tensor, y: Tensor, *batches: Tensor) -> List[Tensor]:
        distances = torch.cdist(x, y)
        if batches:
            distances = distances.masked_fill(batches[0][:, None] != batches[1][None], float("inf"))
        return [distances.argmin(dim=1)]

    batches = [batch for batch in (batch_x, batch_y) if batch is not None]
    return _opaque("nearest", find, [x, y, *batches])[0]


class NameScope:
    """Names what is called within."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        assert isinstance(self.name, str), "a name scope has a text as its name"

    def __exit__(self, *exception: Any) -> None:
        pass


class Attribute:
    """Gives attributes to what is called within.

    Args:
        attributes: by keyword, each a dictionary of texts.
    """

    def __init__(self, **attributes: Any) -> None:
        self.attributes = attributes

    def __enter__(self) -> None:
        for name, value in self.attributes.items():
            if not isinstance(value, (str, int, float, dict, list, tuple)):
                raise python_error(f"attribute {name} is a {type(value).__name__}, which cannot be passed on")

    def __exit__(self, *exception: Any) -> None:
        pass


class MultiConv:
    """Plans the convolutions that are called within together; their values are the same."""

    _begun: Optional[int] = None  # the operations before the one that is open: no two are open at a time

    def __enter__(self) -> MultiConv:
        tracer = active_tracer()
        if tracer is not None:
            if MultiConv._begun is not None:
                raise python_error("Nested poptorch.MultiConv is not supported; leave one before the next")
            MultiConv._begun = len(tracer.graph.nodes)
        return self

    def __exit__(self, *exception: Any) -> None:
        begun, MultiConv._begun = MultiConv._begun, None
        tracer = active_tracer()
        if tracer is None or begun is None or exception[0] is not None:
            return
        if not any("conv" in node.name for node in tracer.graph.nodes[begun:]):
            raise python_error("Unexpected end_multi_conv: no convolution was called within poptorch.MultiConv")

    def availableMemoryProportions(self, value: Union[float, Sequence[float]]) -> MultiConv:
        """Share of the memory for each."""
        return self

    def partialsTypes(self, value: Union[torch.dtype, Sequence[torch.dtype]]) -> MultiConv:
        """Type of the partial sums of each."""
        types = list(value) if isinstance(value, (list, tuple)) else [value]
        if any(dtype not in (torch.float16, torch.float32) for dtype in types):
            raise ValueError("Invalid partials types: partial sums are torch.float16 or torch.float32")
        return self

    def planType(self, value: MultiConvPlanType) -> MultiConv:
        """Whether they run at the same time."""
        if not isinstance(value, MultiConvPlanType):
            raise AssertionError("Invalid plan type: planType takes a MultiConvPlanType")
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Tiles of each, when they run at the same time."""
        assert isinstance(value, int), "perConvReservedTiles takes a whole number"
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """How much of the best speed may be given up, 0 to 1."""
        return self

    def enableConvDithering(self, value: Union[bool, Sequence[bool]]) -> MultiConv:
        """Begin each at another tile."""
        return self


def isRunningOnIpu() -> bool:
    """Whether the caller is part of a model that is being traced for an IPU."""
    return active_tracer() is not None


def _opaque(
    name: str, function: Implementation, tensors: Sequence[Tensor], example: Optional[Implementation] = None
) -> List[Tensor]:
    tracer = active_tracer()
    return tracer.opaque(name, function, tensors, example) if tracer is not None else list(function(*tensors))


def _check_tensor(tensor: Any, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise python_error(f"{name} takes a tensor, not a {type(tensor).__name__}")


def _check_alike(found: Sequence[Tensor], wanted: Sequence[Tensor], what: str) -> None:
    if len(found) != len(wanted):
        raise python_error(f"{what} {len(found)} tensors where {len(wanted)} are expected")
    for one, other in zip(found, wanted):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise python_error(
                f"{what} {tuple(one.shape)} {one.dtype} where {tuple(other.shape)} {other.dtype} is expected"
            )


def _check_serialization(lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int) -> None:
    fused = rhs.dim() == 2 and lhs.dim() > 2  # all but the last dimension of lhs become one
    if not fused and (lhs.dim() != rhs.dim() or lhs.dim() not in (2, 3)):
        raise python_error(
            f"serializedMatMul takes two tensors of the same number of dimensions, 2 or 3, or a matrix as the second, "
            f"and got {lhs.dim()} and {rhs.dim()} dimensions"
        )
    rows = lhs.shape[:-1].numel()
    cut = {
        MatMulSerializationMode.InputChannels: rows,
        MatMulSerializationMode.ReducingDim: lhs.shape[-1],
        MatMulSerializationMode.OutputChannels: rhs.shape[-1],
    }[mode]
    if cut % factor:
        raise python_error(f"serializedMatMul: {mode.name} has {cut} entries, not a multiple of factor={factor}")


def _check_attributes(attributes: Dict[str, Any]) -> None:
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise ValueError(f"custom operator: the attribute key {key!r} is not a str")
        members = list(value) if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(member, (float, int, str)) for member in members):
            raise ValueError(f"custom operator: attribute {key} is none of float, int, str, or a list of one of them")
        if len({type(member) for member in members}) > 1:
            raise ValueError(f"custom operator: attribute {key} mixes types in its list")
        for member in members:
            if isinstance(member, str) and not member.isascii():
                raise ValueError(
                    f"custom operator: attribute {key}: {member} contains non-ASCII characters; use ASCII text"
                )


def _check_range(attributes: Dict[str, Any]) -> None:
    """Refuse numbers that PopART's single precision attributes cannot hold."""
    largest = torch.finfo(torch.float32).max
    for key, value in attributes.items():
        for member in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(member, float) and abs(member) > largest:
                how = "low" if member < 0 else "high"
                raise python_error(
                    f"custom operator: attribute {key}: {member:g} is too {how} for a Popart float attribute. It has "
                    "to fit float32"
                )


def _set_overlap(tensors: Any, mode: Any, what: str) -> Any:
    if not isinstance(mode, OverlapMode):
        raise python_error("the mode of overlapping is an OverlapMode")
    leaves = flatten_output(tensors)
    if not leaves or any(not isinstance(leaf, Tensor) for leaf in leaves):
        raise python_error("overlap is set for tensors, and structures of tensors, only")
    tracer = active_tracer()
    if tracer is not None and mode is not OverlapMode.NoOverlap:
        tracer.graph.overlapped.add(what)
    return tensors


def _fps_one(points: Tensor, start: int, end: int, ratio: float, random_start: bool) -> Tensor:
    cloud = points[start:end]
    count = max(int(-(-len(cloud) * ratio // 1)), 1)
    chosen = [int(torch.randint(len(cloud), (1,))) if random_start else 0]
    distance = torch.full((len(cloud),), float("inf"))
    while len(chosen) < count:
        distance = torch.minimum(distance, (cloud - cloud[chosen[-1]]).pow(2).sum(dim=1))
        chosen.append(int(distance.argmax()))
    return torch.tensor(chosen) + start
