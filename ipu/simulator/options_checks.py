"""What the compiler refuses of options: PopART's names and kinds of values, counts, and numbers of IPUs."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any, Dict, Mapping

from ipu.simulator._logging import logger
from ipu.simulator.enums import ConnectionType, OutputMode
from ipu.simulator.poptorch_core import python_error

if TYPE_CHECKING:
    from ipu.simulator.options import Options

MOST_IPUS = 64
"""The IPUs that one process can reserve."""
TILES = {"ipu1": 1216, "ipu2": 1472, "ipu21": 1472}
"""Tiles of an IPU by its version."""
SMALL_MODEL_TILES = 4

_BOOLS = """
    aliasZeroCopy automaticLossScalingSettings.enabled batchSerializationSettings.concatOnExecutionPhaseChange
    batchSerializationSettings.concatOnPipelineStageChange batchSerializationSettings.concatOnVirtualGraphChange
    compileEngine constantWeights createImplicitPipeliningFwdOnlyProgram decomposeGradSum delayVarUpdates
    disableGradAccumulationTensorStreams disableOptimizerStateTensorStreams dotOpNames
    enableDistributedReplicatedGraphs enableEngineCaching enableExplicitIR enableExplicitMainLoops
    enableFloatingPointChecks enableFullyConnectedPass enableGradientAccumulation enableInplaceAmbiguityChecking
    enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax enableOutlining
    enableOutliningCopyCostPruning enablePipelining enablePrefetchDatastreams enableReplicatedGraphs
    enableSerializedMatmuls enableStableNorm enableStochasticRounding enableSupportedDataTypeCasting
    ensureFp32LossScaleTensor explicitRecomputation exportPoplarComputationGraph exportPoplarVertexGraph groupHostSync
    groupNormStridedChannelGrouping instrumentWithHardwareCycleCounter opxAliasChecking opxModifyChecking
    rearrangeAnchorsOnHost rearrangeStreamsOnHost replicatedCollectivesSettings.mergeAllReduceCollectives
    replicatedCollectivesSettings.prepareScheduleForMergingCollectives scheduleNonWeightUpdateGradientConsumersEarly
    separateCallOpPdfs strictOpVersions useHostCopyOps
    auto_round_num_ipus broadcast_buffers separate_backward_phase serial_phases_execution use_model
"""
_COUNTS = """
    accumulationFactor automaticLossScalingSettings.updatePeriod batchSerializationSettings.factor
    compilationProgressTotal defaultBufferingDepth defaultPrefetchBufferingDepth executionPhaseSettings.phases
    executionPhaseSettings.stages finalDotOp firstDotOp globalReplicaOffset globalReplicationFactor
    looseThresholdAtPeak mergeVarUpdateMemThreshold numIOTiles replicatedGraphCount swapLimitScheduler
    transitiveClosureOptimizationThreshold
    device_iterations distributed_process_id gradient_accumulation input_group_size ipu_id ipu_version
    max_repeat_logs num_distributed_processes output_return_period random_seed replication_factor
"""
_FLOATS = """
    automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
    developerSettings.timePartitionLoggerThresholdPercentage outlineSequenceBreakCost outlineThreshold
    timeLimitScheduler
"""
_TEXTS = """
    cachePath customCodeletCompileFlags kahnTieBreaker logDir partialsTypeMatMuls saveInitializersToFile
    serializedPoprithmsShiftGraphsDir
    log_dir model_name
"""
_CONTAINERS = """
    accumulateOuterFragmentSettings.excludedVirtualGraphs automaticLossScalingSettings.toTrackTensors
    bufferingDepthMap convolutionOptions customCodelets dotChecks engineOptions gclOptions hardwareInstrumentations
    lstmOptions matmulOptions prefetchBufferingDepthMap reportOptions
    updatable_named_buffers
