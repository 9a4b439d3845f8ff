"""Operations counted by running on the meta device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ipu.planning.counting import count
from ipu.planning.workload import Product, Sweep


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def products(operations: object) -> list:
    return [operation for operation in operations if isinstance(operation, Product)]  # type: ignore[attr-defined]


def test_a_projection_is_a_product_and_a_pass_for_its_bias() -> None:
    found = count(lambda: F.linear(meta(2, 5, 7), meta(11, 7), meta(11)))
    assert found == (Product(1, 10, 7, 11), Sweep(110, 1))
    assert found[0].operations == 2 * 10 * 7 * 11


def test_a_batched_product_keeps_its_groups_and_copies_of_its_operands_are_not_counted() -> None:
    assert count(lambda: meta(2, 3, 5, 7) @ meta(2, 3, 11, 7).transpose(-1, -2)) == (Product(6, 5, 7, 11),)


def test_a_convolution_is_a_product_for_every_place_of_its_kernel() -> None:
    found = count(lambda: F.conv2d(meta(2, 3, 8, 8), meta(16, 3, 4, 4), meta(16), stride=2, padding=1))
    assert found == (Product(1, 2 * 4 * 4, 3, 16, taps=16, stride=2), Sweep(2 * 16 * 4 * 4, 1))


def test_views_indices_and_masks_cost_nothing_and_softmax_more_than_a_sum() -> None:
    mask = torch.empty(4, 4, dtype=torch.bool, device="meta")
    assert count(lambda: (meta(4, 4).view(2, 8).t(), ~mask, torch.arange(3, device="meta"))) == ()
    assert count(lambda: meta(4, 4).softmax(-1))[0].passes > count(lambda: meta(4, 4) + meta(4, 4))[0].passes


def test_a_lookup_counts_the_rows_it_gives_and_not_its_table() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.long, device="meta")
    assert count(lambda: F.embedding(tokens, meta(1000, 8))) == (Sweep(48, 1),)


@pytest.mark.parametrize("product", [Product(1, 10, 7, 11), Product(4, 6, 5, 3), Product(1, 32, 8, 16, taps=9)])
def test_the_backward_pass_of_a_product_does_twice_its_operations(product: Product) -> None:
    assert sum(gradient.operations for gradient in product.gradients()) == 2 * product.operations
