"""`train_vae.py`: the training of a discrete VAE, assembled."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from args import Settings
from checkpoint import check_same_model, describe_vae
from commands.options import CodebookOptions
from data.datasets import as_stored
from data.options import DataOptions
from engines import open_engine
from engines.options import IpuOptions, TrainingOptions
from log import LogOptions
from models.build import build_image_tokenizer
from models.codebook import codebook_perplexity, restart_dead_codes, start_codes
from models.image_tokenizer import as_unit_range
from models.options import DiscreteVAEOptions
from models.vae import DiscreteVAE
from pictures import labelled_grid, to_images
from training import Trainer, dataset_opener, open_report, open_state

_PICTURES = 256  # to begin codes from
_SAMPLES = 8


class VaeTask:
    """Training of a discrete VAE; see `training.Task`.

    Args:
        vae: the model.
        options: its options, whose temperature and weight of divergence training starts from.
        codebook: how the two change.
        pictures: some of the training set (n, C, H, W), for dead codes to begin anew from.
        samples: pictures (n, C, H, W) to rebuild for the sample grid.
    """

    kind = "vae"
    scalars: Tuple[str, ...] = ("loss", "reconstruction", "divergence")

    def __init__(
        self,
        vae: DiscreteVAE,
        options: DiscreteVAEOptions,
        codebook: CodebookOptions,
        pictures: Tensor,
        samples: Tensor,
    ) -> None:
        self.vae, self.options, self.codebook = vae, options, codebook
        self.pictures, self.samples = pictures, samples

    def describe(self) -> Dict[str, Any]:
        """See `training.Task`."""
        return describe_vae(self.vae)

    def before_step(self, step: int, total_steps: int) -> None:
        """Let the encoder rest or learn; anneal temperature and weight of the divergence."""
        self.vae.encoder_rests = step < self.codebook.encoder_rest_share * total_steps
        start, end, share = self.options.temperature, self.codebook.temperature_min, self.codebook.anneal_share
        progress = min(step / (share * total_steps), 1.0) if share else 1.0
        self.vae.temperature = max(start * (end / start) ** progress, end) if end < start else start
        if self.codebook.kl_share < 1:
            left = max(1 - step / (self.codebook.kl_share * total_steps), 0.0) if self.codebook.kl_share else 0.0
            self.vae.kl_div_loss_weight = self.options.kl_div_loss_weight * left

    def after_step(self, step: int) -> None:
        """Restart dead codes."""
        every = self.codebook.restart_codes_steps
        if every and step % every == 0:
            restart_dead_codes(self.vae, self.pictures)

    def figures(self) -> Dict[str, float]:
        """Temperature, perplexity of the codes' usage, and the share of codes that are used at all."""
        used = (self.vae.usage > 0.1 / self.vae.num_tokens).float().mean()
        return {
            "temperature": self.vae.temperature,
            "perplexity": float(codebook_perplexity(self.vae.usage)),
            "codes_used": float(used),
        }

    def sample(self, model: nn.Module) -> Image.Image:
        """Pictures above, what is left of them after encoding and decoding below."""
        pictures = self.samples.to(self.vae.codebook.weight.device)
        rebuilt = self.vae.decode(self.vae.encode(pictures))
        labels = ["picture"] * len(pictures) + ["rebuilt"] * len(pictures)
        return labelled_grid(to_images(as_unit_range(pictures)) + to_images(rebuilt), labels, columns=len(pictures))


def pick(dataset: Dataset[Any], count: int) -> Tensor:
    """At most `count` pictures (n, C, H, W), spread evenly over the dataset; of a stream, the first ones."""
    dataset = as_stored(dataset, count)
    step = max(len(dataset) // count, 1)  # type: ignore[arg-type]
    return torch.stack([dataset[index] for index in range(0, len(dataset), step)][:count])  # type: ignore[arg-type]


def measure_moments(pictures: Tensor) -> Tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of each channel of pictures (n, C, H, W), on the scale 0..1.

    The networks see pictures normalised by these: one scale of layers and rates then fits every dataset.
    """
    shares = as_unit_range(pictures)
    channels = shares.transpose(0, 1).flatten(1)
    middles = channels.median(dim=1).values
    deviations = (channels - middles[:, None]).square().mean(dim=1).sqrt()
    return middles.tolist(), deviations.clamp(min=1e-3).tolist()


def make_vae(settings: Settings, pictures: Tensor, state: Optional[Dict[str, Any]]) -> DiscreteVAE:
    """A fresh VAE that begins from the pictures, or the one of a checkpoint."""
    if state:
        vae = build_image_tokenizer(state["image_tokenizer"])
        assert isinstance(vae, DiscreteVAE)
        return vae
    arguments = dataclasses.asdict(settings[DiscreteVAEOptions])
    vae = DiscreteVAE(normalization=measure_moments(pictures), **arguments)
    start_codes(vae, pictures)
    return vae


def run(settings: Settings) -> None:
    """Assemble a run and train."""
    logs, training, data = settings[LogOptions], settings[TrainingOptions], settings[DataOptions]
    state = open_state(logs, VaeTask.kind)
    if state:
        check_same_model(settings[DiscreteVAEOptions], state["image_tokenizer"]["arguments"])
    report = open_report(logs)
    opener = dataset_opener(data, training, logs, report)
    options = settings[DiscreteVAEOptions]
    dataset, validation, _ = opener.pictures(options.image_size, options.channels)
    report.check(len(dataset) + len(report.skipped), data.max_bad_share)  # type: ignore[arg-type]
    torch.manual_seed(training.random_seed)
    pictures = pick(dataset, _PICTURES)
    vae = make_vae(settings, pictures, state)
    samples = pick(validation or dataset, _SAMPLES)
    task = VaeTask(vae, options, settings[CodebookOptions], pictures, samples)
    engine = open_engine(vae, training, IpuOptions(), data.dataloader_workers)
    Trainer(
        engine, task, dataset, validation, report, training, data, logs, settings.as_dict(), state
    ).run()  # fmt: skip
