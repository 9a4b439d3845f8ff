"""What calls pass to a model: binding, comparing with the compiled call, taking apart and putting together."""

from __future__ import annotations

import collections
import logging
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest
import torch
from torch import Tensor

from ipu.simulator.arguments import (
    ArgumentsParser,
    ICustomArgParser,
    check_same,
    constants,
    flatten_output,
    rebuild_output,
    registerCustomArgParser,
)
from ipu.simulator.poptorch_core import Error

ONE, TWO, THREE = (torch.full((2,), float(value)) for value in (1, 2, 3))


class Pair(NamedTuple):
    left: Any
    right: Any


class Box:
    """A type that nobody knows."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = list(tensors)


class SmallBox(Box):
    pass


class BoxParser(ICustomArgParser):
    def __init__(self, kind: type = Box) -> None:
        self.kind = kind

    def yieldTensors(self, struct: Any) -> Iterator[Tensor]:
        yield from struct.tensors

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Tensor]) -> Any:
        return self.kind(*(next(tensor_iterator) for _ in original_structure.tensors))


@pytest.fixture
def box_parser() -> Iterator[None]:
    registerCustomArgParser(Box, BoxParser())
    yield
    registerCustomArgParser(Box, None)
    registerCustomArgParser(SmallBox, None)


def forward(x: Any, y: Any, scale: float = 2.0) -> None:
    """A model's forward."""


def anything(x: Any, *args: Any, flag: bool = False, **kwargs: Any) -> None:
    """A forward that takes anything."""


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return ArgumentsParser(function).bind(args, kwargs)


def test_arguments_by_name_are_bound_to_their_position_and_defaults_filled_in() -> None:
    arguments = call(forward, y=2, x=1)
    assert (arguments.args, arguments.kwargs) == ((1, 2, 2.0), {})


def test_what_follows_variadic_arguments_goes_by_name() -> None:
    arguments = call(anything, 1, 2, 3, flag=True, other=4)
    assert arguments.names == ["x", "*args[0]", "*args[1]"]
    assert (arguments.args, arguments.kwargs) == ((1, 2, 3), {"flag": True, "other": 4})


