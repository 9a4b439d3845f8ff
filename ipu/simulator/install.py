"""Makes the simulator answer to `import poptorch`, and stand-ins to popart, popdist and horovod."""

from __future__ import annotations

import importlib
import importlib.machinery
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Iterator, List, Optional, Tuple

from ipu.simulator._impl import prepare_process

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
IMPORTABLE = HERE / "importable"
"""A folder for the search path with one module for each name: a new process knows no more of this one than the path."""

STANDINS = {
    "poptorch": "ipu.simulator",
    "popart": "ipu.simulator.standins.popart",
    "popdist": "ipu.simulator.standins.popdist",
    "horovod": "ipu.simulator.standins.horovod",
}
_OURS_ALONE = ("__main__", "importable", "install", "standins")


def install(force: bool = False) -> List[str]:
    """Let `import poptorch`, popart, popdist and horovod find the simulator and its stand-ins.

    Each module is one object under both its names: `poptorch.optim` is `ipu.simulator.optim`. Processes that this one
    starts by multiprocessing find the same.

    Args:
        force: also in place of real ones.

    Returns:
        The names that stand-ins answer to now; the other ones can be imported as they are.
    """
    names = [name for name in STANDINS if force or not _is_installed(name)]
    for name in names:
        answer_to(name)
    if names:
        _extend_search_path(first=force)
    return names


def answer_to(name: str) -> None:
    """Give one stand-in, and all modules in it, the name that programs import it by."""
    source = STANDINS[name]
    package = importlib.import_module(source)
    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[known]
    sys.modules[name] = package
    for inner, module in _modules_of(package):
        sys.modules[f"{name}.{inner}"] = module
    if name == "poptorch":
        prepare_process()


def _modules_of(package: ModuleType) -> Iterator[Tuple[str, ModuleType]]:
    """The modules of a package, with their names in it: its files, and those that are attributes under other names."""
    for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
        inner = found.name[len(package.__name__) + 1 :]
        if inner.split(".")[0] not in _OURS_ALONE:
            yield inner, importlib.import_module(found.name)
    for name, value in list(vars(package).items()):
        if (
            isinstance(value, ModuleType)
            and value.__name__.startswith(f"{package.__name__}.")
            and name not in _OURS_ALONE
        ):
            yield name, value


def _is_installed(name: str) -> bool:
    """Whether there is a module of this name that is not ours."""
    loaded = sys.modules.get(name)
    if loaded is not None and not _is_ours(getattr(loaded, "__file__", None)):
        return True
    found = importlib.machinery.PathFinder.find_spec(name, [entry for entry in sys.path if entry != str(IMPORTABLE)])
    # A folder of this name that is no package is found too, without an origin: programs have one for their notes.
    return found is not None and found.origin is not None


def _is_ours(file: Optional[str]) -> bool:
    return file is not None and HERE in Path(file).resolve().parents


def _extend_search_path(first: bool) -> None:
    """Multiprocessing hands the search path on to its processes; what is in `sys.modules` here they do not have."""
    for entry in (str(PROJECT), str(IMPORTABLE)):
        if entry not in sys.path:
            sys.path.append(entry)
    if first:
        sys.path.remove(str(IMPORTABLE))
        sys.path.insert(0, str(IMPORTABLE))
