"""The host's Poplar and PopLibs: views against PyTorch's, halves, control flow, and that every misuse is an error."""

from __future__ import annotations

import ctypes
import random
import re
from typing import Any, Callable, List, Tuple

import pytest
import torch
from torch import Tensor

CHAINS, LONGEST = 300, 6
SLICE, RESHAPE, SHUFFLE, BROADCAST, EXPAND, SQUEEZE, INDEX, FLATTEN, ROLL, TWICE, PARTIAL = range(11)

# What each misuse has to say: the rule, or the thing by its name.
MISUSES = {
    "slice beyond the end": r"slice from \[2\] to \[5\] of a tensor of shape \[4\]",
    "slice of a missing dimension": "dimension 1 of a tensor of shape",
    "reshape to another size": r"shape \[4\] reshaped to \[3\]",
    "permutation with a repeat": "each dimension of shape .* once",
    "squeeze of a longer dimension": "squeezed out of shape",
    "expand beyond the end": "expanded at",
    "transpose of three dimensions": "two dimensions",
    "reinterpret of another size": "half reinterpreted as unsigned int",
    "concat of different shapes": "concat of tensors of shapes",
    "concat of different types": "different types",
    "tensor that was never assigned": "never assigned",
    "half constant from floats": "addConstant of type half from float",
    "tile that is not there": "tile 4 of 4",
    "mapping of an unmapped tensor": "variable 'x', of which an element lies on no tile",
    "unmapped variable": "variable 'lost' has elements that lie on no tile",
    "large variable on one tile": "variable 'crowd' of 32768 bytes lies on one tile alone",
    "read before written": "reads element 0 of variable 'x', which nothing has written",
    "read after it was forgotten": "reads element 0 of variable 'x', which nothing has written",
    "input written": r"wipe \(zero\): writes to variable 'x', which is an input",
    "input forgotten": "writes to variable 'x', which is an input",
    "half overflow": "inf to variable 'y', a HALF, which ends at 65504",
    "append to a part of another program": "already a part of another one",
    "append to a loop's body after the loop was made": "already a part of another one",
    "append to a branch after If was made": "already a part of another one",
    "append to a program that an engine has": "already a part of another one",
    "sequence added to itself": "adds itself",
    "If of a tensor": "BOOL of no dimensions",
    "If of a number": "BOOL of no dimensions",
    "copy of another shape": "one type and shape",
    "copy of another type": "one type and shape",
    "copy to a broadcast": "in several places",
    "product of matrices without groups": r"\[g, m, k\] and \[g, k, n\]",
    "product of unequal widths": r"\[g, m, k\] and \[g, k, n\]",
    "product of two types": "of one type",
    "product with a misspelt option": "no option 'partialType'",
    "product with an unknown partials type": "partialsType is 'double'",
    "sum of products of another shape": r"matMulGroupedAcc to float \[1, 1, 2\]",
    "expression of two types": "cast one of them",
    "expression of shapes that do not broadcast": "do not broadcast",
    "expression of an operand that is not given": "of 2 operands, given 1",
    "expression in place of a broadcast": "in several places",
    "expression in place of a constant": "a constant",
    "expression in place of what is smaller": "another operand is larger",
    "expression of whole numbers": "takes float or half",
    "subtraction of floats": "int alone",
    "maximum to another type": "only sums change the type",
    "reduction over a missing dimension": "dimensions that it has not",
    "reduction over a dimension twice": "has twice",
    "cast to whole numbers": "takes float or half",
    "offset as signed numbers": "one unsigned int a dimension",
    "slice that does not fit when it runs": "a slice of 2 from 1 on, of 2",
    "slice of more than there is": "sizes that the tensor has not",
    "update of another shape": "the slice's own shape",
    "plan with a misspelt option": "no option 'partialsType'",
    "plan of another table": "the plan of another table",
    "lookups that the plan was not made for": "its plan was not made for",
    "lookup by a plan for updates": "for updates alone",
    "update by a plan for lookups": "for slices alone",
    "indices as signed numbers": r"unsigned int \[n, 1\]",
    "scale with a dimension": "no dimensions",
    "lookup beyond the table when it runs": "row 1 of a table of 1",
}


def integers(values: Any) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def floats(tensor: Tensor) -> Any:
    return ctypes.c_void_p(tensor.data_ptr())


def checked(library: Any, code: int) -> None:
    library.host_last_error.restype = ctypes.c_char_p
    assert code == 0, library.host_last_error().decode()


