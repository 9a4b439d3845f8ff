"""`train_clip.py`: the training of CLIP, assembled."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from args import Settings
from bpe.tokenizer import Tokenizer
from checkpoint import check_same_model, describe_clip
from data.datasets import as_stored
from data.options import DataOptions
from drawing import encode_prompt
from engines import open_engine
from engines.options import IpuOptions, TrainingOptions
from log import LogOptions
from models.clip import Clip
from models.image_tokenizer import as_unit_range
from models.options import ClipOptions, TextTokenizerOptions
from opening import open_tokenizer
from options import OptionError
from pictures import labelled_grid, to_images
from training import Trainer, dataset_opener, open_report, open_state

_SAMPLES = 16


class ClipTask:
    """Training of CLIP; see `training.Task`.

    Args:
        clip: the model.
        tokenizer: of the text.
        texts: ids (m, T) of the captions that the sample grid's pictures choose from.
        pictures: those pictures, (n, C, H, W).
    """

    kind = "clip"
    scalars: Tuple[str, ...] = ("loss", "accuracy")

    def __init__(self, clip: Clip, tokenizer: Tokenizer, texts: Tensor, pictures: Tensor) -> None:
        self.clip, self.texts, self.pictures = clip, texts, pictures
        self.captions = [tokenizer.decode(text.tolist()) for text in texts]
        self.description = describe_clip(clip, tokenizer)

    def describe(self) -> Dict[str, Any]:
        """See `training.Task`."""
        return self.description

    def before_step(self, step: int, total_steps: int) -> None:
        """See `training.Task`; nothing changes."""

    def after_step(self, step: int) -> None:
        """See `training.Task`; nothing to look after."""

    def figures(self) -> Dict[str, float]:
        """The factor of the similarities, which is learnt, too."""
        return {"similarity_factor": float(self.clip.temperature.detach().exp())}

    def sample(self, model: nn.Module) -> Image.Image:
        """Each picture with the caption that goes best with it."""
        assert isinstance(model, Clip)
        device = model.temperature.device
        texts, pictures = model.encode_text(self.texts.to(device)), model.encode_images(self.pictures.to(device))
        nearest: List[int] = (pictures @ texts.t()).argmax(dim=1).tolist()
        return labelled_grid(to_images(as_unit_range(self.pictures)), [self.captions[index] for index in nearest])


def check_length(length: int, training: TrainingOptions) -> None:
    """Refuse a dataset that would be gone through several times in a global batch.

    Raises:
        OptionError: a picture would have to be told apart from itself.
    """
    if length < training.global_batch:
        raise OptionError(
            f"batch_size={training.batch_size} with {training.micro_batches} micro batches makes global batches of "
            f"{training.global_batch}, and the dataset has {length} samples, which would have to be told apart from "
            "themselves; lower batch_size or gradient_accumulation, or give more data"
        )


def whole_batches(dataset: Optional[Dataset[Any]], count: int, batch_size: int) -> Optional[Dataset[Any]]:
    """At most `count` samples, from the first on, that make whole batches: it is easier to be told apart from fewer.

    Of a dataset smaller than a batch all of them; None when there are not even two.
    """
    length = min(len(dataset), count) if dataset is not None else 0  # type: ignore[arg-type]
    if length > batch_size:
        length -= length % batch_size
    return Subset(dataset, range(length)) if dataset is not None and length > 1 else None


def pick(dataset: Dataset[Any], count: int) -> Tuple[Tensor, Tensor]:
    """Texts (n, T) and pictures (n, C, H, W) of at most `count` samples, spread evenly; of a stream, the first ones."""
    dataset = as_stored(dataset, count)
    length = len(dataset)  # type: ignore[arg-type]
    samples = [dataset[index] for index in list(range(0, length, max(length // count, 1)))[:count]]
    texts, pictures = zip(*samples)
    return torch.stack(texts), torch.stack(pictures)


def encode_prompts(tokenizer: Tokenizer, prompts: str, text_seq_len: int) -> Tensor:
    """The ids (n, T) of prompts separated by |."""
    rows = [encode_prompt(tokenizer, prompt.strip(), text_seq_len) for prompt in prompts.split("|")]
    return torch.stack([F.pad(row, (0, text_seq_len - len(row))) for row in rows])


def run(settings: Settings) -> None:
    """Assemble a run and train."""
    logs, training, data = settings[LogOptions], settings[TrainingOptions], settings[DataOptions]
    state = open_state(logs, ClipTask.kind)
    if state:
        check_same_model(settings[ClipOptions], state["clip"])
    tokenizer = open_tokenizer(settings[TextTokenizerOptions], state)
    report = open_report(logs)
    opener = dataset_opener(data, training, logs, report)
    options = settings[ClipOptions]
    dataset, held_out, _ = opener.text_images(
        options.visual_image_size, tokenizer, options.text_seq_len, options.channels
    )
    report.check(len(dataset) + len(report.skipped), data.max_bad_share)  # type: ignore[arg-type]
    check_length(len(dataset), training)  # type: ignore[arg-type]
    validation = whole_batches(held_out, logs.validation_samples, training.batch_size)
    torch.manual_seed(training.random_seed)
    clip = Clip(options, tokenizer.vocab_size)
    texts, pictures = pick(held_out or dataset, _SAMPLES)
    if logs.sample_prompts:
        texts = encode_prompts(tokenizer, logs.sample_prompts, options.text_seq_len)
    task = ClipTask(clip, tokenizer, texts, pictures)
    engine = open_engine(clip, training, IpuOptions(), data.dataloader_workers)
    Trainer(engine, task, dataset, validation, report, training, data, logs, settings.as_dict(), state).run()
