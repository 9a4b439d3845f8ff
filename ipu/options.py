"""From the program's options to PopTorch's."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Sequence, Tuple

from ipu import PopTorch

_NO_RECOMPUTATION, _STANDARD_RECOMPUTATION, _PIPELINE_RECOMPUTATION = 0, 1, 3  # of PopART's RecomputationType


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run asks of PopTorch; names and meanings are those of the program's options.

    Args:
        stages: of the pipeline, each the IPU and the names of its blocks.
        by_poprun: whether PopRun started this process.
    """

    stages: Sequence[Tuple[int, Sequence[str]]]
    replication_factor: int
    gradient_accumulation: int
    device_iterations: int
    random_seed: int
    ipus_per_replica: int
    matmul_proportion: Sequence[float]
    stochastic_rounding: bool
    enable_half_partials: bool
    enable_rts: bool
    optimizer_state_offchip: bool
    enable_als: bool
    recomputation: bool
    synthetic_data: bool
    compile_only: bool
    executable_cache_dir: Optional[str]
    profile_dir: Optional[str]
    by_poprun: bool = False


def training_options(poptorch: PopTorch, run: RunOptions) -> Any:
    """Options of a training model; each call returns every scalar's sum over the micro batches, replica by replica."""
    options = _common_options(poptorch, run)
    options.deviceIterations(run.device_iterations)
    options.outputMode(poptorch.OutputMode.Sum)
    options.Training.gradientAccumulation(run.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.Training.setAutomaticLossScaling(run.enable_als)
    location = poptorch.TensorLocationSettings().useOnChipStorage(not run.optimizer_state_offchip)
    options.TensorLocations.setOptimizerLocation(location.useReplicatedTensorSharding(run.enable_rts))
    options.relaxOptimizerAttributesChecks()
    # keeps gradients that are only accumulated from being sent to the host
    options._Popart.set("disableGradAccumulationTensorStreams", True)
    options._Popart.set("autoRecomputation", _recomputation(run))
    return options


def inference_options(poptorch: PopTorch, run: RunOptions) -> Any:
    """Options of an inference model; a call holds as many micro batches as fill the pipeline, of every replica."""
    options = _common_options(poptorch, run)
    options.deviceIterations(len(run.stages))
    options.outputMode(poptorch.OutputMode.All)
    return options


def _common_options(poptorch: PopTorch, run: RunOptions) -> Any:
    options = _fresh_options(poptorch, run)
    options.autoRoundNumIPUs(True)
    options.randomSeed(run.random_seed)
    options.setExecutionStrategy(
        poptorch.PipelinedExecution(*(poptorch.Stage(*blocks).ipu(ipu) for ipu, blocks in run.stages))
    )
    proportions = run.matmul_proportion
    every = proportions if len(proportions) > 1 else list(proportions) * run.ipus_per_replica
    options.setAvailableMemoryProportion({f"IPU{ipu}": share for ipu, share in enumerate(every)})
    options.Precision.enableStochasticRounding(run.stochastic_rounding)
    options.Precision.setPartialsType(_torch_type(run.enable_half_partials))
    options._Popart.set("outlineThreshold", 10.0)
    if run.synthetic_data:
        options.enableSyntheticData(True)
    if run.executable_cache_dir:
        options.enableExecutableCaching(run.executable_cache_dir)
    if run.profile_dir:
        options.enableProfiling(run.profile_dir)
    if run.compile_only:
        options.useOfflineIpuTarget()
    return options


def _recomputation(run: RunOptions) -> int:
    if not run.recomputation:
        return _NO_RECOMPUTATION
    # a program on one IPU is no pipeline, and PopART refuses a pipeline's recomputation in it
    return _PIPELINE_RECOMPUTATION if len({ipu for ipu, _ in run.stages}) > 1 else _STANDARD_RECOMPUTATION


def _fresh_options(poptorch: PopTorch, run: RunOptions) -> Any:
    """Options that know this process' share of the replicas: PopRun's own under it."""
    if run.by_poprun:
        import popdist.poptorch

        return popdist.poptorch.Options(ipus_per_replica=run.ipus_per_replica)
    return poptorch.Options().replicationFactor(run.replication_factor)


def _torch_type(half: bool) -> Any:
    import torch

    return torch.float16 if half else torch.float32
