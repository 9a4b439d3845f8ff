"""What the logger prints, and at which level."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from typing import Any, Iterator

import pytest

from ipu.simulator import _logging
from ipu.simulator._logging import excepthook, logger, setLogLevel, setPopartLogLevel, trace


@pytest.fixture(autouse=True)
def restored_level() -> Iterator[None]:
    yield
    setLogLevel("WARN")


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    "level, python_level",
    [
        ("TRACE", logging.DEBUG),
        ("TRACE_ALL", logging.DEBUG),
        ("DEBUG", logging.DEBUG),
        ("DEBUG_IR", logging.DEBUG),
        ("INFO", logging.INFO),
        ("WARN", logging.WARNING),
        ("ERR", logging.ERROR),
        ("OFF", logging.CRITICAL),
        (0, logging.DEBUG),
        (1, logging.DEBUG),
        (2, logging.INFO),
        (3, logging.WARNING),
        (4, logging.ERROR),
        (6, logging.CRITICAL),
    ],
)
def test_levels_go_by_words_and_numbers(level: Any, python_level: int) -> None:
    setLogLevel(level)
    assert logger.level == python_level


@pytest.mark.parametrize("number", [5, 7, -1])
def test_other_numbers_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="Invalid log level integer"):
        setLogLevel(number)


@pytest.mark.parametrize("word", ["debug", "WARNING", "", None])
def test_other_words_are_refused(word: Any) -> None:
    with pytest.raises(ValueError) as error:
        setLogLevel(word)
    assert str(error.value) == f"Unknown log level: {word}. Valid values are DEBUG, ERR, INFO, OFF, TRACE and WARN"


def test_poparts_level_is_a_word() -> None:
    setPopartLogLevel("TRACE")
    for wrong in (0, "trace", None):
        with pytest.raises(ValueError, match="Level must be one of"):
            setPopartLogLevel(wrong)  # type: ignore[arg-type]


def test_a_line_tells_time_name_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    logger.warning("two words: %s %d", "a", 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"\[\d\d:\d\d:\d\d\.\d{3}\] \[poptorch::python\] \[warning\] two words: a 3\n", captured.err)


def test_a_message_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    logger.error("once")
    assert capsys.readouterr().err.count("once") == 1


def test_what_lies_below_the_level_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    setLogLevel("WARN")
    logger.info("quiet")
    assert capsys.readouterr().err == ""
    setLogLevel("INFO")
    logger.info("heard")
    assert "[info] heard" in capsys.readouterr().err


def test_traces_are_below_debug(capsys: pytest.CaptureFixture[str]) -> None:
    setLogLevel("DEBUG")
    trace("of %s", "one kind")
    assert capsys.readouterr().err == ""
    setLogLevel("TRACE")
    trace("of %s", "one kind")
    assert "of one kind" in capsys.readouterr().err


def test_other_handlers_see_the_usual_name_of_the_level(caplog: pytest.LogCaptureFixture) -> None:
    logger.error("for two")
    assert caplog.records[-1].levelname == "ERROR"


def test_terminals_alone_get_color(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger.error("plain")
    assert "\033" not in terminal.text
    monkeypatch.setattr(sys, "stdout", Terminal())
    logger.error("colored")
    assert terminal.text.splitlines()[-1].startswith("\033[1;31m[")
    assert terminal.text.endswith("colored\033[0m\n")


def test_uncaught_exceptions_are_logged_with_what_a_process_said(capsys: pytest.CaptureFixture[str]) -> None:
    error = subprocess.CalledProcessError(3, "tool", stderr=b"it went wrong")
    excepthook(type(error), error, None)
    printed = capsys.readouterr().err
    assert "[critical] " in printed
    assert "CalledProcessError" in printed
    assert "it went wrong" in printed


@pytest.mark.parametrize("word, number", [("DEBUG", logging.DEBUG), (None, logging.WARNING)])
def test_the_environment_sets_the_first_level(word: Any, number: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "POPTORCH_LOG_LEVEL"}
    if word:
        environment["POPTORCH_LOG_LEVEL"] = word
    folder = os.path.dirname(os.path.abspath(_logging.__file__))
    program = "import runpy, sys; print(runpy.run_path(sys.argv[1])['logger'].level)"
    run = [sys.executable, "-S", "-c", program, os.path.join(folder, "_logging.py")]
    assert subprocess.run(run, env=environment, stdout=subprocess.PIPE, check=True).stdout == b"%d\n" % number
