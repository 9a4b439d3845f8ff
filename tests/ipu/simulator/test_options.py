"""Options as an object: defaults, setters and what they refuse, freezing, copies, environment."""

from __future__ import annotations

import copy
import pickle
from typing import Any, Callable, Dict, List

import pytest
import torch

from ipu.simulator import options as options_module
from ipu.simulator.enums import (
    CommGroupType,
    ConnectionType,
    HalfFloatCastingBehavior,
    MeanReductionStrategy,
    OutputMode,
    ReductionType,
    SyncPattern,
)
from ipu.simulator.options import Options, TensorLocationSettings
from ipu.simulator.strategies import PipelinedExecution, ShardedExecution

VARIABLES = ("POPTORCH_CACHE_DIR", "POPTORCH_DEFAULT_OPTIONS", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
PARTS = ("Distributed", "Jit", "Precision", "TensorLocations", "Training", "_Popart")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def settings(**values: int) -> TensorLocationSettings:
    made = TensorLocationSettings()
    made.createOrSet(**values)
    return made


def test_defaults_are_poptorchs() -> None:
    options = Options()
    defaults = {
        "replication_factor": 1,
        "input_group_size": 1,
        "input_cgt": CommGroupType.Consecutive,
        "broadcast_buffers": True,
        "device_iterations": 1,
        "log_dir": ".",
        "max_repeat_logs": 4,
        "auto_round_num_ipus": False,
        "anchored_tensors": {},
        "output_mode": OutputMode.Default,
        "output_return_period": 1,
        "connection_type": ConnectionType.Always,
        "sync_pattern": SyncPattern.Full,
        "available_memory_proportion": {},
    }
    assert {name: options(name) for name in defaults} == defaults
    assert options.defaultOutputMode()
    assert options.Training.gradient_accumulation == 1
    assert options.Training.accumulation_and_replication_reduction_type is ReductionType.Mean
    assert options.Training.meanAccumulationAndReplicationReductionStrategy is MeanReductionStrategy.Post
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (0, 1)
    assert type(options._execution_strategy) is PipelinedExecution
    assert options._Popart.options == {"instrumentWithHardwareCycleCounter": False, "rearrangeAnchorsOnHost": False}
    assert not any(options.exists(name) for name in ("random_seed", "use_model", "ipu_id", "ipu_version", "model_name"))
    assert not options._relax_optimizer_checks
    assert options._show_compilation_progress_bar
    assert options._module_namescope_enabled


# Setters of Options: what they are given, and what can be read afterwards.
SETTERS: List[Any] = [
    ("deviceIterations", (4,), {"device_iterations": 4}),
    ("replicationFactor", (4,), {"replication_factor": 4}),
    ("replicationFactor", (-2,), {"replication_factor": -2}),  # there is no check of ranges before compilation
    ("broadcastBuffers", (False,), {"broadcast_buffers": False}),
    ("outputMode", (OutputMode.All,), {"output_mode": OutputMode.All, "output_return_period": 1}),
    ("outputMode", (OutputMode.EveryN, 3), {"output_mode": OutputMode.EveryN, "output_return_period": 3}),
    ("outputMode", (OutputMode.Sum, 3), {"output_mode": OutputMode.Sum, "output_return_period": 3}),
    ("connectionType", (ConnectionType.OnDemand,), {"connection_type": ConnectionType.OnDemand}),
    ("syncPattern", (SyncPattern.SinglePipeline,), {"sync_pattern": SyncPattern.SinglePipeline}),
    ("useIpuId", (3,), {"ipu_id": 3}),
    ("useIpuModel", (True,), {"use_model": True}),
    ("useOfflineIpuTarget", (), {"ipu_version": 2, "connection_type": ConnectionType.Never}),
    ("useOfflineIpuTarget", (1,), {"ipu_version": 1, "connection_type": ConnectionType.Never}),
    ("autoRoundNumIPUs", (), {"auto_round_num_ipus": True}),
    ("randomSeed", (7,), {"random_seed": 7}),
    ("modelName", ("model",), {"model_name": "model"}),
    ("logDir", ("logs",), {"log_dir": "logs"}),
    ("maxRepeatLogs", (9,), {"max_repeat_logs": 9}),
    ("maxRepeatLogs", (None,), {"max_repeat_logs": 2**64 - 1}),
    ("relaxOptimizerAttributesChecks", (), {"_relax_optimizer_checks": True}),
    ("showCompilationProgressBar", (False,), {"_show_compilation_progress_bar": False}),
    ("sourceLocationExcludes", (["a"],), {"_source_location_excludes": ["a"]}),
    ("disableModuleNamescope", (), {"_module_namescope_enabled": False}),
    ("updatableNamedBuffers", (["a.b"],), {"updatable_named_buffers": ["a.b"]}),
]


@pytest.mark.parametrize("setter, arguments, values", SETTERS)
def test_setters_store_and_can_be_chained(setter: str, arguments: Any, values: Dict[str, Any]) -> None:
    options = Options()
    assert getattr(options, setter)(*arguments) is options
    assert {name: getattr(options, name) for name in values} == values


POPART: List[Any] = [
    (lambda o: o.enableExecutableCaching("cache"), {"cachePath": "cache", "enableEngineCaching": True}),
    (lambda o: o.enableExecutableCaching(None), {"enableEngineCaching": False}),
    (lambda o: o.enableSyntheticData(True), {"syntheticDataMode": 2}),
    (lambda o: o.enableSyntheticData(0), {"syntheticDataMode": 0}),
    (lambda o: o.logCycleCount(True), {"instrumentWithHardwareCycleCounter": True}),
    (lambda o: o.enableStableNorm(True), {"enableStableNorm": True}),
    (lambda o: o.Training.setAutomaticLossScaling(True), {"automaticLossScalingSettings.enabled": True}),
    (lambda o: o.Training.setConvolutionDithering(True), {"convolutionOptions": {"enableConvDithering": True}}),
    (lambda o: o.Precision.enableFloatingPointExceptions(True), {"enableFloatingPointChecks": True}),
    (lambda o: o.Precision.enableStochasticRounding(True), {"enableStochasticRounding": True}),
    (
        lambda o: o.Precision.setPartialsType(torch.half),
        {"partialsTypeMatMuls": "half", "convolutionOptions": {"partialsType": "half"}},
    ),
    (
        lambda o: o.Precision.setPartialsType(torch.float32),
        {"partialsTypeMatMuls": "float", "convolutionOptions": {"partialsType": "float"}},
    ),
    (lambda o: o._Popart.set("outlineThreshold", 10.0), {"outlineThreshold": 10.0}),
    (lambda o: o._Popart.setEngineOptions({"a": "b"}), {"engineOptions": {"a": "b"}}),
    (lambda o: o._Popart.setPatterns({"PadSum": True}), {"patterns": {"PadSum": True}, "patterns_level": 2}),
]


@pytest.mark.parametrize("change, values", POPART)
def test_setters_of_poparts_options_store_them(change: Callable[[Options], Any], values: Dict[str, Any]) -> None:
    options = Options()
    returned = change(options)
    owners = [options, options.Training, options.Precision, options._Popart]
    assert any(returned is owner for owner in owners)
    assert {name: options._Popart.options[name] for name in values} == values


def test_an_entry_of_the_convolution_options_leaves_the_others() -> None:
    options = Options()
    options.Training.setConvolutionDithering(True)
    options.Precision.setPartialsType(torch.half).setPartialsType(torch.float)
    assert options._Popart.options["convolutionOptions"] == {"enableConvDithering": True, "partialsType": "float"}


def test_parts_return_themselves() -> None:
    options = Options()
    training, precision, places = options.Training, options.Precision, options.TensorLocations
    assert training.gradientAccumulation(4) is training
    assert training.accumulationAndReplicationReductionType(ReductionType.Sum) is training
    assert training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.Running) is training
    assert precision.runningStatisticsAlwaysFloat(False) is precision
    assert options.Jit.traceModel(False) is options.Jit
    assert places.numIOTiles(64) is places
    assert options.Distributed.configureProcessId(1, 2) is options.Distributed
    assert training.gradient_accumulation == 4
    assert training.accumulation_and_replication_reduction_type is ReductionType.Sum
    assert training.meanAccumulationAndReplicationReductionStrategy is MeanReductionStrategy.Running
    assert precision.running_statistics_always_float is False
    assert places.toDict() == {"numIOTiles": 64}
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)
    assert options.Distributed.disable() is options.Distributed
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (0, 1)


