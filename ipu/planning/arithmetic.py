"""What an operation costs on one IPU: cycles of matrix products, passes over memory, launches.

A product is laid out over the tiles as PopLibs' planner does it: split along rows, inner dimension and columns, by the
split whose sum of computing and exchanging is least. The cost of the inner loop is that of PopLibs' own estimates
(graphcore/poplibs, `lib/poplin`): blocks of 16 x 16 weights are loaded, then each row takes four cycles.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Iterable, Iterator, List, Tuple

from ipu.machine import Ipu
from ipu.planning.workload import FusedAttention, Operation, Product, Sweep

BLOCK = 16  # weights of the unit for products: so many input by so many output channels
BLOCK_CYCLES = 300  # loading a block and starting six workers on it
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """How numbers are held.

    Attributes:
        half: in half precision; else in single precision.
        half_partials: sums of products too.
        share: of a tile's memory that a product may take while it runs (`matmul_proportion`).
    """

    half: bool = True
    half_partials: bool = True
    share: float = 0.6

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return 2 if self.half else 4

    @property
    def slowness(self) -> int:
        """Cycles of products, in units of those in half precision with half precision sums."""
        return 4 if not self.half else 1 if self.half_partials else 2


@dataclasses.dataclass(frozen=True)
class Cost:
    """What operations take on an IPU, before the fitted constants.

    Attributes:
        products: cycles of matrix products as they are estimated.
        passed: elements of a tile times passes, in units of half precision numbers.
        launches: programs that all tiles start together.
        workspace: bytes of the largest product while it runs, over all tiles.
    """

    products: float = 0.0
    passed: float = 0.0
    launches: float = 0.0
    workspace: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.products + other.products,
            self.passed + other.passed,
            self.launches + other.launches,
            max(self.workspace, other.workspace),
        )


def forward_cost(operations: Iterable[Operation], ipu: Ipu, numbers: Numbers) -> Cost:
    """Cost of operations."""
    total = Cost()
    for operation in operations:
        if isinstance(operation, FusedAttention):
            total += forward_cost(operation.forward, ipu, numbers)
        elif isinstance(operation, Product):
            total += _product_cost(operation, ipu, numbers)
        else:
            total += _sweep_cost(operation, ipu, numbers)
    return total


def backward_cost(operations: Iterable[Operation], ipu: Ipu, numbers: Numbers) -> Cost:
    """Cost of their gradients: two products for each, twice the passes, and what operators of our own do."""
    gradients: List[Operation] = []
    for operation in operations:
        if isinstance(operation, FusedAttention):
            gradients += operation.backward
        elif isinstance(operation, Product):
            gradients += operation.gradients()
        else:
            gradients.append(dataclasses.replace(operation, passes=2 * operation.passes))
    return forward_cost(gradients, ipu, numbers)


def _sweep_cost(sweep: Sweep, ipu: Ipu, numbers: Numbers) -> Cost:
    each = -(-sweep.elements // ipu.tiles) * (4 if sweep.single else numbers.size) / 2
    return Cost(passed=each * sweep.passes, launches=sweep.passes)


@functools.lru_cache(maxsize=4096)
def _product_cost(product: Product, ipu: Ipu, numbers: Numbers) -> Cost:
    limit = numbers.share * ipu.tile_memory
    layouts = list(_layouts(product, ipu, numbers))
    fitting = [layout for layout in layouts if layout[1] <= limit] or [min(layouts, key=lambda layout: layout[1])]
    cycles, size = min(fitting)
    return Cost(products=cycles, launches=1, workspace=min(size, limit) * ipu.tiles)


def _layouts(product: Product, ipu: Ipu, numbers: Numbers) -> Iterator[Tuple[float, float]]:
    """Cycles and bytes of a tile of the layouts that are worth a look."""
    swapped = dataclasses.replace(product, rows=product.columns, columns=product.rows)
    for form in (product, swapped) if product.taps == 1 else (product,):
        rounds, tiles = -(-form.groups // ipu.tiles), max(ipu.tiles // form.groups, 1)
        inner, taps = (form.inner, form.taps) if form.inner >= BLOCK else (form.inner * form.taps, 1)
        inner_blocks, column_blocks = -(-inner // BLOCK), -(-form.columns // BLOCK)
        for inner_parts in _PARTS:
            if inner_parts > min(inner_blocks, tiles):
                break
            for column_parts in {-(-column_blocks // n) for n in range(1, column_blocks + 1)}:
                row_parts = min(tiles // (inner_parts * column_parts), form.rows)
                if row_parts:
                    rows = -(-form.rows // row_parts)
                    blocks = (-(-inner_blocks // inner_parts), -(-column_blocks // column_parts))
                    cycles, size = _tile_cost(rows, blocks, taps, form.stride, inner_parts > 1, ipu, numbers)
                    yield rounds * cycles, size


def _tile_cost(
    rows: int, blocks: Tuple[int, int], taps: int, stride: int, partial: bool, ipu: Ipu, numbers: Numbers
) -> Tuple[float, float]:
    row_cycles = BLOCK * BLOCK / ipu.half_products * numbers.slowness
    computing = blocks[0] * blocks[1] * taps * (row_cycles * rows + BLOCK_CYCLES)
    around = (rows**0.5 * stride + taps**0.5 - 1) ** 2 if taps > 1 else rows  # places of the input that are read
    given = numbers.size * BLOCK * blocks[0] * (around + BLOCK * blocks[1] * taps)
    sums = (2 if numbers.half and numbers.half_partials else 4) * BLOCK * rows * blocks[1]
    exchanging = (given + (sums if partial else 0)) / ipu.exchange
    return computing + exchanging, given + sums
