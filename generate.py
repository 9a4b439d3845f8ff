"""Draw pictures from text: `python generate.py --dalle_path CHECKPOINT --text 'a prompt|another one'`."""

from __future__ import annotations

import dataclasses
import random
import re
from pathlib import Path
from typing import List, Optional, Tuple

import torch
from PIL import Image
from tqdm import tqdm

from args import Settings, read_settings, run_command
from bpe.tokenizer import Tokenizer, load_tokenizer
from checkpoint import CheckpointError, find_checkpoint, load_text_to_image
from drawing import complete_prompt, draw_pictures
from models.decoding import SamplingOptions
from models.image_tokenizer import TextToImage
from options import OptionError, Options, option
from pictures import labelled_grid, save_image, to_images

_GRID_CELLS = 64
_LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True)
class GenerateOptions(Options):
    """What to draw, and where to put it."""

    dalle_path: Optional[str] = option(None, "checkpoint of train.py, or the folder of its run")
    text: Optional[str] = option(None, "prompts, separated by |")
    num_images: int = option(128, "pictures of each prompt", minimum=1)
    batch_size: int = option(4, "pictures drawn at once", minimum=1)
    outputs_dir: str = option("outputs", "folder of the pictures")
    gentxt: bool = option(False, "let the model complete each prompt before drawing it", aliases=("gentext",))
    seed: Optional[int] = option(None, "of the first picture; the next ones follow (none: a new one)", minimum=0)
    bpe_path: Optional[str] = option(
        None, "text vocabulary; the checkpoint has it, this only checks that it is the same"
    )
    device: str = option("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))


GROUPS = (GenerateOptions, SamplingOptions)


def open_model(path: Optional[str], bpe_path: Optional[str], device: str) -> Tuple[TextToImage, Tokenizer]:
    """The model of a checkpoint, on the device to draw with, and its text tokenizer.

    Raises:
        OptionError: no checkpoint is named.
        CheckpointError: it cannot be read, or `bpe_path` is another vocabulary than its own.
    """
    if path is None:
        raise OptionError("dalle_path is not set; give a checkpoint of train.py, or the folder of its run")
    file, state = find_checkpoint(path, "dalle")
    model, tokenizer = load_text_to_image(state)
    if bpe_path and load_tokenizer(bpe_path).identity != tokenizer.identity:
        raise CheckpointError(f"bpe_path={bpe_path} is not the vocabulary of {file}; leave it out")
    print(f"read {file}, step {state['step']}", flush=True)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(auto if device == "auto" else device), tokenizer


def read_prompts(text: Optional[str]) -> List[str]:
    """The prompts of an option value, in order, each once.

    Raises:
        OptionError: there is none.
    """
    prompts = list(dict.fromkeys(part.strip() for part in (text or "").split("|") if part.strip()))
    if not prompts:
        raise OptionError("text holds no prompt; write what to draw, several prompts separated by |")
    return prompts


def name_folders(prompts: List[str]) -> List[str]:
    """A folder name for each prompt: its words, joined by _, different for each."""
    names: List[str] = []
    for prompt in prompts:
        name = re.sub(r"[^\w.,'-]+", "_", prompt).strip("_.")[:_LONGEST_NAME] or "prompt"
        taken = names.count(name)
        while name in names:
            taken += 1
            name = f"{name[: _LONGEST_NAME - 4]}_{taken}"
        names.append(name)
    return names


def main() -> None:
    """Assemble and draw."""
    settings: Settings = read_settings("Draw pictures from text.", GROUPS)
    options, sampling = settings[GenerateOptions], settings[SamplingOptions]
    prompts = read_prompts(options.text)
    model, tokenizer = open_model(options.dalle_path, options.bpe_path, options.device)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    folders = [Path(options.outputs_dir) / name for name in name_folders(prompts)]
    shown: List[Tuple[Image.Image, str]] = []
    with tqdm(total=len(prompts) * options.num_images, unit="picture", disable=None) as bar:
        for prompt, folder in zip(prompts, folders):
            caption = complete_prompt(model, tokenizer, prompt, [seed], sampling)[0] if options.gentxt else prompt
            seeds = list(range(seed, seed + options.num_images))
            captions = [caption] * options.num_images
            drawn = draw_pictures(model, tokenizer, captions, seeds, sampling, options.batch_size, bar.update)
            images = to_images(drawn)
            for number, image in enumerate(images):
                save_image(image, folder / f"{number}.jpg")
            (folder / "caption.txt").write_text(caption + "\n", encoding="utf-8")
            shown += [(image, caption) for image in images]
    cells = shown[:: max(-(-len(shown) // _GRID_CELLS), 1)]
    grid = Path(options.outputs_dir) / "grid.png"
    save_image(labelled_grid([image for image, _ in cells], [caption for _, caption in cells]), grid)
    print(
        f"drew {len(shown)} pictures of {len(prompts)} prompts with seed {seed} into {options.outputs_dir}; see {grid}"
    )


if __name__ == "__main__":
    run_command(main)
