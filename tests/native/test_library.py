"""How the compiled kernels are compiled and kept, and what happens where they cannot be."""

from __future__ import annotations

import ctypes
import logging
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import torch

from engines.kernels.gated_gelu import gated_gelu
from models.products import product
from native import library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Open the library as a new process would, with a folder of its own to keep it in."""
    monkeypatch.setattr(library, "cache_folder", lambda: tmp_path / "kept")
    kept = library.open_native

    def open_anew() -> Any:
        kept.cache_clear()
        return library.open_native()

    yield open_anew
    monkeypatch.undo()
    kept.cache_clear()


def test_the_library_is_compiled_once(
    opened: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert opened() is not None
    (kept,) = (tmp_path / "kept").iterdir()
    monkeypatch.setattr(library, "_compile", lambda *_: pytest.fail("compiled again"))
    assert opened() is not None and list((tmp_path / "kept").iterdir()) == [kept]


def test_a_kept_library_that_cannot_be_loaded_is_compiled_anew(opened: Callable[[], Any], tmp_path: Path) -> None:
    assert opened() is not None
    (kept,) = (tmp_path / "kept").iterdir()
    kept.unlink()  # not overwritten: it is loaded
    kept.write_bytes(b"no library")
    assert opened() is not None
    ctypes.CDLL(str(kept))


def test_without_a_folder_to_keep_it_in_the_library_is_compiled_all_the_same(
    opened: Callable[[], Any], tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("a file")
    assert opened() is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_without_a_compiler_that_works_pytorch_computes(
    opened: Callable[[], Any], compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inner, sizes = torch.randn(3, 8), {"weight": torch.randn(6, 4), "bias": None, "dtype": torch.float32, "rows": 3}
    wanted = gated_gelu(inner), product(**sizes)(inner[:, :4])
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.INFO):
        assert opened() is None
    assert f"no compiled kernels, so steps and drawing on this CPU take longer; {compiler}" in caplog.text
    torch.testing.assert_close((gated_gelu(inner), product(**sizes)(inner[:, :4])), wanted)
