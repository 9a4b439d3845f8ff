"""Stand-ins for PopDist and Horovod: what an instance is told, and what several of them do together."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
import torch

from ipu.simulator.options import Options
from ipu.simulator.standins import popart, popdist
from ipu.simulator.standins.horovod import torch as hvd
from ipu.simulator.standins.popdist import poptorch

ROOT = Path(__file__).resolve().parents[3]
SECOND_OF_FOUR = {
    "POPDIST_NUM_TOTAL_REPLICAS": "16",
    "POPDIST_NUM_LOCAL_REPLICAS": "4",
    "POPDIST_NUM_IPUS_PER_REPLICA": "2",
    "POPDIST_REPLICA_INDEX_OFFSET": "4",
    "POPDIST_LOCAL_INSTANCE_INDEX": "1",
}


@pytest.fixture(autouse=True)
def no_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("POPDIST_", "OMPI_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def second_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECOND_OF_FOUR.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def one_instance() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


def answers() -> Dict[str, Any]:
    names = [name for name in vars(popdist) if name.startswith(("getNum", "getInst", "getLocal", "getReplica", "is"))]
    return {name: getattr(popdist, name)() for name in names if name != "instances"}


def test_a_program_without_poprun_is_one_instance_of_one_replica() -> None:
    assert answers() == {
        "isPopdistEnvSet": False,
        "getNumTotalReplicas": 1,
        "getNumLocalReplicas": 1,
        "getNumInstances": 1,
        "getNumIpusPerReplica": 1,
        "getInstanceIndex": 0,
        "getLocalInstanceIndex": 0,
        "getReplicaIndexOffset": 0,
    }


@pytest.mark.usefixtures("second_of_four")
def test_poprun_tells_an_instance_its_place() -> None:
    assert answers() == {
        "isPopdistEnvSet": True,
        "getNumTotalReplicas": 16,
        "getNumLocalReplicas": 4,
        "getNumInstances": 4,
        "getNumIpusPerReplica": 2,
        "getInstanceIndex": 1,
        "getLocalInstanceIndex": 1,
        "getReplicaIndexOffset": 4,
    }


def test_replicas_are_shared_out_among_the_processes_of_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"POPDIST_NUM_TOTAL_REPLICAS": "8", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (popdist.getNumLocalReplicas(), popdist.getNumInstances(), popdist.getInstanceIndex()) == (4, 2, 1)
    assert popdist.getReplicaIndexOffset() == 4


def test_a_broken_variable_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "many")
    with pytest.raises(RuntimeError, match="POPDIST_NUM_TOTAL_REPLICAS=many"):
        popdist.getNumTotalReplicas()


@pytest.mark.usefixtures("second_of_four")
def test_another_number_of_ipus_per_replica_is_an_error() -> None:
    popdist.checkNumIpusPerReplica(2)
    for check in (popdist.checkNumIpusPerReplica, poptorch.Options):
        with pytest.raises(RuntimeError, match="needs 4 IPUs per replica.*told 2"):
            check(4)  # type: ignore[operator]


@pytest.mark.usefixtures("second_of_four")
def test_a_function_runs_on_the_instances_named() -> None:
    assert popdist.execute_on_instances({1, 2}, max, 3, 5) == 5
    assert popdist.execute_on_instances({0}, max, 3, 5) is None


@pytest.mark.usefixtures("second_of_four")
def test_options_of_popdist_know_replicas_and_instance() -> None:
    options = poptorch.Options(ipus_per_replica=2)
    for one in (options, options.clone(), copy.deepcopy(options), pickle.loads(pickle.dumps(options))):
        assert isinstance(one, Options)
        assert one.replication_factor == 4
        assert (one.Distributed.processId, one.Distributed.numProcesses) == (1, 4)
    options.deviceIterations(3)
    assert options.device_iterations == 3


@pytest.mark.parametrize(
    "name, change",
    [
        ("useIpuId", lambda options: options.useIpuId(1)),
        ("replicationFactor", lambda options: options.replicationFactor(2)),
        ("Distributed.disable", lambda options: options.Distributed.disable()),
        ("Distributed.setEnvVarNames", lambda options: options.Distributed.setEnvVarNames("A", "B")),
        ("Distributed.configureProcessId", lambda options: options.Distributed.configureProcessId(0, 1)),
    ],
)
@pytest.mark.usefixtures("second_of_four")
def test_what_poprun_decides_cannot_be_called(name: str, change: Callable[[Any], Any]) -> None:
    options = poptorch.Options()
    for one in (options, options.clone()):
        with pytest.raises(RuntimeError, match=f"Cannot call {name}"):
            change(one)


@pytest.mark.parametrize("module", [popart, popdist, hvd])
def test_what_a_stand_in_does_not_have_is_named(module: Any) -> None:
    with pytest.raises(AttributeError, match="stand-in for .* has no Session"):
        module.Session  # noqa: B018


def test_horovod_has_to_be_initialized() -> None:
    with pytest.raises(ValueError, match="initialized"):
        hvd.rank()


@pytest.mark.usefixtures("one_instance")
def test_collectives_over_one_instance_change_nothing() -> None:
    assert (hvd.size(), hvd.rank(), hvd.local_rank()) == (1, 0, 0)
    tensor = torch.arange(3.0)
    for result in (hvd.allreduce(tensor), hvd.allreduce(tensor, op=hvd.Sum), hvd.broadcast(tensor, 0)):
        assert torch.equal(result, tensor)
        assert result.data_ptr() != tensor.data_ptr()
    assert hvd.allreduce_(tensor) is tensor
    assert torch.equal(hvd.allgather(tensor), tensor)
    assert hvd.broadcast_object({"a": 1}) == {"a": 1}
    hvd.broadcast_parameters(torch.nn.Linear(2, 2).state_dict(), root_rank=0)
    hvd.barrier()


INSTANCE = """
    import torch
    from ipu.simulator.standins.horovod import torch as hvd

    hvd.init()
    rank = hvd.rank()
    mine = torch.tensor([1.0, 3.0]) * (rank + 1)
    assert hvd.size() == 2
    assert hvd.allreduce(mine).tolist() == [1.5, 4.5], hvd.allreduce(mine)
    assert hvd.allreduce(mine, average=False).tolist() == [3.0, 9.0]
    assert hvd.allreduce(mine, op=hvd.Max).tolist() == [2.0, 6.0]
    assert hvd.allreduce(torch.tensor(rank + 1)).item() == 1
    assert mine.tolist() == [rank + 1.0, 3 * (rank + 1.0)]
    assert hvd.broadcast(mine, root_rank=1).tolist() == [2.0, 6.0]
    assert hvd.allgather(torch.full((rank + 1,), rank)).tolist() == [0, 1, 1]
    assert hvd.broadcast_object(f"of {rank}", root_rank=1) == "of 1"
    torch.manual_seed(rank)
    layer = torch.nn.Linear(2, 2)
    hvd.broadcast_parameters(layer.state_dict(), root_rank=1)
    torch.manual_seed(1)
    assert torch.equal(layer.weight, torch.nn.Linear(2, 2).weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rank + 1.0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=1)
    assert optimizer.param_groups[0]["lr"] == 2.0
    hvd.barrier()
    hvd.shutdown()
"""


def test_two_instances_reduce_and_broadcast_among_each_other(tmp_path: Path) -> None:
    (tmp_path / "instance.py").write_text(textwrap.dedent(INSTANCE))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_COMM_WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    instances = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "instance.py")],
            env={**environment, "OMPI_COMM_WORLD_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    end = time.monotonic() + 90
    while time.monotonic() < end and not any(
        instance.poll() for instance in instances
    ):  # one that fails leaves one waiting
        if all(instance.poll() == 0 for instance in instances):
            break
        time.sleep(0.05)
    codes = [instance.poll() for instance in instances]
    for instance in instances:
        instance.kill()
    errors = [instance.communicate()[1] for instance in instances]
    assert codes == [0, 0], errors


def test_instances_on_several_hosts_need_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RuntimeError, match="4 instances, 2 of them on this host: set MASTER_ADDR"):
        hvd.init()
