"""The enumerations carry PopTorch's names and numbers."""

from __future__ import annotations

import copy
import enum
import inspect
import pickle
from typing import Any, Dict

import pytest

from ipu.simulator import enums

NUMBERED: Dict[str, Dict[str, int]] = {
    "OutputMode": {"Final": 0, "EveryN": 1, "All": 2, "Sum": 3, "Default": 4},
    "ReductionType": {"Sum": 0, "Mean": 1, "NoReduction": 2},
    "MeanReductionStrategy": {"Running": 0, "Post": 1, "PostAndLoss": 2},
    "DataLoaderMode": {"Sync": 0, "Async": 1, "AsyncRebatched": 2},
    "SharingStrategy": {"SharedMemory": 0, "FileSystem": 1, "Fork": 2, "ForkServer": 3},
    "ConnectionType": {"Always": 0, "OnDemand": 1, "Never": 2},
    "SyncPattern": {"Full": 0, "SinglePipeline": 1, "ReplicaAndLadder": 2},
    "HalfFloatCastingBehavior": {"FloatDowncastToHalf": 0, "HalfUpcastToFloat": 1, "Default": 2},
    "AutoStage": {"SameAsIpu": 0, "AutoIncrement": 1},
    "CommGroupType": {"All": 0, "Consecutive": 1, "Orthogonal": 2, "NoGrouping": 3},
    "VariableRetrievalMode": {"OnePerGroup": 0, "AllReplicas": 2},
    "Liveness": {"AlwaysLive": 0, "OffChipAfterFwd": 1, "OffChipAfterFwdNoOverlap": 2, "OffChipAfterEachPhase": 3},
    "MultiConvPlanType": {"Parallel": 0, "Serial": 1},
}
NAMED: Dict[str, Dict[str, str]] = {
    "MatMulSerializationMode": {
        "InputChannels": "input_channels",
        "ReducingDim": "reducing_dim",
        "OutputChannels": "output_channels",
        "Disabled": "none",
    },
    "OverlapMode": {
        "NoOverlap": "no_overlap",
        "OverlapAccumulationLoop": "overlap_accumulation_loop",
        "OverlapDeviceIterationLoop": "overlap_device_iteration_loop",
    },
}


@pytest.mark.parametrize("name, members", [*NUMBERED.items(), *NAMED.items()])
def test_members_have_poptorchs_values(name: str, members: Dict[str, Any]) -> None:
    kind = getattr(enums, name)
    assert {member.name: member.value for member in kind} == members
    assert issubclass(kind, enum.IntEnum) == (name in NUMBERED)


def test_there_are_no_other_enumerations() -> None:
    public = {name for name, kind in vars(enums).items() if inspect.isclass(kind) and not name.startswith("_")}
    assert public == set(NUMBERED) | set(NAMED)


def test_numbered_members_are_numbers() -> None:
    assert enums.OutputMode.Sum == 3
    assert isinstance(enums.OutputMode.Sum, int)


def test_members_print_their_names_on_every_python() -> None:
    assert str(enums.OutputMode.Sum) == "OutputMode.Sum"
    assert repr(enums.OutputMode.Sum) == "<OutputMode.Sum: 3>"


@pytest.mark.parametrize("member", [enums.OutputMode.Sum, enums.OverlapMode.NoOverlap])
def test_copies_of_a_member_are_the_member(member: enum.Enum) -> None:
    assert copy.deepcopy(member) is member
    assert pickle.loads(pickle.dumps(member)) is member
