"""What a training step computes, wherever it does: layers with their operations, parameters and activations."""

from __future__ import annotations

import dataclasses
from typing import Tuple, Union

TOKENIZER, EMBEDDING, LAYER, HEAD = "image tokenizer", "embeddings", "layer", "logits"


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product, or a convolution: (rows x inner) @ (inner x columns), `groups` times, summed over `taps`.

    Attributes:
        groups: independent products.
        rows: for a convolution, the places of the output.
        inner: what is summed over; for a convolution, the channels of the input.
        columns: for a convolution, the channels of the output.
        taps: places of a convolution's kernel.
        stride: places of the input for one of the output, in each direction.
    """

    groups: int
    rows: int
    inner: int
    columns: int
    taps: int = 1
    stride: int = 1

    @property
    def operations(self) -> int:
        """Two for a multiply-add."""
        return 2 * self.groups * self.rows * self.inner * self.columns * self.taps

    @property
    def elements(self) -> int:
        """Numbers that come out."""
        return self.groups * self.rows * self.columns

    def gradients(self) -> Tuple[Product, Product]:
        """The two products of its backward pass: for the left operand and for the right one."""
        return (
            dataclasses.replace(self, inner=self.columns, columns=self.inner, stride=1),
            Product(self.groups, self.inner * self.taps, self.rows, self.columns),
        )


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Everything else: `passes` over so many elements; `single`: of single precision, whatever the others are."""

    elements: int
    passes: float
    single: bool = False


@dataclasses.dataclass(frozen=True)
class FusedAttention:
    """Attention as an operator that keeps nothing of the scores; see `lowering/attention.cpp` of the custom operators.

    Attributes:
        groups: heads of all samples.
        positions, width: of queries, keys and values.
        chunks: parts of the queries, computed one after the other.
    """

    groups: int
    positions: int
    width: int
    chunks: int

    @property
    def elements(self) -> int:
        """Numbers that come out."""
        return self.groups * self.positions * self.width

    @property
    def kept(self) -> int:
        """Numbers that the backward pass needs: what comes out, and a logarithm of single precision a position."""
        return self.elements + 2 * self.groups * self.positions

    @property
    def scratch(self) -> int:
        """Bytes of a chunk's weights and of their gradient, in single precision."""
        return 2 * 4 * self._scores.elements

    @property
    def forward(self) -> Tuple[Union[Product, Sweep], ...]:
        """Scores; scaling, masking, softmax and rounding; values weighed."""
        return (self._scores, Sweep(self._scores.elements, 7, single=True), self._of_queries) * self.chunks

    @property
    def backward(self) -> Tuple[Union[Product, Sweep], ...]:
        """The weights once more from the scores; gradients of weights, scores, queries, and of keys and values."""
        scores = self._scores
        of_keys = Product(self.groups, self.positions, scores.rows, self.width)
        added = Sweep(self.elements, 2, single=True)
        products = (scores, scores, self._of_queries, of_keys, of_keys)
        return (*products, added, added, Sweep(scores.elements, 11, single=True)) * self.chunks

    @property
    def _scores(self) -> Product:
        return Product(self.groups, -(-self.positions // self.chunks), self.width, self.positions)

    @property
    def _of_queries(self) -> Product:
        return Product(self.groups, self._scores.rows, self.positions, self.width)


Operation = Union[Product, Sweep, FusedAttention]


@dataclasses.dataclass(frozen=True)
class Layer:
    """What is never split between IPUs.

    Attributes:
        role: what decides about its IPU: TOKENIZER, EMBEDDING, LAYER or HEAD.
        operations: of the forward pass of one micro batch.
        parameters: numbers it holds.
        inputs: numbers it is given for one micro batch: what recomputation needs, and what comes over the links.
        learns: whether it has a backward pass.
        repeats: whether the backward pass computes the forward pass once more, from `inputs`.
    """

    role: str
    operations: Tuple[Operation, ...]
    parameters: int
    inputs: int
    learns: bool = True
    repeats: bool = True

    @property
    def flops(self) -> int:
        """Operations of the forward pass, two for a multiply-add."""
        parts = (o.forward if isinstance(o, FusedAttention) else (o,) for o in self.operations)
        return sum(part.operations for several in parts for part in several if isinstance(part, Product))

    @property
    def activations(self) -> int:
        """Numbers that the forward pass makes and the backward pass needs; what takes one pass works in place."""
        in_place = (o for o in self.operations if isinstance(o, Sweep) and o.passes <= 1)
        every = sum(o.kept if isinstance(o, FusedAttention) else o.elements for o in self.operations)
        return every - sum(operation.elements for operation in in_place)

    @property
    def largest(self) -> int:
        """Numbers of the largest result."""
        return max((operation.elements for operation in self.operations), default=0)

    @property
    def scratch(self) -> int:
        """Bytes that an operator of our own needs for itself in the backward pass."""
        return max((o.scratch for o in self.operations if isinstance(o, FusedAttention)), default=0)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model as layers in the order of the forward pass.

    Attributes:
        layers: in order.
        batch_size: samples of the micro batch that the layers are counted for.
        sample_bytes: what the host sends for one sample.
    """

    layers: Tuple[Layer, ...]
    batch_size: int
    sample_bytes: int

    @property
    def flops(self) -> int:
        """Operations of the forward pass of one micro batch."""
        return sum(layer.flops for layer in self.layers)
