"""How an option is declared and checked.

Every option of the program is a field of a frozen dataclass that stands with the component it configures. The field
holds all there is to know about it: its type, its default, its help text and the values it admits. `args.py` reads
options from YAML and the command line; nothing is typed twice.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, Dict, Optional, Sequence, Tuple, Union, get_type_hints

LARGEST_SEED = 2**62
"""Generators take 64 bits, and pictures count on from a seed."""
Number = Union[int, float]
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class UserError(ValueError):
    """Something that whoever runs the program can mend. Commands print its message alone, without a traceback."""


class OptionError(UserError):
    """A value that an option does not admit. The message names the option, the value, the rule and the remedy."""


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    minimum: Optional[Number] = None,
    maximum: Optional[Number] = None,
    aliases: Sequence[str] = (),
    path: bool = False,
) -> Any:
    """Declare an option as the default of a dataclass field.

    Args:
        default: value when neither configs.yml nor the command line gives one; `None` means "not set".
        help: one phrase for `--help`.
        choices: the only values admitted; for an option that holds several, the only members admitted.
        minimum, maximum: inclusive bounds; for an option that holds several, of every member.
        aliases: further names accepted in YAML and on the command line.
        path: the value names a file or folder that has to be there; see `Options.check_paths`.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "aliases": tuple(aliases),
        "path": path,
    }
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """Base of the option dataclasses: every value is brought to its field's type and checked at construction."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = convert(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def check_paths(self) -> None:
        """Look for the files and folders that the options name: a command does, before anything slow begins.

        Raises:
            OptionError: one is not there.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if not field.metadata["path"] or value is None:
                continue
            place = os.path.abspath(os.path.expanduser(value))
            if not os.path.exists(place):
                raise OptionError(f"{field.name}={value} does not exist; check the path (looked for {place})")


def plain_values(options: Options) -> Dict[str, Any]:
    """The options of a group in plain containers, by name, as YAML and checkpoints hold them."""
    values = dataclasses.asdict(options)  # type: ignore[call-overload]
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def convert(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Bring `value`, as typed in YAML or on the command line, to the type `hint` and check it.

    Raises:
        OptionError: the value has another type, or lies outside what the option admits.
    """
    if _is_optional(hint):
        typed = value[0] if isinstance(value, list) and len(value) == 1 else value  # of several, words come in a list
        if value is None or (isinstance(typed, str) and typed.lower() == "none"):
            return None
        hint = _inner(hint)
    if is_several(hint):
        member = hint.__args__[0]
        values = tuple(_convert_one(field, member, item) for item in _as_list(value))
        for item in values:
            _check(field, item)
        return values
    value = _convert_one(field, hint, value)
    _check(field, value)
    return value


def is_several(hint: Any) -> bool:
    """Whether an option of this type holds several values (`Tuple[X, ...]`, possibly optional)."""
    return getattr(_inner(hint), "__origin__", None) is tuple


def is_flag(hint: Any) -> bool:
    """Whether an option of this type is a yes/no switch."""
    return _inner(hint) is bool


def _is_optional(hint: Any) -> bool:
    return getattr(hint, "__origin__", None) is Union and type(None) in hint.__args__


def _inner(hint: Any) -> Any:
    """`X` of `Optional[X]`, anything else unchanged."""
    return next(arg for arg in hint.__args__ if arg is not type(None)) if _is_optional(hint) else hint


def _as_list(value: Any) -> Tuple[Any, ...]:
    """`[0, 6]`, `(0, 6)`, `"0,6"`, `"[0, 6]"`, `["0", "6"]`, `["0,6"]` and a lone `6` all mean a list."""
    if isinstance(value, (list, tuple)):
        return tuple(item for member in value for item in _as_list(member))
    if isinstance(value, str):
        return tuple(item.strip() for item in value.strip("[]() ").split(",") if item.strip())
    return (value,)


def _convert_one(field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _FLAGS:
            return _FLAGS[value.lower()]
        raise OptionError(f"{field.name}={value!r} is not a yes/no value; write true or false")
    if kind is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise OptionError(f"{field.name}={value!r} is not a text; put it in quotes")
    try:
        if isinstance(value, bool):
            raise ValueError
        if kind is int and isinstance(value, float) and value == int(value):
            return int(value)  # YAML and people write 1e6 for a count
        if kind is int and isinstance(value, str) and not value.lstrip("+-").isdigit():
            number = float(value)
            if number != int(number):
                raise ValueError
            return int(number)
        if kind is int and isinstance(value, float):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise OptionError(f"{field.name}={value!r} is not {wanted}; write one") from None


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    rules = field.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise OptionError(f"{field.name}={value!r} is not one of {', '.join(rules['choices'])}; choose one of these")
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(f"{field.name}={value} is not a finite number; write one")
    if rules["minimum"] is not None and value < rules["minimum"]:
        raise OptionError(f"{field.name}={value} is below {rules['minimum']}, the least allowed; raise it")
    if rules["maximum"] is not None and value > rules["maximum"]:
        raise OptionError(f"{field.name}={value} is above {rules['maximum']}, the most allowed; lower it")
