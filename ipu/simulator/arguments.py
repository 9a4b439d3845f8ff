"""What a call of a model passed: bound to the names of `forward`, taken apart into tensors, compared, put together.

A structure is a tensor, a tuple, list or dictionary of structures, an instance of a type with a registered parser, or
anything else, which is a constant of the compiled program.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ipu.simulator._logging import logger
from ipu.simulator.poptorch_core import Error, python_error

Parameter = inspect.Parameter


class ICustomArgParser:
    """How to find the tensors in a type that PopTorch does not know. Derive from it and pass it to
    `registerCustomArgParser`."""

    def yieldTensors(self, struct: Any) -> Iterable[Tensor]:
        """The tensors in `struct`, always in the same order."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how to find tensors; define yieldTensors(struct)"
        )

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[Tensor]) -> Any:
        """A structure like `original_structure` with the iterator's next tensors in place of its own."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how to put tensors back; define reconstruct(original, iterator)"
        )


_parsers: Dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_type: type, parser: Optional[ICustomArgParser]) -> None:
    """Let models take and return instances of a type.

    Args:
        arg_type: the type; its subclasses go by the same parser unless they have their own.
        parser: how its tensors are found; `None` takes the type's parser away.

    Raises:
        Error: the parser is not an ICustomArgParser.
    """
    if parser is None:
        _parsers.pop(arg_type, None)
    elif isinstance(parser, ICustomArgParser):
        _parsers[arg_type] = parser
    else:
        raise python_error(
            f"the parser of {arg_type.__name__} is a {type(parser).__name__}; derive it from poptorch.ICustomArgParser"
        )


def registered_parsers() -> Dict[type, ICustomArgParser]:
    """The parsers by type, for a process that has to know the same ones."""
    return dict(_parsers)


def _parser_of(structure: Any) -> Optional[ICustomArgParser]:
    if not _parsers:
        return None
    exact = _parsers.get(type(structure))
    if exact is not None:
        return exact
    return next((parser for known, parser in _parsers.items() if isinstance(structure, known)), None)


def flatten_output(structure: Any) -> List[Tensor]:
    """The tensors of a structure, from left to right, inner structures in their place."""
    return list(_tensors(structure, structure))


def _tensors(structure: Any, like: Any) -> Iterator[Tensor]:
    """The tensors of a structure; dictionaries are read in the order of the keys of `like`, one of the same kind."""
    parser = _parser_of(structure)
    if parser is not None:
        yield from parser.yieldTensors(structure)
    elif isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, dict):
        for key, value in like.items():
            yield from _tensors(structure[key], value)
    elif isinstance(structure, (tuple, list)):
        for part, value in zip(structure, like):
            yield from _tensors(part, value)


def constants(structure: Any) -> Iterator[Any]:
    """What a structure holds beside tensors."""
    if _parser_of(structure) is not None or isinstance(structure, Tensor):
        return
    if isinstance(structure, (tuple, list, dict)):
        for part in structure.values() if isinstance(structure, dict) else structure:
            yield from constants(part)
    else:
        yield structure


def rebuild_output(structure: Any, leaves: Iterable[Any]) -> Any:
    """A structure like `structure` with `leaves` in the places of its tensors, in the order of `flatten_output`.

    Containers keep their type, constants stay.

    Raises:
        ValueError: there are fewer or more leaves than tensors.
    """
    return _rebuild_all(structure, structure, leaves)


def _rebuild_all(structure: Any, like: Any, leaves: Iterable[Any]) -> Any:
    iterator = iter(leaves)
    try:
        rebuilt = _rebuild(structure, like, iterator)
    except _OutOfLeaves:
        raise ValueError("fewer leaves than the structure has tensors") from None
    if next(iterator, iterator) is not iterator:
        raise ValueError("more leaves than the structure has tensors")
    return rebuilt


class _OutOfLeaves(Exception):
    """The leaves ended early. No StopIteration: a constructor that reads a generator would take it for its own end."""


def _rebuild(structure: Any, like: Any, leaves: Iterator[Any]) -> Any:
    """As `_tensors`, the other way round."""
    parser = _parser_of(structure)
    if parser is not None:
        return parser.reconstruct(structure, leaves)
    if isinstance(structure, Tensor):
        for leaf in leaves:
            return leaf
        raise _OutOfLeaves
    if isinstance(structure, dict):
        mapping: Any = type(structure)
        return mapping({key: _rebuild(structure[key], value, leaves) for key, value in like.items()})
    if isinstance(structure, (tuple, list)):
        parts = [_rebuild(part, value, leaves) for part, value in zip(structure, like)]
        kind: Any = type(structure)
        return kind(*parts) if hasattr(structure, "_fields") else kind(parts)  # a namedtuple takes its parts one by one
    return structure


class Arguments:
    """What one call passed.

    Args:
        positional: names and values of what `forward` gets by position, defaults filled in.
        named: names and values of what it gets by name.
    """

    def __init__(self, positional: Sequence[Tuple[str, Any]], named: Dict[str, Any]) -> None:
        self.names = [name for name, _ in positional]
        self.args = tuple(value for _, value in positional)
        self.kwargs = dict(named)
        self._order: Tuple[Any, Any] = (self.args, self.kwargs)

    def tensors(self) -> List[Tensor]:
        """All tensors, from left to right; those of dictionaries in the order in which the compiled call had its keys.

        They are the caller's own, so that what `forward` writes into one can be copied back.
        """
        return list(_tensors((self.args, self.kwargs), self._order))

    def replaced(self, tensors: Iterable[Any]) -> Tuple[Tuple[Any, ...], Dict[str, Any]]:
        """The call with other tensors in the order of `tensors()`: what to pass to `forward` as `*args`, `**kwargs`.

        Raises:
            ValueError: there are fewer or more of them than the call has.
        """
        args, kwargs = _rebuild_all((self.args, self.kwargs), self._order, tensors)
        return args, kwargs

    def follow(self, first: Arguments) -> None:
        """Read dictionaries in the order of `first`'s keys from now on."""
        self._order = first._order


