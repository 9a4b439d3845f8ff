"""Marks for the profiler, with its library and without."""

from __future__ import annotations

import sys
import types
from typing import Any, List, Tuple

import pytest

from ipu.simulator.profiling import Channel


class Worker:
    def work(self) -> int:
        return 3


@pytest.mark.parametrize("asked_for", [False, True])
def test_without_the_library_a_channel_does_nothing(asked_for: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PVTI_OPTIONS", raising=False)
    if asked_for:
        monkeypatch.setenv("PVTI_OPTIONS", "{}")
    monkeypatch.setitem(sys.modules, "libpvti", None)
    channel, worker = Channel("app"), Worker()
    assert channel.instrument(worker, "work") is worker
    with channel.tracepoint("loading"):
        assert worker.work() == 3
    assert "work" not in vars(worker)


def test_with_the_library_calls_and_stretches_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: List[Tuple[Any, ...]] = []

    class Tracepoint:
        def __init__(self, channel: str, name: str) -> None:
            self.name = (channel, name)

        def __enter__(self) -> None:
            seen.append(("begin", *self.name))

        def __exit__(self, *_: Any) -> None:
            seen.append(("end", *self.name))

    library = types.ModuleType("libpvti")
    library.createTraceChannel = lambda name: f"<{name}>"  # type: ignore[attr-defined]
    library.instrument = lambda *arguments: seen.append(arguments)  # type: ignore[attr-defined]
    library.Tracepoint = Tracepoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "libpvti", library)
    monkeypatch.setenv("PVTI_OPTIONS", '{"enable":"true"}')
    monkeypatch.setattr(Channel, "_channels", {})
    worker = Worker()
    channel = Channel("app")
    assert channel.instrument(worker, "work", "rest") is worker
    with channel.tracepoint("loading"):
        pass
    assert seen == [
        (worker, ("work", "rest"), "<app>"),
        ("begin", "<app>", "app.loading"),
        ("end", "<app>", "app.loading"),
    ]