# ---------------------------------------------------------------------------------------------------------------- views


def factors(rng: random.Random, size: int) -> List[int]:
    """A shape of this many elements."""
    shape = []
    for prime in (2, 2, 2, 3, 3, 5, 7):
        if size % prime == 0:
            shape.append(prime)
            size //= prime
    shape.append(size)
    while len(shape) > 1 and rng.random() < 0.6:
        shape.append(shape.pop(rng.randrange(len(shape))) * shape.pop(rng.randrange(len(shape))))
    rng.shuffle(shape)
    return shape


def random_step(rng: random.Random, t: Tensor, repeats: bool) -> Tuple[List[int], Tensor]:
    """One more view of a tensor, as the library's code and as PyTorch makes it."""
    dim = rng.randrange(t.dim()) if t.dim() else 0
    kind = rng.choice((SLICE, RESHAPE, SHUFFLE, BROADCAST, EXPAND, SQUEEZE, INDEX, FLATTEN, ROLL, TWICE, PARTIAL))
    if not t.dim() or (kind in (BROADCAST, TWICE) and (not repeats or t.numel() > 500)):
        kind = EXPAND
    if kind == SQUEEZE and t.shape[dim] != 1:
        kind = SHUFFLE
    if kind == SLICE:
        begin = rng.randrange(t.shape[dim])
        end = rng.randint(begin + 1, t.shape[dim])
        return [SLICE, dim, begin, end], t.narrow(dim, begin, end - begin)
    if kind == RESHAPE:
        shape = factors(rng, t.numel())
        return [RESHAPE, len(shape), *shape], t.reshape(shape)
    if kind == PARTIAL:
        shape = factors(rng, t.shape[dim])
        return [PARTIAL, dim, dim + 1, len(shape), *shape], t.reshape(*t.shape[:dim], *shape, *t.shape[dim + 1 :])
    if kind == SHUFFLE:
        order = rng.sample(range(t.dim()), t.dim())
        return [SHUFFLE, *order], t.permute(order)
    if kind == ROLL:
        to = rng.randrange(t.dim())
        return [ROLL, dim, to], t.movedim(dim, to)
    if kind == BROADCAST:
        return [BROADCAST, 3, dim], torch.cat([t] * 3, dim)
    if kind == TWICE:
        return [TWICE, dim], torch.cat([t, t], dim)
    if kind == SQUEEZE:
        return [SQUEEZE, dim], t.squeeze(dim)
    if kind == INDEX:
        at = rng.randrange(t.shape[0])
        return [INDEX, at], t[at]
    if kind == FLATTEN:
        end = rng.randint(dim + 1, t.dim())
        return [FLATTEN, dim, end], t.flatten(dim, end - 1)
    at = rng.randint(0, t.dim())
    return [EXPAND, at], t.unsqueeze(at)


def random_chain(seed: int, repeats: bool) -> Tuple[List[int], List[int], int, Tensor]:
    """A shape, a chain of views as code and its length, and the elements that PyTorch's view sees."""
    rng = random.Random(seed)
    shape = factors(rng, rng.choice((24, 60, 126, 210)))
    seen = torch.arange(torch.Size(shape).numel()).reshape(shape)
    code: List[int] = []
    steps = rng.randint(1, LONGEST)
    for _ in range(steps):
        step, seen = random_step(rng, seen, repeats)
        code += step
    return shape, code, steps, seen


def test_chains_of_views_see_the_elements_that_pytorchs_see(testing_library: Any) -> None:
    for seed in range(CHAINS):
        shape, code, steps, expected = random_chain(seed, repeats=True)
        elements, rank, extents = torch.empty(expected.numel(), dtype=torch.int64), ctypes.c_int64(), integers([0] * 32)
        given = (len(shape), integers(shape), integers(code), ctypes.c_int64(steps))
        checked(testing_library, testing_library.shim_view(*given, floats(elements), ctypes.byref(rank), extents))
        assert list(extents)[: rank.value] == list(expected.shape), (seed, shape, code)
        assert torch.equal(elements, expected.flatten()), (seed, shape, code)


