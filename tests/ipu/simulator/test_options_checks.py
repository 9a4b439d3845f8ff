"""What the compiler refuses of options."""

from __future__ import annotations

from typing import Any, Callable, List

import pytest
import torch

from ipu.simulator import options as options_module
from ipu.simulator._logging import setLogLevel
from ipu.simulator.enums import ConnectionType, MeanReductionStrategy, OutputMode
from ipu.simulator.options import Options, TensorLocationSettings, check_backend, check_ipu_count, uses_ipu_model
from ipu.simulator.options_checks import ipu_model_tiles
from ipu.simulator.poptorch_core import Error, _validateOptions
from ipu.simulator.strategies import ParallelPhasedExecution, ShardedExecution

MODEL_VARIABLES = ("POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL", "POPTORCH_IPU_MODEL_VERSION")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*MODEL_VARIABLES, "POPTORCH_CACHE_DIR", "POPTORCH_DEFAULT_OPTIONS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)


def popart(**values: Any) -> Options:
    options = Options().outputMode(OutputMode.All)
    for name, value in values.items():
        options._Popart.set(name.replace("__", "."), value)
    return options


def used() -> Options:
    """Options with something of every kind that applications set."""
    options = popart(
        hardwareInstrumentations={0, 1},
        dotChecks=["FINAL", "ALL"],
        engineOptions={"debug.allowOutOfMemory": "true"},
        reportOptions={"a": "A"},
        matmulOptions={"a": "A"},
        lstmOptions={"a": "A"},
        gclOptions={"a": "A"},
        customCodelets=[],
        autoRecomputation=3,
        enableOutlining=True,
        outlineThreshold=10.0,
        disableGradAccumulationTensorStreams=True,
        batchSerializationSettings__factor=1,
        batchSerializationSettings__batchSchedule=1,
        accumulateOuterFragmentSettings__schedule=1,
        accumulateOuterFragmentSettings__excludedVirtualGraphs=["0", "1"],
        enableExplicitIR=True,
        automaticLossScalingSettings__gradientTensorTrackingMethod=1,
        saveInitializersToFile="weights.onnx",
    )
    options._Popart.setPatterns({"PadSum": True}, 0)
    options.setAvailableMemoryProportion({"IPU0": 0.2, "IPU1": 1})
    options.deviceIterations(4).replicationFactor(2).randomSeed(42).enableSyntheticData(True).modelName("a")
    options.enableExecutableCaching("cache").enableProfiling().useIpuModel(True).maxRepeatLogs(None)
    options.updatableNamedBuffers(["a"]).useIpuId(0).useOfflineIpuTarget()
    options.anchorTensor("a", "b", OutputMode.EveryN, 2)
    options.TensorLocations.numIOTiles(32).setOptimizerLocation(
        TensorLocationSettings().useOnChipStorage(False).useReplicatedTensorSharding().minElementsForOffChip(4)
    )
    options.Training.setAutomaticLossScaling(True).setConvolutionDithering(True).gradientAccumulation(4)
    options.Precision.setPartialsType(torch.half).enableStochasticRounding(True).enableFloatingPointExceptions(True)
    return options.setExecutionStrategy(ParallelPhasedExecution("a", "b"))


def test_options_of_every_kind_pass() -> None:
    check_backend(used())
    _validateOptions(used().toDict())


@pytest.mark.parametrize("mode", list(OutputMode))
def test_options_pass_in_every_output_mode(mode: OutputMode) -> None:
    check_backend(Options().outputMode(mode, 1))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("asdfasdf", True, "Unknown bool option asdfasdf"),
        ("asdfasdf", 1, "Unknown uint64 option asdfasdf"),
        ("asdfasdf", 1.0, "Unknown floating point option asdfasdf"),
        ("asdfasdf", "a", "Unknown string option asdfasdf"),
        ("asdfasdf", ["a"], "Unknown set / vector option asdfasdf"),
        ("asdfasdf", {"a": "b"}, "Unknown map option asdfasdf"),
        ("enableOutlinning", True, "did you mean enableOutlining?"),
        ("outlineThreshold", 10, "Unknown uint64 option outlineThreshold: it takes a floating point value, not 10"),
        ("enableOutlining", 1, "Unknown uint64 option enableOutlining: it takes a bool value"),
        ("customCodelets", "a.cpp", "Unknown string option customCodelets"),
        ("dotChecks", torch.empty(1, 1), "Unknown value type Tensor for option dotChecks"),
        ("dotChecks", None, "Unknown value type NoneType for option dotChecks"),
        ("engineOptions", {"a": ["b"]}, "Unknown value type list for option engineOptions"),
        ("autoRecomputation", 5, "Value for RecomputationType out of range: autoRecomputation=5; choose 0 to 4"),
        ("syntheticDataMode", 3, "Value for SyntheticDataMode out of range"),
        ("numIOTiles", -1, "numIOTiles=-1"),
    ],
)
def test_names_kinds_and_ranges_of_poparts_options_are_checked(name: str, value: Any, message: str) -> None:
    options = popart()
    options._Popart.set(name, value)
    for refuse in (lambda: check_backend(options), lambda: _validateOptions(options.toDict())):
        with pytest.raises(Error) as error:
            refuse()
        assert message in error.value.message


