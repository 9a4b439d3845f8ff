"""Calls of the lowering itself, below PopART: tensors in, tensors out, and the memory that its variables take."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from models.patterns import Pattern, drawn_blocks

_INT = ctypes.c_int32


class _Pattern(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_char_p),
        *[(name, _INT) for name in ("text_len", "rows", "columns", "kernel_size", "dilation")],
        ("window", ctypes.c_char_p),
        ("block_size", _INT),
        ("drawn_count", _INT),
        ("drawn_blocks", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        ("pattern", _Pattern),
        *[(name, _INT) for name in ("half", "groups", "positions", "width", "chunks")],
        ("scale", ctypes.c_float),
        ("partials_type", ctypes.c_char_p),
    ]


class _Embedding(ctypes.Structure):
    _fields_ = [(name, _INT) for name in ("half", "rows", "width", "batch", "positions", "splits", "padding_row")]


class Memories(ctypes.Structure):
    """Of the variables of a graph: bytes of all, bytes of the largest, elements of the largest."""

    _fields_ = [(name, ctypes.c_int64) for name in ("total_bytes", "largest_bytes", "largest_elements")]
    total_bytes: int
    largest_bytes: int
    largest_elements: int


class LoweringError(Exception):
    """What the host build refused."""


@dataclasses.dataclass
class Lowering:
    """The lowering of one operator in a library of the host build.

    Attributes:
        library: opened by ctypes.
        memories: of the last call.
    """

    library: Any
    memories: Memories = dataclasses.field(default_factory=Memories)

    def allowed(self, pattern: Pattern, length: int) -> Tensor:
        """The mask of the first positions, (query, key)."""
        result = torch.empty(length, length, dtype=torch.uint8)
        given, kept = _pattern(pattern)
        self._call("host_allowed", ctypes.byref(given), length, result)
        return result.bool()

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, chunks: int = 1, partials_type: str = "float"
    ) -> Tuple[Tensor, Tensor]:
        """Operands (G, N, d), all single or all half, to what attention gives and to the log-sum-exp (G, N)."""
        out, log_sum_exp = torch.empty(q.shape), torch.empty(q.shape[:2])
        given, kept = _attention(q, pattern, chunks, partials_type)
        operands = [t.float().contiguous() for t in (q, k, v)]
        self._call("host_attention", ctypes.byref(given), *operands, out, log_sum_exp, self._taken())
        return out, log_sum_exp

    def attention_gradient(
        self,
        out_gradient: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_sum_exp: Tensor,
        pattern: Pattern,
        chunks: int = 1,
        partials_type: str = "float",
    ) -> List[Tensor]:
        """The gradients of the operands, (G, N, d) each."""
        gradients = [torch.empty(q.shape) for _ in range(3)]
        given, kept = _attention(q, pattern, chunks, partials_type)
        tensors = [t.float().contiguous() for t in (out_gradient, q, k, v, log_sum_exp)]
        self._call("host_attention_gradient", ctypes.byref(given), *tensors, *gradients, self._taken())
        return gradients

    def embedding(self, table: Tensor, ids: Tensor, position: Optional[Tensor], splits: int = 1) -> Tensor:
        """Rows of the table (V, W) for ids (B, N), each with its position (N, W) added: (B, N, W)."""
        out = torch.empty(*ids.shape, table.shape[1])
        given = _embedding(table.dtype, table.shape[0], out, splits, -1)
        places = None if position is None else position.float()
        self._call("host_embedding", ctypes.byref(given), table.float(), ids.int(), places, out, self._taken())
        return out

    def embedding_gradient(
        self, out_gradient: Tensor, ids: Tensor, rows: int, splits: int = 1, padding_row: int = -1
    ) -> Tuple[Tensor, Tensor]:
        """The gradients of the table (rows, W) and of the positions (N, W)."""
        table, position = torch.empty(rows, out_gradient.shape[2]), torch.empty(out_gradient.shape[1:])
        given = _embedding(out_gradient.dtype, rows, out_gradient, splits, padding_row)
        gradient = out_gradient.float().contiguous()
        self._call("host_embedding_gradient", ctypes.byref(given), gradient, ids.int(), table, position, self._taken())
        return table, position

    def _taken(self) -> Any:
        self.memories = Memories()
        return ctypes.byref(self.memories)

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function of the library; tensors become the addresses of their values, None no address."""
        self.library.host_last_error.restype = ctypes.c_char_p
        if getattr(self.library, name)(*map(_as_argument, arguments)):
            raise LoweringError(self.library.host_last_error().decode())


def _as_argument(argument: Any) -> Any:
    return ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else argument


def _pattern(pattern: Pattern) -> Tuple[_Pattern, Any]:
    """The pattern as C has it, and the memory that it refers to."""
    drawn = drawn_blocks(pattern) if pattern.kind == "sparse" else ()
    blocks = torch.tensor(drawn, dtype=torch.long).flatten()
    memory = ctypes.cast(blocks.data_ptr(), ctypes.POINTER(ctypes.c_int64)) if len(blocks) else None
    layout = pattern.layout
    given = _Pattern(
        pattern.kind.encode(),
        layout.text_len,
        layout.rows,
        layout.columns,
        pattern.kernel_size,
        pattern.dilation,
        pattern.window.encode(),
        pattern.block_size,
        len(blocks),
        memory,
    )
    return given, blocks


def _attention(q: Tensor, pattern: Pattern, chunks: int, partials_type: str) -> Tuple[_Attention, Any]:
    given, kept = _pattern(pattern)
    groups, positions, width = q.shape
    half = q.dtype == torch.half
    partials = partials_type.encode()
    return _Attention(given, half, groups, positions, width, chunks, width**-0.5, partials), (kept, partials)


def _embedding(dtype: torch.dtype, rows: int, out: Tensor, splits: int, padding_row: int) -> _Embedding:
    batch, positions, width = out.shape
    return _Embedding(dtype == torch.half, rows, width, batch, positions, splits, padding_row)
