"""`Options`: how a model is compiled and run on IPUs."""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Optional

import torch

from ipu.simulator._logging import logger
from ipu.simulator.enums import CommGroupType, ConnectionType, OutputMode, SyncPattern
from ipu.simulator.options_checks import check_backend, check_ipu_count, uses_ipu_model
from ipu.simulator.options_dict import OptionsDict
from ipu.simulator.options_parts import (
    TensorLocationSettings,
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)
from ipu.simulator.options_reading import ConfigFileError, load_file, set_from_json
from ipu.simulator.strategies import ExecutionStrategy, PipelinedExecution, require

__all__ = [
    "ConfigFileError",
    "Options",
    "TensorLocationSettings",
    "_DistributedOptions",
    "_JitOptions",
    "_PopartOptions",
    "_PrecisionOptions",
    "_TensorLocationOptions",
    "_TrainingOptions",
    "check_backend",
    "check_ipu_count",
    "uses_ipu_model",
]
_UNLIMITED = 2**64 - 1
_RANDOM_NORMAL = 2  # PopART's SyntheticDataMode


class Options(OptionsDict):
    """All that controls how a model is compiled and run; the setters can be chained.

    The environment sets the first values: `POPTORCH_CACHE_DIR` a folder for executables, `POPTORCH_DEFAULT_OPTIONS` a
    JSON object for `from_json`, `OMPI_COMM_WORLD_SIZE` and `OMPI_COMM_WORLD_RANK` the process.
    """

    def __init__(self) -> None:
        self._jit = _JitOptions()
        self._popart = _PopartOptions()
        self._precision = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._distributed = _DistributedOptions()
        self._tensor_locations = _TensorLocationOptions()
        # The backend is told these in other ways than by the dictionary of values.
        self._execution_strategy: ExecutionStrategy = PipelinedExecution()
        self._source_location_excludes = ["site-packages/torch", "site-packages/poptorch"]
        self._relax_optimizer_checks = False
        self._show_compilation_progress_bar = True
        self._module_namescope_enabled = True
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=CommGroupType.Consecutive.value,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=OutputMode.Default.value,
            output_return_period=1,
            connection_type=ConnectionType.Always.value,
            sync_pattern=SyncPattern.Full.value,
            available_memory_proportion={},
            updatable_named_buffers=[],
        )
        folder = os.environ.get("POPTORCH_CACHE_DIR")
        if folder:
            logger.info("Executables are cached in %s, as POPTORCH_CACHE_DIR says", folder)
            self.enableExecutableCaching(folder)
        defaults = os.environ.get("POPTORCH_DEFAULT_OPTIONS")
        if defaults:
            logger.info("POPTORCH_DEFAULT_OPTIONS sets %s", defaults)
            self.from_json(defaults)

    @property
    def Jit(self) -> _JitOptions:
        """How models are traced."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """Half precision."""
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        """What only training needs."""
        return self._training

    @property
    def Distributed(self) -> _DistributedOptions:
        """Which of several processes this one is."""
        return self._distributed

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Where tensors are kept."""
        return self._tensor_locations

    @property
    def _Popart(self) -> _PopartOptions:
        return self._popart

    def loadFromFile(self, filepath: str) -> Options:
        """Make the setter calls of a file, each on a line of its own without the leading `options.`.

        Lines are read, never run: they hold plain values, poptorch's enumerations, execution strategies and
        `TensorLocationSettings`.

        Raises:
            ConfigFileError: a line is not such a call, or is refused.
        """
        load_file(self, filepath)
        return self

    def from_json(self, string: str) -> Options:
        """Call setters by a JSON object such as `{"deviceIterations": 4, "outputMode": ["OutputMode.EveryN", 2]}`."""
        set_from_json(self, string)
        return self

    def deviceIterations(self, device_iterations: int) -> Options:
        """Set how many batches (in training: weight updates) one call runs."""
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        """Set how many copies of the model run side by side, each on IPUs of its own."""
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: CommGroupType) -> Options:
        """Give groups of replicas the same input. Set `replicationFactor` first.

        Raises:
            ValueError: the type is All, or the size does not divide the replication factor.
        """
        named = f"inputReplicaGrouping({input_group_size!r}, {input_group_type})"
        require(isinstance(input_group_type, CommGroupType), f"{named}: the type is a poptorch.CommGroupType")
        require(isinstance(input_group_size, int), f"{named}: the size is a whole number")
        if input_group_type == CommGroupType.All:
            raise ValueError(f"{named}: CommGroupType.All does not work for inputs; use Consecutive or Orthogonal")
        if input_group_type == CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, CommGroupType.Consecutive
        replicas = self.replication_factor
        if not 1 <= input_group_size <= replicas or replicas % input_group_size:
            raise ValueError(f"{named}: the size has to divide the replication factor, {replicas}; set that one first")
        self.set(input_group_size=input_group_size, input_cgt=input_group_type.value)
        return self

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        """Set whether replicas share one copy of the buffers, which then cannot be written."""
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def setExecutionStrategy(self, strategy: ExecutionStrategy) -> Options:
        """Set how blocks become stages on IPUs."""
        known = isinstance(strategy, ExecutionStrategy)
        require(known, f"setExecutionStrategy({strategy!r}): it takes an object such as poptorch.PipelinedExecution()")
        self._execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> None:
        """Set the share of memory that matrix products and convolutions may use for a while, as in `{"IPU0": 0.2}`."""
        proportions = {}
        for key, proportion in available_memory_proportion.items():
            named = isinstance(key, str) and key.startswith("IPU")
            require(named, f"setAvailableMemoryProportion: {key!r} names no IPU; write it as IPU0, IPU1, ...")
            proportions[int(key[3:])] = proportion
        self.set(available_memory_proportion=proportions)

    def outputMode(self, output_mode: OutputMode, output_return_period: Optional[int] = None) -> Options:
        """Set which outputs come back; `OutputMode.EveryN` needs its N as `output_return_period`."""
        require(isinstance(output_mode, OutputMode), f"outputMode({output_mode!r}): it takes a poptorch.OutputMode")
        if output_mode == OutputMode.EveryN:
            positive = isinstance(output_return_period, int) and output_return_period > 0
            require(positive, f"outputMode(EveryN, {output_return_period!r}): give the period, a number above 0")
        elif output_return_period:
            logger.info("output_return_period=%s has no meaning for %s", output_return_period, output_mode)
        self.set(output_mode=output_mode.value, output_return_period=output_return_period or 1)
        return self

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is still to be chosen: all outputs of inference, the last ones of training."""
        return self.output_mode == OutputMode.Default

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Fetch one more tensor after each run, under `short_name`; without a mode, by the mode of the outputs."""
        period = output_return_period if output_mode == OutputMode.EveryN else 1
        self.anchored_tensors[short_name] = [long_name, output_mode is None, output_mode, period]

    def connectionType(self, connection_type: ConnectionType) -> Options:
        """Set when to attach to IPUs."""
        known = isinstance(connection_type, ConnectionType)
        require(known, f"connectionType({connection_type!r}): it takes a poptorch.ConnectionType")
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: SyncPattern) -> Options:
        """Set which IPUs wait for each other."""
        require(isinstance(sync_pattern, SyncPattern), f"syncPattern({sync_pattern!r}): it takes a SyncPattern")
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        """Run on the device with this id."""
        require(isinstance(ipu_id, int), f"useIpuId({ipu_id!r}): an id is a whole number")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useIpuModel(self, use_model: bool) -> Options:
        """Set whether Poplar's own simulation takes the place of IPUs; wins over `POPTORCH_IPU_MODEL`."""
        self.createOrSet(use_model=use_model)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile for an IPU that is not there; the model cannot be run."""
        self.connectionType(ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        """Set whether more IPUs than needed may be reserved, since they come in powers of two."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def randomSeed(self, random_seed: int) -> Options:
        """Seed the IPU's random numbers, and torch's at once."""
        require(isinstance(random_seed, int), f"randomSeed({random_seed!r}): a seed is a whole number")
        self.checkIsFrozen("random_seed")
        torch.manual_seed(random_seed)
        self.createOrSet(random_seed=random_seed)
        return self

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        """Keep executables in a folder (None: do not)."""
        if path is not None:
            self._popart.set("cachePath", path)
        self._popart.set("enableEngineCaching", path is not None)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        """Set whether the IPU makes up its inputs, and host input and output are left out."""
        self._popart.set("syntheticDataMode", _RANDOM_NORMAL if enabled else 0)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        """Have Poplar write reports into a folder."""
        environment = os.environ.get("POPLAR_ENGINE_OPTIONS", "")
        engine = {
            "debug.allowOutOfMemory": "true",
            "autoReport.directory": profile_dir or ".",
            "autoReport.all": "true",
        }
        if any(name in environment for name in engine):
            logger.warning("POPLAR_ENGINE_OPTIONS is set in the environment and wins over enableProfiling")
        self._popart.setEngineOptions({**self._popart.options.get("engineOptions", {}), **engine})
        return self

    def modelName(self, name: str) -> Options:
        """Name the model in reports."""
        self.createOrSet(model_name=name)
        return self

    def logDir(self, log_dir: str) -> Options:
        """Set where log files go."""
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        """Set how often one message is repeated (None: without limit)."""
        self.set(max_repeat_logs=_UNLIMITED if max_lines is None else max_lines)
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        """Set whether unexpected attributes of an optimizer are a matter of debugging only."""
        self._relax_optimizer_checks = relax
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        """Set whether compilation shows its progress and takes its time."""
        self._show_compilation_progress_bar = show
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        """Set which parts of file names are left out when an operation's origin is named."""
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        """Leave these parts of file names out, too."""
        self._source_location_excludes = [*self._source_location_excludes, *excludes]
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        """Set whether the cycles of a run are counted; needs hardware."""
        self._popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        """Set whether normalisations subtract the mean before they square."""
        self._popart.set("enableStableNorm", enabled)
        return self

    def disableModuleNamescope(self) -> Options:
        """Leave the modules' names out of the operations' names."""
        self._module_namescope_enabled = False
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        """Name the buffers that `copyNamedBuffersToDevice` writes."""
        self.set(updatable_named_buffers=buffers)
        return self

    def toDict(self) -> Dict[str, Any]:
        """Everything the compiler is told, by name (AssertionError: no output mode, or a name set twice)."""
        require(not self.defaultOutputMode(), "the output mode is still to be chosen: call outputMode(...)")
        return self._merged()

    def clone(self) -> Options:
        """A deep copy that is not frozen."""
        return copy.deepcopy(self)

    def _merged(self) -> Dict[str, Any]:
        merged = {**self._execution_strategy.backendOptions(), **self._popart.options}
        self.update(merged)
        for part in (self._training, self._distributed, self._tensor_locations):
            part.update(merged)
        return merged

    def __repr__(self) -> str:
        parts = ("Distributed", "Jit", "Precision", "TensorLocations", "Training", "_Popart")
        values = {**self._values, **{name: getattr(self, name) for name in parts}}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
