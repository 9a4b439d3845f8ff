"""What operations cost on an IPU."""

from __future__ import annotations

import dataclasses

import pytest

from ipu.machine import BOW
from ipu.planning.arithmetic import Cost, Numbers, backward_cost, forward_cost
from ipu.planning.workload import Product, Sweep

SHAPES = [Product(1, 4096, 768, 3072), Product(32, 336, 64, 336), Product(1, 672, 512, 512), Product(1, 9, 3, 5),
          Product(1, 131072, 128, 128, taps=9), Product(1, 131072, 3, 128, taps=9)]  # fmt: skip


def cycles(product: Product, **numbers: object) -> float:
    return forward_cost([product], BOW, dataclasses.replace(Numbers(), **numbers)).products  # type: ignore[arg-type]


@pytest.mark.parametrize("product", SHAPES)
def test_no_product_is_faster_than_the_peak(product: Product) -> None:
    assert cycles(product) > product.operations / 2 / BOW.half_products / BOW.tiles


@pytest.mark.parametrize("product", SHAPES)
def test_wider_sums_and_wider_numbers_take_longer(product: Product) -> None:
    assert cycles(product) < cycles(product, half_partials=False) < cycles(product, half=False, half_partials=False)


@pytest.mark.parametrize("product", SHAPES)
def test_less_memory_for_a_product_never_makes_it_faster(product: Product) -> None:
    shares = (1.0, 0.6, 0.2, 0.1, 0.05)
    assert sorted(cycles(product, share=share) for share in shares) == [
        cycles(product, share=share) for share in shares
    ]


def test_a_product_keeps_to_its_share_of_memory() -> None:
    cost = forward_cost([SHAPES[0]], BOW, Numbers(share=0.1))
    assert 0 < cost.workspace <= 0.1 * BOW.memory


def test_larger_products_use_the_tiles_better() -> None:
    shares = [Product(1, n, n, n).operations / cycles(Product(1, n, n, n)) for n in (64, 256, 1024, 4096)]
    assert sorted(shares) == shares


def test_costs_add_up_and_workspace_is_the_largest() -> None:
    one, other = forward_cost(SHAPES[:1], BOW, Numbers()), forward_cost(SHAPES[1:2], BOW, Numbers())
    both = forward_cost(SHAPES[:2], BOW, Numbers())
    assert both == one + other
    assert both.workspace == max(one.workspace, other.workspace)


def test_a_pass_takes_as_long_as_the_fullest_tile_and_its_gradient_twice_that() -> None:
    sweep = Sweep(BOW.tiles * 10 + 1, 3)
    assert forward_cost([sweep], BOW, Numbers()) == Cost(passed=33, launches=3)
    assert backward_cost([sweep], BOW, Numbers()) == Cost(passed=66, launches=6)
    assert forward_cost([sweep], BOW, Numbers(half=False)).passed == 66
