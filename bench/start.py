"""How long commands take from the shell to what one waits for."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Any, Dict, List, Optional

from bench.contest import ROOT, BenchError
from bench.worker import Repetition


def command(arguments: List[str], until: Optional[str] = None, fails: bool = False, **_: Any) -> Repetition:
    """Run a command of ours; OUT among its arguments becomes an empty folder.

    Args:
        arguments: such as ["train.py", "--help"].
        until: how the line begins that one waits for; None: the end.
        fails: whether an error is what one waits for.
    """

    def run() -> Dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            given = [sys.executable, *(folder if argument == "OUT" else argument for argument in arguments)]
            with subprocess.Popen(
                given, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                lines = _read(process, until)
                if until is not None and not lines[-1].startswith(until):
                    raise BenchError(f"{' '.join(arguments)} ended without {until!r}:\n{''.join(lines[-20:])}")
            if until is None and bool(process.returncode) != fails:
                raise BenchError(f"{' '.join(arguments)} ended with {process.returncode}:\n{''.join(lines[-20:])}")
        return {}

    return run


def _read(process: subprocess.Popen[str], until: Optional[str]) -> List[str]:
    """Its lines up to the one that is waited for; then it is ended."""
    lines = [""]
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        if until is not None and line.startswith(until):
            process.kill()
            break
    return lines
