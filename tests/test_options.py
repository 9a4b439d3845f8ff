"""How option values are read and refused."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, Optional, Tuple

import pytest

from options import OptionError, Options, UserError, option


@dataclasses.dataclass(frozen=True)
class Places(Options):
    """A file to read and one to write."""

    source: Optional[str] = option(None, "read", path=True)
    target: str = option("absent", "written")


@dataclasses.dataclass(frozen=True)
class Sample(Options):
    """One option of every kind."""

    count: int = option(3, "a count", minimum=1, maximum=2_000_000)
    rate: float = option(0.5, "a rate", minimum=0, maximum=1)
    limit: Optional[int] = option(None, "a limit that may be absent", minimum=0)
    switch: bool = option(False, "a switch")
    name: str = option("x", "a name")
    folder: Optional[str] = option(None, "a folder that may be absent")
    kind: str = option("red", "a choice", choices=("red", "green"))
    layers: Tuple[int, ...] = option((0, 8), "several numbers", minimum=0)
    shares: Tuple[float, ...] = option((0.6,), "several shares", maximum=1)
    kinds: Tuple[str, ...] = option(("red",), "several choices", choices=("red", "green"))
    ids: Optional[Tuple[str, ...]] = option(None, "several names that may be absent")


@pytest.mark.parametrize(
    "name, typed, value",
    [
        ("count", 7, 7),
        ("count", "7", 7),
        ("count", " +7 ", 7),
        ("count", 1e6, 1_000_000),
        ("count", "1e6", 1_000_000),
        ("rate", 1, 1.0),
        ("rate", "3e-4", 3e-4),  # PyYAML reads 3e-4 as a text
        ("limit", None, None),
        ("limit", "None", None),
        ("limit", "4", 4),
        ("name", 2024, "2024"),
        ("name", "none", "none"),
        ("folder", "", ""),
        ("folder", "none", None),
        ("kind", "green", "green"),
        ("layers", 6, (6,)),
        ("layers", [0, 6, 6], (0, 6, 6)),
        ("layers", "0,6", (0, 6)),
        ("layers", "[0, 6]", (0, 6)),
        ("layers", ["0", "6"], (0, 6)),
        ("layers", ["0,6", "6"], (0, 6, 6)),
        ("layers", "", ()),
        ("shares", [0.2, 1], (0.2, 1.0)),
        ("kinds", "red, green,", ("red", "green")),
        ("ids", None, None),
        ("ids", ["none"], None),  # as the command line gives it
        ("ids", ["none", "a"], ("none", "a")),
    ],
)
def test_a_value_as_typed_takes_its_options_type(name: str, typed: Any, value: Any) -> None:
    read = getattr(Sample(**{name: typed}), name)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    "value, words", [(True, (True, "true", "YES", "on", "1")), (False, (False, "False", "no", "0"))]
)
def test_yes_and_no_have_many_spellings(value: bool, words: Tuple[Any, ...]) -> None:
    assert all(Sample(switch=word).switch is value for word in words)


@pytest.mark.parametrize(
    "name, typed, message",
    [
        ("count", "many", "count='many' is not a whole number; write one"),
        ("count", 2.5, "count=2.5 is not a whole number; write one"),
        ("count", "2.5", "count='2.5' is not a whole number; write one"),
        ("count", True, "count=True is not a whole number; write one"),
        ("count", None, "count=None is not a whole number; write one"),
        ("count", [1], "count=[1] is not a whole number; write one"),
        ("count", "inf", "count='inf' is not a whole number; write one"),
        ("count", 0, "count=0 is below 1, the least allowed; raise it"),
        ("count", 3_000_000, "count=3000000 is above 2000000, the most allowed; lower it"),
        ("rate", "half", "rate='half' is not a number; write one"),
        ("rate", "nan", "rate=nan is not a finite number; write one"),
        ("rate", -0.1, "rate=-0.1 is below 0, the least allowed; raise it"),
        ("rate", 1.5, "rate=1.5 is above 1, the most allowed; lower it"),
        ("limit", -1, "limit=-1 is below 0, the least allowed; raise it"),
        ("switch", "perhaps", "switch='perhaps' is not a yes/no value; write true or false"),
        ("switch", 2, "switch=2 is not a yes/no value; write true or false"),
        ("name", True, "name=True is not a text; put it in quotes"),
        ("name", None, "name=None is not a text; put it in quotes"),
        ("name", datetime.date(2024, 1, 1), "name=datetime.date(2024, 1, 1) is not a text; put it in quotes"),
        ("kind", "blue", "kind='blue' is not one of red, green; choose one of these"),
        ("layers", [0, "six"], "layers='six' is not a whole number; write one"),
        ("layers", [None], "layers=None is not a whole number; write one"),
        ("layers", [3, -1], "layers=-1 is below 0, the least allowed; raise it"),
        ("shares", [0.5, 2], "shares=2.0 is above 1, the most allowed; lower it"),
        ("kinds", "red,blue", "kinds='blue' is not one of red, green; choose one of these"),
    ],
)
def test_a_refusal_names_option_value_rule_and_remedy(name: str, typed: Any, message: str) -> None:
    with pytest.raises(OptionError) as error:
        Sample(**{name: typed})
    assert str(error.value) == message


def test_defaults_are_checked_like_any_value() -> None:
    @dataclasses.dataclass(frozen=True)
    class Wrong(Options):
        count: int = option(0, "a count", minimum=1)

    with pytest.raises(OptionError, match="count=0 is below 1"):
        Wrong()


def test_a_refusal_is_the_users_to_mend() -> None:
    assert issubclass(OptionError, UserError)


def test_options_do_not_change_once_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sample().count = 4  # type: ignore[misc]


def test_files_that_have_to_be_there_are_looked_for_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").touch()
    for source in (None, str(tmp_path / "there"), "~/there", str(tmp_path)):
        Places(source).check_paths()
    with pytest.raises(OptionError, match=r"source=~/gone does not exist; check the path \(looked for /.*/gone\)"):
        Places("~/gone").check_paths()
