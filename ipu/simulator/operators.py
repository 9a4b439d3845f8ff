"""The operators of an IPU: which there are, the types they give, and how a CPU computes them.

PopTorch lowers the operators below; PyTorch takes some others apart into these, and the rest cannot run. A CPU may have
no half precision kernel for an operator (torch 2.0 has no matrix product), so half values are widened, computed with
and rounded, which is what an IPU's float32 partial sums give, too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import DispatchKey
from torch.utils._pytree import tree_flatten, tree_map

from ipu.simulator.half import LARGEST
from ipu.simulator.poptorch_core import python_error

_WORDS = (Path(__file__).parent / "lowered_operators.txt").read_text(encoding="ascii").splitlines()
LOWERED: FrozenSet[str] = frozenset(word.rstrip("_") if not word.startswith("__") else word for word in _WORDS)
# What PyTorch calls on its way to those, at no cost on a device.
_INTERNAL = frozenset(
    "_to_copy alias detach empty empty_like empty_strided fill lift lift_fresh view_as zero _shape_as_tensor".split()
)
_DYNAMIC = frozenset(
    "nonzero masked_select unique unique_consecutive _unique _unique2 unique_dim nonzero_numpy".split()
)
_READS_VALUE = frozenset("item _local_scalar_dense equal is_nonzero allclose".split())
# Moves values without computing: no type is widened, nothing rounded.
_MOVING = frozenset(
    """
    T alias as_strided broadcast_to cat chunk clone constant_pad_nd contiguous copy detach diagonal embedding expand
    expand_as fill flatten flip full full_like gather index index_select lift lift_fresh mT masked_fill max_pool2d
    movedim narrow new_full new_ones new_zeros numpy_T ones ones_like pad permute pixel_shuffle repeat reshape roll
    select slice split split_with_sizes squeeze stack swapaxes swapdims t take_along_dim transpose unbind unflatten
    unfold unsqueeze view view_as where zero zeros zeros_like
    """.split()
)
_BY_FIRST_INPUT = frozenset(
    "linear conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d".split()
)
_NORMS = frozenset(
    "batch_norm group_norm instance_norm layer_norm native_batch_norm native_group_norm native_layer_norm".split()
)
_PRODUCTS = frozenset("matmul mm bmm addmm baddbmm mv dot einsum".split())
LOSSES = frozenset(
    """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss
    hinge_embedding_loss huber_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss
    multilabel_margin_loss multilabel_soft_margin_loss nll_loss nll_loss2d nll_loss_nd poisson_nll_loss
    smooth_l1_loss soft_margin_loss triplet_margin_loss
    """.split()
)
RANDOM = frozenset(
    """
    bernoulli dropout exponential feature_dropout normal rand rand_like randint randint_like randn randn_like random
    randperm rrelu uniform
    """.split()
)
FACTORIES = frozenset(
    """
    arange empty empty_like eye full full_like linspace logspace normal ones ones_like rand rand_like randint
    randint_like randn randn_like randperm scalar_tensor tril_indices triu_indices zeros zeros_like
    """.split()
)
"""They make a tensor; if any are given, it is like them or random."""
_NARROWED = {torch.float64: torch.float32, torch.bfloat16: torch.float32}


def base_name(function: Any) -> str:
    """`add` of `aten.add_.Tensor`."""
    name = function._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_inplace(function: Any) -> bool:
    """Whether the operator writes to its first argument."""
    arguments = function._schema.arguments
    return bool(arguments) and _is_written(arguments[0])


def without_writing(function: Any) -> Any:
    """The operator that computes the same and writes to nothing, `add` for `add_`; None where there is none."""
    packet = getattr(torch.ops.aten, base_name(function), None)
    names = packet.overloads() if packet is not None else []
    # of the same name first; that one may take its arguments the other way round: pow_.Scalar(x, 2), pow.Scalar(2, x)
    for name in sorted(names, key=lambda name: name != function._overloadname):
        other = getattr(packet, name)
        if _argument_types(other) == _argument_types(function) and not is_inplace(other) and not written_by_name(other):
            return other
    return None


def written_by_name(function: Any) -> List[str]:
    """Names of the arguments that take the operator's results: `out`."""
    return [argument.name for argument in function._schema.arguments if argument.kwarg_only and _is_written(argument)]


def is_moving(function: Any) -> bool:
    """Whether the operator gives the values of its inputs back, elsewhere."""
    return base_name(function) in _MOVING