def test_what_is_written_through_a_chain_of_views_lands_where_pytorch_puts_it(testing_library: Any) -> None:
    for seed in range(CHAINS):
        shape, code, steps, places = random_chain(seed, repeats=False)
        whole = torch.empty(torch.Size(shape).numel())
        given = (len(shape), integers(shape), integers(code), ctypes.c_int64(steps))
        checked(testing_library, testing_library.shim_write(*given, floats(whole)))
        expected = torch.zeros_like(whole)
        expected[places.flatten()] = torch.arange(1.0, places.numel() + 1)
        assert torch.equal(whole, expected), (seed, shape, code)


# --------------------------------------------------------------------------------------------------------------- halves


def rounded(library: Any, values: Tensor) -> Tensor:
    result = torch.empty_like(values)
    library.shim_round(floats(values), floats(result), ctypes.c_int64(values.numel()))
    return result


def all_halves() -> Tensor:
    return torch.arange(65536).to(torch.int32).to(torch.int16).view(torch.half).float()


def test_every_half_pattern_rounds_to_itself(testing_library: Any) -> None:
    halves = all_halves()
    found = rounded(testing_library, halves)
    assert torch.equal(found.nan_to_num(1e30), halves.nan_to_num(1e30))
    assert torch.equal(found.signbit(), halves.signbit())


def test_what_lies_between_halves_rounds_as_pytorch_rounds_it(testing_library: Any) -> None:
    halves = all_halves()
    finite = halves[halves.isfinite()].unique()
    middle = ((finite[1:].double() + finite[:-1].double()) / 2).float()
    beside = [torch.nextafter(middle, torch.full_like(middle, way)) for way in (-torch.inf, torch.inf)]
    edge = torch.tensor([65504.0, 65519.9, 65520.0, -65520.0, 1e30, 2.0**-25, 2.0**-24, 2.0**-26])
    values = torch.cat((middle, *beside, edge))
    assert torch.equal(rounded(testing_library, values), values.half().float())


# --------------------------------------------------------------------------------------------------------- control flow


def test_nested_repeats_run_their_body_as_often_as_they_say(testing_library: Any) -> None:
    result = torch.empty(1)
    checked(testing_library, testing_library.shim_repeat(3, 4, floats(result)))
    assert result.item() == 2.0**12


def test_a_counted_loop_counts_from_zero(testing_library: Any) -> None:
    result = torch.empty(7)
    checked(testing_library, testing_library.shim_counted(7, floats(result)))
    assert result.tolist() == [float(i) for i in range(7)]


@pytest.mark.parametrize("predicate", [0, 1])
def test_if_takes_the_branch_that_its_predicate_says(testing_library: Any, predicate: int) -> None:
    result = torch.empty(1)
    checked(testing_library, testing_library.shim_if(predicate, floats(result)))
    assert result.item() == (1.0 if predicate else 2.0)


# ------------------------------------------------------------------------------------------------------------ precision


def test_additions_to_a_row_of_halves_round_each_time_unless_partials_are_single(testing_library: Any) -> None:
    # 4096 and a half's spacing of 4 there: ones are lost one by one
    sums = []
    for partials in (b"half", b"float"):
        result = torch.empty(1)
        checked(
            testing_library,
            testing_library.shim_update_add(partials, ctypes.c_int64(5000), ctypes.c_float(1.0), floats(result)),
        )
        sums.append(result.item())
    assert sums == [2048.0, 5000.0]


def test_half_partials_round_what_single_ones_keep(testing_library: Any) -> None:
    a, b, result = torch.ones(1000), torch.full((1000,), 1.0 + 2.0**-10), torch.empty(1)
    errors = []
    for partials in (b"half", b"float"):
        arguments = (partials, ctypes.c_int64(1000), floats(a), floats(b), floats(result))
        checked(testing_library, testing_library.shim_product(*arguments))
        errors.append(abs(result.item() - 1000 * (1.0 + 2.0**-10)))
    assert errors[0] > 1e-2 > 1e-3 > errors[1]


# --------------------------------------------------------------------------------------------------------------- misuse


def test_every_misuse_has_its_expectation(testing_library: Any) -> None:
    names: Callable[[], bytes] = testing_library.shim_misuses
    testing_library.shim_misuses.restype = ctypes.c_char_p
    assert sorted(names().decode().split("\n")) == sorted(MISUSES)


@pytest.mark.parametrize("misuse", MISUSES)
def test_it_is_an_error_to_use(testing_library: Any, misuse: str) -> None:
    testing_library.host_last_error.restype = ctypes.c_char_p
    assert testing_library.shim_misuse(misuse.encode()) != 0
    said = testing_library.host_last_error().decode()
    assert re.search(MISUSES[misuse], said), said