"""
# Options whose numbers stand for the members of an enumeration: its name, and how many members it has.
_MEMBERS = {
    "accumulateOuterFragmentSettings.schedule": ("AccumulateOuterFragmentSchedule", 4),
    "accumulationAndReplicationReductionType": ("ReductionType", 3),
    "autoRecomputation": ("RecomputationType", 5),
    "autodiffSettings.stitchStrategy": ("AutodiffStitchStrategy", 4),
    "automaticLossScalingSettings.gradientTensorTrackingMethod": ("GradientTensorTrackingMethod", 3),
    "batchSerializationSettings.batchSchedule": ("BatchSerializationBatchSchedule", 4),
    "batchSerializationSettings.method": ("BatchSerializationMethod", 3),
    "batchSerializationSettings.transformContext": ("BatchSerializationTransformContext", 2),
    "executionPhaseSettings.accumulatorIOSchedule": ("ExecutionPhaseIOSchedule", 2),
    "executionPhaseSettings.activationIOSchedule": ("ExecutionPhaseIOSchedule", 2),
    "executionPhaseSettings.optimizerStateIOSchedule": ("ExecutionPhaseIOSchedule", 2),
    "executionPhaseSettings.schedule": ("ExecutionPhaseSchedule", 3),
    "executionPhaseSettings.weightIOSchedule": ("ExecutionPhaseIOSchedule", 2),
    "meanAccumulationAndReplicationReductionStrategy": ("MeanReductionStrategy", 2),  # PostAndLoss is no longer one
    "mergeVarUpdate": ("MergeVarUpdateType", 4),
    "subgraphCopyingStrategy": ("SubgraphCopyingStrategy", 2),
    "syntheticDataMode": ("SyntheticDataMode", 3),
    "virtualGraphMode": ("VirtualGraphMode", 4),
    "accumulation_and_replication_reduction_type": ("ReductionType", 3),
    "connection_type": ("ConnectionType", 3),
    "execution_mode": ("ExecutionMode", 3),
    "input_cgt": ("CommGroupType", 4),
    "output_mode": ("OutputMode", 4),
    "sync_pattern": ("SyncPattern", 3),
    "tensors_liveness": ("Liveness", 4),
}
_KINDS: Dict[str, str] = {
    **dict.fromkeys(_BOOLS.split(), "bool"),
    **dict.fromkeys(_COUNTS.split(), "uint64"),
    **dict.fromkeys(_MEMBERS, "uint64"),
    **dict.fromkeys(_FLOATS.split(), "floating point"),
    **dict.fromkeys(_TEXTS.split(), "string"),
    **dict.fromkeys(_CONTAINERS.split(), "container"),
}
_LOCATION = """
    minElementsForOffChip minElementsForReplicatedTensorSharding onChip useIOTilesToLoad useIOTilesToStore
    useReplicatedTensorSharding
