"""The names that programs reach through `poptorch`, and what importing it does to their process."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Dict, List

import pytest

import ipu.simulator as poptorch

ROOT = Path(__file__).resolve().parents[3]
NAMES = """
    Options options trainingModel inferenceModel PoplarExecutor load DataLoader DataLoaderMode AsynchronousDataAccessor
    SharingStrategy OutputMode ReductionType MeanReductionStrategy ConnectionType SyncPattern HalfFloatCastingBehavior
    MatMulSerializationMode Liveness OverlapMode AutoStage MultiConvPlanType CommGroupType VariableRetrievalMode Stage
    Phase PipelinedExecution
    ShardedExecution ParallelPhasedExecution SerialPhasedExecution TensorLocationSettings
    Attribute Block BeginBlock BlockFunction removeBlocks NameScope MultiConv CPU custom_op identity_loss
    ipu_print_tensor nop for_loop cond dynamic_slice dynamic_update recomputationCheckpoint serializedMatMul
    set_available_memory set_overlap_for_input set_overlap_for_output ctc_beam_search_decoder fps nearest optim
    profiling
    testing isRunningOnIpu ipuHardwareIsAvailable ipuHardwareVersion setLogLevel registerPreCompileHook
    registerPostCompileHook ICustomArgParser registerCustomArgParser module_repr print Error RecoverableError
    UnrecoverableError __version__ enums poptorch_core _impl _logging _dataloader
""".split()
INNER = """
    options.ConfigFileError options._DistributedOptions profiling.Channel testing.allclose optim.SGD optim.Adam
    optim.AdamW optim.RMSprop optim.LAMB enums.OutputMode poptorch_core.Error poptorch_core.RecoverableError
    poptorch_core.UnrecoverableError poptorch_core.TestErrorType poptorch_core._validateOptions
    poptorch_core.isCompilingWithDispatcher _impl.isDispatchTracing _logging.setPopartLogLevel _dataloader
""".split()
MEMBERS: Dict[str, Any] = {
    "OutputMode": "Final EveryN All Sum Default",
    "ReductionType": "Sum Mean NoReduction",
    "MeanReductionStrategy": "Running Post PostAndLoss",
    "DataLoaderMode": "Sync Async AsyncRebatched",
    "SharingStrategy": "SharedMemory FileSystem Fork ForkServer",
    "ConnectionType": "Always OnDemand Never",
    "SyncPattern": "Full SinglePipeline ReplicaAndLadder",
    "HalfFloatCastingBehavior": "FloatDowncastToHalf HalfUpcastToFloat Default",
    "AutoStage": "SameAsIpu AutoIncrement",
    "CommGroupType": "All Consecutive Orthogonal NoGrouping",
    "Liveness": "AlwaysLive OffChipAfterFwd OffChipAfterFwdNoOverlap OffChipAfterEachPhase",
    "MultiConvPlanType": "Parallel Serial",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_poptorch_is_there(name: str) -> None:
    assert hasattr(poptorch, name)


@pytest.mark.parametrize("name", INNER)
def test_every_name_within_its_modules_is_there(name: str) -> None:
    module, *rest = name.split(".")
    found = importlib.import_module(f"ipu.simulator.{module}")
    for part in rest:
        found = getattr(found, part)


@pytest.mark.parametrize("name", MEMBERS)
def test_enumerations_have_poptorchs_members_and_values(name: str) -> None:
    enumeration = getattr(poptorch, name)
    assert issubclass(enumeration, IntEnum)
    assert {member.name: member.value for member in enumeration} == {m: i for i, m in enumerate(MEMBERS[name].split())}


def test_enumerations_with_texts_or_gaps_have_them() -> None:
    assert {m.name: m.value for m in poptorch.VariableRetrievalMode} == {"OnePerGroup": 0, "AllReplicas": 2}
    for name, values in (
        ("MatMulSerializationMode", ["input_channels", "reducing_dim", "output_channels", "none"]),
        ("OverlapMode", ["no_overlap", "overlap_accumulation_loop", "overlap_device_iteration_loop"]),
    ):
        enumeration = getattr(poptorch, name)
        assert [member.value for member in enumeration] == values
        assert issubclass(enumeration, Enum) and not issubclass(enumeration, IntEnum)


def test_there_is_no_hardware_and_that_is_said() -> None:
    assert poptorch.ipuHardwareIsAvailable() is False and poptorch.ipuHardwareIsAvailable(4) is False
    with pytest.raises(AssertionError, match="no IPU hardware"):
        poptorch.ipuHardwareVersion()


def test_star_imports_bring_the_names_and_shadow_print() -> None:
    names: Dict[str, Any] = {}
    exec("from ipu.simulator import *", names)
    hidden = ("__version__", "_impl", "_logging", "_dataloader", "enums")
    assert [name for name in NAMES if name not in names and name not in hidden] == []
    assert names["print"] is poptorch.print is not print


def in_a_process(*lines: str, environment: Any = ()) -> List[str]:
    variables = {key: value for key, value in os.environ.items() if key != "RDMAV_FORK_SAFE"}
    variables.update(environment, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=variables, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()


def test_a_process_that_imports_poptorch_is_prepared_as_poptorch_does() -> None:
    lines = in_a_process(
        "import os, sys, faulthandler",
        "from ipu.simulator.install import install",
        "install(force=True)",
        "import poptorch, poptorch.optim, poptorch._logging",
        "print(os.environ['RDMAV_FORK_SAFE'], faulthandler.is_enabled(), poptorch.__version__)",
        "raise ValueError('nobody catches this')",
    )
    assert lines[0] == "1 True 3.4.0"
    assert "[poptorch::python] [critical] ValueError: nobody catches this" in lines[1]


def test_a_process_that_uses_the_simulator_under_its_own_name_is_left_alone() -> None:
    lines = in_a_process(
        "import os, sys, faulthandler",
        "hook = sys.excepthook",
        "import ipu.simulator",
        "print('RDMAV_FORK_SAFE' in os.environ, faulthandler.is_enabled(), sys.excepthook is hook)",
    )
    assert lines == ["False False True"]


def test_a_choice_of_the_user_for_forks_stays() -> None:
    lines = in_a_process(
        "from ipu.simulator.install import install; install(force=True); import poptorch, os",
        "print(os.environ['RDMAV_FORK_SAFE'])",
        environment={"RDMAV_FORK_SAFE": "0"},
    )
    assert lines == ["0"]
