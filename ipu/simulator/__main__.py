"""Run a program of PopTorch on the simulator: `python -m ipu.simulator [--force] train.py ...`, or `-m package ...`.

`import poptorch` in it, and in every process that it starts, finds the simulator, and popart, popdist and horovod their
stand-ins, as far as the real ones are not installed; with `--force` in any case.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import List

from ipu.simulator.install import IMPORTABLE, PROJECT, install


def main(words: List[str]) -> None:
    """Run the program that a command line names.

    Args:
        words: of the command line, without the command itself.
    """
    force = words[:1] == ["--force"]
    words = words[1:] if force else words
    is_module = words[:1] == ["-m"]
    words = words[1:] if is_module else words
    if not words or words[0].startswith("-"):
        raise SystemExit((__doc__ or "").strip())
    install(force)
    # Programs that this one starts by their names learn the search path from here.
    path = [str(IMPORTABLE), str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    sys.argv = words
    # The program's own modules come first, as if Python had been started with it; this project has common names, too.
    folder = os.getcwd() if is_module else os.path.dirname(os.path.realpath(words[0]))
    sys.path.insert(0, folder)
    if is_module:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
