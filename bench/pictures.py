"""Reading pictures: JPEG files of 640x480 pixels to batches of square crops, ours and by torchvision's pipeline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench.contest import BenchError
from bench.worker import Repetition
from data.dataset import ImageDataset
from data.images import image_extensions, load_image
from data.options import DataOptions
from data.report import DataReport
from engines.base import as_inputs
from engines.host import HostEngine
from engines.options import IpuOptions, TrainingOptions
from models.image_tokenizer import as_unit_range
from pictures import to_images

SIZE, QUALITY = (640, 480), 90
OCTAVES = 7


def make_folder(folder: Path, count: int, source: Optional[str]) -> None:
    """Write `count` JPEG files, of the pictures below `source`, or of noise with a photograph's spectrum.

    Raises:
        BenchError: there are no pictures in `source`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = (
        sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in image_extensions()) if source else []
    )
    if source and not found:
        raise BenchError(f"--pictures {source}: there are none below it")
    for number in range(count):
        picture = _scaled(found[number % len(found)]) if found else to_images(_noise(number)[None])[0]
        picture.save(folder / f"{number:05d}.jpg", quality=QUALITY)


def ours(folder: str, image_size: int, batch: int, workers: int, **_: Any) -> Repetition:
    """One epoch of our dataset through the loader of our host engine."""
    options = DataOptions(input_folder=folder, dataloader_workers=workers, byteio=True)  # as host engines are given
    dataset = ImageDataset(_files(folder), options, image_size, DataReport(Path(folder) / "data_report.jsonl"))
    training = TrainingOptions(batch_size=batch, device="cpu")
    engine = HostEngine(nn.Linear(1, 1), training, IpuOptions(), workers)
    return lambda: _count(micro for batches in engine.loader(dataset, 0, 1) for micro in batches)


def theirs(folder: str, image_size: int, batch: int, workers: int, **_: Any) -> Repetition:
    """One epoch through the transforms of DALLE-pytorch's loader."""
    crop = transforms.Compose(
        [
            transforms.Lambda(lambda image: image.convert("RGB") if image.mode != "RGB" else image),
            transforms.RandomResizedCrop(image_size, scale=(0.75, 1.0), ratio=(1.0, 1.0)),
            transforms.ToTensor(),
        ]
    )
    loader = DataLoader(_Folder(_files(folder), crop), batch_size=batch, shuffle=True, num_workers=workers)
    return lambda: _count(loader)


class _Folder(Dataset):  # type: ignore[type-arg]
    def __init__(self, files: List[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.open(self.files[index]))


def _count(batches: Any) -> Dict[str, Any]:
    """Go through batches of pictures, as float32 in 0..1."""
    shapes = [as_unit_range(as_inputs(batch)[0]).shape for batch in batches]
    return {"pictures": sum(shape[0] for shape in shapes), "shape": list(shapes[0][1:])}


def _files(folder: str) -> List[Path]:
    return sorted(Path(folder).glob("*.jpg"))


def _scaled(path: Path) -> Image.Image:
    image, _ = load_image(path)
    return image.resize(SIZE, Image.Resampling.BICUBIC)


def _noise(seed: int) -> Tensor:
    """Smooth patches of all sizes, (3, H, W) in 0..1: the finer, the fainter, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(3, SIZE[1], SIZE[0])
    for octave in range(1, OCTAVES + 1):
        coarse = torch.randn(1, 3, 2**octave * 3 // 4 + 1, 2**octave + 1, generator=generator)
        total += F.interpolate(coarse, (SIZE[1], SIZE[0]), mode="bicubic", align_corners=True)[0] * 2.0**-octave
    shade = random.Random(seed).uniform(0.3, 0.7)
    grain = torch.randn(total.shape, generator=generator) * 0.02
    return (shade + 0.4 * total + grain).clamp(0, 1)
