"""The IPUs' own operators: attention under a pattern, and the embedding of tokens at positions, each as one.

Each is C++ that PopART compiles into the program (`lowering/`, `popart/`); the same C++ built for a CPU runs in the
simulator (`host/`, through `host_operator.py`). Everywhere else, `twins.py` computes the same in PyTorch.

Legend: B batch, H heads, n positions of a sequence's beginning, K head width, V vocabulary, D width.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from torch import Tensor

from custom_ops import host_library, host_operator, twins
from models.patterns import Pattern, drawn_blocks
from options import OptionError

PopTorch = Any
"""A module with PopTorch's names, the SDK's or the simulator; see `open_operators`."""
DOMAIN, VERSION = "minidalle.ops", 1
ATTENTION, EMBEDDING = "FusedAttention", "FusedEmbedding"
COMPILED = Path(__file__).parent / "build" / "custom_ops.so"
NO_PADDING = -1

_log = logging.getLogger(__name__)


def open_operators(poptorch: PopTorch) -> Optional[PopTorch]:
    """Make the operators known to a PopTorch; before anything with them is compiled.

    Args:
        poptorch: the SDK's, which gets the compiled operators, or the simulator, which gets those built for this CPU.

    Returns:
        What to give to the functions below; None where they have to do with their twins, since nothing can be built.

    Raises:
        OptionError: the SDK's operators have not been built, or do not go with this SDK.
        UserError: those for this CPU cannot be built.
    """
    if not hasattr(poptorch, "register_custom_op"):
        _load_compiled(COMPILED)
        return poptorch
    missing = host_library.missing_tool()
    if missing is not None:
        _tell_about_twins(missing)
        return None
    library = host_library.open_library()
    for name in (ATTENTION, EMBEDDING):
        poptorch.register_custom_op(name, DOMAIN, VERSION, _on_host(library, name), own_types=True)
    return poptorch


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    poptorch: Optional[PopTorch] = None,
    chunks: int = 1,
    available_memory: float = 0.6,
    partials_type: str = "float",
) -> Tensor:
    """Attention of the positions that a pattern allows, keeping nothing of the scores for the backward pass.

    Args:
        q, k, v: (B, H, n, K), of one type, float32 or float16.
        pattern: what each position looks at; n is at most the positions of its layout.
        poptorch: of `open_operators`; None: compute with PyTorch.
        chunks: parts of the queries, computed one after the other; divides n.
        available_memory: share of an IPU's memory that the plan of a matrix product may take.
        partials_type: "float" or "half", what products are summed in.

    Returns:
        (B, H, n, K).
    """
    if poptorch is None or not poptorch.isRunningOnIpu():
        return twins.attention(q, k, v, pattern)
    attributes = {
        **_pattern_attributes(pattern),
        "scale": q.shape[-1] ** -0.5,
        "chunks": chunks,
        "available_memory": available_memory,
        "partials_type": partials_type,
    }
    log_sum_exp = q.new_zeros(q.shape[:-1], dtype=torch.float32)
    return _call(poptorch, ATTENTION, [q, k, v], [q, log_sum_exp], attributes)[0]


def fused_embedding(
    table: Tensor,
    ids: Tensor,
    position: Optional[Tensor] = None,
    padding_idx: Optional[int] = None,
    poptorch: Optional[PopTorch] = None,
    splits: int = 1,
    available_memory: float = 0.6,
) -> Tensor:
    """The vectors of tokens at positions: the rows of a table, with a vector for each position added.

    Args:
        table: (V, D), float32 or float16.
        ids: (B, n), 0 to V - 1.
        position: (n, D) of the table's type; None: nothing is added.
        padding_idx: the row that gets no gradient; None: each gets one.
        poptorch: of `open_operators`; None: compute with PyTorch.
        splits: parts of the vocabulary whose gradient is computed one after the other; divides V.
        available_memory: share of an IPU's memory that the plan of a lookup may take.

    Returns:
        (B, n, D).
    """
    if poptorch is None or not poptorch.isRunningOnIpu():
        return twins.embedding(table, ids, position, padding_idx)
    # the table first: PopTorch takes the type of an only output from the first input
    inputs = [table, ids.to(torch.int32), *([] if position is None else [position])]
    attributes = {
        "splits": splits,
        "padding_idx": NO_PADDING if padding_idx is None else padding_idx,
        "available_memory": available_memory,
    }
    return _call(poptorch, EMBEDDING, inputs, [table.new_zeros(*ids.shape, table.shape[1])], attributes)[0]


def _pattern_attributes(pattern: Pattern) -> Dict[str, Any]:
    """A pattern as attributes; such as its kind does not need are left out."""
    layout = pattern.layout
    attributes: Dict[str, Any] = {
        "pattern": pattern.kind,
        "text_len": layout.text_len,
        "rows": layout.rows,
        "columns": layout.columns,
    }
    if pattern.kind == "conv_like":
        attributes.update(kernel_size=pattern.kernel_size, dilation=pattern.dilation, window=pattern.window)
    if pattern.kind == "sparse":
        drawn = [int(block) for row in drawn_blocks(pattern) for block in row]
        attributes.update(block_size=pattern.block_size, drawn_blocks=drawn)
    return attributes


def _call(
    poptorch: PopTorch, name: str, inputs: Sequence[Tensor], examples: Sequence[Tensor], attributes: Dict[str, Any]
) -> List[Tensor]:
    """PopTorch's call of one of our operators; the examples say the shapes and types of its outputs."""
    return poptorch.custom_op(
        inputs=inputs,
        name=name,
        domain=DOMAIN,
        domain_version=VERSION,
        example_outputs=examples,
        attributes=attributes,
    )


def _on_host(library: host_library.Library, name: str) -> Callable[..., List[Tensor]]:
    """What an operator computes in the simulator: tensors, and attributes by keyword, to tensors."""

    def run(*tensors: Tensor, **attributes: Any) -> List[Tensor]:
        return host_operator.run(library, DOMAIN, name, VERSION, attributes, tensors)

    return run


@functools.lru_cache(maxsize=None)
def _load_compiled(path: Path) -> ctypes.CDLL:
    """Load the operators for the SDK, once: they register themselves, and refuse to do it twice.

    Raises:
        OptionError: they are not there, or cannot be loaded.
    """
    asked = "fused_attention and fused_embedding need the operators compiled for the SDK"
    if not path.exists():
        raise OptionError(f"{asked}, and {path} is not there; run `make custom_ops` with the SDK enabled")
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise OptionError(
            f"{asked}, and {path} cannot be loaded ({error}); enable the SDK that it was built with, or build it anew "
            "with `make custom_ops`"
        ) from None


@functools.lru_cache(maxsize=None)
def _tell_about_twins(missing: str) -> None:
    """Say it once."""
    _log.warning("%s: the fused operators are computed by PyTorch's operators, and not by their own code", missing)
