"""Building and loading the library of the operators for this CPU."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from custom_ops import host_library
from options import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root of one's own, as if no library had been opened in this process."""
    host_library.open_library.cache_clear()
    monkeypatch.delenv(host_library.OTHER_LIBRARY, raising=False)
    monkeypatch.setattr(host_library, "ROOT", tmp_path)
    monkeypatch.setattr(host_library, "BUILT", tmp_path / "build" / "library.so")
    yield tmp_path
    host_library.open_library.cache_clear()


def on_path(folder: Path, name: str) -> None:
    program = folder / name
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_what_is_missing_to_build_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(host_library.OTHER_LIBRARY, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host_library.missing_tool() == "no make here (make)"
    on_path(tmp_path, "make")
    assert host_library.missing_tool() == "no C++ compiler here (g++)"
    monkeypatch.setenv("CXX", "other -m64")
    assert host_library.missing_tool() == "no C++ compiler here (other)"
    on_path(tmp_path, "other")
    assert host_library.missing_tool() is None


def test_another_library_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(host_library.OTHER_LIBRARY, "library.so")
    assert host_library.missing_tool() is None


@pytest.mark.skipif(host_library.missing_tool() is not None, reason="make or a compiler is missing")
def test_a_build_that_fails_is_an_error_with_what_the_compiler_says(fresh: Path) -> None:
    (fresh / "Makefile").write_text("host-ops:\n\t@echo 'operator.cpp:1: it is wrong' >&2; exit 1\n")
    with pytest.raises(UserError, match="(?s)`make host-ops`.*failed:.*operator.cpp:1: it is wrong"):
        host_library.open_library()


@pytest.mark.skipif(host_library.missing_tool() is not None, reason="make or a compiler is missing")
def test_what_is_no_library_is_an_error(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh / "Makefile").write_text("host-ops:\n\t@echo none > build/library.so\n")
    with pytest.raises(UserError, match="library.so cannot be loaded .*`make host-ops`"):
        host_library.open_library()
    monkeypatch.setenv(host_library.OTHER_LIBRARY, "nowhere.so")
    with pytest.raises(UserError, match="HOST_CUSTOM_OPS=nowhere.so cannot be loaded"):
        host_library.open_library()


@pytest.mark.skipif(host_library.missing_tool() is not None, reason="make or a compiler is missing")
def test_processes_that_want_the_library_at_once_build_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(
        "host-ops: build/library.so\n"
        "build/library.so:\n\t@test ! -e busy; touch busy; sleep 0.3; echo built >> log; rm busy; touch $@\n"
    )
    script = (
        "import pathlib; from custom_ops import host_library as made; "
        f"made.ROOT = pathlib.Path({str(tmp_path)!r}); made.BUILT = made.ROOT / 'build' / 'library.so'; made.build()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
