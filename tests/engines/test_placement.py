"""Where the parts of the model go: the table, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Tuple

import pytest

import engines.placement
from engines.options import IpuOptions, TrainingOptions
from engines.placement import Placement, place
from ipu.simulator import Error
from models.options import TransformerOptions
from options import OptionError
from tests.parity import Case, make_engine, make_samples
from tests.parity_cases import SPLITS

ENOUGH = 64


def placed(layers: Tuple[int, ...], accumulation: int = ENOUGH, transformer: Any = None, **ipu: Any) -> Placement:
    options = TransformerOptions(**{"num_hidden_layers": sum(layers), **(transformer or {})})
    own: Dict[str, Any] = {"layers_per_ipu": layers, "ipus_per_replica": len(layers), **ipu}
    return place(options, IpuOptions(**own), TrainingOptions(gradient_accumulation=accumulation))


def test_the_table_names_every_module_with_its_stage_and_ipu() -> None:
    assert placed((0, 6, 6, 4)).table().splitlines() == [
        "stage  IPU  block            modules",
        "0      0    image_tokenizer  image_tokenizer",
        "0      0    embedding        dalle embeddings",
        "1      1    layers_1         dalle.layers.0-5",
        "2      2    layers_2         dalle.layers.6-11",
        "3      3    layers_3         dalle.layers.12-15",
        "3      3    head             dalle.norm, dalle.to_logits",
    ]


@pytest.mark.parametrize("layers, others, stages", SPLITS, ids=str)
def test_a_part_on_another_ipu_than_the_one_before_it_begins_a_stage(
    layers: Tuple[int, ...], others: Dict[str, Any], stages: int
) -> None:
    placement = placed(layers, **others)
    assert len(placement.stages) == stages
    homes = [part.ipu for part in placement.parts]
    numbers = [part.stage for part in placement.parts]
    assert numbers == [sum(a != b for a, b in zip(homes[:end], homes[1 : end + 1])) for end in range(len(homes))]
    assert [len({part.ipu for part in stage}) for stage in placement.stages] == [1] * stages


@pytest.mark.parametrize("layers, others, stages", SPLITS, ids=str)
def test_every_layer_has_one_place_in_the_order_of_the_model(
    layers: Tuple[int, ...], others: Dict[str, Any], stages: int
) -> None:
    placement = placed(layers, **others)
    found: List[int] = []
    for part in placement.parts:
        found += range(part.first_layer, part.first_layer + part.layers)
        if part.layers:
            assert part.layers == layers[part.ipu]
    assert found == list(range(sum(layers)))
    names = [part.name for part in placement.parts]
    assert len(set(names)) == len(names)
    assert names[:2] == ["image_tokenizer", "embedding"] and names[-1] == "head"
    assert placement.part("head") == placement.parts[-1] and placement.part("layers_9") is None


@pytest.mark.parametrize("layers, others, stages", [split for split in SPLITS if split[2] > 1], ids=str)
def test_as_many_micro_batches_as_fill_the_pipeline_are_enough_and_one_less_is_not(
    layers: Tuple[int, ...], others: Dict[str, Any], stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * stages - 1
    placed(layers, needed, **others)
    message = f"gradient_accumulation={needed - 1} cannot fill a pipeline of {stages} stages .* give {needed} or more"
    with pytest.raises(OptionError, match=message):
        placed(layers, needed - 1, **others)
    # and PopTorch would say so, too
    monkeypatch.setattr(engines.placement, "check_depth", lambda stages, accumulation: None)
    training = {"gradient_accumulation": needed - 1, "batch_size": 1}
    case = Case("short", {"num_hidden_layers": sum(layers)}, training, {"layers_per_ipu": layers, **others})
    with pytest.raises(Error, match="gradientAccumulation"):
        make_engine(case).compile(make_samples(1))


def test_codes_that_are_loaded_need_no_image_tokenizer_on_the_first_ipu() -> None:
    options = IpuOptions(layers_per_ipu=(0, 2), ipus_per_replica=2, embedding_ipu_id=1)
    transformer = TransformerOptions(num_hidden_layers=2)
    placement = place(transformer, options, TrainingOptions(), tokenizes_images=False)
    assert [(part.name, part.ipu, part.stage) for part in placement.parts] == [
        ("embedding", 1, 0),
        ("layers_1", 1, 0),
        ("head", 1, 0),
    ]


SHARED_ATTENTION = {"shared_attn_ids": ("a", "b", "a", "b")}
MISTAKES: Dict[str, Tuple[Tuple[int, ...], Dict[str, Any], str]] = {
    "too few layers": (
        (0, 6, 6, 3),
        {"transformer": {"num_hidden_layers": 16}},
        r"layers_per_ipu=\[0, 6, 6, 3\] places 15 layers, num_hidden_layers is 16; make the two agree",
    ),
    "too many layers": ((2, 2), {"transformer": {"num_hidden_layers": 3}}, "places 4 layers, num_hidden_layers is 3"),
    "more IPUs than there are": (
        (2, 2),
        {"ipus_per_replica": 1},
        r"layers_per_ipu=\[2, 2\] names 2 IPUs, ipus_per_replica is 1; make the two agree",
    ),
    "fewer IPUs than there are": ((4,), {"ipus_per_replica": 4}, "names 1 IPUs, ipus_per_replica is 4"),
    "memory shares of other IPUs": (
        (2, 2),
        {"matmul_proportion": (0.1, 0.2, 0.3)},
        r"matmul_proportion=\[0.1, 0.2, 0.3\] has 3 values; give one, or one for each of the 2 IPUs",
    ),
    "embeddings outside": (
        (2, 2),
        {"embedding_ipu_id": 2},
        r"embedding_ipu_id=2, and the pipeline has the IPUs 0 to 1 \(ipus_per_replica=2\); take one of them",
    ),
    "head outside": ((2, 2), {"cls_ipu_id": 4}, "cls_ipu_id=4, and the pipeline has the IPUs 0 to 1"),
    "a pipeline never full": (
        (1, 1, 1, 1),
        {"accumulation": 6},
        "gradient_accumulation=6 cannot fill a pipeline of 4 stages forward and 3 backward; give 7 or more",
    ),
    "tied embeddings apart": (
        (2, 2),
        {"transformer": {"share_input_output_emb": True}},
        "share_input_output_emb=true ties the embeddings, on IPU 0, to .* on IPU 1; set cls_ipu_id=0",
    ),
    "tied embeddings apart by choice": (
        (2, 2),
        {"transformer": {"share_input_output_emb": True}, "embedding_ipu_id": 1, "cls_ipu_id": 0},
        "on IPU 1, to the output projection, on IPU 0; set cls_ipu_id=1",
    ),
    "attention shared across IPUs": (
        (2, 2),
        {"transformer": SHARED_ATTENTION},
        "shared_attn_ids gives layer 3, on IPU 1, the id a of a layer on IPU 0; .* change layers_per_ipu or the ids",
    ),
    "feed-forward shared across IPUs": (
        (1, 3),
        {"transformer": {"shared_ff_ids": ("x",)}},
        "shared_ff_ids gives layer 2, on IPU 1, the id x of a layer on IPU 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_placement_that_cannot_be_is_refused_with_the_remedy(mistake: str) -> None:
    layers, options, message = MISTAKES[mistake]
    with pytest.raises(OptionError, match=message):
        placed(layers, **options)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_engine_refuses_it_before_anything_is_compiled(mistake: str) -> None:
    layers, options, message = MISTAKES[mistake]
    options = dict(options)
    transformer = {"num_hidden_layers": sum(layers), **options.pop("transformer", {})}
    training = {"gradient_accumulation": options.pop("accumulation", ENOUGH)}
    ipu = {"layers_per_ipu": layers, "ipus_per_replica": len(layers), **options}
    with pytest.raises(OptionError, match=message):
        make_engine(Case(mistake, transformer, training, ipu))


def test_layers_may_share_weights_where_they_lie_on_one_ipu() -> None:
    ids = {"shared_attn_ids": ("a", "a", "b", "b"), "shared_ff_ids": ("x", "x", "y", "y")}
    assert len(placed((2, 2), transformer=ids).stages) == 2
    tied = placed((2, 2), transformer={"share_input_output_emb": True}, cls_ipu_id=0)
    assert tied.parts[-1].ipu == 0 and len(tied.stages) == 3


def test_the_default_options_train_nothing_by_accident() -> None:
    with pytest.raises(OptionError, match="layers_per_ipu"):
        place(TransformerOptions(num_hidden_layers=4), IpuOptions(), TrainingOptions())


def test_the_placement_depends_on_nothing_but_the_options() -> None:
    assert placed((1, 2)) == placed((1, 2))
    assert dataclasses.replace(placed((1, 2)), parts=()) != placed((1, 2))
