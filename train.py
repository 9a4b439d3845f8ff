"""Train a mini DALL-E: `python train.py --config NAME`, with any option of the entry changed on the command line."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from args import Settings, read_settings, run_command
from bpe.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_json
from checkpoint import CheckpointError, check_same_model, describe_text_to_image, identity, load_vae
from data.captions import CaptionTable
from data.dataset import TextImageDataset
from data.generated import GeneratedTextImages
from data.options import DataOptions
from data.pairs import Pair, open_pairs
from data.report import DataReport
from drawing import draw_pictures
from engines import open_engine
from engines.options import IpuOptions, TrainingOptions
from log import LogOptions, set_up_logging
from models.build import build_image_tokenizer
from models.dalle import Dalle
from models.decoding import SamplingOptions
from models.image_tokenizer import ImageTokenizer, TextToImage
from models.options import TokenizerOptions, TransformerOptions
from options import OptionError, plain_values
from pictures import labelled_grid, to_images
from training import Trainer, open_report, open_state

GROUPS = (TransformerOptions, TokenizerOptions, DataOptions, TrainingOptions, IpuOptions, LogOptions)
_SAMPLES = 8


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
        pictures = draw_pictures(model, self.tokenizer, self.prompts, seeds, SamplingOptions(), len(self.prompts))
        return labelled_grid(to_images(pictures), self.prompts)


def open_image_tokenizer(options: TokenizerOptions, state: Optional[Dict[str, Any]]) -> ImageTokenizer:
    """The image tokenizer that the options name; for a resumed run, the run's own.

    Raises:
        OptionError: none is named.
        CheckpointError: it is not the one that the run began with.
    """
    if options.vqgan_model_path or options.vqgan_config_path:
        raise OptionError("vqgan_model_path: VQGANs cannot be read by this version; give --vae_path of a DiscreteVAE")
    named = load_vae(options.vae_path) if options.vae_path else None
    if state is None:
        if named is None:
            raise OptionError(
                "vae_path is not set: pictures become tokens through a trained image tokenizer. Train one with "
                "`python train_vae.py --input-folder PICTURES --image-size 256 --num-layers 4 --num-tokens 1024` "
                "(16x16 codes a picture, as the L16 configurations have) and give its checkpoint with --vae_path"
            )
        return named
    if named is not None and identity(named) != state["image_tokenizer_identity"]:
        raise CheckpointError(
            f"vae_path={options.vae_path} is not the image tokenizer this run began with; leave --vae_path out to use "
            "the one in the checkpoint"
        )
    return build_image_tokenizer(state["image_tokenizer"])  # its weights come with the checkpoint


def open_tokenizer(options: TokenizerOptions, state: Optional[Dict[str, Any]]) -> Tokenizer:
    """The text tokenizer that the options name; for a resumed run, the run's own, which the options must agree with."""
    if state is None:
        return load_tokenizer(options.bpe_path)
    tokenizer = tokenizer_from_json(state["tokenizer"])
    if options.bpe_path and load_tokenizer(options.bpe_path).identity != tokenizer.identity:
        raise CheckpointError(f"bpe_path={options.bpe_path} is not the vocabulary this run began with; leave it out")
    return tokenizer


def open_datasets(
    settings: Settings, tokenizer: Tokenizer, image_size: int, report: DataReport
) -> Tuple[Dataset[Any], Optional[Dataset[Any]], List[str]]:
    """The samples to train on and to validate with, and some captions to draw."""
    data, training, text_len = (
        settings[DataOptions],
        settings[TrainingOptions],
        settings[TransformerOptions].text_seq_len,
    )
    if data.generated_data:
        length = 16 * training.global_batch
        generated = GeneratedTextImages(
            length, text_len, tokenizer.vocab_size, image_size, data.byteio, training.random_seed
        )
        return generated, None, [tokenizer.decode(generated[0][0].tolist())]

    def dataset(pairs: List[Pair], augment: bool) -> TextImageDataset:
        captions = CaptionTable(pairs, tokenizer, text_len, report, data.truncate_captions)
        return TextImageDataset(pairs, captions, data, image_size, report, training.random_seed, augment)

    train, held_out = open_pairs(data, "train", report), open_pairs(data, "validation", report)
    shown = held_out or train
    prompts = [pair.captions[0] for pair in shown[:: max(len(shown) // _SAMPLES, 1)][:_SAMPLES]]
    return dataset(train, True), dataset(held_out, False) if held_out else None, prompts


def main() -> None:
    """Assemble a run and train."""
    set_up_logging()
    settings = read_settings("Train a mini DALL-E on pictures with captions.", GROUPS, default_config="unit_test")
    logs, training, data = settings[LogOptions], settings[TrainingOptions], settings[DataOptions]
    state = open_state(logs, DalleTask.kind)
    if state:
        check_same_model(settings[TransformerOptions], state["transformer"])
    image_tokenizer = open_image_tokenizer(settings[TokenizerOptions], state)
    tokenizer = open_tokenizer(settings[TokenizerOptions], state)
    report = open_report(logs)
    dataset, validation, prompts = open_datasets(settings, tokenizer, image_tokenizer.image_size, report)
    report.check(len(dataset) + len(report.skipped), data.max_bad_share)  # type: ignore[arg-type]
    torch.manual_seed(training.random_seed)
    dalle = Dalle(settings[TransformerOptions], tokenizer.vocab_size, image_tokenizer.num_tokens, image_tokenizer.grid)
    model = TextToImage(dalle, image_tokenizer)
    if state:  # before the task describes the model by its image tokenizer's weights
        model.load_state_dict(state["weights"])
    if logs.sample_prompts:
        prompts = [prompt.strip() for prompt in logs.sample_prompts.split("|")]
    task = DalleTask(model, tokenizer, prompts)
    engine = open_engine(model, training, settings[IpuOptions], data.dataloader_workers)
    Trainer(engine, task, dataset, validation, report, training, data, logs, settings.as_dict(), state).run()


if __name__ == "__main__":
    run_command(main)
