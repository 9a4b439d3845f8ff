"""The processes of a run, with stand-ins for PopRun's modules."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List

import pytest
import torch
from torch import Tensor

import engines.launcher
from engines.launcher import Launcher, find_launcher, resolve
from engines.options import TrainingOptions
from options import OptionError


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def poprun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., List[str]]:
    """`poprun(instances=, index=, replicas=, ipus=, started=)` pretends to be started by it; returns what is called."""

    def pretend(
        instances: int = 1, index: int = 0, replicas: int = 4, ipus: int = 4, started: bool = True
    ) -> List[str]:
        called: List[str] = []

        def answer(name: str, value: Any = None) -> Callable[[], Any]:
            return lambda: (called.append(name), value)[1]

        numbers = {
            "isPopdistEnvSet": started,
            "init": None,
            "getNumIpusPerReplica": ipus,
            "getNumInstances": instances,
            "getInstanceIndex": index,
            "getNumTotalReplicas": replicas,
        }
        stand_in(monkeypatch, "popdist", **{name: answer(name, value) for name, value in numbers.items()})

        def allreduce(values: Tensor) -> Tensor:
            called.append("allreduce")
            return values + 1

        horovod: Dict[str, Any] = {"init": answer("horovod.init"), "allreduce": allreduce}
        stand_in(monkeypatch, "horovod.torch", **horovod)
        stand_in(monkeypatch, "horovod", torch=sys.modules["horovod.torch"])
        return called

    return pretend


@pytest.fixture
def no_popdist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "popdist", raising=False)
    monkeypatch.setattr(engines.launcher.importlib.util, "find_spec", lambda name: None)


def test_without_poprun_s_modules_there_is_one_process(no_popdist: None) -> None:
    launcher = find_launcher(4)
    assert launcher == Launcher(0, 1, None) and launcher.is_main


def test_a_process_that_poprun_did_not_start_joins_nothing(poprun: Callable[..., List[str]]) -> None:
    called = poprun(started=False)
    assert find_launcher(4) == Launcher()
    assert called == ["isPopdistEnvSet"]


def test_under_poprun_a_process_knows_its_number_and_the_replicas(poprun: Callable[..., List[str]]) -> None:
    called = poprun(instances=2, index=1, replicas=8)
    launcher = find_launcher(4)
    assert launcher == Launcher(1, 2, 8) and not launcher.is_main
    assert called.index("init") < called.index("horovod.init")


def test_a_single_instance_needs_no_horovod(poprun: Callable[..., List[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    poprun(instances=1, replicas=4)
    monkeypatch.setitem(sys.modules, "horovod", None)
    launcher = find_launcher(4)
    assert launcher == Launcher(0, 1, 4) and launcher.is_main
    values = torch.ones(3)
    assert launcher.mean(values) is values


def test_several_instances_without_horovod_are_told_what_to_install(
    poprun: Callable[..., List[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    poprun(instances=2)
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(OptionError, match="several processes need horovod, which the SDK brings as a wheel"):
        find_launcher(4)


def test_another_number_of_ipus_than_poprun_was_told_is_refused(poprun: Callable[..., List[str]]) -> None:
    poprun(ipus=2)
    with pytest.raises(OptionError, match="ipus_per_replica=4, and poprun was started with --ipus-per-replica 2"):
        find_launcher(4)


def test_losses_are_averaged_over_the_instances(poprun: Callable[..., List[str]]) -> None:
    called = poprun(instances=2)
    assert find_launcher(4).mean(torch.zeros(2)).tolist() == [1, 1]
    assert called[-1] == "allreduce"


@pytest.mark.parametrize(
    "asked, ipus, engine",
    [("auto", True, "ipu"), ("auto", False, "host"), ("host", True, "host"), ("ipu-sim", True, "ipu-sim")],
)
def test_the_engine_is_ipus_where_they_answer_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: str, ipus: bool, engine: str
) -> None:
    opened: List[str] = []
    monkeypatch.setattr(engines.launcher, "answers", lambda: ipus)
    monkeypatch.setattr(engines.launcher, "open_poptorch", opened.append)
    assert resolve(TrainingOptions(engine=asked), Launcher()).engine == engine
    assert opened == ([] if engine == "host" else [engine])


def test_a_named_engine_without_its_sdk_is_refused_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipu.has_sdk", lambda: False)
    with pytest.raises(OptionError, match="engine=ipu needs Graphcore's SDK"):
        resolve(TrainingOptions(engine="ipu"), Launcher())


def test_poprun_s_replicas_take_the_place_of_the_option_s_and_make_the_global_batch() -> None:
    options = TrainingOptions(engine="ipu-sim", replication_factor=1, gradient_accumulation=3, batch_size=2)
    assert resolve(options, Launcher(0, 2, 8)).global_batch == 48
    assert resolve(options, Launcher()).global_batch == 6


def test_replicas_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(
        OptionError, match="8 replicas cannot be shared out evenly among 3 processes; start poprun with"
    ):
        resolve(TrainingOptions(engine="ipu-sim"), Launcher(0, 3, 8))
    with pytest.raises(OptionError, match="1 replicas cannot be shared out"):
        resolve(TrainingOptions(engine="ipu-sim"), Launcher(0, 2))
