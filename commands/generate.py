"""`generate.py`: prompts to picture files."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

import torch
from PIL import Image
from tqdm import tqdm

from args import Settings
from commands.options import GenerateOptions, PrimingOptions, RankingOptions
from drawing import Drawn, complete_prompt, draw_pictures
from models.options import SamplingOptions, TokenizerOptions
from opening import open_text_to_image
from pictures import labelled_grid, save_image, to_images
from priming import known_tokens
from processor import has_bf16_instructions
from ranking import Ranker, best, open_ranker

_GRID_CELLS = 64
_LONGEST_NAME = 100


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


class Candidate(NamedTuple):
    """A picture, and what its ranker says of it; None: nobody was asked."""

    image: Image.Image
    score: Optional[float]


def rank(caption: str, drawn: Drawn, ranker: Optional[Ranker], kept: int) -> List[Candidate]:
    """The `kept` best of the pictures, the best first; without a ranker all, as they were drawn."""
    images = to_images(drawn.pictures)
    if ranker is None:
        return [Candidate(image, None) for image in images]
    scores = ranker.scores(caption, drawn.pictures, drawn.tokens)
    return [Candidate(images[index], float(scores[index])) for index in best(scores, kept)]


def save_prompt(folder: Path, caption: str, candidates: List[Candidate]) -> None:
    """Write the pictures of one prompt, its caption, and the scores where there are any."""
    for number, candidate in enumerate(candidates):
        save_image(candidate.image, folder / f"{number}.jpg")
    (folder / "caption.txt").write_text(caption + "\n", encoding="utf-8")
    scores = [candidate.score for candidate in candidates if candidate.score is not None]
    (folder / "scores.json").unlink(missing_ok=True)  # of pictures that these have replaced
    if scores:
        (folder / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" or has_bf16_instructions()


def run(settings: Settings, prompts: List[str], kept: int) -> None:
    """Draw pictures of the prompts, and keep the `kept` best of each."""
    options, sampling, ranking = settings[GenerateOptions], settings[SamplingOptions], settings[RankingOptions]
    model, tokenizer = open_text_to_image(options.dalle_path, settings[TokenizerOptions], options.device)
    device = next(model.parameters()).device
    known = known_tokens(settings[PrimingOptions], model.image_tokenizer)
    ranker = open_ranker(ranking, model, tokenizer, device)
    Path(options.outputs_dir).mkdir(parents=True, exist_ok=True)  # what cannot be written to is found out at once
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    seeds = list(range(seed, seed + options.num_images))
    shown: List[Tuple[Image.Image, str]] = []
    with tqdm(total=len(prompts) * options.num_images, unit="picture", disable=None) as bar:
        for prompt, name in zip(prompts, name_folders(prompts)):
            with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16 and _has_bf16(device)):
                caption = complete_prompt(model, tokenizer, prompt, [seed], sampling)[0] if options.gentxt else prompt
                texts = [caption] * options.num_images
                drawn = draw_pictures(model, tokenizer, texts, seeds, sampling, options.batch_size, bar.update, known)
            candidates = rank(caption, drawn, ranker, kept)
            save_prompt(Path(options.outputs_dir) / name, caption, candidates)
            shown += [(candidate.image, caption) for candidate in candidates]
    cells = shown[:: max(-(-len(shown) // _GRID_CELLS), 1)]
    grid = Path(options.outputs_dir) / "grid.png"
    save_image(labelled_grid([image for image, _ in cells], [caption for _, caption in cells]), grid)
    print(
        f"drew {options.num_images} pictures of each of {len(prompts)} prompts with seed {seed} and wrote {len(shown)} "
        f"into {options.outputs_dir}; see {grid}"
    )
