"""`evaluate.py`: pictures of scenes judged by their pixels, and validation losses."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Counter, List, Optional, Tuple, Union

import torch
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader, Subset

from args import Settings
from bpe.tokenizer import Tokenizer
from checkpoint import identity
from commands.options import EvaluateOptions
from data.caption_table import CaptionTable
from data.dataset import PictureReader, SampleDataset, TextImageDataset
from data.datasets import open_encoded
from data.encoded import EncodedDataset
from data.judge import judge
from data.options import DataOptions
from data.pairs import open_pairs
from data.report import DataReport
from data.scenes import Scene, parse_caption
from data.shard_samples import CaptionReader, SampleReader
from data.shards import open_validation_shards
from drawing import draw_pictures
from metrics import Mean
from models.image_tokenizer import TextToImage
from models.options import SamplingOptions, TokenizerOptions
from opening import open_text_to_image
from options import UserError
from pictures import labelled_grid, save_image, to_images

_FRAME = {True: (60, 160, 90), False: (210, 50, 50)}


def open_dataset(
    model: TextToImage, tokenizer: Tokenizer, data: DataOptions, options: EvaluateOptions, report: DataReport
) -> Union[SampleDataset, EncodedDataset]:
    """The validation split of a dataset, or all of it where there is no split; shards and encoded pictures likewise."""
    size, text_len = model.image_tokenizer.image_size, model.dalle.text_seq_len
    encoded = open_encoded(data)
    if encoded is not None:
        encoded.check_image_tokenizer(identity(model.image_tokenizer), "the checkpoint")
        encoded.check_tokenizer(tokenizer.identity, "the checkpoint")
        how = (text_len, report, options.seed, data.truncate_captions)
        codes = encoded.dataset("validation", *how) or encoded.dataset("train", *how)
        assert codes is not None, "nothing is encoded without pictures to train on"
        return codes
    if data.wds:
        texts = CaptionReader(tokenizer, text_len, report, data.truncate_captions)
        named = dataclasses.replace(data, validation_folder=data.validation_folder or data.input_folder)
        reader = SampleReader(PictureReader(data, size, report, augment=False), texts)
        shards = open_validation_shards(named, reader, report, None, options.num_samples)
        assert shards is not None, "the command asks for a folder before it computes losses"
        return shards
    pairs = open_pairs(data, "validation", report) or open_pairs(data, "train", report)
    captions = CaptionTable(pairs, tokenizer, text_len, report, data.truncate_captions)
    return TextImageDataset(pairs, captions, data, size, report, options.seed, augment=False)


def compute_losses(model: TextToImage, tokenizer: Tokenizer, data: DataOptions, options: EvaluateOptions) -> str:
    """The mean losses over the validation split of a dataset, or over all of it where there is no split; as a line."""
    report = DataReport()
    dataset = open_dataset(model, tokenizer, data, options, report)
    chosen = Subset(dataset, range(min(len(dataset), options.num_samples)))
    mean, device = Mean(), next(model.parameters()).device
    for text, images in DataLoader(chosen, options.batch_size, num_workers=data.dataloader_workers):
        with torch.no_grad():
            mean.add(torch.stack(model(text.to(device), images.to(device))).float(), weight=len(text))
    report.check(len(dataset) + len(report.skipped), data.max_bad_share)
    loss, text_loss, image_loss = mean.value().tolist()
    return f"validation on {len(chosen)} samples: loss {loss:.4f} text {text_loss:.4f} image {image_loss:.4f}"


def read_scenes(path: str, count: int) -> List[Tuple[str, Scene]]:
    """The first `count` prompts of a file (0: all) with the scenes they describe.

    Raises:
        UserError: the file cannot be read, holds no prompt, or one that describes no scene of the demo set.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
        scenes = [(prompt, parse_caption(prompt)) for prompt in prompts[: count or None]]
    except (OSError, ValueError) as error:
        raise UserError(f"prompts={path}: {error}") from None
    if not scenes:
        raise UserError(f"prompts={path} holds no prompt; `python -m data.demo` writes held_out_prompts.txt")
    return scenes


def describe_mistakes(wanted: List[Scene], seen: List[Optional[Scene]]) -> str:
    """How often each part of the scenes was drawn right, as a line."""
    right: Counter[str] = collections.Counter()
    for want, saw in zip(wanted, seen):
        right.update(part for part in Scene._fields if saw is not None and getattr(saw, part) == getattr(want, part))
    return "drawn right by part: " + ", ".join(f"{part} {right[part]} of {len(wanted)}" for part in Scene._fields)


def framed(image: Image.Image, right: bool) -> Image.Image:
    """The picture in a thin frame: green when it is right, red when it is not."""
    image = image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)
    ImageDraw.Draw(image).rectangle((0, 0, image.width - 1, image.height - 1), outline=_FRAME[right], width=2)
    return image


def judge_prompts(
    model: TextToImage, tokenizer: Tokenizer, options: EvaluateOptions, sampling: SamplingOptions
) -> List[str]:
    """Draw every prompt, judge the pictures, write the labelled grid; the findings as lines."""
    assert options.prompts is not None
    scenes = read_scenes(options.prompts, options.num_prompts)
    prompts, wanted = [prompt for prompt, _ in scenes], [scene for _, scene in scenes]
    seeds = list(range(options.seed, options.seed + len(prompts)))
    drawn = draw_pictures(model, tokenizer, prompts, seeds, sampling, options.batch_size)
    images = to_images(drawn.pictures)
    seen = [judge(image) for image in images]
    verdicts = [want == saw for want, saw in zip(wanted, seen)]
    grid = Path(options.outputs_dir) / "held_out.png"
    save_image(labelled_grid([framed(i, v) for i, v in zip(images, verdicts)], prompts, columns=12), grid)
    right, count = sum(verdicts), len(verdicts)
    return [
        f"pictures in {grid}",
        describe_mistakes(wanted, seen),
        f"held-out prompts drawn right: {right} of {count} ({100 * right / count:.1f} %)",
    ]


def run(settings: Settings) -> None:
    """Measure what the options ask for."""
    options, data = settings[EvaluateOptions], settings[DataOptions]
    model, tokenizer = open_text_to_image(options.dalle_path, settings[TokenizerOptions], options.device)
    if data.input_folder or data.validation_folder:
        print(compute_losses(model, tokenizer, data, options), flush=True)
    if options.prompts:
        print("\n".join(judge_prompts(model, tokenizer, options, settings[SamplingOptions])), flush=True)
