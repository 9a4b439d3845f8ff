"""The options that belong to one command."""

from __future__ import annotations

import dataclasses
from typing import Optional

from options import LARGEST_SEED, OptionError, Options, option

RANKERS = ("none", "likelihood", "clip", "open_clip")


@dataclasses.dataclass(frozen=True)
class CodebookOptions(Options):
    """How the codes are made to be used, and used crisply."""

    temperature_min: float = option(
        0.1, "temperature that annealing ends at, exponentially", minimum=1e-6, aliases=("temp_min",)
    )
    anneal_share: float = option(0.7, "share of training after which that temperature is reached", minimum=0, maximum=1)
    kl_share: float = option(
        1.0, "share of training over which kl_div_loss_weight falls to 0; 1 keeps it as it is", minimum=0, maximum=1
    )
    encoder_rest_share: float = option(
        0.3, "share of training, from its start, in which the encoder does not change", minimum=0, maximum=1
    )
    restart_codes_steps: int = option(100, "optimizer steps between restarts of dead codes (0: never)", minimum=0)


@dataclasses.dataclass(frozen=True)
class GenerateOptions(Options):
    """What to draw, and where to put it."""

    dalle_path: Optional[str] = option(
        None, "checkpoint of train.py, or the folder of its run; or one of DALLE-pytorch or Graphcore", path=True
    )
    text: Optional[str] = option(None, "prompts, separated by |")
    num_images: int = option(128, "pictures of each prompt", minimum=1)
    batch_size: int = option(4, "pictures drawn at once", minimum=1)
    outputs_dir: str = option("outputs", "folder of the pictures")
    gentxt: bool = option(False, "let the model complete each prompt before drawing it", aliases=("gentext",))
    seed: Optional[int] = option(
        None, "of the first picture; the next ones follow (none: a new one)", minimum=0, maximum=LARGEST_SEED
    )
    device: str = option("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    bf16: bool = option(
        False, "compute in bfloat16, where the machine has instructions for it: faster, and pictures differ a little"
    )


@dataclasses.dataclass(frozen=True)
class PrimingOptions(Options):
    """A picture to begin with."""

    prime: Optional[str] = option(None, "picture to begin with; its largest square in the middle is taken", path=True)
    prime_rows: Optional[int] = option(
        None, "rows of image tokens to keep of it (none: 14 of 32; with prime_mask, all)", minimum=0
    )
    prime_mask: Optional[str] = option(
        None, "picture of the same shape: what is white in it is drawn anew, what is black is kept", path=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prime_rows", "prime_mask"):
            if self.prime is None and getattr(self, name) is not None:
                raise OptionError(f"{name}={getattr(self, name)} says what to keep of a picture; name it with --prime")


@dataclasses.dataclass(frozen=True)
class RankingOptions(Options):
    """Which of the drawn pictures are kept."""

    ranker: str = option(
        "none",
        "what puts the pictures of a prompt in order, the best first: none, likelihood (the model itself), clip (of "
        "train_clip.py), open_clip (a pretrained one)",
        choices=RANKERS,
    )
    keep: Optional[int] = option(None, "pictures of each prompt to keep, the best (none: all)", minimum=1)
    clip_path: Optional[str] = option(
        None, "for clip: checkpoint of train_clip.py, or the folder of its run", path=True
    )
    open_clip_model: str = option("ViT-B-32", "for open_clip: its name of the model")
    open_clip_pretrained: str = option("laion2b_s34b_b79k", "for open_clip: its name of the weights, or their file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranker == "clip" and self.clip_path is None:
            raise OptionError(
                "ranker=clip needs clip_path; give a checkpoint of train_clip.py, or the folder of its run"
            )
        if self.ranker != "clip" and self.clip_path is not None:
            raise OptionError(
                f"clip_path={self.clip_path} has no use with ranker={self.ranker}; add --ranker clip, or leave it out"
            )
        if self.ranker == "none" and self.keep is not None:
            raise OptionError(
                f"keep={self.keep} keeps the best, and ranker=none knows no better ones; add --ranker "
                f"{', '.join(RANKERS[1:])}, or draw fewer with --num-images"
            )

    def kept(self, num_images: int) -> int:
        """How many of `num_images` pictures are kept.

        Raises:
            OptionError: more than there are.
        """
        if self.keep is not None and self.keep > num_images:
            raise OptionError(f"keep={self.keep} is more than num_images={num_images}; lower it, or draw more")
        return self.keep or num_images


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(Options):
    """What to measure."""

    dalle_path: Optional[str] = option(None, "checkpoint of train.py, or the folder of its run", path=True)
    prompts: Optional[str] = option(None, "file of prompts for scenes of the demo set, one a line", path=True)
    num_prompts: int = option(0, "how many of them, from the first (0: all)", minimum=0)
    num_samples: int = option(1024, "samples of the dataset to compute the losses on", minimum=1)
    batch_size: int = option(32, "pictures at once", minimum=1)
    outputs_dir: str = option("outputs", "folder of the labelled grid of pictures")
    seed: int = option(0, "of the first picture; the next ones follow", minimum=0, maximum=LARGEST_SEED)
    device: str = option("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))


@dataclasses.dataclass(frozen=True)
class EncodingOptions(Options):
    """What is made of each picture, what computes it and where it goes."""

    out_dir: Optional[str] = option(None, "folder of the encoded pictures; one that was begun is gone on with")
    encoded_crops: int = option(
        0, "random crops of each training picture, one for each epoch, over and over (0: the middle alone)", minimum=0
    )
    encoded_flips: bool = option(False, "the mirror image of each crop as well; training draws one of the two")
    samples_per_shard: int = option(8192, "samples of a shard; WebDataset shards become one each", minimum=1)
    batch_size: int = option(32, "pictures, crops and mirror images encoded at once", minimum=1)
    device: str = option("auto", "cpu, cuda, or auto", choices=("auto", "cpu", "cuda"))
    bf16: bool = option(False, "encode in bfloat16, on a GPU")
    fp16: bool = option(False, "encode in half precision, on a GPU")
    random_seed: int = option(
        42, "seed of the crops; training with it cuts the same", minimum=0, maximum=LARGEST_SEED, aliases=("seed",)
    )
    verify: bool = option(
        False, "check what out_dir holds and encode nothing; with the dataset, encode some pictures again"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fp16 and self.bf16:
            raise OptionError("fp16=true and bf16=true exclude each other; switch one off")
