"""From the program's options to PopTorch's, one by one."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any, Callable, Dict

import pytest

from ipu import open_poptorch
from ipu.options import RunOptions, inference_options, training_options

POPTORCH = open_poptorch("ipu-sim")
RUN = RunOptions(
    stages=[(0, ["embedding", "layers_0"]), (2, ["layers_2", "head"])],
    replication_factor=2,
    gradient_accumulation=6,
    device_iterations=3,
    random_seed=9,
    ipus_per_replica=3,
    matmul_proportion=[0.3],
    stochastic_rounding=False,
    enable_half_partials=False,
    enable_rts=False,
    optimizer_state_offchip=False,
    enable_als=False,
    recomputation=True,
    synthetic_data=False,
    compile_only=False,
    executable_cache_dir=None,
    profile_dir=None,
)


def options_of(kind: Callable[..., Any] = training_options, **changed: Any) -> Dict[str, Any]:
    """All that PopART is told, in one dictionary, PopART's own options among them."""
    given = kind(POPTORCH, dataclasses.replace(RUN, **changed)).toDict()
    return {**given, **given.get("_Popart", {})}


def test_a_training_step_returns_sums_over_its_micro_batches_and_averages_gradients() -> None:
    options = training_options(POPTORCH, RUN)
    assert (options.replication_factor, options.device_iterations, options.Training.gradient_accumulation) == (2, 3, 6)
    assert options.output_mode == POPTORCH.OutputMode.Sum
    assert options.Training.accumulation_and_replication_reduction_type == POPTORCH.ReductionType.Mean
    assert options.random_seed == 9
    assert options.auto_round_num_ipus


def test_inference_fills_the_pipeline_and_returns_everything() -> None:
    options = inference_options(POPTORCH, RUN)
    assert (options.replication_factor, options.device_iterations, options.Training.gradient_accumulation) == (2, 2, 1)
    assert options.output_mode == POPTORCH.OutputMode.All


def test_the_stages_are_pipelined_on_their_ipus() -> None:
    placer = training_options(POPTORCH, RUN)._execution_strategy._placer()
    assert isinstance(training_options(POPTORCH, RUN)._execution_strategy, POPTORCH.PipelinedExecution)
    found = [placer(name, None) for name in ("embedding", "layers_0", "layers_2", "head")]
    assert found == [(0, 0), (0, 0), (1, 2), (1, 2)]


@pytest.mark.parametrize(
    "given, expected",
    [([0.3], {0: 0.3, 1: 0.3, 2: 0.3}), ([0.1, 0.2, 0.4], {0: 0.1, 1: 0.2, 2: 0.4})],
)
def test_one_share_of_memory_is_every_ipu_s_and_several_are_each_one_s(given: Any, expected: Dict[int, float]) -> None:
    options = training_options(POPTORCH, dataclasses.replace(RUN, matmul_proportion=given))
    assert options.available_memory_proportion == expected


@pytest.mark.parametrize("kind", [training_options, inference_options])
@pytest.mark.parametrize(
    "changed, key, value, otherwise",
    [
        ({"stochastic_rounding": True}, "enableStochasticRounding", True, False),
        ({"enable_half_partials": True}, "partialsTypeMatMuls", "half", "float"),
        ({"synthetic_data": True}, "syntheticDataMode", 2, None),
        ({"executable_cache_dir": "cache"}, "cachePath", "cache", None),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_both_programs_are_told(
    kind: Callable[..., Any], changed: Dict[str, Any], key: str, value: Any, otherwise: Any
) -> None:
    assert kind(POPTORCH, dataclasses.replace(RUN, **changed))._Popart.options.get(key) == value
    assert kind(POPTORCH, RUN)._Popart.options.get(key) == otherwise


def popart(**changed: Any) -> Dict[str, Any]:
    options: Dict[str, Any] = training_options(POPTORCH, dataclasses.replace(RUN, **changed))._Popart.options
    return options


def test_recomputation_is_that_of_pipelines_or_none() -> None:
    assert popart()["autoRecomputation"] == 3
    assert popart(recomputation=False)["autoRecomputation"] == 0


def test_a_program_on_one_ipu_is_no_pipeline_and_computes_again_in_the_standard_way() -> None:
    one = [(0, ["embedding", "layers_0", "head"])]
    assert popart(stages=one)["autoRecomputation"] == 1
    assert popart(stages=one, recomputation=False)["autoRecomputation"] == 0


def test_automatic_loss_scaling_is_on_where_it_is_asked_for() -> None:
    assert popart(enable_als=True)["automaticLossScalingSettings.enabled"]
    assert not popart().get("automaticLossScalingSettings.enabled")


@pytest.mark.parametrize("offchip", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_the_optimizer_s_state_lies_where_it_is_asked_to(offchip: bool, sharded: bool) -> None:
    location = options_of(optimizer_state_offchip=offchip, enable_rts=sharded)["location_optimizer"]
    assert location["onChip"] == int(not offchip)
    assert location["useReplicatedTensorSharding"] == int(sharded)


def test_compile_only_needs_no_device() -> None:
    never, always = POPTORCH.ConnectionType.Never, POPTORCH.ConnectionType.Always
    assert training_options(POPTORCH, dataclasses.replace(RUN, compile_only=True)).connection_type == never
    assert training_options(POPTORCH, RUN).connection_type == always


def test_profiles_go_where_they_are_asked_to() -> None:
    found = repr(training_options(POPTORCH, dataclasses.replace(RUN, profile_dir="profiles")))
    assert "'autoReport.directory': 'profiles'" in found or '"autoReport.directory": "profiles"' in found
    assert "autoReport" not in repr(training_options(POPTORCH, RUN))


def test_under_poprun_the_replicas_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("popdist", "popdist.poptorch"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(f"ipu.simulator.standins.{name}"))
    told = {"POPDIST_NUM_TOTAL_REPLICAS": 8, "POPDIST_NUM_LOCAL_REPLICAS": 4, "POPDIST_NUM_IPUS_PER_REPLICA": 3}
    for variable, number in {**told, "OMPI_COMM_WORLD_SIZE": 2, "OMPI_COMM_WORLD_RANK": 1}.items():
        monkeypatch.setenv(variable, str(number))
    options = training_options(POPTORCH, dataclasses.replace(RUN, by_poprun=True, replication_factor=4))
    assert options.replication_factor == 4
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)


def test_the_options_are_what_the_backend_accepts() -> None:
    everything = {
        "matmul_proportion": [0.1, 0.2, 0.4],
        "stochastic_rounding": True,
        "enable_half_partials": True,
        "enable_rts": True,
        "optimizer_state_offchip": True,
        "enable_als": True,
        "executable_cache_dir": "cache",
        "profile_dir": "profiles",
        "compile_only": True,
    }
    check = importlib.import_module("ipu.simulator.options_checks").check_backend
    for kind in (training_options, inference_options):
        check(kind(POPTORCH, dataclasses.replace(RUN, **everything)))
        check(kind(POPTORCH, RUN))