""".split()
_LOCATIONS = ("location_activation", "location_weight", "location_optimizer", "location_accumulator")
# Kept for Python, or read together with another one.
_NOT_TOLD = ("anchored_tensors", "compilation_progress_bar_fn", "patterns_level")
_LARGEST_COUNT = 2**64 - 1
_LARGEST_PATTERNS_LEVEL = 3
# Counts that cannot be below 1, and the setters to mend them with.
_AT_LEAST_ONE = {
    "device_iterations": "deviceIterations",
    "replication_factor": "replicationFactor",
    "input_group_size": "inputReplicaGrouping",
    "gradient_accumulation": "Training.gradientAccumulation",
    "num_distributed_processes": "Distributed.configureProcessId",
}


def check_backend(options: Options) -> None:
    """Raise Error for options that PopART refuses when a model is compiled."""
    values = options._merged()
    if options.defaultOutputMode():
        del values["output_mode"]  # the model chooses one
    check_values(values)
    for name, setter in _AT_LEAST_ONE.items():
        if values[name] < 1:
            raise python_error(f"{name}={values[name]} is below 1; set it with poptorch.Options.{setter}")
    _check_return_periods(options)
    for ipu, proportion in options.available_memory_proportion.items():
        if not 0 < proportion <= 1:
            raise python_error(
                f"the available memory proportion of IPU{ipu} is {proportion}; choose a number above 0, and at most 1"
            )


def check_values(values: Mapping[str, Any]) -> None:
    """Check the names and kinds of values that the compiler is told, and say at DEBUG what is set.

    Args:
        values: what `Options.toDict` returns.

    Raises:
        Error: an unknown name, a value of a kind that its option does not take, or out of its range.
    """
    for name, value in values.items():
        if name == "available_memory_proportion":
            _check_proportions(value)
        elif name == "patterns":
            _check_patterns(value, values.get("patterns_level"))
        elif name in _LOCATIONS:
            _check_location(name, value)
        elif name not in _NOT_TOLD:
            _check_value(name, value)


def check_ipu_count(options: Options, ipus_per_replica: int) -> int:
    """The number of IPUs that a process reserves.

    Args:
        options: how the model is run.
        ipus_per_replica: the IPUs of one replica: the highest one used, plus 1.

    Raises:
        Error: more than one process can reserve, no power of two without leave to round up, or a combination of
            options that the device cannot have.
    """
    needed = ipus_per_replica * options.replication_factor
    if needed > MOST_IPUS:
        raise python_error(
            f"Too many IPUs requested ({needed}). Experiments that need more than {MOST_IPUS} have to be spread over "
            f"processes; here {ipus_per_replica} IPUs are used by each of {options.replication_factor} replicas"
        )
    if uses_ipu_model(options):
        _check_model(options)
        return needed
    if options.connection_type == ConnectionType.Never:
        _check_offline(options)
        return needed
    return _reserved(options, needed)


def uses_ipu_model(options: Options) -> bool:
    """Whether Poplar's simulation was asked for, by `useIpuModel` or else by the environment."""
    if options.exists("use_model"):
        return bool(options.use_model)
    return _is_on("POPTORCH_IPU_MODEL") or _is_on("POPTORCH_SMALL_IPU_MODEL")


def ipu_model_tiles() -> int:
    """Tiles of a simulated IPU, as the environment says (Error: a version that does not exist)."""
    version = os.environ.get("POPTORCH_IPU_MODEL_VERSION", "ipu2")
    if version not in TILES:
        raise python_error(f"POPTORCH_IPU_MODEL_VERSION={version} is not one of {', '.join(TILES)}; choose one")
    # The environment's large model comes before its small one, where both are asked for.
    small = _is_on("POPTORCH_SMALL_IPU_MODEL") and not _is_on("POPTORCH_IPU_MODEL")
    return SMALL_MODEL_TILES if small else TILES[version]


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, (set, frozenset, list, tuple)):
        for item in value:
            _check_kind(name, item, "container", "set / vector")
            logger.debug("poptorch.Options added %s to %s", _as_text(name, item), name)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_kind(name, item, "container", "map")
            logger.debug("poptorch.Options set %s[%s] to %s", name, key, _as_text(name, item))
    else:
        kind = _kind_of(name, value)
        _check_kind(name, value, kind, kind)
        if kind == "uint64":
            _check_count(name, value)
        logger.debug("poptorch.Options set %s to value %s", name, _as_text(name, value))


def _kind_of(name: str, value: Any) -> str:
    for kind, word in ((bool, "bool"), (float, "floating point"), (int, "uint64"), (str, "string")):  # a bool is an int
        if isinstance(value, kind):
            return word
    raise python_error(f"Unknown value type {type(value).__name__} for option {name}; give a number, text or container")