REFUSED: List[Any] = [
    (lambda o: o.deviceIterations(0), "device_iterations=0 is below 1"),
    (lambda o: o.replicationFactor(0), "replication_factor=0 is below 1"),
    (lambda o: o.replicationFactor(-1), "replication_factor=-1"),
    (lambda o: o.Training.gradientAccumulation(0), "gradient_accumulation=0 is below 1.*Training.gradientAccumulation"),
    (lambda o: setattr(o, "input_group_size", 0), "input_group_size=0 is below 1"),
    (lambda o: o.Distributed.configureProcessId(0, 0), "num_distributed_processes=0 is below 1"),
    (lambda o: o.Distributed.configureProcessId(-1, 1), "distributed_process_id=-1"),
    (lambda o: o.createOrSet(random_seed=-1), "random_seed=-1"),
    (lambda o: o.deviceIterations(4).outputMode(OutputMode.EveryN, 3), "period 3, and device_iterations is 4"),
    (lambda o: o.deviceIterations(4).outputMode(OutputMode.EveryN, 8), "period 8, and device_iterations is 4"),
    (lambda o: o.anchorTensor("a", "b", OutputMode.EveryN, 2), "anchored tensor a has period 2"),
    (lambda o: o.setAvailableMemoryProportion({"IPU1": 0.0}), "memory proportion of IPU1 is 0.0"),
    (lambda o: o.setAvailableMemoryProportion({"IPU1": 1.1}), "memory proportion of IPU1 is 1.1"),
    (lambda o: o.setAvailableMemoryProportion({"IPU1": -0.5}), "memory proportion of IPU1 is -0.5"),
    (lambda o: o.setAvailableMemoryProportion({"IPU1": float("nan")}), "memory proportion of IPU1 is nan"),
    (lambda o: o.setAvailableMemoryProportion({"IPU1": "0.5"}), "Unknown value type .*IPU1 has '0.5'"),
    (
        lambda o: o.Training.setMeanAccumulationAndReplicationReductionStrategy(MeanReductionStrategy.PostAndLoss),
        "Value for MeanReductionStrategy out of range",
    ),
    (lambda o: o._Popart.set("patterns", {"PadSum": True}), "without patterns_level"),
    (lambda o: o._Popart.setPatterns({"PadSum": True}, 4), "patterns_level=4"),
    (lambda o: o._Popart.setPatterns({"PadSum": "on"}), "Unknown value type for pattern PadSum"),
    (lambda o: o.TensorLocations.createOrSet(location_weight={"offChip": 1}), "Unknown tensor location option offChip"),
]


@pytest.mark.parametrize("change, message", REFUSED)
def test_what_popart_refuses_is_an_error_when_compiling(change: Callable[[Options], Any], message: str) -> None:
    options = Options()
    check_backend(options)
    change(options)
    with pytest.raises(Error, match=message):
        check_backend(options)


def test_periods_that_divide_the_iterations_pass() -> None:
    for period in (1, 2, 4):
        check_backend(Options().deviceIterations(4).outputMode(OutputMode.EveryN, period))


def test_an_unused_period_does_not_matter() -> None:
    check_backend(Options().deviceIterations(4).outputMode(OutputMode.All, 3))


def test_what_is_set_is_said_at_debug(capsys: pytest.CaptureFixture[str]) -> None:
    options = popart(enablePipelining=True, engineOptions={"a": "b"}, dotChecks=["ALL"], hardwareInstrumentations={1})
    options.setExecutionStrategy(ShardedExecution())
    options._Popart.set("outlineThreshold", 10.0)
    setLogLevel("DEBUG")
    try:
        _validateOptions(options.toDict())
    finally:
        setLogLevel("WARN")
    said = capsys.readouterr().err
    for line in (
        "poptorch.Options set enablePipelining to value true",
        "poptorch.Options set replication_factor to value 1",
        "poptorch.Options set execution_mode to value 1",
        "poptorch.Options set output_mode to value 2",
        "poptorch.Options set outlineThreshold to value 10.0",
        "poptorch.Options set engineOptions[a] to b",
        "poptorch.Options added ALL to dotChecks",
        "poptorch.Options added 1 to hardwareInstrumentations",
    ):
        assert f"{line}\n" in said


