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
    """Everything else: `passes` over so many elements."""

    elements: int
    passes: float


Operation = Union[Product, Sweep]


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
        return sum(operation.operations for operation in self.operations if isinstance(operation, Product))

    @property
    def activations(self) -> int:
        """Numbers that the forward pass makes and the backward pass needs; what takes one pass works in place."""
        kept = (o for o in self.operations if isinstance(o, Product) or o.passes > 1)
        return sum(operation.elements for operation in kept)

    @property
    def largest(self) -> int:
        """Numbers of the largest result."""
        return max((operation.elements for operation in self.operations), default=0)


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
