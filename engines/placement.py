"""Where each part of the model runs: one checked table from module to pipeline stage.

IPUs read it as blocks, a pipeline of GPUs as slices of the model.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

from engines.options import IpuOptions, TrainingOptions
from ipu.placement import PlanOptions, check_depth, homes
from ipu.planning.workload import EMBEDDING, HEAD, LAYER, TOKENIZER
from models.options import TransformerOptions
from options import OptionError, plain_values

# names of the blocks that are no layers, and their modules
_BLOCKS = {
    TOKENIZER: ("image_tokenizer", "image_tokenizer"),
    EMBEDDING: ("embedding", "dalle embeddings"),
    HEAD: ("head", "dalle.norm, dalle.to_logits"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """Consecutive modules that stay together.

    Args:
        name: of the block.
        modules: their names in the model.
        ipu: of the replica, from 0.
        stage: of the pipeline, from 0.
        first_layer, layers: of the transformer, if any are among them.
    """

    name: str
    modules: str
    ipu: int
    stage: int
    first_layer: int = 0
    layers: int = 0


@dataclasses.dataclass(frozen=True)
class Placement:
    """The parts of the model in the order in which they run."""

    parts: Tuple[Part, ...]

    @property
    def stages(self) -> Tuple[Tuple[Part, ...], ...]:
        """The parts of each stage."""
        count = self.parts[-1].stage + 1
        return tuple(tuple(part for part in self.parts if part.stage == stage) for stage in range(count))

    def part(self, name: str) -> Optional[Part]:
        """The part of this name."""
        return next((part for part in self.parts if part.name == name), None)

    def table(self) -> str:
        """The placement as text, a line a part."""
        rows = [("stage", "IPU", "block", "modules")]
        rows += [(str(part.stage), str(part.ipu), part.name, part.modules) for part in self.parts]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip() for row in rows
        )


def place(
    transformer: TransformerOptions, ipu: IpuOptions, training: TrainingOptions, tokenizes_images: bool = True
) -> Placement:
    """The placement that the options ask for.

    Args:
        transformer: its layers, and what they share.
        ipu: where they are to go.
        training: how many micro batches fill the pipeline.
        tokenizes_images: whether pictures are turned into codes on IPU 0; off when codes are what is loaded.

    Raises:
        OptionError: the options contradict each other, or ask for what no pipeline can do.
    """
    roles = [EMBEDDING, *[LAYER] * transformer.num_hidden_layers, HEAD]
    if tokenizes_images:
        roles.insert(0, TOKENIZER)
    parts: List[Part] = []
    for role, home in zip(roles, homes(roles, plan_options(training, ipu))):
        stage = parts[-1].stage + (parts[-1].ipu != home) if parts else 0
        parts = _with_layer(parts, home, stage) if role == LAYER else [*parts, Part(*_BLOCKS[role], home, stage)]
    placement = Placement(tuple(parts))
    _check_sharing(transformer, placement)
    check_depth(len(placement.stages), training.gradient_accumulation)
    return placement


def plan_options(training: TrainingOptions, ipu: IpuOptions, instances: int = 1) -> PlanOptions:
    """What placement and plan take of the options; `instances` is the number of processes of the run."""
    values = {**plain_values(training), **plain_values(ipu), "instances": instances}
    taken: Dict[str, Any] = {field.name: values[field.name] for field in dataclasses.fields(PlanOptions)}
    taken.update({name: tuple(value) for name, value in taken.items() if isinstance(value, list)})
    return PlanOptions(**taken)


def _with_layer(parts: List[Part], home: int, stage: int) -> List[Part]:
    """The parts with one layer more, which joins those before it on its IPU."""
    number = sum(part.layers for part in parts)
    last = parts[-1]
    if last.layers and last.ipu == home:
        modules = f"dalle.layers.{last.first_layer}-{number}"
        return [*parts[:-1], dataclasses.replace(last, layers=last.layers + 1, modules=modules)]
    return [*parts, Part(f"layers_{home}", f"dalle.layers.{number}", home, stage, number, 1)]


def _check_sharing(transformer: TransformerOptions, placement: Placement) -> None:
    """Weights lie in the memory of one IPU, so all that share them have to be there.

    Raises:
        OptionError: they are not.
    """
    embedding, head = placement.part("embedding"), placement.part("head")
    assert embedding is not None and head is not None
    if transformer.share_input_output_emb and embedding.ipu != head.ipu:
        raise OptionError(
            f"share_input_output_emb=true ties the embeddings, on IPU {embedding.ipu}, to the output projection, on "
            f"IPU {head.ipu}; set cls_ipu_id={embedding.ipu}, or leave the tie out"
        )
    homes = [part.ipu for part in placement.parts for _ in range(part.layers)]
    for option in ("shared_attn_ids", "shared_ff_ids"):
        _check_shared_layers(option, getattr(transformer, option), homes)


def _check_shared_layers(option: str, ids: Optional[Sequence[str]], homes: Sequence[int]) -> None:
    seen: Dict[str, int] = {}
    for layer, home in enumerate(homes if ids else ()):
        assert ids is not None
        name = ids[layer % len(ids)]
        if seen.setdefault(name, home) != home:
            raise OptionError(
                f"{option} gives layer {layer + 1}, on IPU {home}, the id {name} of a layer on IPU {seen[name]}; "
                "weights can be shared within one IPU only: change layers_per_ipu or the ids"
            )
