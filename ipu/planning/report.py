"""A plan in words: the table of `--plan`, and the refusal of what cannot fit."""

from __future__ import annotations

import dataclasses
from typing import List, Sequence, Tuple

from ipu.machine import MB
from ipu.plan import Plan
from ipu.planning.costs import FITTED
from ipu.planning.memory import BUFFERED, CODE_OF_PROGRAM, CODE_OF_TILE, NAMES, IpuMemory
from ipu.planning.schedule import stashes
from ipu.planning.workload import LAYER

REMEDIES = {
    "weights": "fewer layers on this IPU (layers_per_ipu), more IPUs (ipus_per_replica), or fp16",
    "optimizer": "enable_rts with more than one replica, enable_half_first_order_momentum, or optimizer_state_offchip",
    "gradients": "fewer layers on this IPU (layers_per_ipu), or more IPUs (ipus_per_replica)",
    "stashed": "recomputation if off, a smaller batch_size, or fewer layers on the first IPUs (layers_per_ipu)",
    "layer": "a smaller batch_size, or pictures that are encoded beforehand",
    "logits": "a smaller batch_size",
    "products": "a smaller matmul_proportion",
    "input": "a smaller batch_size, or byteio",
    "code": "fewer kinds of layers on this IPU (layers_per_ipu)",
}


def table(plan: Plan) -> str:
    """The whole plan; see `Plan.table`."""
    lines = [*_heading(plan), "", *_memory(plan), "", *_pipeline(plan), "", *_step(plan), "", *_assumptions(plan)]
    if not plan.fits:
        lines += ["", refusal(plan)]
    return "\n".join([*lines, "", f"predicted throughput: {plan.throughput:,.0f} samples/s"])


def refusal(plan: Plan) -> str:
    """Which IPU cannot hold what, and what would help; empty where all fits."""
    limit, found = plan.machine.ipu.memory, []
    for index, memory in enumerate(plan.memory):
        if memory.total > limit:
            parts = sorted(_parts(memory), key=lambda part: -part[1])[:3]
            found.append(
                f"IPU {index} would hold {memory.total / MB:,.1f} MB and has {limit / MB:,.1f} MB "
                f"({plan.machine.ipu.tiles:,} tiles x {plan.machine.ipu.tile_memory // 1024} KiB); most of it is "
                + ", ".join(f"{name} with {size / MB:,.1f} MB" for name, size in parts)
                + ". What would help: "
                + "; ".join(f"{name}: {REMEDIES[name]}" for name, _ in parts)
                + "."
            )
    return "\n".join(found)


def _parts(memory: IpuMemory) -> List[Tuple[str, float]]:
    return list(dataclasses.asdict(memory).items())


def _heading(plan: Plan) -> List[str]:
    options = plan.options
    return [
        f"{plan.machine.name}: {options.replication_factor} replicas of {options.ipus_per_replica} IPUs; micro batch "
        f"{options.batch_size} x accumulation {options.gradient_accumulation:,} x {options.replication_factor} = "
        f"{options.global_batch:,} samples a step",
        f"forward pass: {plan.workload.flops / options.batch_size / 1e9:,.1f} GFLOP a sample; "
        f"{_parameters(plan, True) / 1e6:,.1f} million parameters learn, {_parameters(plan, False) / 1e6:,.1f} rest",
    ]


def _parameters(plan: Plan, learns: bool) -> int:
    return sum(layer.parameters for layer in plan.workload.layers if layer.learns == learns)


def _memory(plan: Plan) -> List[str]:
    limit = plan.machine.ipu.memory
    rows = [["IPU", *NAMES, "total", "of"]]
    for index, memory in enumerate(plan.memory):
        sizes = [f"{size / MB:,.1f}" for _, size in _parts(memory)]
        rows.append([str(index), *sizes, f"{memory.total / MB:,.1f}", f"{limit / MB:,.1f}"])
    return ["memory in MB (10^6 bytes); layer and logits take turns in the same place", *_columns(rows)]


