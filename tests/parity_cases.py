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
_LAYERS_CUT, _LARGEST_REPLICATION = 3, 2


def entry_case(name: str, single_precision: bool = False) -> Case:
    """An entry of configs.yml, scaled down.

    What is cut: width, heads, vocabularies, text, grid, accumulation (to what fills the pipeline), replicas (to two), and
    the layers of each IPU (to a third, so that empty IPUs stay empty). What stays: everything else.

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


# Pipelines of two stages, where a model is cut in the middle, beside one IPU.
ONE: Dict[str, Any] = {"ipu": {}}
TWO: Dict[str, Any] = {"ipu": {"layers_per_ipu": (1, 1)}, "training": {"gradient_accumulation": 3}}
TWO_SERIALIZED: Dict[str, Any] = {
    "ipu": {"layers_per_ipu": (1, 1), "embedding_serialization_factor": 4},
    "training": {"gradient_accumulation": 3},
}
PIPELINES = {"one IPU": ONE, "two IPUs": TWO, "two IPUs, serialised": TWO_SERIALIZED}

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

# (layers on each IPU, other options, stages)
SPLITS: Tuple[Tuple[Tuple[int, ...], Dict[str, Any], int], ...] = (
    ((4,), {}, 1),
    ((2, 2), {}, 2),
    ((1, 3), {}, 2),
    ((4, 0), {}, 1),
    ((0, 4), {}, 2),
    ((0, 4), {"embedding_ipu_id": 1}, 2),
    ((0, 2, 2), {}, 3),
    ((2, 0, 2), {}, 2),
    ((0, 0, 2, 2), {}, 3),
    ((1, 1, 1, 1), {}, 4),
    ((1, 1, 1, 1), {"cls_ipu_id": 0}, 5),
    ((2, 2), {"cls_ipu_id": 0}, 3),
    ((2, 2), {"cls_ipu_id": 1}, 2),
    ((4, 0), {"cls_ipu_id": 1}, 2),
    ((4, 0), {"embedding_ipu_id": 1}, 3),
    ((4, 0), {"embedding_ipu_id": 1, "cls_ipu_id": 1}, 4),
    ((0, 2, 2), {"embedding_ipu_id": 1, "cls_ipu_id": 0}, 4),
    ((2, 2, 0), {"embedding_ipu_id": 2, "cls_ipu_id": 2}, 5),
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
    ", clipped where it is not needed": {"clip_grad_norm": 1000.0},
    ", loss scaled": {"loss_scaling": 4096.0},
    ", loss scaled and clipped": {"loss_scaling": 4096.0, "clip_grad_norm": 0.01},
}


def single_precision_cases() -> List[Case]:
    """All cases but the entries of configs.yml."""
    return [
        *_attention_cases(),
        *(Case(f"{name}, {where}", model, **how) for name, model in MODELS.items() for where, how in list(PIPELINES.items())[1:]),
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
    ]


def _attention_cases() -> List[Case]:
    return [
        Case(f"{kind}, {where}", {"attn_types": (kind,), "sparse_block_size": 4}, **how)
        for kind, (where, how) in itertools.product(ATTENTION_TYPES, list(PIPELINES.items())[:2])
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
    return [
        Case(f"{factor} parts, {where}", {}, how.get("training", {}), {**how["ipu"], "embedding_serialization_factor": factor})
        for factor, (where, how) in itertools.product((2, 8), list(PIPELINES.items())[:2])
    ]


def _recomputation_cases() -> List[Case]:
    return [
        Case(
            f"without recomputation, {name}{where}",
            model,
            how.get("training", {}),
            {**how["ipu"], "recomputation": False},
        )
        for name, model in (("plain, ", {}), ("reversible, ", {"reversible": True}))
        for where, how in PIPELINES.items()
    ]


def _placement_cases() -> List[Case]:
    """What says where things lie, and must not change a number."""
    replicated = {"replication_factor": 2, "num_hidden_layers": 1}
    training = {"replication_factor": replicated["replication_factor"]}
    return [
        Case("sharded optimizer state", {"num_hidden_layers": 1}, training, {"enable_rts": True}),
        Case("optimizer state off chip", {"num_hidden_layers": 1}, {}, {"optimizer_state_offchip": True}),
        Case("little memory for products", {"num_hidden_layers": 1}, {}, {"matmul_proportion": (0.1,)}),
        Case("memory for products by IPU", {}, {"gradient_accumulation": 3}, {"layers_per_ipu": (1, 1), "matmul_proportion": (0.2, 0.4)}),
        Case("what acts on halves alone", {}, {}, {"stochastic_rounding": True, "enable_half_partials": True}),
    ]


FP16: Dict[str, Any] = {"fp16": True, "loss_scaling": 1024.0, "gradient_accumulation": 3}