REFUSED: List[Any] = [
    (AssertionError, lambda o: o.deviceIterations(2.0)),
    (AssertionError, lambda o: o.deviceIterations("2")),
    (AssertionError, lambda o: o.deviceIterations(None)),
    (AssertionError, lambda o: o.replicationFactor(2.0)),
    (AssertionError, lambda o: o.broadcastBuffers(1)),
    (AssertionError, lambda o: o.autoRoundNumIPUs(1)),
    (AssertionError, lambda o: o.outputMode(2)),
    (AssertionError, lambda o: o.outputMode(OutputMode.EveryN)),
    (AssertionError, lambda o: o.outputMode(OutputMode.EveryN, 0)),
    (AssertionError, lambda o: o.outputMode(OutputMode.EveryN, -1)),
    (AssertionError, lambda o: o.connectionType(1)),
    (AssertionError, lambda o: o.syncPattern(1)),
    (AssertionError, lambda o: o.useIpuId("0")),
    (AssertionError, lambda o: o.randomSeed(1.5)),
    (AssertionError, lambda o: o.logDir(3)),
    (AssertionError, lambda o: o.maxRepeatLogs(3.5)),
    (AssertionError, lambda o: o.updatableNamedBuffers("a")),
    (AssertionError, lambda o: o.setExecutionStrategy("pipelined")),
    (AssertionError, lambda o: o.setExecutionStrategy(PipelinedExecution)),
    (AssertionError, lambda o: o.setAvailableMemoryProportion({"0": 0.2})),
    (AssertionError, lambda o: o.setAvailableMemoryProportion({0: 0.2})),
    (ValueError, lambda o: o.setAvailableMemoryProportion({"IPU": 0.2})),
    (ValueError, lambda o: o.setAvailableMemoryProportion({"IPUa": 0.2})),
    (ValueError, lambda o: o.inputReplicaGrouping(2, CommGroupType.All)),
    (ValueError, lambda o: o.inputReplicaGrouping(8, CommGroupType.Consecutive)),
    (ValueError, lambda o: o.inputReplicaGrouping(3, CommGroupType.Orthogonal)),
    (ValueError, lambda o: o.inputReplicaGrouping(0, CommGroupType.Orthogonal)),
    (AssertionError, lambda o: o.inputReplicaGrouping(2, 1)),
    (ValueError, lambda o: o.Jit.traceModel(True)),
    (AssertionError, lambda o: o.Training.gradientAccumulation(2.0)),
    (ValueError, lambda o: o.Training.accumulationAndReplicationReductionType(ReductionType.NoReduction)),
    (ValueError, lambda o: o.Training.accumulationAndReplicationReductionType(1)),
    (AssertionError, lambda o: o.Training.setMeanAccumulationAndReplicationReductionStrategy(0)),
    (ValueError, lambda o: o.Precision.runningStatisticsAlwaysFloat(1)),
    (AssertionError, lambda o: o.Precision.enableFloatingPointExceptions(1)),
    (ValueError, lambda o: o.Precision.setPartialsType(torch.bfloat16)),
    (ValueError, lambda o: o.Precision.setPartialsType("half")),
    (AssertionError, lambda o: o.TensorLocations.setWeightLocation({"onChip": 1})),
    (AssertionError, lambda o: o.TensorLocations.numIOTiles(30)),
    (AssertionError, lambda o: o.TensorLocations.numIOTiles(33)),
    (AssertionError, lambda o: o.TensorLocations.numIOTiles(194)),
    (AssertionError, lambda o: o.TensorLocations.numIOTiles(64.0)),
    (AssertionError, lambda o: o.Distributed.configureProcessId("0", 1)),
    (AssertionError, lambda o: o._Popart.setEngineOptions("a")),
    (AssertionError, lambda o: o._Popart.setPatterns(["PadSum"])),
    (AssertionError, lambda o: o._Popart.setPatterns({}, "all")),
    (AssertionError, lambda o: setattr(o, "device_iterations", 2.0)),
    (AssertionError, lambda o: setattr(o, "deviceIteration", 2)),
    (AssertionError, lambda o: o.set(deviceIterations=2)),
    (AssertionError, lambda o: o.Training.set(accumulation_and_replication_reduction_type=1)),
    (AssertionError, lambda o: setattr(o.Distributed, "processId", 1)),
    (AttributeError, lambda o: setattr(o, "_unheard_of", 2)),
    (AttributeError, lambda o: setattr(o.Training, "_unheard_of", 2)),
    (AttributeError, lambda o: o.unheard_of),
    (AttributeError, lambda o: o._unheard_of),
    (AttributeError, lambda o: o("unheard_of")),
    (AttributeError, lambda o: o.random_seed),
]


