"""What PopTorch says while it works: its logger, the levels it knows and the form of its lines."""

from __future__ import annotations

import copy
import datetime
import logging
import os
import sys
import traceback
from types import TracebackType
from typing import Any, Dict, Optional, TextIO, Tuple, Type, Union

logger = logging.getLogger("poptorch::python")

# What the compiler calls a level, and what Python's logging does.
_LEVELS: Dict[str, Tuple[int, int]] = {
    "TRACE": (0, logging.DEBUG),
    "TRACE_ALL": (0, logging.DEBUG),
    "DEBUG": (1, logging.DEBUG),
    "DEBUG_IR": (1, logging.DEBUG),
    "INFO": (2, logging.INFO),
    "WARN": (3, logging.WARNING),
    "ERR": (4, logging.ERROR),
    "OFF": (6, logging.CRITICAL),
}
_INTERNAL = ("TRACE_ALL", "DEBUG_IR")
_COLORS = {
    logging.DEBUG: "\033[36m",
    logging.INFO: "\033[0m",
    logging.WARNING: "\033[1;33m",
    logging.ERROR: "\033[1;31m",
    logging.CRITICAL: "\033[1;31m",
}
_PLAIN = "\033[0m"


class _State:
    compiler_level = 3
    popart_level = 3


def setLogLevel(level: Union[str, int]) -> None:
    """Choose how much is said.

    Args:
        level: TRACE, DEBUG, INFO, WARN, ERR or OFF; or the compiler's number of one: 0, 1, 2, 3, 4 or 6.

    Raises:
        ValueError: no level has this name or number.
    """
    if isinstance(level, int):
        names = [name for name, (number, _) in _LEVELS.items() if number == level]
        if not names:
            raise ValueError(f"Invalid log level integer {level}; use 0 (TRACE), 1, 2, 3, 4 (ERR) or 6 (OFF)")
        level = names[0]
    if level not in _LEVELS:
        *first, last = sorted(set(_LEVELS) - set(_INTERNAL))
        raise ValueError(f"Unknown log level: {level}. Valid values are {', '.join(first)} and {last}")
    _State.compiler_level, python_level = _LEVELS[level]
    logger.setLevel(python_level)


def setPopartLogLevel(level: str) -> None:
    """Choose how much PopART says; the simulator has no PopART, so this only checks the word.

    Raises:
        ValueError: no level has this name.
    """
    if not isinstance(level, str) or level not in _LEVELS:
        raise ValueError(f"Level must be one of {', '.join(_LEVELS)}; got {level!r}")
    _State.popart_level = _LEVELS[level][0]


def trace(message: str, *values: Any) -> None:
    """Say what is only asked for at TRACE, the level below every one of Python's."""
    if _State.compiler_level == 0:
        logger.debug(message, *values)


class _Formatter(logging.Formatter):
    """`[HH:MM:SS.mmm] [name] [level] text`, in color where a person is watching."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s] [%(name)s] [%(levelname)s] %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: Optional[str] = None) -> str:
        time = datetime.datetime.fromtimestamp(record.created)
        return time.strftime(datefmt) if datefmt else f"{time:%H:%M:%S}.{int(record.msecs):03d}"

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)  # other handlers get the same record
        record.levelname = record.levelname.lower()
        line = super().format(record)
        if sys.stdout.isatty() and sys.stderr.isatty():
            return f"{_COLORS.get(record.levelno, _PLAIN)}{line}{_PLAIN}"
        return line


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever standard error is at that moment, not to what it was when the program started."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_Formatter())
        self.set_name("poptorch")

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def excepthook(kind: Type[BaseException], error: BaseException, where: Optional[TracebackType]) -> None:
    """Log an exception that nobody caught, its last line first; made to be `sys.excepthook`."""
    lines = traceback.format_exception(kind, error, where)
    output = getattr(error, "stderr", None) or getattr(error, "stdout", None)  # of a process that failed
    if isinstance(output, bytes):
        output = output.decode("utf-8", "replace")
    logger.critical("%s\n%s%s", lines[-1], "".join(lines), f"\n{output}" if output else "")


if not any(handler.get_name() == "poptorch" for handler in logger.handlers):
    logger.addHandler(_StandardError())
setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))