def _pipeline(plan: Plan) -> List[str]:
    rows = [["stage", "IPU", "forward ms", "backward ms", "link kB", "stashes", "layers"]]
    count = len(plan.stages)
    for number, (stage, time, cost) in enumerate(zip(plan.stages, plan.times, plan.costs)):
        kept = stashes(number, count) if any(layer.learns and layer.inputs for layer in stage.layers) else 0
        rows.append(
            [str(number), str(stage.ipu), f"{time.forward * 1e3:.3f}", f"{time.backward * 1e3:.3f}",
             f"{cost.linked / 1e3:,.0f}", str(kept), _names(plan, number)]
        )  # fmt: skip
    again = " (backward with the forward pass computed once more)" if plan.options.recomputation else ""
    work = ", ".join(f"IPU {index} {share / max(plan.busy):.0%}" for index, share in enumerate(plan.busy))
    return [
        f"pipeline, for one micro batch{again}",
        *_columns(rows),
        f"busy in a cycle of {max(plan.busy) * 1e3:.3f} ms: {work}; balance {plan.balance:.0%}, bubble "
        f"{plan.bubble:.1%}",
    ]


def _names(plan: Plan, number: int) -> str:
    roles = [layer.role for layer in plan.stages[number].layers]
    layers = roles.count(LAYER)
    names = [role for role in dict.fromkeys(roles) if role != LAYER]
    text = f"{layers} layer{'' if layers == 1 else 's'}"
    if not layers:
        return ", ".join(names)
    first = [role for role in names if roles.index(role) < roles.index(LAYER)]
    return ", ".join([*first, text, *[role for role in names if role not in first]])


def _step(plan: Plan) -> List[str]:
    data = plan.options.global_batch * plan.workload.sample_bytes
    rows = [
        ["step", "seconds", "share"],
        ["pipeline", f"{plan.pipeline:.3f}", f"{plan.pipeline / plan.step:.1%}"],
        ["update", f"{plan.update:.3f}", f"{plan.update / plan.step:.1%}"],
        ["host input", f"{plan.host:.3f}", f"{plan.host / plan.step:.1%}"],
        ["all", f"{plan.step:.3f}", "100.0%"],
    ]
    return [*_columns(rows), f"the host sends {data / MB:,.1f} MB a step, {data / MB / plan.step:,.1f} MB/s"]


def _assumptions(plan: Plan) -> List[str]:
    ipu = plan.machine.ipu
    kept = "every layer's input is a recomputation checkpoint"
    checkpoints = kept if plan.options.recomputation else "every layer keeps its activations"
    return [
        "what carries these numbers",
        f"- times: products take {FITTED.products:g} of PopLibs' own estimate, a pass over memory {FITTED.passing:g} "
        f"cycles a number, a launch {FITTED.launch:,.0f} cycles;",
        "  fitted on nine published rows of BERT and ViT on Bow Pods, each met within 12 %; mini DALL-E's row, which",
        "  took no part in the fit, is predicted 13 % too low (python -m ipu.planning.calibration)",
        f"- input is not overlapped: {_processes(plan.options.instances)} it over at {FITTED.host_rate / 1e9:g} GB/s "
        "each (fitted); the loader keeps up",
        f"- links: {ipu.neighbour_link / 1e9:g} GB/s to the next IPU, {ipu.machine_link / 1e9:g} GB/s an IPU between "
        "machines (data sheet and third parties)",
        f"- {checkpoints}; stage s of F keeps 2 (F - s) - 1 of them",
        f"- input holds {BUFFERED} micro batches; code is {CODE_OF_TILE // 1024} KiB a tile and {CODE_OF_PROGRAM} B "
        "for each different program (a guess)",
        "- tiles are filled evenly; the compiler's real limit is the fullest tile",
    ]


def _processes(count: int) -> str:
    return "one process hands" if count == 1 else f"{count} processes hand"


def _columns(rows: Sequence[Sequence[str]]) -> List[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last_left = len(rows[0]) - 1 if rows[0][-1] == "layers" else -1
    return [
        "  ".join(
            cell if column == last_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]  # fmt: skip
