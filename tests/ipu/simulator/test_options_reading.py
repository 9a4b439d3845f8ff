"""Options from files and JSON: what is read, and that nothing in them is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest

from ipu.simulator import options as options_module
from ipu.simulator.enums import AutoStage, ConnectionType, OutputMode, ReductionType
from ipu.simulator.options import ConfigFileError, Options
from ipu.simulator.strategies import PipelinedExecution, SerialPhasedExecution, ShardedExecution

WRONG_LINES: List[str] = [
    "deviceIterations",
    "device_iterations = 4",
    "deviceIterations(4); replicationFactor(2)",
    "deviceIterations(2 + 2)",
    "deviceIterations(-'2')",
    "deviceIterations(len('four'))",
    "deviceIterations(__import__('os').getpid())",
    "deviceIterations(*[4])",
    "deviceIterations(**{'device_iterations': 4})",
    "deviceIterations(lambda: 4)",
    "deviceIterations([n for n in (4,)])",
    "modelName(f'{4}')",
    "modelName('{0.__class__}'.format(4))",
    "modelName(open('/etc/hostname').read())",
    "modelName(poptorch.os.getcwd())",
    "modelName(poptorch.Options)",
    "modelName(poptorch.options.os)",
    "outputMode(poptorch.OutputMode.Nothing)",
    "outputMode(poptorch.OutputMode.All.value)",
    "outputMode(poptorch.OutputMode(2))",
    "outputMode(poptorch._Numbered)",
    "outputMode(OutputMode.All)",
    "_freeze()",
    "_merged()",
    "__setattr__('device_iterations', 4)",
    "__class__()",
    "set.__func__.__globals__",
    "anchored_tensors.update({'a': 1})",
    "Training.__init__(1)",
    "Training._popart_options.set('a', 1)",
    "setExecutionStrategy(poptorch.PipelinedExecution)",
    "setExecutionStrategy(poptorch.PipelinedExecution()._placer())",
    "deviceIterations(options('replication_factor'))",
]


def loaded(folder: Path, *lines: str) -> Options:
    path = folder / "options.conf"
    path.write_text("\n".join(lines), encoding="utf-8")
    return Options().loadFromFile(str(path))


def test_a_file_holds_setter_calls(tmp_path: Path) -> None:
    options = loaded(
        tmp_path,
        "deviceIterations(4)",
        "  replicationFactor(2)  ",
        "",
        "# autoRoundNumIPUs(True)",
        "outputMode(poptorch.OutputMode.EveryN, output_return_period=2)  # every second",
        "connectionType(poptorch.enums.ConnectionType.OnDemand)",
        "setAvailableMemoryProportion({'IPU0': 0.5, 'IPU1': 0.25})",
        "Training.gradientAccumulation(8).accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)",
        "_Popart.set('engineOptions', {'a': 'b'}).set('customCodelets', ['c', 'd'])",
        "_Popart.set('hardwareInstrumentations', {0, 1})",
        "_Popart.set('outlineThreshold', -1.5)",
        "TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))",
        "enableExecutableCaching(None)",
        "modelName('a').logDir('b')",
        "deviceIterations(options.replication_factor)",
    )
    assert (options.device_iterations, options.replication_factor, options.auto_round_num_ipus) == (2, 2, False)
    assert (options.output_mode, options.output_return_period) == (OutputMode.EveryN, 2)
    assert options.connection_type == ConnectionType.OnDemand
    assert options.available_memory_proportion == {0: 0.5, 1: 0.25}
    assert options.Training.gradient_accumulation == 8
    assert options.Training.accumulation_and_replication_reduction_type is ReductionType.Sum
    popart = options._Popart.options
    assert (popart["engineOptions"], popart["customCodelets"]) == ({"a": "b"}, ["c", "d"])
    assert (popart["hardwareInstrumentations"], popart["outlineThreshold"]) == ({0, 1}, -1.5)
    assert options.TensorLocations.location_optimizer == {"onChip": 0}
    assert popart["enableEngineCaching"] is False
    assert (options.model_name, options.log_dir) == ("a", "b")


@pytest.mark.parametrize(
    "written, kind",
    [
        ("poptorch.ShardedExecution()", ShardedExecution),
        ("poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)", PipelinedExecution),
        ("poptorch.PipelinedExecution('a', ['b', 'c'], poptorch.Stage('d').ipu(1))", PipelinedExecution),
        (
            "poptorch.SerialPhasedExecution(poptorch.Phase(poptorch.Stage('a'), poptorch.Stage('b')))",
            SerialPhasedExecution,
        ),
    ],
)
def test_a_file_can_choose_the_execution_strategy(written: str, kind: Any, tmp_path: Path) -> None:
    strategy = loaded(tmp_path, f"setExecutionStrategy({written})")._execution_strategy
    assert type(strategy) is kind
    if "AutoIncrement" in written:
        assert strategy._placer()("a", AutoStage.SameAsIpu.value) == (1, 0)
    if "Stage('d')" in written:
        assert strategy._placer()("d", None) == (2, 1)


def test_a_second_file_overrides_only_what_it_sets(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("deviceIterations(2)\nreplicationFactor(2)", encoding="utf-8")
    second.write_text("deviceIterations(1)", encoding="utf-8")
    options = Options().loadFromFile(str(first)).loadFromFile(str(second))
    assert (options.device_iterations, options.replication_factor) == (1, 2)


def test_a_line_that_cannot_be_read_is_named_and_nothing_is_set(tmp_path: Path) -> None:
    path = tmp_path / "tmp.conf"
    path.write_text("deviceIterations(3)\n\n# more\noutputMode(poptorch.OutputMode.All", encoding="utf-8")
    options = Options()
    with pytest.raises(ConfigFileError) as error:
        options.loadFromFile(str(path))
    lines = str(error.value).splitlines()
    assert lines[0].startswith("SyntaxError at line 2 of tmp.conf: ")
    assert lines[1] == "> options.outputMode(poptorch.OutputMode.All"
    assert "line 4 of the file" in lines[2]
    assert options.device_iterations == 1


def test_what_a_setter_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError) as error:
        loaded(tmp_path, "replicationFactor(2)", "deviceIterations('4')")
    assert str(error.value).startswith("AssertionError at line 2 of options.conf: device_iterations='4' is a str")
    assert str(error.value).endswith("> options.deviceIterations('4')")
    assert isinstance(error.value.__cause__, AssertionError)


def test_frozen_options_take_nothing_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "options.conf"
    path.write_text("deviceIterations(3)", encoding="utf-8")
    options = Options()
    options._freeze()
    with pytest.raises(ConfigFileError, match="frozen Options"):
        options.loadFromFile(str(path))


@pytest.mark.parametrize("line", WRONG_LINES)
def test_what_is_no_setter_call_is_refused_and_not_run(line: str, tmp_path: Path) -> None:
    before = repr(Options())
    options = Options()
    path = tmp_path / "options.conf"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ConfigFileError, match="at line 1 of options.conf"):
        options.loadFromFile(str(path))
    assert repr(options) == before


def test_a_file_that_is_not_there_is_pythons_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Options().loadFromFile(str(tmp_path / "none"))


def test_the_error_is_reached_through_the_options_module() -> None:
    assert options_module.ConfigFileError is ConfigFileError
    assert issubclass(ConfigFileError, Exception)


JSON: List[Any] = [
    ('{"deviceIterations": 2, "enableSyntheticData": true}', {"device_iterations": 2}, {"syntheticDataMode": 2}),
    ('{"Precision.enableFloatingPointExceptions": true}', {}, {"enableFloatingPointChecks": True}),
    ('{"connectionType": "ConnectionType.OnDemand"}', {"connection_type": ConnectionType.OnDemand}, {}),
    ('{"outputMode": ["OutputMode.EveryN", 3]}', {"output_mode": OutputMode.EveryN, "output_return_period": 3}, {}),
    ('{"_Popart.set": ["saveInitializersToFile", "my.onnx"]}', {}, {"saveInitializersToFile": "my.onnx"}),
    ('{"setAvailableMemoryProportion": {"IPU1": 0.5}}', {"available_memory_proportion": {1: 0.5}}, {}),
    ('{"updatableNamedBuffers": [["a", "b"]]}', {"updatable_named_buffers": ["a", "b"]}, {}),
    ('{"enableExecutableCaching": null}', {}, {"enableEngineCaching": False}),
    ('{"disableModuleNamescope": []}', {"_module_namescope_enabled": False}, {}),
    ('{"modelName": "a.b"}', {"model_name": "a.b"}, {}),
]


@pytest.mark.parametrize("text, values, popart", JSON)
def test_json_names_setters_and_their_arguments(text: str, values: Dict[str, Any], popart: Dict[str, Any]) -> None:
    options = Options()
    assert options.from_json(text) is options
    assert {name: getattr(options, name) for name in values} == values
    assert {name: options._Popart.options[name] for name in popart} == popart


@pytest.mark.parametrize(
    "kind, text",
    [
        (ValueError, "{"),
        (ValueError, "[1]"),
        (AttributeError, '{"deviceIteration": 2}'),
        (AttributeError, '{"device_iterations": 2}'),
        (AttributeError, '{"_freeze": []}'),
        (AttributeError, '{"Training": 2}'),
        (AttributeError, '{"deviceIterations.__globals__.clear": []}'),
        (AttributeError, '{"__class__": []}'),
        (AttributeError, '{"anchored_tensors.clear": []}'),
        (AssertionError, '{"deviceIterations": "2"}'),
        (AssertionError, '{"outputMode": "OutputMode.Nothing"}'),
        (TypeError, '{"deviceIterations": [1, 2]}'),
    ],
)
def test_other_json_is_refused_and_changes_nothing(kind: Any, text: str) -> None:
    options = Options()
    before = repr(options)
    with pytest.raises(kind):
        options.from_json(text)
    assert repr(options) == before