def _check_kind(name: str, value: Any, kind: str, word: str) -> None:
    """Whether PopART has an option of this name and kind; `word` is what messages call the kind."""
    if _KINDS.get(name) == kind:
        return
    if name in _KINDS:
        remedy = f"it takes a {_KINDS[name]} value, not {value!r}"
    else:
        near = difflib.get_close_matches(name, _KINDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "PopART's SessionOptions have no such name"
    raise python_error(f"Unknown {word} option {name}: {remedy}")


def _check_count(name: str, value: int) -> None:
    if not 0 <= value <= _LARGEST_COUNT:
        raise python_error(f"{name}={value} is not a number from 0 to {_LARGEST_COUNT}; choose one")
    enumeration, members = _MEMBERS.get(name, ("", _LARGEST_COUNT + 1))
    if value >= members:
        raise python_error(f"Value for {enumeration} out of range: {name}={value}; choose 0 to {members - 1}")


def _as_text(name: str, value: Any) -> str:
    """A value as the compiler writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(int(value)) if isinstance(value, int) else repr(value)
    if isinstance(value, str):
        return value
    raise python_error(f"Unknown value type {type(value).__name__} for option {name}; give texts or numbers")


def _check_proportions(proportions: Mapping[int, Any]) -> None:
    for ipu, proportion in proportions.items():
        if isinstance(proportion, bool) or not isinstance(proportion, (int, float)):
            raise python_error(
                f"Unknown value type for option available_memory_proportion: IPU{ipu} has {proportion!r}"
            )


def _check_patterns(patterns: Any, level: Any) -> None:
    if level is None:
        raise python_error("option patterns is set without patterns_level; call _Popart.setPatterns(patterns, level)")
    if not 0 <= level <= _LARGEST_PATTERNS_LEVEL:
        raise python_error(
            f"patterns_level={level} is out of range; choose 0 (none) to {_LARGEST_PATTERNS_LEVEL} (all)"
        )
    for name, enabled in patterns.items():
        if not isinstance(enabled, bool):
            raise python_error(f"Unknown value type for pattern {name}: {enabled!r}; write True or False")


def _check_location(name: str, location: Mapping[str, Any]) -> None:
    for key, value in location.items():
        if key not in _LOCATION:
            raise python_error(f"Unknown tensor location option {key} in {name}; there are {', '.join(_LOCATION)}")
        _check_count(f"{name}[{key}]", value)


def _check_return_periods(options: Options) -> None:
    outputs = {"the outputs": (options.output_mode, options.output_return_period)}
    for name, (_, _, mode, period) in options.anchored_tensors.items():
        outputs[f"the anchored tensor {name}"] = (mode, period)
    iterations = options.device_iterations
    for what, (mode, period) in outputs.items():
        if mode == OutputMode.EveryN and (not period or iterations % period):
            raise python_error(
                f"OutputMode.EveryN of {what} has period {period}, and device_iterations is {iterations}; choose a "
                "period that divides the device iterations"
            )


def _check_model(options: Options) -> None:
    if options._Popart.options.get("enableEngineCaching"):
        logger.warning("enableExecutableCaching has no effect on the IPU model")
    _refuse_cycle_count(options)
    if options.connection_type == ConnectionType.Never:
        raise python_error("ConnectionType.Never and useOfflineIpuTarget do not work with the IPU model; drop one")
    logger.debug("Instantiated device, running on IPU model with %d tiles.", ipu_model_tiles())


def _check_offline(options: Options) -> None:
    if options.exists("ipu_id"):
        raise python_error(f"useIpuId({options.ipu_id}) does not work without a device; drop it or connect to one")
    _refuse_cycle_count(options)


def _refuse_cycle_count(options: Options) -> None:
    if options._Popart.options.get("instrumentWithHardwareCycleCounter"):
        raise python_error("Cycle count logging is only supported on actual IPU hardware; call logCycleCount(False)")


def _reserved(options: Options, needed: int) -> int:
    reserved = 1 << (needed - 1).bit_length()
    if reserved == needed:
        return needed
    reason = f"IPUs are reserved by powers of two, at most {MOST_IPUS} for a process"
    if not options.auto_round_num_ipus:
        raise python_error(
            f"The model uses {needed} IPUs, for which {reserved} have to be reserved ({reason}); change the number of "
            "IPUs, or call poptorch.Options.autoRoundNumIPUs(True)"
        )
    logger.warning("Reserving %d IPUs for the %d that the model uses: %s", reserved, needed, reason)
    return reserved


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").strip() not in ("", "0")
