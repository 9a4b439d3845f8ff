"""The options of the data: where samples come from and how they are prepared."""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple

from options import OptionError, Options, option


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """Where samples come from and how they are prepared."""

    input_folder: Optional[str] = option(
        None,
        "dataset: a folder of images and captions, or one in COCO's layout; with wds, shards",
        aliases=("image_text_folder", "image_folder"),
        path=True,
    )
    wds: Tuple[str, ...] = option(
        (), "read WebDataset shards: the keys of image and captions in them, such as img,cap (images only: img)"
    )
    captions_folder: Optional[str] = option(
        None,
        "folder of caption files, when they do not lie with the images; matched by relative path and stem",
        path=True,
    )
    annotations: Optional[str] = option(
        None, "COCO caption JSON; input_folder then holds the images it names", path=True
    )
    validation_folder: Optional[str] = option(
        None, "dataset for the validation loss (none: the val split of a COCO layout, or validation_share)", path=True
    )
    validation_share: float = option(
        0.0, "share of the pairs set apart for validation when there is no split of its own", minimum=0, maximum=0.5
    )
    generated_data: bool = option(False, "train on random pictures and captions, made on the host")
    random_resize_crop_lower_ratio: float = option(
        0.75,
        "least share of the picture's area that a random square crop keeps; 1 keeps it all",
        minimum=0.01,
        maximum=1,
        aliases=("resize_ratio",),
    )
    byteio: bool = option(
        False, "let images travel to IPUs as bytes, scaled to 0..1 there (to other devices they always do)"
    )
    max_bad_share: float = option(
        0.01, "share of the dataset that may be skipped as unusable before training stops", minimum=0, maximum=1
    )
    min_image_side: int = option(8, "pixels; an image with a shorter side is skipped as too small", minimum=1)
    truncate_captions: bool = option(True, "cut captions longer than text_seq_len tokens; off: refuse them")
    dataloader_workers: int = option(
        2, "processes that load samples (0: the main process)", minimum=0, aliases=("num_workers",)
    )
    shuffle_buffer: int = option(
        1000,
        "samples of shards among which the next one is drawn (1: shards are shuffled, their samples not)",
        minimum=1,
    )
    epoch_samples: Optional[int] = option(
        None, "samples of one epoch of shards (none: counted, which only local ones can be)", minimum=1
    )

    def check_paths(self) -> None:
        """See `Options`; shards may lie anywhere, and generated data needs none."""
        if not self.wds and not self.generated_data:
            super().check_paths()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.wds) > 2:
            raise OptionError(
                f"wds={','.join(self.wds)} has {len(self.wds)} keys, of two at most; give img,cap or the like, "
                "and separate alternatives by a semicolon, as in 'jpg;png,txt'"
            )
        for name in ("captions_folder", "annotations", "validation_share"):
            if self.wds and getattr(self, name):
                raise OptionError(
                    f"{name}={getattr(self, name)} is for folders, and wds={','.join(self.wds)} reads shards; leave "
                    "one out"
                    + (", or give the shards to validate with as validation_folder" if "share" in name else "")
                )
