"""The parts of `Options` by subject: precision, training, where tensors are kept, processes, PopART."""

from __future__ import annotations

import os
from typing import Any, Dict, Optional

import torch

from ipu.simulator._logging import logger
from ipu.simulator.enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from ipu.simulator.options_dict import Freezable, OptionsDict
from ipu.simulator.strategies import require


class _JitOptions(OptionsDict):
    """Kept for programs of earlier releases, which chose here how a model is traced."""

    def __init__(self) -> None:
        super().__init__(trace_model=False)

    def traceModel(self, trace_model: bool) -> _JitOptions:
        """Accept False, how models are traced now (ValueError otherwise)."""
        if trace_model:
            raise ValueError(f"Jit.traceModel({trace_model!r}): torch.jit.trace is no longer used; leave the call out")
        return self


class _PopartOptions(Freezable):
    """Options of PopART's sessions, by PopART's names in `options`; checked when a model is compiled."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: Dict[str, Any] = {}
        self.set("instrumentWithHardwareCycleCounter", False)
        self.set("rearrangeAnchorsOnHost", False)

    def set(self, key: str, value: Any) -> _PopartOptions:
        """Set a session option: a number, text, switch, set or list of texts, or a dictionary of texts."""
        self.checkIsFrozen(key)
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> _PopartOptions:
        """Set the options of Poplar's engine."""
        kind = type(engine_options).__name__
        require(isinstance(engine_options, dict), f"setEngineOptions takes a dictionary of texts, got a {kind}")
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> _PopartOptions:
        """Switch PopART's patterns on and off, starting from a level of them (0 none, 1 few, 2 usual, 3 all)."""
        require(isinstance(level, int), f"setPatterns: level={level!r} is not a whole number")
        require(isinstance(patterns, dict), f"setPatterns takes a dictionary, got a {type(patterns).__name__}")
        self.set("patterns_level", level)
        return self.set("patterns", patterns)

    def _set_entry(self, key: str, entry: str, value: Any) -> None:
        self.set(key, {**self.options.get(key, {}), entry: value})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


class _PrecisionOptions(OptionsDict):
    """Options of half precision."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(half_float_casting=HalfFloatCastingBehavior.Default)

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> _PrecisionOptions:
        """Without effect: operations mix types by torch's own rules."""
        logger.warning("Precision.halfFloatCasting is deprecated and has no effect; leave the call out")
        self.checkIsFrozen("half_float_casting")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        """Stored only; the buffers' own type decides (ValueError: not a bool)."""
        if not isinstance(value, bool):
            raise ValueError(f"runningStatisticsAlwaysFloat({value!r}): write True or False")
        self.createOrSet(running_statistics_always_float=value)
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        """Stop at divisions by zero, overflows and NaNs on the IPU."""
        require(isinstance(enabled, bool), f"enableFloatingPointExceptions({enabled!r}): write True or False")
        self._popart_options.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        """Round to float16 up or down at random, so that the mean is kept."""
        self._popart_options.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        """Set the type of the partial sums of matrix products and convolutions (ValueError: not float32 or 16)."""
        names = {torch.float32: "float", torch.float16: "half"}
        if dtype not in names:
            raise ValueError(f"setPartialsType({dtype}): partial sums are torch.float32 or torch.float16")
        self._popart_options.set("partialsTypeMatMuls", names[dtype])
        self._popart_options._set_entry("convolutionOptions", "partialsType", names[dtype])
        return self


class _TrainingOptions(OptionsDict):
    """Options of training."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        """Set how many micro batches make one update of the weights, on each replica."""
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> _TrainingOptions:
        """Set whether the gradients of micro batches and replicas are summed or averaged (ValueError: neither)."""
        if not isinstance(reduction_type, ReductionType) or reduction_type == ReductionType.NoReduction:
            raise ValueError(
                f"accumulationAndReplicationReductionType({reduction_type!r}): it is poptorch.ReductionType.Mean "
                "or poptorch.ReductionType.Sum"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> _TrainingOptions:
        """Set when a mean over gradients divides."""
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        """Let the loss scale follow the size of the gradients."""
        self._popart_options.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        """Lay convolutions out from different tiles; changes no number."""
        self._popart_options._set_entry("convolutionOptions", "enableConvDithering", enabled)
        return self


class _DistributedOptions(OptionsDict):
    """Which of several processes this one is. PopDist gives an instance of it a class of its own."""

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0)
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> _DistributedOptions:
        """Be the only process, whatever the environment says."""
        self.set(num_distributed_processes=1, distributed_process_id=0)
        return self

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        """Read the number of processes and this one's id from these environment variables."""
        number, process = os.environ.get(var_num_processes, "1"), os.environ.get(var_process_id, "0")
        return self.configureProcessId(int(process), int(number))

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        """Set this process' id, counted from 0, and how many there are."""
        self.set(distributed_process_id=process_id)
        self.set(num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        """The id of this process, counted from 0."""
        return self.distributed_process_id

    @property
    def numProcesses(self) -> int:
        """How many processes there are."""
        return self.num_distributed_processes


class TensorLocationSettings(OptionsDict):
    """Where a kind of tensors is kept, for `Options.TensorLocations`; changes no number."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        """Keep tensors with fewer elements on the chip."""
        return self._set_count("minElementsForOffChip", min_elements)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        """Keep tensors with fewer elements whole on every replica."""
        return self._set_count("minElementsForReplicatedTensorSharding", min_elements)

    def useOnChipStorage(self, use: Optional[bool] = True) -> TensorLocationSettings:
        """Keep tensors on the chip (True), in Streaming Memory (False) or where the compiler likes (None)."""
        if use is None:
            self.deleteIfExists("onChip")
            return self
        return self._set_switch("onChip", use)

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        """Give each replica a share of the tensor only."""
        return self._set_switch("useReplicatedTensorSharding", use)

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        """Load tensors through the tiles set aside for input and output."""
        return self._set_switch("useIOTilesToLoad", use)

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        """Keep tensors on the tiles set aside for input and output."""
        return self._set_switch("useIOTilesToStore", use)

    def _set_count(self, name: str, value: int) -> TensorLocationSettings:
        require(isinstance(value, int), f"{name}({value!r}): it takes a whole number")
        self.createOrSet(**{name: value})
        return self

    def _set_switch(self, name: str, value: bool) -> TensorLocationSettings:
        require(isinstance(value, bool), f"{name}({value!r}): write True or False")
        self.createOrSet(**{name: int(value)})
        return self


class _TensorLocationOptions(OptionsDict):
    """Where tensors are kept, by their kind."""

    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        """Set how many tiles of each IPU do input and output instead of computing."""
        fits = isinstance(num_tiles, int) and 32 <= num_tiles <= 192 and num_tiles % 2 == 0
        require(fits, f"numIOTiles must be an even number between 32 and 192. It is {num_tiles!r}")
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Set where activations are kept."""
        return self._set_location("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Set where weights are kept."""
        return self._set_location("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Set where the optimizer's state is kept."""
        return self._set_location("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Set where gradients are accumulated."""
        return self._set_location("location_accumulator", location)

    def _set_location(self, name: str, location: TensorLocationSettings) -> _TensorLocationOptions:
        fits = isinstance(location, TensorLocationSettings)
        require(fits, f"{name} takes a poptorch.TensorLocationSettings, got a {type(location).__name__}")
        self.createOrSet(**{name: location.toDict()})
        return self