@pytest.mark.parametrize("kind, change", REFUSED)
def test_a_wrong_value_is_refused_and_changes_nothing(kind: Any, change: Callable[[Options], Any]) -> None:
    options = Options().replicationFactor(4)
    before = repr(options)
    with pytest.raises(kind) as error:
        change(options)
    assert type(error.value) is kind
    assert repr(options) == before


def test_the_number_of_io_tiles_is_named_in_its_refusal() -> None:
    with pytest.raises(AssertionError, match="numIOTiles must be an even number between 32 and 192."):
        Options().TensorLocations.numIOTiles(10)


def test_a_bool_is_a_number_and_an_enumerations_member_too() -> None:
    options = Options()
    options.deviceIterations(True)
    options.output_mode = OutputMode.Sum
    assert options.device_iterations is True
    assert options.output_mode is OutputMode.Sum


def test_an_attribute_a_keyword_and_a_setter_write_the_same_value() -> None:
    options = Options()
    options.device_iterations = 2
    assert options("device_iterations") == 2
    options.set(device_iterations=3, replication_factor=5)
    assert (options.device_iterations, options.replication_factor) == (3, 5)


def test_the_first_value_of_an_option_made_on_use_decides_its_type() -> None:
    options = Options()
    options.useIpuModel("yes")  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        options.useIpuModel(True)


