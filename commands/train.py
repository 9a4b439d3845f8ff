"""`train.py`: the training of the transformer, assembled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from PIL import Image
from torch import nn

from args import Settings
from bpe.tokenizer import Tokenizer
from checkpoint import check_same_model, describe_text_to_image
from data.datasets import open_encoded
from data.options import DataOptions
from drawing import draw_pictures, encode_prompt
from engines import open_engine
from engines.launcher import find_launcher, resolve
from engines.options import IPU_ENGINES, IpuOptions, TrainingOptions
from engines.planning import RunPlan
from log import LogOptions
from models.dalle import Dalle
from models.image_tokenizer import TextToImage
from models.options import SamplingOptions, TokenizerOptions, TransformerOptions
from opening import describe_named, open_dalle, open_image_tokenizer, open_tokenizer
from options import plain_values
from pictures import labelled_grid, to_images
from training import Trainer, dataset_opener, open_report, open_state

_ONLY_IN_TRAINING = ("null_cond_prob", "ff_dropout", "attn_dropout", "loss_img_weight")


class DalleTask:
    """Training of the transformer; see `training.Task`.

    Args:
        model: transformer and image tokenizer.
        tokenizer: of the text.
        prompts: what to draw for the sample grid.
    """

    kind = "dalle"
    scalars: Tuple[str, ...] = ("loss", "text", "image")

    def __init__(self, model: TextToImage, tokenizer: Tokenizer, prompts: List[str]) -> None:
        self.tokenizer, self.prompts = tokenizer, prompts
        self.description = describe_text_to_image(model, plain_values(model.dalle.options), tokenizer)

    def describe(self) -> Dict[str, Any]:
        """See `training.Task`."""
        return self.description

    def before_step(self, step: int, total_steps: int) -> None:
        """See `training.Task`; nothing changes."""

    def after_step(self, step: int) -> None:
        """See `training.Task`; nothing to look after."""

    def figures(self) -> Dict[str, float]:
        """See `training.Task`; none."""
        return {}

    def sample(self, model: nn.Module) -> Image.Image:
        """The prompts, drawn with the same seeds every time."""
        assert isinstance(model, TextToImage)
        seeds = list(range(len(self.prompts)))
        drawn = draw_pictures(model, self.tokenizer, self.prompts, seeds, SamplingOptions(), len(self.prompts))
        return labelled_grid(to_images(drawn.pictures), self.prompts)


def run(settings: Settings) -> None:
    """Assemble a run and train."""
    data, ipu = settings[DataOptions], settings[IpuOptions]
    launcher = find_launcher(ipu.ipus_per_replica)
    logs = settings[LogOptions].of_process(launcher.instance)
    training = resolve(settings[TrainingOptions], launcher)
    named = settings[TokenizerOptions]
    state = open_state(logs, DalleTask.kind, lambda path, kind: open_dalle(path, named))
    if state:
        begins_anew = state["optimizer"] is None
        check_same_model(
            settings[TransformerOptions], state["transformer"], free=_ONLY_IN_TRAINING if begins_anew else ()
        )
    encoded = open_encoded(data)
    tokenizer = open_tokenizer(named, state, encoded)
    if ipu.plan or (ipu.plan_check and training.engine in IPU_ENGINES):
        shape = describe_named(named, state, encoded)
        sizes = (settings[TransformerOptions], tokenizer.vocab_size, shape, data.byteio)
        plan = RunPlan(training, ipu, *sizes, launcher.instances, loads_codes=encoded is not None)
        if ipu.plan:
            plan.show(Path(logs.output_dir), ipu.solve)
            return
        plan.check()
    image_tokenizer = open_image_tokenizer(named, state, data.generated_data, encoded)
    report = open_report(logs)
    opener = dataset_opener(data, training, logs, report)
    text_seq_len = settings[TransformerOptions].text_seq_len
    if encoded is not None:
        dataset, validation, prompts = opener.text_codes(encoded, text_seq_len)
    else:
        dataset, validation, prompts = opener.text_images(
            image_tokenizer.image_size, tokenizer, text_seq_len, image_tokenizer.channels
        )
    report.check(len(dataset) + len(report.skipped), data.max_bad_share)  # type: ignore[arg-type]
    torch.manual_seed(training.random_seed)
    dalle = Dalle(settings[TransformerOptions], tokenizer.vocab_size, image_tokenizer.num_tokens, image_tokenizer.grid)
    model = TextToImage(dalle, image_tokenizer)
    if state:  # before the task describes the model by its image tokenizer's weights
        model.load_state_dict(state["weights"])
    if logs.sample_prompts:
        prompts = [prompt.strip() for prompt in logs.sample_prompts.split("|")]
        for prompt in prompts:  # one without words is found out before training
            encode_prompt(tokenizer, prompt, dalle.text_seq_len)
    task = DalleTask(model, tokenizer, prompts)
    engine = open_engine(model, training, ipu, data.dataloader_workers, launcher, loads_codes=encoded is not None)
    Trainer(engine, task, dataset, validation, report, training, data, logs, settings.as_dict(), state).run()