class ArgumentsParser:
    """Binds what calls pass to the parameters of a `forward`. One belongs to one wrapper and warns once.

    Args:
        forward: the function as its author wrote it; one without a signature takes anything.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        try:
            parameters = list(inspect.signature(forward).parameters.values())
        except ValueError:  # built-in functions may have no signature
            parameters = [Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD)]
        self._by_position = [one for one in parameters if one.kind in _POSITIONAL]
        self._by_name = [one for one in parameters if one.kind is Parameter.KEYWORD_ONLY]
        self._variadic = next((one.name for one in parameters if one.kind is Parameter.VAR_POSITIONAL), None)
        self._takes_any_name = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
        self._warned_of_strides = self._warned_of_dictionaries = False

    def bind(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> Arguments:
        """What a call passes, by name, with defaults filled in.

        Raises:
            AssertionError: too many arguments, an unknown one, or one given twice.
            Error: one without a default is missing.
        """
        rest = dict(kwargs)
        positional = [
            (one.name, self._value(one, args[place : place + 1], rest)) for place, one in enumerate(self._by_position)
        ]
        surplus = args[len(self._by_position) :]
        assert self._variadic is not None or not surplus, (
            f"Too many arguments: forward takes {len(self._by_position)} by position ({self._listed()}), "
            f"the call passes {len(args)}"
        )
        positional += [(f"*{self._variadic}[{index}]", value) for index, value in enumerate(surplus)]
        named = {one.name: self._value(one, (), rest) for one in self._by_name}
        unknown = ", ".join(rest)
        assert self._takes_any_name or not rest, f"{unknown}: no parameter of forward, which takes {self._listed()}"
        arguments = Arguments(positional, {**named, **rest})
        self._warn(arguments)
        return arguments

    def _value(self, parameter: Parameter, given: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """The value of one parameter; takes what it uses out of `kwargs`."""
        by_name = parameter.name in kwargs and parameter.kind is not Parameter.POSITIONAL_ONLY
        if given:
            assert not by_name, f"{parameter.name} is passed more than once, by position and by name"
            return given[0]
        if by_name:
            return kwargs.pop(parameter.name)
        if parameter.default is Parameter.empty:
            raise python_error(f"Mandatory parameter {parameter.name} missing: forward takes {self._listed()}")
        return parameter.default

    def _listed(self) -> str:
        return ", ".join(one.name for one in self._by_position + self._by_name) or "none"

    def _warn(self, arguments: Arguments) -> None:
        if not self._warned_of_dictionaries and _has_dictionary((arguments.args, tuple(arguments.kwargs.values()))):
            logger.warning("A dictionary among the arguments: support is partial, its keys must stay the same.")
            self._warned_of_dictionaries = True
        if not self._warned_of_strides and not all(_is_contiguous(tensor) for tensor in arguments.tensors()):
            logger.warning("At least one input tensor is not contiguous: it is converted at every call.")
            self._warned_of_strides = True


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _is_contiguous(tensor: Tensor) -> bool:
    return tensor.layout is not torch.strided or tensor.is_contiguous()


def _has_dictionary(structure: Any) -> bool:
    if isinstance(structure, (tuple, list)):
        return any(_has_dictionary(part) for part in structure)
    return isinstance(structure, dict)


_ADVICE = (
    "The program was compiled for other inputs. To compile it for these, make a new inferenceModel or trainingModel "
    "wrapper, or call destroy() on this one first."
)


def check_same(first: Arguments, later: Arguments) -> None:
    """Make sure that a later call fits the program compiled with the first; it then follows the first's order of keys.

    Raises:
        Error: anything but the values in the tensors differs; names the argument, what was compiled and what came.
    """
    if len(later.args) != len(first.args):
        raise _mismatch(
            f"Number of positional arguments mismatch: expected {len(first.args)} arguments but got {len(later.args)}"
        )
    for name, expected, got in zip(first.names, first.args, later.args):
        _check(name, expected, got)
    _check_keys("named arguments", first.kwargs, later.kwargs)
    for name, expected in first.kwargs.items():
        _check(name, expected, later.kwargs[name])
    later.follow(first)


def _check(name: str, expected: Any, got: Any) -> None:
    if type(expected) is not type(got):
        raise _mismatch(f"Type mismatch for {name}: expected {type(expected)} but got {type(got)}")
    parser = _parser_of(expected)
    if parser is not None:
        _check_sequence(name, list(parser.yieldTensors(expected)), list(parser.yieldTensors(got)))
    elif isinstance(expected, Tensor):
        _check_tensor(name, expected, got)
    elif isinstance(expected, (tuple, list)):
        _check_sequence(name, expected, got)
    elif isinstance(expected, dict):
        _check_keys(name, expected, got)
        for key, value in expected.items():
            _check(f"{name}[{key}]", value, got[key])
    elif expected != got:
        raise _mismatch(f"Value mismatch for {name}: expected {expected} but got {got}")


def _check_tensor(name: str, expected: Tensor, got: Tensor) -> None:
    if expected.dtype != got.dtype:
        raise _mismatch(f"Data type mismatch for {name}: expected {expected.dtype} but got {got.dtype}")
    if expected.shape != got.shape:
        raise _mismatch(f"Shape mismatch for {name}: expected {expected.shape} but got {got.shape}")


def _check_sequence(name: str, expected: Sequence[Any], got: Sequence[Any]) -> None:
    if len(expected) != len(got):
        raise _mismatch(f"Length mismatch for {name}: expected {len(expected)} elements but got {len(got)}")
    for index, (one, other) in enumerate(zip(expected, got)):
        _check(f"{name}[{index}]", one, other)


def _check_keys(name: str, expected: Dict[Any, Any], got: Dict[Any, Any]) -> None:
    unexpected, missing = got.keys() - expected.keys(), expected.keys() - got.keys()
    parts = [("Unexpected arguments", unexpected), ("Missing arguments", missing)]
    found = [f"{what}: {', '.join(sorted(map(str, keys)))}" for what, keys in parts if keys]
    if found:
        raise _mismatch(f"Keys mismatch for {name}: {'. '.join(found)}")


def _mismatch(what: str) -> Error:
    return python_error(f"{what}.\n{_ADVICE}")
