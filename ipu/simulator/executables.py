"""Files of compiled models. Where PopTorch keeps machine code, the simulator keeps what it needs to trace again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
from pathlib import Path
from typing import Any, Dict, Iterator

from torch import nn

from ipu.simulator.graph import Graph
from ipu.simulator.options import Options

_log = logging.getLogger("poptorch::python")
VERSION = "3.4.0"


def write_executable(filename: str, content: Dict[str, Any]) -> None:
    """Write what `read_executable` gives back; makes folders, and in a folder the file `model.poptorch`."""
    path = Path(filename)
    if path.is_dir():
        path = path / "model.poptorch"
        _log.warning("%s is a folder; saving to %s", filename, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pickle.dump({"version": VERSION, **content}, file)


def read_executable(filename: str) -> Dict[str, Any]:
    """What `write_executable` wrote. Like PopTorch's, the file is a pickle: read only files that you trust.

    Raises:
        AssertionError: another version wrote it.
    """
    with Path(filename).open("rb") as file:
        content: Dict[str, Any] = pickle.load(file)
    assert content["version"] == VERSION, (
        f"{filename} was written by version {content['version']}, and this is {VERSION}; compile and save it anew"
    )
    return content


@contextlib.contextmanager
def set_modes(model: nn.Module, modes: Dict[str, bool]) -> Iterator[None]:
    """Within, the modules that `modes` names train or not as when a file was written: what it runs is fixed."""
    named = [(module, module.training, modes.get(name)) for name, module in model.named_modules()]
    try:
        for module, _, mode in named:
            if mode is not None:
                module.training = mode
        yield
    finally:
        for module, before, _ in named:
            module.training = before


def note_in_cache(options: Options, graph: Graph) -> None:
    """Record what was compiled in the folder of `enableExecutableCaching`; there is no machine code to keep in it."""
    popart = options._Popart.options
    folder = popart.get("cachePath") if popart.get("enableEngineCaching") else None
    if not folder:
        return
    text = "\n".join(f"{node.name} {node.place} {node.inputs} {node.outputs}" for node in graph.nodes)
    shapes = "\n".join(f"{value.kind} {tuple(value.shape)} {value.dtype}" for value in graph.values)
    path = Path(folder) / f"{hashlib.sha256(f'{text}{shapes}{options!r}'.encode()).hexdigest()[:32]}.json"
    if path.exists():
        _log.info("executable found in %s", path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"simulated": True, "operations": len(graph.nodes)}), encoding="ascii")


def warn_without_cache(options: Options) -> None:
    """Say that every process compiles by itself, where several do and have no folder to share."""
    if options.Distributed.numProcesses > 1 and not options._Popart.options.get("cachePath"):
        _log.warning(
            "%d processes compile the same model; enableExecutableCaching(path) on the options lets one do it for all",
            options.Distributed.numProcesses,
        )
