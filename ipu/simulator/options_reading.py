"""Options from text: a file of setter calls, and a JSON object. Nothing in either is run as a program."""

from __future__ import annotations

import ast
import enum
import inspect
import json
import os
from typing import Any, Callable, Dict, List, Tuple, Type

from ipu.simulator import enums
from ipu.simulator.options_dict import Freezable
from ipu.simulator.options_parts import TensorLocationSettings
from ipu.simulator.strategies import (
    ExecutionStrategy,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)

_ENUMS: Dict[str, Type[enum.Enum]] = {
    name: kind for name, kind in vars(enums).items() if inspect.isclass(kind) and not name.startswith("_")
}
_MADE_BY_CALLING = (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    TensorLocationSettings,
)
# What a file may say after "poptorch.": the enumerations and what options are made of.
_NAMES: Dict[str, Any] = {**_ENUMS, **{kind.__name__: kind for kind in _MADE_BY_CALLING}}
# Whose methods a file may call.
_OWNERS = (Freezable, ExecutionStrategy, Stage, Phase)


class ConfigFileError(Exception):
    """A file of options has a line that is not a setter call, or that a setter refuses."""


class _Namespace:
    """Stands for `poptorch` and `poptorch.enums` in a file."""


def load_file(options: Any, path: str) -> None:
    """Make the setter calls of a file, one a line, in order; none if any line cannot be read.

    Raises:
        ConfigFileError: a line cannot be read, is not a setter call or is refused. The message names file and line.
    """
    with open(path, encoding="utf-8") as file:
        lines = [(number, text.strip()) for number, text in enumerate(file, start=1)]
    lines = [(number, text) for number, text in lines if text and not text.startswith("#")]
    calls: List[Tuple[Callable[[Exception], ConfigFileError], ast.expr]] = []
    for count, (number, text) in enumerate(lines, start=1):
        failed = _error_maker(os.path.basename(path), count, number, f"options.{text}")
        try:
            calls.append((failed, _parse(f"options.{text}")))
        except Exception as error:
            raise failed(error) from error
    for failed, call in calls:
        try:
            _read(call, options)
        except Exception as error:
            raise failed(error) from error


def set_from_json(options: Any, text: str) -> None:
    """Call the setters that a JSON object names, in order.

    Args:
        options: whose setters.
        text: an object of setters' names below `options`, as in `{"Training.gradientAccumulation": 4}`, each with its
            argument or a list of them. A text like "OutputMode.All" means the member of that enumeration.

    Raises:
        ValueError: the text is not a JSON object.
        AttributeError: a name is no setter.
    """
    try:
        calls = json.loads(text)
    except ValueError as error:
        raise ValueError(f"options as JSON: {text!r} cannot be read: {error}") from error
    if not isinstance(calls, dict):
        raise ValueError(f"options as JSON are an object of setters and their arguments, not {text!r}")
    for name, given in calls.items():
        setter = options
        for part in name.split("."):
            setter = _member(setter, part)
        if not inspect.ismethod(setter):
            raise AttributeError(f"{name!r} is not a setter of poptorch.Options")
        arguments = _with_enums(given)
        setter(*(arguments if isinstance(arguments, list) else [arguments]))


def _error_maker(file: str, count: int, number: int, source: str) -> Callable[[Exception], ConfigFileError]:
    # Programs compare this beginning, in which only lines with a call are counted, so the file's own number follows.
    other = "" if count == number else f"\nline {count} of the calls is line {number} of the file"

    def make(error: Exception) -> ConfigFileError:
        detail = error.msg if isinstance(error, SyntaxError) else error
        return ConfigFileError(f"{type(error).__name__} at line {count} of {file}: {detail}\n> {source}{other}")

    return make


def _parse(source: str) -> ast.expr:
    call = ast.parse(source, mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError("this is not a setter call such as deviceIterations(4)")
    return call


def _read(node: ast.expr, options: Any) -> Any:
    """What an expression of a file stands for; only the forms below have a meaning."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _is_number(node.operand):
        return -ast.literal_eval(node.operand)
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_read(item, options) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_read(key, options) for key in node.keys if key is not None]
        return dict(zip(keys, (_read(value, options) for value in node.values)))
    if isinstance(node, ast.Name) and node.id in ("options", "poptorch"):
        return options if node.id == "options" else _Namespace()
    if isinstance(node, ast.Attribute):
        return _member(_read(node.value, options), node.attr)
    if isinstance(node, ast.Call):
        return _call(node, options)
    raise ValueError("a file of options holds setter calls with plain values and poptorch's names, nothing else")


def _call(node: ast.Call, options: Any) -> Any:
    called = _read(node.func, options)
    if not (inspect.ismethod(called) or called in _MADE_BY_CALLING):
        raise ValueError("a file of options calls setters and poptorch's execution strategies and settings only")
    arguments = [_read(argument, options) for argument in node.args]
    named = {keyword.arg: _read(keyword.value, options) for keyword in node.keywords if keyword.arg is not None}
    if len(named) < len(node.keywords):
        raise ValueError("a file of options has no **arguments")
    return called(*arguments, **named)


def _member(owner: Any, name: str) -> Any:
    if isinstance(owner, _Namespace):
        if name == "enums":
            return owner
        if name in _NAMES:
            return _NAMES[name]
        raise AttributeError(f"a file of options cannot use poptorch.{name}")
    if inspect.isclass(owner) and issubclass(owner, enum.Enum) and name in owner.__members__:
        return owner[name]
    if isinstance(owner, _OWNERS) and (name == "_Popart" or not name.startswith("_")):
        return getattr(owner, name)
    raise AttributeError(f"there is no {name!r} to use here")


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def _with_enums(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_enums(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_enums(item) for key, item in value.items()}
    if isinstance(value, str) and value.count(".") == 1:
        kind, member = value.split(".")
        if kind in _ENUMS and member in _ENUMS[kind].__members__:
            return _ENUMS[kind][member]
    return value