def test_a_function_without_a_signature_takes_anything() -> None:
    def unreadable() -> None:
        pass

    unreadable.__signature__ = "none"  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        ArgumentsParser(unreadable)
    assert call(type, 1, 2).args == (1, 2)  # inspect raises ValueError for it


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((1, 2, 3, 4), {}, "Too many arguments.*3 by position.*passes 4"),
        ((1, 2), {"z": 3}, "z: no parameter of forward, which takes x, y, scale"),
        ((1, 2), {"x": 3}, "x is passed more than once"),
    ],
)
def test_a_call_that_does_not_fit_is_an_assertion_error(args: Any, kwargs: Dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        call(forward, *args, **kwargs)


def test_a_missing_mandatory_parameter_is_an_error() -> None:
    with pytest.raises(Error, match="Mandatory parameter y missing"):
        call(forward, 1)


def test_tensors_come_from_left_to_right_out_of_any_structure() -> None:
    arguments = call(forward, (ONE, [TWO, 5]), {"a": THREE, "b": None}, scale=ONE)
    assert [tensor is one for tensor, one in zip(arguments.tensors(), (ONE, TWO, THREE, ONE))] == [True] * 4


def test_replaced_tensors_take_their_places_and_constants_stay() -> None:
    arguments = call(anything, (ONE, [TWO, 5]), Pair(1, THREE), other={"a": ONE})
    args, kwargs = arguments.replaced(["p", "q", "r", "s"])
    assert args == (("p", ["q", 5]), Pair(1, "r"))
    assert kwargs == {"flag": False, "other": {"a": "s"}}


@pytest.mark.parametrize("leaves", [[ONE], [ONE, TWO, THREE]])
def test_a_wrong_number_of_tensors_is_refused(leaves: List[Tensor]) -> None:
    with pytest.raises(ValueError, match="leaves than the structure has tensors"):
        rebuild_output([TWO, (THREE,)], leaves)


@pytest.mark.parametrize(
    "structure, expected",
    [
        (ONE, 0),
        (Pair(ONE, [TWO]), Pair(0, [1])),
        (collections.OrderedDict(a=ONE, b=None), collections.OrderedDict(a=0, b=None)),
        (None, None),
        ((), ()),
    ],
)
def test_rebuilding_keeps_the_types_of_containers(structure: Any, expected: Any) -> None:
    rebuilt = rebuild_output(structure, range(len(flatten_output(structure))))
    assert rebuilt == expected
    assert type(rebuilt) is type(expected)


def test_what_torch_functions_return_is_rebuilt() -> None:
    found = torch.max(torch.eye(2), 1)
    rebuilt = rebuild_output(found, [ONE, TWO])
    assert type(rebuilt) is type(found)
    assert rebuilt.values is ONE and rebuilt.indices is TWO


def test_a_reordered_dictionary_is_read_in_the_order_of_the_compiled_one() -> None:
    first, later = (call(forward, given, 0) for given in ({"a": ONE, "b": TWO}, {"b": TWO, "a": ONE}))
    assert later.tensors()[0] is TWO
    check_same(first, later)
    assert later.tensors()[0] is ONE
    args, _ = later.replaced(["of a", "of b"])
    assert args[0] == {"a": "of a", "b": "of b"}


def test_reordered_named_arguments_are_read_in_the_compiled_order() -> None:
    first, later = call(anything, 0, p=ONE, q=TWO), call(anything, 0, q=TWO, p=ONE)
    check_same(first, later)
    assert later.tensors()[0] is ONE


SAME: Tuple[Any, ...] = (ONE, (TWO, [5]))


@pytest.mark.parametrize(
    "first, later, message",
    [
        ((ONE,), (ONE, ONE), r"Number of positional arguments mismatch: expected 1 arguments but got 2\."),
        ((SAME,), ([ONE, (TWO, [5])],), r"Type mismatch for x: expected <class 'tuple'> but got <class 'list'>"),
        ((1,), (True,), r"Type mismatch for x: expected <class 'int'> but got <class 'bool'>"),
        ((SAME,), ((ONE, (TWO, [5]), 3),), r"Length mismatch for x: expected 2 elements but got 3"),
        ((SAME,), ((ONE, (TWO, [6])),), r"Value mismatch for x\[1\]\[1\]\[0\]: expected 5 but got 6"),
        ((0, ONE), (0, ONE.long()), r"Data type mismatch for \*args\[0\]: expected torch.float32 but got torch.int64"),
        ((ONE,), (ONE[:1],), r"Shape mismatch for x: expected torch.Size\(\[2\]\) but got torch.Size\(\[1\]\)"),
        (
            ({"a": 1, "c": 1},),
            ({"a": 1, "z": 1, "y": 1},),
            r"Keys mismatch for x: Unexpected arguments: y, z\. Missing arguments: c\.",
        ),
        (({"a": (1, 2)},), ({"a": (1, 3)},), r"Value mismatch for x\[a\]\[1\]: expected 2 but got 3"),
    ],
)
def test_a_call_unlike_the_compiled_one_is_an_error_with_advice(first: Any, later: Any, message: str) -> None:
    with pytest.raises(Error, match=message) as caught:
        check_same(call(anything, *first), call(anything, *later))
    assert "destroy()" in str(caught.value)


@pytest.mark.parametrize(
    "first, later, message",
    [
        ({"p": 1}, {"q": 1}, "Keys mismatch for named arguments: Unexpected arguments: q. Missing arguments: p"),
        ({"p": ONE}, {"p": ONE[:1]}, "Shape mismatch for p"),
    ],
)
def test_named_arguments_are_compared_too(first: Dict[str, Any], later: Dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        check_same(call(anything, 0, **first), call(anything, 0, **later))


def test_a_call_with_other_values_in_its_tensors_fits() -> None:
    check_same(call(anything, SAME, p=ONE), call(anything, (TWO, (ONE, [5])), p=THREE))


@pytest.mark.usefixtures("box_parser")
def test_a_registered_type_is_taken_apart_compared_and_put_together() -> None:
    arguments = call(forward, Box(ONE, TWO), [SmallBox(THREE)])
    assert len(arguments.tensors()) == 3
    args, _ = arguments.replaced([THREE, ONE, TWO])
    assert args[0].tensors == [THREE, ONE] and args[1][0].tensors == [TWO]
    assert list(constants(Box(ONE))) == []
    with pytest.raises(Error, match="Length mismatch for x"):
        check_same(arguments, call(forward, Box(ONE), [SmallBox(THREE)]))


@pytest.mark.usefixtures("box_parser")
def test_the_parser_of_the_very_type_goes_before_that_of_its_base() -> None:
    assert type(rebuild_output(SmallBox(ONE), [TWO])) is Box
    registerCustomArgParser(SmallBox, BoxParser(SmallBox))
    assert type(rebuild_output(SmallBox(ONE), [TWO])) is SmallBox
    assert type(rebuild_output(Box(ONE), [TWO])) is Box


@pytest.mark.usefixtures("box_parser")
def test_a_type_without_its_parser_is_a_constant_again() -> None:
    registerCustomArgParser(Box, None)
    assert flatten_output(Box(ONE)) == []


def test_what_is_no_parser_is_refused() -> None:
    with pytest.raises(Error, match="ICustomArgParser"):
        registerCustomArgParser(Box, object())  # type: ignore[arg-type]


def test_strides_and_dictionaries_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    parser = ArgumentsParser(forward)
    with caplog.at_level(logging.WARNING, "poptorch::python"):
        for _ in range(2):
            parser.bind([{"a": torch.eye(2, 3).t()}, 0], {})
    assert [("not contiguous" in text, "dictionary" in text) for text in caplog.messages] == [
        (False, True),
        (True, False),
    ]


def test_the_callers_own_tensors_are_kept() -> None:
    strided = torch.eye(2, 3).t()
    assert call(forward, strided, 0).tensors()[0] is strided
