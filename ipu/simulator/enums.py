"""The enumerations of PopTorch. Names and numbers are PopTorch's; programs and the compiler both rely on them."""

from __future__ import annotations

import enum


class _Numbered(enum.IntEnum):
    # Newer Pythons print an IntEnum as its number. Messages should read alike on all of them.
    __str__ = enum.Enum.__str__


class OutputMode(_Numbered):
    """Which micro batches of a call come back: the last, every N-th device iteration's, all, or their sum."""

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ReductionType(_Numbered):
    """How gradients of micro batches and replicas become one."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class MeanReductionStrategy(_Numbered):
    """When a mean over gradients divides: at every step, at the end, or partly before the backward pass."""

    Running = 0
    Post = 1
    PostAndLoss = 2


class DataLoaderMode(_Numbered):
    """Where a `DataLoader` loads: here, in a process of its own, or there with batches put together anew."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class SharingStrategy(_Numbered):
    """How an `AsynchronousDataAccessor` passes its dataset to its process, and gets tensors back."""

    SharedMemory = 0
    FileSystem = 1
    Fork = 2
    ForkServer = 3


class ConnectionType(_Numbered):
    """When a program attaches to IPUs: from the start, once compiled, or never."""

    Always = 0
    OnDemand = 1
    Never = 2


class SyncPattern(_Numbered):
    """Which IPUs wait for each other."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class HalfFloatCastingBehavior(_Numbered):
    """What an operation makes of float16 beside float32; without effect today."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2


class AutoStage(_Numbered):
    """How a block that no strategy names finds its stage: by its IPU, or by order of appearance."""

    SameAsIpu = 0
    AutoIncrement = 1


class CommGroupType(_Numbered):
    """Which replicas form a group."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class VariableRetrievalMode(_Numbered):
    """Of which replicas a weight is read back."""

    OnePerGroup = 0
    AllReplicas = 2


class Liveness(_Numbered):
    """How long phased execution keeps the tensors of a forward phase on the IPU."""

    AlwaysLive = 0
    OffChipAfterFwd = 1
    OffChipAfterFwdNoOverlap = 2
    OffChipAfterEachPhase = 3


class MultiConvPlanType(_Numbered):
    """Whether the convolutions of a `MultiConv` run side by side."""

    Parallel = 0
    Serial = 1


class MatMulSerializationMode(enum.Enum):
    """The dimension that a serialised matrix product is cut along."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class OverlapMode(enum.Enum):
    """Which loop the copy of an input or output overlaps with."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"
