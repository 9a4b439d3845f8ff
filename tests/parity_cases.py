"""What the engines are compared on: each case of `tests/parity.py` changes what the program of an IPU looks like."""

from __future__ import annotations

import itertools
from typing import Any, Dict, List, Sequence, Tuple

import yaml

from args import CONFIGS
from engines.options import IpuOptions, TrainingOptions
from models.options import ATTENTION_TYPES, TransformerOptions
from options import Options
from tests.parity import Case

# the entries of configs.yml that train.py trains; of these two kinds of layers are no more than so deep here
ENTRIES: List[str] = ["demo", "dalle_pytorch", "unit_test", "L16_CLIP_vocab", "L16", "L16_POD16", "L16_POD64"]
_LAYERS_CUT, _LARGEST_REPLICATION = 6, 2


def entry_case(name: str, single_precision: bool = False) -> Case:
    """An entry of configs.yml, scaled down.

    What is cut: width, heads, vocabularies, text, grid, accumulation (to what fills the pipeline), replicas (to two)
    and the layers of each IPU (to a sixth, so that empty IPUs stay empty). What stays: everything else.

    Args:
        name: of the entry.
        single_precision: hold nothing in half precision.
    """
    given = yaml.safe_load(CONFIGS.read_text(encoding="utf-8"))[name]
    transformer = _of(TransformerOptions, given, ("hidden_size", "num_attention_heads", "dim_head", "text_seq_len"))
    ipu = _of(IpuOptions, given, ("async_dataloader",))
    layers = [-(-count // _LAYERS_CUT) for count in ipu.get("layers_per_ipu", [given.get("num_hidden_layers", 2)])]
    ipu.update(layers_per_ipu=tuple(layers), embedding_serialization_factor=min(_factor(ipu), 8))
    transformer["num_hidden_layers"] = sum(layers)
    left_out = ("epochs", "max_steps", "learning_rate", "lr_scheduler", "batch_size")
    own = _of(TrainingOptions, given, left_out)
    own["gradient_accumulation"] = 2 * sum(count > 0 for count in [1, *layers[1:]]) - 1
    own["replication_factor"] = min(own.get("replication_factor", 1), _LARGEST_REPLICATION)
    own["batch_size"] = min(given["batch_size"], 2)
    if single_precision:
        own.update(fp16=False, bf16=False)
        ipu["enable_half_first_order_momentum"] = False
    return Case(name, transformer, own, ipu)


def _of(kind: type, given: Dict[str, Any], left_out: Sequence[str]) -> Dict[str, Any]:
    assert issubclass(kind, Options)
    known = {name: value for name, value in given.items() if name in kind.__dataclass_fields__ and name not in left_out}
    if isinstance(known.get("attn_types"), str):
        known["attn_types"] = tuple(known["attn_types"].split(","))
    if isinstance(known.get("matmul_proportion"), float):
        known["matmul_proportion"] = (known["matmul_proportion"],)
    return known


def _factor(ipu: Dict[str, Any]) -> int:
    return int(ipu.get("embedding_serialization_factor", 1))


# Where a model runs: on one IPU, or cut in the middle. Three micro batches fill two stages.
ONE: Dict[str, Any] = {"training": {}, "ipu": {}}
ONE_SERIALIZED: Dict[str, Any] = {"training": {}, "ipu": {"embedding_serialization_factor": 4}}
TWO: Dict[str, Any] = {"training": {"gradient_accumulation": 3}, "ipu": {"layers_per_ipu": (1, 1)}}

MODELS: Dict[str, Dict[str, Any]] = {
    "rotary": {"rotary_emb": True},
    "shift": {"shift_tokens": True},
    "stable": {"stable": True},
    "sandwich": {"sandwich_norm": True},
    "reversible": {"reversible": True},
    "axial and full": {"attn_types": ("axial_row", "full")},
    "columns and convolution": {"attn_types": ("axial_col", "conv_like"), "conv_kernel_size": 3},
    "dilated, centered windows": {"attn_types": ("conv_like",), "conv_window": "centered", "conv_dilation": 2},
    "sparse blocks": {"attn_types": ("sparse",), "sparse_block_size": 4, "sparse_random_blocks": 1},
    "losses weighed alike": {"loss_img_weight": 1.0},
    "no text": {"null_cond_prob": 1.0},
    "everything": {
        "rotary_emb": True,
        "shift_tokens": True,
        "stable": True,
        "sandwich_norm": True,
        "reversible": True,
        "attn_types": ("conv_like", "axial_col"),
    },
}

# of which the weights lie on one IPU
SHARED: Dict[str, Dict[str, Any]] = {
    "tied embeddings": {"share_input_output_emb": True},
    "tied, rotary": {"share_input_output_emb": True, "rotary_emb": True},
    "one attention": {"shared_attn_ids": ("a",)},
    "one feed-forward": {"shared_ff_ids": ("a",)},
    "all shared": {"shared_attn_ids": ("a",), "shared_ff_ids": ("b",), "share_input_output_emb": True},
    "shared, reversible": {"shared_attn_ids": ("a",), "shared_ff_ids": ("b",), "reversible": True},
}

# layers on each IPU, other options, and the stages that follow
SPLITS: Tuple[Tuple[Tuple[int, ...], Dict[str, Any], int], ...] = (
    ((1,), {}, 1),
    ((1, 2), {}, 2),
    ((2, 0), {}, 1),
    ((0, 2), {}, 2),
    ((0, 2), {"embedding_ipu_id": 1}, 2),
    ((0, 1, 1), {}, 3),
    ((1, 0, 1), {}, 2),
    ((0, 0, 1, 1), {}, 3),
    ((1, 1, 1, 1), {}, 4),
    ((1, 1, 1, 1), {"cls_ipu_id": 0}, 5),
    ((1, 1), {"cls_ipu_id": 0}, 3),
    ((1, 1), {"cls_ipu_id": 1}, 2),
    ((2, 0), {"cls_ipu_id": 1}, 2),
    ((2, 0), {"embedding_ipu_id": 1}, 3),
    ((2, 0), {"embedding_ipu_id": 1, "cls_ipu_id": 1}, 4),
    ((0, 1, 1), {"embedding_ipu_id": 1, "cls_ipu_id": 0}, 4),
    ((1, 1, 0), {"embedding_ipu_id": 2, "cls_ipu_id": 2}, 5),
)

OPTIMIZERS: Dict[str, Dict[str, Any]] = {
    "Adam": {},
    "Adam with decay": {"weight_decay": 0.1},
    "Adam with a short memory": {"adam_beta2": 0.9},
    "AdamW": {"optimizer": "AdamW"},
    "AdamW with decay": {"optimizer": "AdamW", "weight_decay": 0.1},
}
STEPS_OF_ALL: Dict[str, Dict[str, Any]] = {
    "": {},
    ", clipped": {"clip_grad_norm": 0.01},
    ", hardly clipped": {"clip_grad_norm": 1000.0},
    ", loss scaled and clipped": {"loss_scaling": 4096.0, "clip_grad_norm": 0.01},
}


def single_precision_cases() -> List[Case]:
    """All cases but the entries of configs.yml."""
    return [
        *_attention_cases(),
        *(Case(f"{name}, one IPU, serialised", model, **ONE_SERIALIZED) for name, model in MODELS.items()),
        *(Case(f"{name}, two IPUs", model, **TWO) for name, model in MODELS.items()),
        *_shared_cases(),
        *(_split_case(*split) for split in SPLITS),
        *_batch_cases(),
        *_serialization_cases(),
        *_recomputation_cases(),
        *(
            Case(name + more, {"num_hidden_layers": 1}, {**options, **steps})
            for (name, options), (more, steps) in itertools.product(OPTIMIZERS.items(), STEPS_OF_ALL.items())
        ),
        *_placement_cases(),
        *_fused_cases(),
    ]


def _attention_cases() -> List[Case]:
    models: Dict[str, Dict[str, Any]] = {
        kind: {"attn_types": (kind,), "sparse_block_size": 4} for kind in ATTENTION_TYPES
    }
    return [
        *(Case(f"{kind}, one IPU", model) for kind, model in models.items()),
        *(Case(f"{kind}, two IPUs", model, **TWO) for kind, model in models.items()),
    ]


def _shared_cases() -> List[Case]:
    cases = []
    for name, model in SHARED.items():
        cases.append(Case(f"{name}, one IPU", model))
        # embeddings on the first IPU, all else on the second; or the other way round where they are tied
        tied = model.get("share_input_output_emb", False)
        ipu = {"layers_per_ipu": (0, 2), "cls_ipu_id": 0} if tied else {"layers_per_ipu": (0, 2)}
        cases.append(Case(f"{name}, two IPUs", model, {"gradient_accumulation": 5 if tied else 3}, ipu))
        serialized = {**ipu, "embedding_serialization_factor": 2}
        cases.append(Case(f"{name}, serialised", model, {"gradient_accumulation": 5}, serialized))
    return cases


def _split_case(layers: Tuple[int, ...], others: Dict[str, Any], stages: int) -> Case:
    more = "".join(f", {name}={value}" for name, value in others.items())
    return Case(
        f"layers_per_ipu={list(layers)}{more}",
        {"num_hidden_layers": sum(layers)},
        {"gradient_accumulation": 2 * stages - 1, "batch_size": 1},
        {"layers_per_ipu": layers, **others},
    )


def _batch_cases() -> List[Case]:
    cases = []
    for replicas, accumulation, iterations in itertools.product((1, 2, 4), (1, 2, 8), (1, 2)):
        batch = {
            "batch_size": 1,
            "replication_factor": replicas,
            "gradient_accumulation": accumulation,
            "device_iterations": iterations,
        }
        name = f"{replicas} replicas, {accumulation} micro batches, {iterations} updates a call"
        cases.append(Case(name, {"num_hidden_layers": 1}, batch))
    return cases


def _serialization_cases() -> List[Case]:
    cases = []
    for factor in (2, 8):
        serialized = {"embedding_serialization_factor": factor}
        cases.append(Case(f"{factor} parts, one IPU", {}, {}, serialized))
        cases.append(Case(f"{factor} parts, two IPUs", {}, TWO["training"], {**TWO["ipu"], **serialized}))
    return cases


def _recomputation_cases() -> List[Case]:
    return [
        Case(f"{name}, not computed again, {where}", model, how["training"], {**how["ipu"], "recomputation": False})
        for name, model in (("plain", {}), ("reversible", {"reversible": True}))
        for where, how in (("one IPU", ONE), ("one IPU, serialised", ONE_SERIALIZED), ("two IPUs", TWO))
    ]


def _placement_cases() -> List[Case]:
    """What says where things lie, and must not change a number."""
    small = {"num_hidden_layers": 1}
    return [
        Case("sharded optimizer state", small, {"replication_factor": 2}, {"enable_rts": True}),
        Case("optimizer state off chip", small, {}, {"optimizer_state_offchip": True}),
        Case("little memory for products", small, {}, {"matmul_proportion": (0.1,)}),
        Case("memory for products by IPU", {}, TWO["training"], {**TWO["ipu"], "matmul_proportion": (0.2, 0.4)}),
        Case("what acts on halves alone", small, {}, {"stochastic_rounding": True, "enable_half_partials": True}),
    ]


FUSED: Dict[str, Any] = {"fused_attention": True, "fused_embedding": True}


def _fused_cases() -> List[Case]:
    """What is computed by operators of our own."""
    small = {"num_hidden_layers": 1, "sparse_block_size": 4}
    mixed = {"attn_types": ("axial_row", "conv_like"), "conv_kernel_size": 3}
    split = {"layers_per_ipu": (1, 1), "embedding_serialization_factor": 4, "matmul_proportion": (0.2, 0.4)}
    return [
        *(Case(f"fused, {kind}", {**small, "attn_types": (kind,)}, {}, FUSED) for kind in ATTENTION_TYPES),
        Case("fused attention alone", small, {}, {"fused_attention": True}),
        Case("fused embedding alone", small, {}, {"fused_embedding": True}),
        Case("fused embedding alone, serialised", small, {}, {"fused_embedding": True, **ONE_SERIALIZED["ipu"]}),
        Case("fused, eleven chunks", small, {}, {**FUSED, "attention_chunks": 11}),
        Case("fused, two IPUs, serialised", mixed, TWO["training"], {**FUSED, **split}),
        Case("fused, replicated and accumulated", small, {"replication_factor": 2, "gradient_accumulation": 2}, FUSED),
        Case("fused, not computed again", small, {}, {**FUSED, "recomputation": False}),
        Case("fused, everything", MODELS["everything"], {}, FUSED),
        Case("fused, one attention", {"shared_attn_ids": ("a",)}, {}, FUSED),
        Case("fused attention, tied", {"share_input_output_emb": True}, {}, {"fused_attention": True}),
    ]


HALF: Dict[str, Any] = {"fp16": True, "loss_scaling": 1024.0}
ALL_HALF: Dict[str, Any] = {"enable_half_partials": True, "enable_half_first_order_momentum": True}


def half_precision_cases() -> List[Case]:
    """What half precision is held in, rounded to the nearest."""
    two = {**HALF, "gradient_accumulation": 3}
    return [
        Case("half", {}, HALF),
        Case("half, loss not scaled", {}, {**HALF, "loss_scaling": 1.0}),
        Case("half, two IPUs, serialised", {}, two, {"layers_per_ipu": (1, 1), "embedding_serialization_factor": 4}),
        Case("half, accumulated and replicated", {}, {**two, "batch_size": 1, "replication_factor": 2}),
        Case("half, two updates a call", {}, {**HALF, "device_iterations": 2}),
        Case("half, first moments too", {}, HALF, {"enable_half_first_order_momentum": True}),
        Case("half, partials too", {"hidden_size": 64}, HALF, {"enable_half_partials": True}),
        Case("half, loss scaling adapted", {}, {**HALF, "enable_als": True}),
        Case("half, AdamW with decay", {}, {**HALF, "optimizer": "AdamW", "weight_decay": 0.1}),
        Case("half, clipped", {}, {**HALF, "clip_grad_norm": 0.01}),
        Case("half, reversible and rotary", {"reversible": True, "rotary_emb": True}, HALF),
        Case("half, stable and sandwich", {"stable": True, "sandwich_norm": True}, HALF),
        Case("half, tied and shifted", {"share_input_output_emb": True, "shift_tokens": True}, HALF),
        Case("half, fused", {"attn_types": ("full", "axial_col")}, HALF, FUSED),
        Case("half, fused, partials too", {"hidden_size": 64}, HALF, {**FUSED, "enable_half_partials": True}),
        Case(
            "half, fused, two IPUs, serialised",
            {"attn_types": ("sparse", "conv_like"), "sparse_block_size": 4, "stable": True},
            two,
            {**FUSED, "layers_per_ipu": (1, 1), "embedding_serialization_factor": 4},
        ),
    ]


def stochastic_cases() -> List[Case]:
    """What half precision is held in, rounded at random."""
    return [
        Case("stochastic", {}, HALF, {"stochastic_rounding": True}),
        Case("stochastic, all in half", {}, HALF, {"stochastic_rounding": True, **ALL_HALF}),
        Case(
            "stochastic, all in half, two IPUs",
            {},
            {**HALF, "gradient_accumulation": 3, "batch_size": 1, "enable_als": True},
            {"stochastic_rounding": True, "layers_per_ipu": (1, 1), "embedding_serialization_factor": 4, **ALL_HALF},
        ),
        Case("stochastic, fused", {"num_hidden_layers": 1}, HALF, {**FUSED, "stochastic_rounding": True}),
        *(entry_case(name) for name in ("L16_CLIP_vocab", "L16_POD16")),
    ]