def test_a_seed_seeds_torch_at_once() -> None:
    torch.manual_seed(1)
    Options().randomSeed(42)
    drawn = torch.rand(3)
    torch.manual_seed(42)
    assert torch.equal(drawn, torch.rand(3))


def test_memory_proportions_are_kept_by_number() -> None:
    options = Options()
    assert options.setAvailableMemoryProportion({"IPU0": 0.2, "IPU12": 3.0}) is None  # type: ignore[func-returns-value]
    assert options.available_memory_proportion == {0: 0.2, 12: 3.0}


def test_groups_of_replicas_divide_them() -> None:
    options = Options().replicationFactor(8)
    assert options.inputReplicaGrouping(4, CommGroupType.Orthogonal) is options
    assert (options.input_group_size, options.input_cgt) == (4, CommGroupType.Orthogonal)
    options.inputReplicaGrouping(5, CommGroupType.NoGrouping)
    assert (options.input_group_size, options.input_cgt) == (1, CommGroupType.Consecutive)


def test_anchored_tensors_are_kept_with_mode_and_period() -> None:
    options = Options()
    assert options.anchorTensor("a", "long a") is None  # type: ignore[func-returns-value]
    options.anchorTensor("b", "long b", OutputMode.EveryN, 2)
    options.anchorTensor("c", "long c", OutputMode.Final, 2)
    assert options.anchored_tensors == {
        "a": ["long a", True, None, 1],
        "b": ["long b", False, OutputMode.EveryN, 2],
        "c": ["long c", False, OutputMode.Final, 1],
    }
    assert Options().anchored_tensors == {}


