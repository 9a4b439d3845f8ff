"""The plan of a run: what its options mean for each IPU, before anything is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Tuple

import torch

from engines.options import IpuOptions, TrainingOptions
from engines.placement import place, plan_options
from ipu.fused import chunks_of
from ipu.machine import machine_named
from ipu.plan import Plan, make_plan
from ipu.planning.dalle_workload import workload_of_dalle
from ipu.planning.solve import solve
from models.build import build_image_tokenizer
from models.options import TransformerOptions
from models.patterns import Layout
from options import OptionError

_NAMES = {"bow": "Bow", "gc200": "GC200"}


class RunPlan:
    """The plan of a run of the transformer.

    Args:
        training, ipu, transformer: the options of the run.
        text_vocab_size: ids of the text tokenizer.
        image_tokenizer: what `describe_image_tokenizer` says of it.
        byteio: whether pictures travel as bytes.
        instances: processes of the run.
        loads_codes: whether pictures come as their codes.

    Raises:
        OptionError: the options contradict each other, or ask for more IPUs than any machine has.
    """

    def __init__(
        self,
        training: TrainingOptions,
        ipu: IpuOptions,
        transformer: TransformerOptions,
        text_vocab_size: int,
        image_tokenizer: Dict[str, Any],
        byteio: bool,
        instances: int = 1,
        loads_codes: bool = False,
    ) -> None:
        with torch.device("meta"):  # its shape alone
            shape = build_image_tokenizer(image_tokenizer)
        self.training, self.ipu, self.transformer = training, ipu, transformer
        self.tokenizes_images = not loads_codes
        place(transformer, ipu, training, self.tokenizes_images)  # for what it refuses
        self.options = plan_options(training, ipu, instances)
        self.machine = machine_named(_NAMES[ipu.machine], self.options.ipus)
        sizes = (transformer, text_vocab_size, shape.num_tokens, shape.grid, training.batch_size)
        number_bytes = 1 if byteio else 2 if training.fp16 else 4
        positions = Layout(transformer.text_seq_len + 1, *shape.grid).sequence_len
        chunks = chunks_of(positions, ipu.attention_chunks) if ipu.fused_attention else None
        counted = (number_bytes, ipu.embedding_serialization_factor, chunks)
        self.encoded = workload_of_dalle(*sizes, None, *counted)
        self.workload = self.encoded if loads_codes else workload_of_dalle(*sizes, image_tokenizer, *counted)
        self.plan: Plan = make_plan(self.workload, self.options, self.machine)

    def check(self) -> None:
        """Refuse a run that does not fit.

        Raises:
            OptionError: an IPU would have to hold more than it can.
        """
        if not self.plan.fits:
            raise OptionError(f"{self.plan.refusal()}\n--plan shows all of it, --no-plan-check tries nevertheless")

    def show(self, folder: Path, with_proposal: bool) -> None:
        """Print the plan, and where a better split is asked for that first; draw it into `folder`."""
        if with_proposal:
            encoded = self.encoded if self.tokenizes_images else None
            print(solve(self.workload, self.options, self.machine, encoded, accepts=self._can_be_placed).text())
        chart = folder / "plan.png"
        chart.parent.mkdir(parents=True, exist_ok=True)
        self.plan.draw(chart)
        print(f"chart: {chart}")
        print(self.plan.table())

    def _can_be_placed(self, layers_per_ipu: Tuple[int, ...]) -> bool:
        try:
            ipu = dataclasses.replace(self.ipu, layers_per_ipu=layers_per_ipu)
            place(self.transformer, ipu, self.training, self.tokenizes_images)
        except OptionError:  # such as shared weights on two IPUs
            return False
        return True
