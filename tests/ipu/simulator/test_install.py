"""The simulator under PopTorch's name: in this process, in programs that it runs, and in the processes of those."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Iterator, List

import pytest

import ipu.simulator
from ipu.simulator.install import IMPORTABLE, STANDINS, install

ROOT = Path(__file__).resolve().parents[3]


def families() -> List[str]:
    return [name for name in sys.modules if name.split(".")[0] in STANDINS]


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    path, kept = list(sys.path), {name: sys.modules[name] for name in families()}
    for name in kept:
        del sys.modules[name]
    yield
    for name in families():
        del sys.modules[name]
    sys.modules.update(kept)
    sys.path[:] = path


def test_every_module_is_one_object_under_both_names() -> None:
    assert install(force=True) == list(STANDINS)
    assert importlib.import_module("poptorch") is ipu.simulator
    files = {path.stem for path in Path(ipu.simulator.__file__).parent.glob("*.py")} - {
        "__init__",
        "__main__",
        "install",
    }
    assert {"enums", "options", "optim", "poptorch_core", "_dataloader", "_logging"} <= files
    for name in files:
        module = importlib.import_module(f"poptorch.{name}")
        assert module is importlib.import_module(f"ipu.simulator.{name}"), name


def test_stand_ins_for_what_applications_import_beside_it_are_found() -> None:
    install(force=True)
    popart = importlib.import_module("popart")
    assert int(popart.SyntheticDataMode.RandomNormal) == 2
    popdist_poptorch = importlib.import_module("popdist.poptorch")
    assert issubclass(popdist_poptorch.Options, ipu.simulator.Options)
    assert importlib.import_module("popdist").poptorch is popdist_poptorch
    assert importlib.import_module("horovod.torch") is importlib.import_module("horovod").torch


def test_installing_twice_changes_nothing() -> None:
    install(force=True)
    before, path = {name: sys.modules[name] for name in families()}, list(sys.path)
    assert install(force=True) == list(STANDINS)
    assert {name: sys.modules[name] for name in families()} == before
    assert sys.path == path


def test_a_module_that_is_installed_stays_unless_it_is_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "popart.py").write_text("REAL = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "popart" not in install()
    assert importlib.import_module("popart").REAL
    assert "popart" in install(force=True)
    assert not hasattr(importlib.import_module("popart"), "REAL")


def test_a_module_that_is_loaded_stays_unless_it_is_forced() -> None:
    real = sys.modules["popdist"] = ModuleType("popdist")
    assert "popdist" not in install()
    assert sys.modules["popdist"] is real


def test_a_folder_that_has_the_name_but_no_module_is_no_installed_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "popdist").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "popdist" in install()


def test_each_name_can_be_imported_where_only_the_search_path_is_known() -> None:
    assert {path.stem for path in IMPORTABLE.glob("*.py")} == set(STANDINS)


PROGRAM = """
    import subprocess, sys
    import popart, popdist.poptorch, horovod.torch
    import poptorch, poptorch._dataloader
    from poptorch.optim import AdamW
    import torch
    import models  # a name that this project has, too

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.tensor(index)

    if __name__ == "__main__":
        print(sys.argv[1:], models.NAME, AdamW is poptorch.optim.AdamW)
        mode = poptorch.DataLoaderMode.Async
        loader = poptorch.DataLoader(poptorch.Options(), Numbers(), 4, mode=mode, num_workers=1)
        print([batch.tolist() for batch in loader])
        if sys.argv[-1] != "again":
            subprocess.run([sys.executable, __file__, "again"], check=True)
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_a_program_and_its_processes_find_the_simulator(tmp_path: Path, as_module: bool) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "models.py").write_text("NAME = 'of the program'\n")
    words = ["-m", "program"] if as_module else [str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "ipu.simulator", *words, "--option", "1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    batches = "[[0, 1, 2, 3], [4, 5, 6, 7]]"
    lines = ["['--option', '1'] of the program True", batches, "['again'] of the program True", batches]
    assert sorted(run.stdout.splitlines()) == sorted(lines)  # the inner program writes first


def test_the_command_without_a_program_says_how_it_is_used() -> None:
    run = subprocess.run([sys.executable, "-m", "ipu.simulator"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 1
    assert "python -m ipu.simulator" in run.stderr