def test_the_checks_are_reached_through_the_options_module() -> None:
    assert options_module.check_backend is check_backend
    assert options_module.check_ipu_count is check_ipu_count


@pytest.mark.parametrize("per_replica, replicas, reserved", [(1, 1, 1), (2, 1, 2), (4, 16, 64), (64, 1, 64), (1, 8, 8)])
def test_powers_of_two_are_reserved_as_they_are(per_replica: int, replicas: int, reserved: int) -> None:
    assert check_ipu_count(Options().replicationFactor(replicas), per_replica) == reserved


def test_other_numbers_need_leave_to_round_up(capsys: pytest.CaptureFixture[str]) -> None:
    options = Options().replicationFactor(2)
    with pytest.raises(Error, match="uses 6 IPUs, for which 8 have to be reserved.*autoRoundNumIPUs"):
        check_ipu_count(options, 3)
    assert check_ipu_count(options.autoRoundNumIPUs(), 3) == 8
    assert "Reserving 8 IPUs for the 6" in capsys.readouterr().err
    assert check_ipu_count(Options().autoRoundNumIPUs(), 33) == 64


@pytest.mark.parametrize("prepare", [lambda o: o, Options.autoRoundNumIPUs, lambda o: o.useIpuModel(True)])
def test_one_process_has_at_most_64_ipus(prepare: Callable[[Options], Options]) -> None:
    with pytest.raises(Error, match=r"Too many IPUs requested \(128\)\. Experiments that need .*"):
        check_ipu_count(prepare(Options().replicationFactor(32)), 4)


def test_models_and_absent_devices_need_no_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_ipu_count(Options().useIpuModel(True), 3) == 3
    assert check_ipu_count(Options().useOfflineIpuTarget(), 3) == 3
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    assert check_ipu_count(Options(), 3) == 3
    with pytest.raises(Error, match="uses 3 IPUs"):
        check_ipu_count(Options().useIpuModel(False), 3)


@pytest.mark.parametrize("variable", ["POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL"])
def test_the_setter_wins_over_the_environment(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not uses_ipu_model(Options())
    monkeypatch.setenv(variable, "1")
    assert uses_ipu_model(Options())
    assert not uses_ipu_model(Options().useIpuModel(False))
    monkeypatch.setenv(variable, "0")
    assert not uses_ipu_model(Options())
    assert uses_ipu_model(Options().useIpuModel(True))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda o: o.useIpuModel(True).useOfflineIpuTarget(), "do not work with the IPU model"),
        (lambda o: o.useIpuModel(True).logCycleCount(True), "Cycle count logging is only supported on actual IPU"),
        (lambda o: o.useOfflineIpuTarget().logCycleCount(True), "Cycle count logging is only supported on actual IPU"),
        (lambda o: o.useOfflineIpuTarget().useIpuId(3), r"useIpuId\(3\) does not work without a device"),
        (lambda o: o.connectionType(ConnectionType.Never).useIpuId(3), "does not work without a device"),
    ],
)
def test_devices_that_cannot_be_are_refused(change: Callable[[Options], Options], message: str) -> None:
    with pytest.raises(Error, match=message):
        check_ipu_count(change(Options()), 1)


def test_hardware_counts_cycles_and_takes_an_id() -> None:
    assert check_ipu_count(Options().logCycleCount(True).useIpuId(3), 2) == 2


def test_caching_on_a_model_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    check_ipu_count(Options().enableExecutableCaching("cache"), 1)
    assert capsys.readouterr().err == ""
    check_ipu_count(Options().enableExecutableCaching("cache").useIpuModel(True), 1)
    assert "enableExecutableCaching has no effect on the IPU model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "version, model, small, tiles",
    [
        (None, None, None, 1472),
        ("ipu1", "1", None, 1216),
        ("ipu21", "1", None, 1472),
        (None, None, "1", 4),
        (None, "1", "1", 1472),
    ],
)
def test_the_environment_sizes_the_model(
    version: Any, model: Any, small: Any, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in zip(MODEL_VARIABLES, (model, small, version)):
        if value:
            monkeypatch.setenv(variable, value)
    assert ipu_model_tiles() == tiles


def test_a_model_of_no_known_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPTORCH_IPU_MODEL_VERSION", "ipu9")
    with pytest.raises(Error, match="POPTORCH_IPU_MODEL_VERSION=ipu9 is not one of ipu1, ipu2, ipu21"):
        check_ipu_count(Options().useIpuModel(True), 1)
