"""Plans: what IPUs hold, how a plan reads, what is refused."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Tuple

import pytest
from PIL import Image

from ipu.machine import machine_named
from ipu.placement import PlanOptions, place
from ipu.plan import Plan, make_plan
from ipu.planning.chart import COLORS, LIMIT
from ipu.planning.dalle_workload import RELEASED_VQGAN, workload_of_dalle
from ipu.planning.published import held_out_rows
from ipu.planning.solve import solve
from ipu.planning.workload import EMBEDDING, HEAD, LAYER, TOKENIZER, Workload
from models.options import TransformerOptions
from options import OptionError

L16 = dataclasses.replace(held_out_rows()[0].options, gradient_accumulation=2048)
LARGE = TransformerOptions(hidden_size=2048, num_hidden_layers=16)


@functools.lru_cache(maxsize=None)
def l16(encoded: bool = False) -> Workload:
    pictures = held_out_rows()[0].workload
    if not encoded:
        return pictures
    return dataclasses.replace(pictures, layers=pictures.layers[1:], sample_bytes=4 * 336)


@functools.lru_cache(maxsize=None)
def large() -> Workload:
    return workload_of_dalle(LARGE, 8192, 1024, (16, 16), 2, RELEASED_VQGAN, 1, 4)


def plan(**changes: object) -> Plan:
    return make_plan(l16(), dataclasses.replace(L16, **changes))  # type: ignore[arg-type]


def test_layers_stand_where_the_options_put_them() -> None:
    stages = place(l16(), L16)
    assert [(stage.ipu, [layer.role for layer in stage.layers]) for stage in stages] == [
        (0, [TOKENIZER, EMBEDDING]),
        (1, [LAYER] * 6),
        (2, [LAYER] * 6),
        (3, [LAYER] * 4 + [HEAD]),
    ]


def test_an_ipu_that_comes_twice_has_two_stages() -> None:
    stages = place(l16(), dataclasses.replace(L16, cls_ipu_id=0, embedding_ipu_id=1))
    assert [stage.ipu for stage in stages] == [0, 1, 2, 3, 0]
    assert [layer.role for layer in stages[1].layers] == [EMBEDDING] + [LAYER] * 6


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layers_per_ipu": (0, 6, 6, 3)}, r"layers_per_ipu=\[0, 6, 6, 3\] places 15 layers, num_hidden_layers is 16"),
        ({"layers_per_ipu": (8, 8)}, r"names 2 IPUs, ipus_per_replica is 4"),
        ({"cls_ipu_id": 4}, r"cls_ipu_id=4, and the pipeline has the IPUs 0 to 3"),
        ({"embedding_ipu_id": 7}, r"embedding_ipu_id=7"),
        ({"matmul_proportion": (0.2, 0.3)}, r"has 2 values; give one, or one for each of the 4"),
        ({"gradient_accumulation": 6}, r"gradient_accumulation=6 .* 4 stages forward and 3 backward; give 7 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan(**changes)


def test_seven_micro_batches_fill_the_pipeline_of_l16() -> None:
    assert plan(gradient_accumulation=7).bubble > 0.25
    assert plan(gradient_accumulation=2048).bubble < 0.01


@pytest.mark.parametrize("replicas, accumulation, machine", [(1, 8192, 4), (4, 2048, 16), (16, 512, 64)])
def test_the_l16_configurations_fit_their_machines(replicas: int, accumulation: int, machine: int) -> None:
    found = plan(replication_factor=replicas, gradient_accumulation=accumulation, enable_rts=replicas > 1)
    assert found.machine == machine_named("Bow", machine)
    assert found.fits
    assert found.refusal() == ""


def test_weights_optimizer_and_gradients_are_exact() -> None:
    layer = next(layer for layer in l16().layers if layer.role == LAYER)
    memory = plan(enable_rts=False).memory[1]
    assert memory.weights == memory.gradients == 2 * 6 * layer.parameters
    assert memory.optimizer == (2 + 4) * 6 * layer.parameters
    assert (
        plan(enable_rts=False, enable_half_first_order_momentum=False).memory[1].optimizer == 8 * 6 * layer.parameters
    )


def test_sharding_divides_the_optimizer_state_and_the_host_takes_all_of_it() -> None:
    whole = plan(enable_rts=False).memory[1]
    assert plan(enable_rts=True).memory[1].optimizer == whole.optimizer / 4
    assert plan(optimizer_state_offchip=True).memory[1].optimizer == 0
    assert plan(enable_rts=True).memory[1].weights == whole.weights


def test_earlier_stages_stash_more_micro_batches() -> None:
    inputs = 2 * 336 * 512 * 2  # bytes of the input of one layer
    assert [memory.stashed for memory in plan().memory] == [0, 5 * 6 * inputs, 3 * 6 * inputs, (4 + 1) * inputs]


def test_without_recomputation_activations_are_stashed_and_nothing_is_computed_twice() -> None:
    again, kept = plan(), plan(recomputation=False)
    layer = l16().layers[2]
    assert kept.memory[1].stashed - again.memory[1].stashed == 5 * 6 * 2 * layer.activations
    for one, other in zip(kept.times[1:], again.times[1:]):
        assert one.forward == other.forward and one.backward < other.backward
    assert "recomputation checkpoint" in again.table() and "computed once more" in again.table()
    assert "keeps its activations" in kept.table() and "computed once more" not in kept.table()


def test_single_precision_takes_more_of_everything() -> None:
    half, single = plan().memory[1], plan(fp16=False, enable_half_partials=False).memory[1]
    assert single.weights == 2 * half.weights
    assert single.stashed == 2 * half.stashed
    assert single.total > half.total


def test_what_cannot_fit_is_refused_with_the_ipu_the_numbers_and_the_remedies() -> None:
    found = make_plan(large(), dataclasses.replace(L16, enable_rts=False))
    assert not found.fits
    refusal = found.refusal()
    total = found.memory[1].total / 1e6
    assert f"IPU 1 would hold {total:,.1f} MB and has 940.6 MB (1,472 tiles x 624 KiB)" in refusal
    assert "optimizer: enable_rts" in refusal
    assert refusal in found.table()


def test_the_refused_sizes_are_over_the_limit_and_the_others_are_not_named() -> None:
    found = make_plan(large(), dataclasses.replace(L16, enable_rts=False))
    named = {int(number) for number in re.findall(r"^IPU (\d+) would", found.refusal(), re.MULTILINE)}
    limit = found.machine.ipu.memory
    assert named == {index for index, memory in enumerate(found.memory) if memory.total > limit}


def test_the_table_ends_with_the_predicted_throughput() -> None:
    found = plan()
    last = found.table().splitlines()[-1]
    assert last == f"predicted throughput: {found.throughput:,.0f} samples/s"
    assert found.throughput == pytest.approx(L16.global_batch / (found.pipeline + found.update + found.host))


def test_the_table_says_what_every_ipu_holds_and_does() -> None:
    lines = plan().table().splitlines()
    for index, memory in enumerate(plan().memory):
        assert any(line.split()[:2] == [str(index), f"{memory.weights / 1e6:,.1f}"] for line in lines)
    assert any("image tokenizer, embeddings" in line for line in lines)
    assert any(line.endswith("4 layers, logits") for line in lines)
    assert "what carries these numbers" in lines


def test_a_gc200_is_slower_than_a_bow_and_holds_the_same() -> None:
    bow, gc200 = plan(), make_plan(l16(), L16, machine_named("GC200", 16))
    assert 0.7 < gc200.throughput / bow.throughput < 0.8  # 1.35 over 1.85 GHz, and the host as fast
    assert gc200.memory == bow.memory


def test_a_second_process_halves_the_time_of_the_input() -> None:
    assert plan(instances=2).host == pytest.approx(plan().host / 2)


def test_the_chart_shows_memory_limit_and_schedule(tmp_path: Path) -> None:
    path = tmp_path / "charts" / "plan.png"
    plan().draw(path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        colors = {color for _, color in image.convert("RGB").getcolors(100_000)}
    assert set(COLORS.values()) <= colors
    assert LIMIT in colors
    assert [item.name for item in path.parent.iterdir()] == ["plan.png"]


def test_a_chart_of_what_does_not_fit_draws_the_bars_beyond_the_limit(tmp_path: Path) -> None:
    make_plan(large(), dataclasses.replace(L16, enable_rts=False)).draw(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").exists()


def test_the_solver_finds_the_split_that_trying_all_of_them_finds() -> None:
    options = dataclasses.replace(L16, gradient_accumulation=64)
    splits = [(a, b, c, 16 - a - b - c) for a in range(17) for b in range(17 - a) for c in range(17 - a - b)]
    best = max(
        (make_plan(l16(), dataclasses.replace(options, layers_per_ipu=split)) for split in splits if all(split[1:])),
        key=lambda found: found.throughput if found.fits else 0,
    )
    proposal = solve(l16(), options, encoded=l16(encoded=True))
    assert proposal.split is not None and proposal.encoded is not None
    assert proposal.split.throughput >= best.throughput * 0.999
    assert proposal.best is proposal.encoded
    assert proposal.best.throughput > proposal.split.throughput > proposal.current.throughput


def test_the_proposal_names_the_splits_and_their_gain() -> None:
    proposal = solve(l16(), L16, encoded=l16(encoded=True))
    assert proposal.split is not None
    text = proposal.text()
    assert f"layers_per_ipu {list(proposal.split.options.layers_per_ipu)}" in text
    assert f"{proposal.split.throughput / proposal.current.throughput - 1:+.1%}" in text
    assert text.splitlines()[-1] == f"predicted throughput: {proposal.best.throughput:,.0f} samples/s"


def test_the_solver_proposes_only_what_fits_even_where_the_shortest_cycle_does_not() -> None:
    transformer = TransformerOptions(hidden_size=768, num_hidden_layers=8, share_input_output_emb=True)
    workload = workload_of_dalle(transformer, 44_000, 1024, (16, 16), 1)  # a table that fills the first IPU
    options = dataclasses.replace(
        L16, batch_size=1, gradient_accumulation=64, replication_factor=1, enable_rts=False, ipus_per_replica=3,
        layers_per_ipu=(2, 3, 3), cls_ipu_id=0, matmul_proportion=(0.2,), enable_half_first_order_momentum=False,
    )  # fmt: skip
    splits = [(a, b, 8 - a - b) for a in range(9) for b in range(9 - a)]
    found = [make_plan(workload, dataclasses.replace(options, layers_per_ipu=split)) for split in splits]
    assert not max(found, key=lambda plan: plan.throughput).fits
    proposal = solve(workload, options)
    assert proposal.split is not None and proposal.split.fits
    assert proposal.split.throughput == max(plan.throughput for plan in found if plan.fits)
    assert "which does not fit" in proposal.text()


def test_the_solver_proposes_only_splits_that_are_accepted() -> None:
    asked = []

    def accepts(split: Tuple[int, ...]) -> bool:
        asked.append(split)
        return split[0] == 0 and split[1] == 7

    found = solve(l16(), L16, accepts=accepts).split
    assert found is not None and found.options.layers_per_ipu[:2] == (0, 7) and len(asked) > 1
    assert solve(l16(), L16, accepts=lambda split: False).split is None


def test_where_no_split_fits_the_solver_says_so() -> None:
    proposal = solve(large(), dataclasses.replace(L16, enable_rts=False))
    assert proposal.split is None
    assert "no split fits" in proposal.text()


def test_eight_ipus_are_split_in_a_moment() -> None:
    options = dataclasses.replace(L16, ipus_per_replica=8, layers_per_ipu=(2,) * 8, replication_factor=2)
    proposal = solve(l16(), options)
    assert proposal.split is not None
    assert proposal.split.throughput >= proposal.current.throughput


def test_options_have_the_defaults_of_a_single_ipu() -> None:
    workload = workload_of_dalle(TransformerOptions(num_hidden_layers=1, hidden_size=64), 100, 20, (4, 4), 1)
    found = make_plan(workload, PlanOptions())
    assert found.fits
    assert found.bubble == pytest.approx(0)