def decompose(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Run an operator that is not lowered as the ones PyTorch takes it apart into, each of which is seen again.

    Raises:
        Error: there are none.
    """
    name = base_name(function)
    if name == "scaled_dot_product_attention":  # its fused forms are for other devices
        return _attention(*args, **kwargs)
    if name == "vdot" and not args[0].is_complex():  # today's PyTorch asks for it where older ones asked for dot
        return torch.dot(*args)
    qualified = function._schema.name + ("." + function._schema.overload_name if function._schema.overload_name else "")
    for key in (DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd):
        if torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key.name):
            # on the way it asks for operands of one type
            return function._op_dk(key, *harmonise(function, args, lambda x, dtype: x.to(dtype)), **kwargs)
    raise python_error(
        f"the operator {function._schema.name} cannot run on an IPU: PopTorch does not lower it, and PyTorch does "
        "not take it apart into operators that it does lower. Write the model with others, or put it on the host's side"
    )


def check_supported(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether the operator is lowered as it is; False: it has to be taken apart.

    Raises:
        Error: its result's shape depends on values, or it needs a value while the graph is made.
    """
    name = base_name(function)
    if name in _READS_VALUE:
        raise python_error(
            f"{function._schema.name} asks for the value of a tensor on the IPU while the graph is made (.item(), "
            "bool(), `if` or a comparison of whole tensors); the graph is static: use torch.where or poptorch.cond"
        )
    if name in _DYNAMIC or _shape_by_values(name, args, kwargs):
        raise python_error(
            f"the shape of the result of {function._schema.name} depends on the values of its input; shapes on an IPU "
            "are static: use torch.where, masked_fill or topk"
        )
    return name in LOWERED or name in _INTERNAL


def narrow_types(tree: Any) -> Any:
    """Replace the types that an IPU does not have, float64 and bfloat16, by float32 where an argument asks for them."""
    return tree_map(lambda leaf: _NARROWED.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf, tree)


def harmonise(function: Any, args: Tuple[Any, ...], cast: Callable[[Tensor, torch.dtype], Tensor]) -> Tuple[Any, ...]:
    """Bring the inputs of products to one type as PopTorch does: layers to that of their input, others to the wider.

    Args:
        function, args: the call.
        cast: converts a tensor; seen by the graph.
    """
    name = base_name(function)
    floats = [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if len({tensor.dtype for tensor in floats}) < 2:
        return args
    if name in _BY_FIRST_INPUT:
        wanted = args[0].dtype
    elif name in _PRODUCTS:
        wanted = torch.float32
    else:
        return args
    return tree_map(lambda leaf: _cast_float(leaf, wanted, cast), args)


def compute(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Run an operator on a CPU, half values widened for it and its results rounded to the type that an IPU gives."""
    halves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor) and leaf.dtype == torch.half]
    if not halves and not _asks_for_half(args, kwargs):
        return function(*args, **kwargs)
    if _makes_view(function) or base_name(function) in ("to", "_to_copy", "type_as", "fill", "zero", "copy"):
        return function(*args, **kwargs)
    if is_moving(function):
        args = tree_map(on_half_grid, args)
    result = _widened(function, args, kwargs)
    if is_inplace(function):
        return args[0].copy_(result)
    return _to_half(result, is_moving(function)) if gives_half(function, args, kwargs) else result


def gives_half(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether the result of floating point operands like these is half: torch's promotion, or a layer's first input."""
    if base_name(function) in _NORMS:
        return bool(args[0].dtype == torch.half)
    asked = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.dtype)]
    if asked:
        return asked[0] == torch.half
    floats = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    deciding = [tensor for tensor in floats if tensor.dim()] or floats
    return bool(deciding) and all(tensor.dtype == torch.half for tensor in deciding)


def widen_types(tree: Any) -> Any:
    """Replace half by float32 where an argument asks for a type: for values that are carried as float32."""
    return tree_map(lambda leaf: torch.float32 if leaf == torch.half and isinstance(leaf, torch.dtype) else leaf, tree)


def tensors_in(tree: Any) -> List[Tensor]:
    """The tensors of nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def on_half_grid(leaf: Any) -> Any:
    """A number as half precision has it: what is too large is the largest."""
    if not isinstance(leaf, float) or not math.isfinite(leaf):
        return leaf
    return float(torch.tensor(leaf).clamp(-LARGEST, LARGEST).half())


def _argument_types(function: Any) -> List[str]:
    return [str(argument.type) for argument in function._schema.arguments]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _makes_view(function: Any) -> bool:
    """Whether the operator may give back memory of its argument."""
    returns = function._schema.returns
    return not is_inplace(function) and any(result.alias_info is not None for result in returns)


def _widened(function: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    def widen(leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype == torch.half else leaf

    return function(*widen_types(tree_map(widen, args)), **widen_types(tree_map(widen, kwargs)))


def _to_half(tree: Any, moved: bool = False) -> Any:
    """Results in half: computed ones saturate, values that only moved stay."""

    def narrow(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype != torch.float32:
            return leaf
        return (leaf if moved else leaf.clamp(-LARGEST, LARGEST)).half()

    return tree_map(narrow, tree)


def _asks_for_half(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    return any(leaf == torch.half for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.dtype))


def _cast_float(leaf: Any, wanted: torch.dtype, cast: Callable[[Tensor, torch.dtype], Tensor]) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != wanted:
        return cast(leaf, wanted)
    return leaf


def _shape_by_values(name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Whether this picks the elements where a mask is true (writing there keeps the shape), or counts classes."""
    if name in ("where", "argwhere"):
        return len(args) + len(kwargs) == 1
    if name == "one_hot":
        return (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) < 0
    if name != "index" or len(args) < 2:
        return False
    indices: List[Optional[Tensor]] = list(args[1])
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention by the operators that an IPU has."""
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (x.repeat_interleave(heads // x.shape[-3], -3) for x in (key, value))
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        hidden = query.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    return torch.matmul(F.dropout(weights, dropout_p) if dropout_p else weights, value)
