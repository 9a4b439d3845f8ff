"""A PopTorch of its own, for computers without IPUs: its names, its results, its errors, on PyTorch's CPU operators.

`ipu.simulator.install.install` lets `import poptorch` find it. What it cannot know, it says: there is no hardware
(`ipuHardwareIsAvailable` is False), and counters of time are estimates. Beside PopTorch's names it has
`register_custom_op`, which takes the place of a compiled operator, and `getTransfers` of an executor.
"""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import nn

from ipu.simulator import _dataloader as _dataloader
from ipu.simulator import _impl as _impl
from ipu.simulator import _logging as _logging
from ipu.simulator import enums, optim, options, poptorch_core, profiling, testing
from ipu.simulator._logging import setLogLevel
from ipu.simulator.arguments import ICustomArgParser, registerCustomArgParser
from ipu.simulator.blocks import BeginBlock, Block, BlockFunction, module_repr, removeBlocks
from ipu.simulator.blocks import print_module as print  # noqa: A004
from ipu.simulator.dataloader import AsynchronousDataAccessor, DataLoader
from ipu.simulator.enums import (
    AutoStage,
    CommGroupType,
    ConnectionType,
    DataLoaderMode,
    HalfFloatCastingBehavior,
    Liveness,
    MatMulSerializationMode,
    MeanReductionStrategy,
    MultiConvPlanType,
    OutputMode,
    OverlapMode,
    ReductionType,
    SharingStrategy,
    SyncPattern,
    VariableRetrievalMode,
)
from ipu.simulator.executables import VERSION
from ipu.simulator.executor import PoplarExecutor, load
from ipu.simulator.hooks import registerPostCompileHook, registerPreCompileHook
from ipu.simulator.ops import (
    CPU,
    Attribute,
    MultiConv,
    NameScope,
    cond,
    ctc_beam_search_decoder,
    custom_op,
    dynamic_slice,
    dynamic_update,
    for_loop,
    fps,
    identity_loss,
    ipu_print_tensor,
    isRunningOnIpu,
    nearest,
    nop,
    recomputationCheckpoint,
    register_custom_op,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from ipu.simulator.options import Options, TensorLocationSettings
from ipu.simulator.poptorch_core import Error, RecoverableError, UnrecoverableError
from ipu.simulator.strategies import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)

__version__ = VERSION

__all__ = [
    "Attribute", "AsynchronousDataAccessor", "AutoStage", "BeginBlock", "Block", "BlockFunction", "CPU",
    "CommGroupType", "ConnectionType", "DataLoader", "DataLoaderMode", "Error", "HalfFloatCastingBehavior",
    "ICustomArgParser", "Liveness", "MatMulSerializationMode", "MeanReductionStrategy", "MultiConv",
    "MultiConvPlanType", "NameScope", "Options", "OutputMode", "OverlapMode", "ParallelPhasedExecution", "Phase",
    "PipelinedExecution", "PoplarExecutor", "RecoverableError", "ReductionType", "SerialPhasedExecution",
    "ShardedExecution", "SharingStrategy", "Stage", "SyncPattern", "TensorLocationSettings", "UnrecoverableError",
    "VariableRetrievalMode", "cond", "ctc_beam_search_decoder", "custom_op", "dynamic_slice", "dynamic_update",
    "enums",
    "for_loop", "fps", "identity_loss", "inferenceModel", "ipuHardwareIsAvailable", "ipuHardwareVersion",
    "ipu_print_tensor", "isRunningOnIpu", "load", "module_repr", "nearest", "nop", "optim", "options",
    "poptorch_core", "print", "profiling", "recomputationCheckpoint", "registerCustomArgParser",
    "registerPostCompileHook", "registerPreCompileHook", "register_custom_op", "removeBlocks", "serializedMatMul",
    "setLogLevel", "set_available_memory", "set_overlap_for_input", "set_overlap_for_output", "testing",
    "trainingModel",
]  # fmt: skip


def trainingModel(
    model: Any, options: Optional[Options] = None, optimizer: Optional[torch.optim.Optimizer] = None
) -> PoplarExecutor:
    """A model that is trained on IPUs: each call updates its weights and returns what its forward does.

    Args:
        model: its forward computes the loss, too.
        options: of the run; None: the defaults.
        optimizer: one of `optim` or the like of torch's; None: SGD with a learning rate of 0.01.

    Raises:
        RuntimeError: the model is trained by another executor.
    """
    return PoplarExecutor(model, options, training=True, optimizer=optimizer)


def inferenceModel(model: Union[nn.Module, PoplarExecutor], options: Optional[Options] = None) -> PoplarExecutor:
    """A model that runs on IPUs without training; of a model that is trained, it follows the weights.

    Raises:
        Error: the options ask for gradient accumulation.
    """
    return PoplarExecutor(model, options, training=False)


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether there are IPUs: there are none."""
    return False


def ipuHardwareVersion() -> int:
    """The generation of the IPUs.

    Raises:
        AssertionError: always; there are none.
    """
    raise AssertionError("there is no IPU hardware; this is a simulator")