def test_location_settings_are_counts_and_switches() -> None:
    made = (
        TensorLocationSettings()
        .minElementsForOffChip(4)
        .minElementsForReplicatedTensorSharding(8)
        .useOnChipStorage(False)
        .useReplicatedTensorSharding()
        .useIOTilesToLoad()
        .useIOTilesToStore(False)
    )
    assert made.toDict() == {
        "minElementsForOffChip": 4,
        "minElementsForReplicatedTensorSharding": 8,
        "onChip": 0,
        "useReplicatedTensorSharding": 1,
        "useIOTilesToLoad": 1,
        "useIOTilesToStore": 0,
    }
    assert made.useOnChipStorage(None) is made
    assert not made.exists("onChip")
    for wrong in (made.useOnChipStorage, made.useReplicatedTensorSharding, made.useIOTilesToLoad):
        with pytest.raises(AssertionError):
            wrong(1)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        made.minElementsForOffChip(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Activation", "Weight", "Optimizer", "Accumulator"])
def test_locations_are_kept_as_they_were_when_set(kind: str) -> None:
    options, location = Options(), settings(onChip=1)
    getattr(options.TensorLocations, f"set{kind}Location")(location)
    location.useReplicatedTensorSharding()
    assert options.TensorLocations(f"location_{kind.lower()}") == {"onChip": 1}


def test_profiling_keeps_the_engines_other_options() -> None:
    options = Options()
    options._Popart.setEngineOptions({"mine": "1", "autoReport.directory": "old"})
    assert options.enableProfiling("here") is options
    assert options._Popart.options["engineOptions"] == {
        "mine": "1",
        "autoReport.directory": "here",
        "autoReport.all": "true",
        "debug.allowOutOfMemory": "true",
    }
    assert Options().enableProfiling()._Popart.options["engineOptions"]["autoReport.directory"] == "."


def test_casting_is_a_matter_of_the_past(capsys: pytest.CaptureFixture[str]) -> None:
    precision = Options().Precision
    assert precision.halfFloatCasting(HalfFloatCastingBehavior.HalfUpcastToFloat) is precision
    assert "deprecated" in capsys.readouterr().err


def test_excludes_are_added() -> None:
    options = Options().sourceLocationExcludes(["a"])
    assert options.appendToLocationExcludes("b", "c")._source_location_excludes == ["a", "b", "c"]


CHANGES: List[Callable[[Options], Any]] = [
    lambda o: o.deviceIterations(2),
    lambda o: setattr(o, "device_iterations", 2),
    lambda o: o.set(device_iterations=2),
    lambda o: o.randomSeed(42),
    lambda o: o.createOrSet(random_seed=42),
    lambda o: o.enableExecutableCaching(None),
    lambda o: o.relaxOptimizerAttributesChecks(),
    lambda o: o.appendToLocationExcludes("a"),
    lambda o: o.setExecutionStrategy(ShardedExecution()),
    lambda o: setattr(o, "_execution_strategy", ShardedExecution()),
    lambda o: o.Training.gradientAccumulation(2),
    lambda o: o.Training.setAutomaticLossScaling(True),
    lambda o: o.Precision.setPartialsType(torch.half),
    lambda o: o.Precision.runningStatisticsAlwaysFloat(True),
    lambda o: o.Distributed.configureProcessId(0, 2),
    lambda o: o.TensorLocations.setWeightLocation(TensorLocationSettings()),
    lambda o: o._Popart.set("groupNormStridedChannelGrouping", True),
    lambda o: setattr(o._Popart, "options", {}),
]


@pytest.mark.parametrize("change", CHANGES)
def test_frozen_options_refuse_changes_until_unfrozen(change: Callable[[Options], Any]) -> None:
    options = Options()
    options._freeze()
    before = repr(options), torch.random.get_rng_state()
    with pytest.raises(AttributeError, match="frozen Options"):
        change(options)
    assert repr(options) == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    options._unfreeze()
    change(options)


def test_frozen_options_still_take_anchors_and_lose_entries() -> None:
    options = Options().modelName("a")
    options._freeze()
    options.anchorTensor("a", "b")
    options.deleteIfExists("model_name")
    assert "a" in options.anchored_tensors
    assert not options.exists("model_name")


@pytest.mark.parametrize("copied", [copy.deepcopy, Options.clone])
def test_copies_of_frozen_options_are_free_and_apart(copied: Callable[[Options], Options]) -> None:
    options = Options().deviceIterations(5)
    options.Training.gradientAccumulation(4)
    options._Popart.set("autoRecomputation", 3)
    options.anchorTensor("a", "b")
    options._freeze()
    before = repr(options)
    made = copied(options)
    assert repr(made) == before
    for change in CHANGES:
        change(made)
    made.anchorTensor("c", "d")
    assert repr(options) == before
    assert type(made._execution_strategy) is ShardedExecution
    assert type(options._execution_strategy) is PipelinedExecution
    made.Precision.enableStochasticRounding(True)
    assert made._Popart.options["enableStochasticRounding"] is True  # the parts of a copy belong together
    with pytest.raises(AttributeError, match="frozen Options"):
        options.deviceIterations(1)


@pytest.mark.parametrize("frozen", [False, True])
def test_pickled_options_stay_frozen_or_free(frozen: bool) -> None:
    options = Options().deviceIterations(5).setExecutionStrategy(ShardedExecution("a"))
    options.Training.gradientAccumulation(4)
    if frozen:
        options._freeze()
    loaded = pickle.loads(pickle.dumps(options))
    assert repr(loaded) == repr(options)
    assert loaded._execution_strategy.stage("a").blocks == ("a",)
    for change in CHANGES:
        if frozen:
            with pytest.raises(AttributeError, match="frozen Options"):
                change(loaded)
        else:
            change(loaded)


def test_a_part_can_be_given_another_class() -> None:
    class Wrapped(options_module._DistributedOptions):
        def disable(self) -> Any:
            raise RuntimeError("Cannot call disable")

    options = Options()
    options.Distributed.__class__ = Wrapped
    assert isinstance(options.Distributed, Wrapped)
    assert isinstance(options.clone().Distributed, Wrapped)
    assert options.Distributed.configureProcessId(1, 4).numProcesses == 4
    with pytest.raises(RuntimeError, match="Cannot call"):
        options.Distributed.disable()


def test_the_printed_form_has_all_values_and_parts() -> None:
    options = Options().replicationFactor(4).logDir("logs")
    options.Training.gradientAccumulation(8)
    printed = repr(options)
    assert printed.startswith("Options(replication_factor=4, ")
    assert "log_dir='logs'" in printed
    assert "gradient_accumulation=8" in printed
    positions = [printed.index(f", {part}=") for part in PARTS]
    assert positions == sorted(positions)
    assert f"{id(options):x}" not in printed


def test_everything_the_compiler_is_told_is_in_one_dictionary() -> None:
    options = Options().outputMode(OutputMode.Final).setExecutionStrategy(ShardedExecution()).randomSeed(3)
    options.Training.gradientAccumulation(8)
    options.TensorLocations.setOptimizerLocation(settings(onChip=0))
    options._Popart.set("outlineThreshold", 10.0)
    told = options.toDict()
    expected = {
        "output_mode": OutputMode.Final,
        "execution_mode": 1,
        "random_seed": 3,
        "gradient_accumulation": 8,
        "num_distributed_processes": 1,
        "location_optimizer": {"onChip": 0},
        "outlineThreshold": 10.0,
    }
    assert {name: told[name] for name in expected} == expected
    assert not any(name.startswith("_") for name in told)
    assert "half_float_casting" not in told


def test_the_dictionary_needs_an_output_mode() -> None:
    with pytest.raises(AssertionError, match="output mode"):
        Options().toDict()


def test_a_name_set_twice_cannot_be_merged() -> None:
    options = Options().outputMode(OutputMode.All)
    options._Popart.set("replication_factor", 2)
    with pytest.raises(AssertionError, match="Can't merge dictionaries.*replication_factor"):
        options.toDict()


def test_pending_warnings_are_given_on_merging(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options().outputMode(OutputMode.All)
    options.Training._warnings["mean"] = "the default is 100% another"
    options.toDict()
    assert "the default is 100% another" in capsys.readouterr().err


def test_the_environment_names_a_folder_for_executables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cachePath" not in Options()._Popart.options
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "/some/cache")
    popart = Options()._Popart.options
    assert (popart["cachePath"], popart["enableEngineCaching"]) == ("/some/cache", True)


def test_the_environment_sets_options_that_later_setters_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "/one")
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", '{"deviceIterations": 3, "enableExecutableCaching": "/other"}')
    options = Options()
    assert options.device_iterations == 3
    assert options._Popart.options["cachePath"] == "/other"
    assert options.deviceIterations(5).device_iterations == 5


def test_the_environment_tells_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    monkeypatch.setenv("MY_SIZE", "8")
    distributed = Options().Distributed
    assert (distributed.processId, distributed.numProcesses) == (3, 4)
    distributed.setEnvVarNames("MY_SIZE", "MY_RANK")
    assert (distributed.processId, distributed.numProcesses) == (0, 8)
    distributed.setEnvVarNames(var_num_processes="OMPI_COMM_WORLD_SIZE", var_process_id="OMPI_COMM_WORLD_RANK")
    assert (distributed.disable().processId, distributed.numProcesses) == (0, 1)


def test_a_subclass_may_add_to_the_constructor() -> None:
    class Preset(Options):
        def __init__(self, ipus_per_replica: int) -> None:
            self._ipus_per_replica = ipus_per_replica
            super().__init__()
            self.replicationFactor(4)

        def useIpuId(self, ipu_id: int) -> Options:
            raise RuntimeError("Cannot call useIpuId")

    options = Preset(ipus_per_replica=2).clone()
    assert (options.replication_factor, options._ipus_per_replica) == (4, 2)
    assert repr(options).startswith("Preset(")
