"""The errors of PopTorch, under the name of the module that its programs find them in."""

from __future__ import annotations

import enum
from typing import Any, Dict, Tuple, Type

PYTHON_ERROR = "poptorch_py_error"


class Error(Exception):
    """What PopTorch refuses.

    Args:
        type: the kind of error.
        message: what is wrong.
        location: where in the compiled program; empty for errors of the Python side.
    """

    def __init__(self, type: str = PYTHON_ERROR, message: str = "", location: str = "") -> None:
        super().__init__(f'"{type}": {message}')
        self.type, self.message, self.location = type, message, location

    def __reduce__(self) -> Tuple[Any, ...]:
        return (self.__class__, (self.type, self.message, self.location))


class RecoverableError(Error):
    """An error of the machine after which a program may go on; `recovery_action` says how."""

    recovery_action = "IPU_RESET"


class UnrecoverableError(Error):
    """An error of the machine that ends a program."""


class TestErrorType(enum.IntEnum):
    """The errors that PopTorch can throw on request, to test programs with."""

    __test__ = False

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


_ON_REQUEST: Dict[TestErrorType, Tuple[Type[Error], str]] = {
    TestErrorType.Poptorch: (Error, "poptorch_cpp_error"),
    TestErrorType.Popart: (Error, "popart_exception"),
    TestErrorType.PopartInternal: (Error, "popart_internal_exception"),
    TestErrorType.Poplibs: (Error, "poplibs_exception"),
    TestErrorType.PoplarUnrecoverable: (UnrecoverableError, "poplar_unrecoverable_runtime_error"),
    TestErrorType.PoplarUnknown: (Error, "poplar_unknown_runtime_error"),
    TestErrorType.PoplarRecoverableFullReset: (RecoverableError, "poplar_recoverable_runtime_error"),
    TestErrorType.PoplarLinkError: (Error, "poplar_link_error"),
}


def _throwTestError(kind: TestErrorType) -> None:
    """Raise the error of a kind, for programs that try how they handle it.

    Raises:
        Error: always.
    """
    error_class, name = _ON_REQUEST[TestErrorType(kind)]
    linker = ": -lfoo not found" if kind == TestErrorType.PoplarLinkError else ""
    places = "throwTestError::bottomLevel\nthrowTestError::topLevel"
    error = error_class(name, f"an error of the kind {TestErrorType(kind).name}, asked for{linker}", places)
    if isinstance(error, RecoverableError):
        error.recovery_action = "FULL_RESET"
    raise error


def python_error(message: str) -> Error:
    """An error of PopTorch's Python side."""
    return Error(PYTHON_ERROR, message)


def isCompilingWithDispatcher() -> bool:
    """Whether a model is being traced; the simulator traces without PopTorch's dispatcher."""
    return False


def _validateOptions(options: Dict[str, Any]) -> None:
    """Raise Error for names and kinds of values that the compiler refuses; `options` is what `Options.toDict` gives."""
    from ipu.simulator.options_checks import check_values

    check_values(options)
