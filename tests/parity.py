"""One driver for all engines: a few optimizer steps of a tiny transformer, and the same steps in plain PyTorch."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines import open_engine
from engines.ipu import IpuEngine
from engines.options import IpuOptions, TrainingOptions
from models.dalle import Dalle
from models.image_tokenizer import ImageTokenizer, TextToImage
from models.options import TransformerOptions

STEPS = 10
WORDS, CODES, GRID = 18, 16, 4
TRANSFORMER: Dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "dim_head": 8,
    "text_seq_len": 6,  # with WORDS a multiple of every serialisation factor
}
TRAINING: Dict[str, Any] = {"engine": "ipu-sim", "batch_size": 2, "learning_rate": 3e-3}


class GreyTokenizer(ImageTokenizer):
    """Turns grey pictures into the brightness of their patches: exactly, in every precision."""

    kind = "grey"
    channels = 1

    def __init__(self, num_tokens: int = CODES, side: int = GRID) -> None:
        super().__init__()
        self.num_tokens, self.grid, self.image_size = num_tokens, (side, side), 2 * side
        self.arguments = {"num_tokens": num_tokens, "side": side}

    def encode(self, images: Tensor) -> Tensor:
        return (F.avg_pool2d(images, 2) * self.num_tokens).floor().long().clamp(0, self.num_tokens - 1).flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        values = (tokens.float() + 0.5) / self.num_tokens  # of few bits, so that half precision holds them
        return values.unflatten(1, self.grid)[:, None].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


@dataclasses.dataclass(frozen=True)
class Case:
    """Options of a run that differ from the tiny ones above, and from each component's defaults."""

    name: str
    transformer: Dict[str, Any] = dataclasses.field(default_factory=dict)
    training: Dict[str, Any] = dataclasses.field(default_factory=dict)
    ipu: Dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def transformer_options(self) -> TransformerOptions:
        return TransformerOptions(**{**TRANSFORMER, **self.transformer})

    @property
    def ipu_options(self) -> IpuOptions:
        layers = self.ipu.get("layers_per_ipu", (self.transformer_options.num_hidden_layers,))
        own = {"layers_per_ipu": layers, "ipus_per_replica": len(layers), "async_dataloader": False}
        return IpuOptions(**{**own, **self.ipu})

    @property
    def training_options(self) -> TrainingOptions:
        return TrainingOptions(**{**TRAINING, **self.training})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What training came to.

    Args:
        losses: (calls, 3): the total, of text, of pictures.
        gradients: of the first step, as Adam's first moment holds them.
        weights: after the last step.
        way: that each of them went.
    """

    losses: Tensor
    gradients: Dict[str, Tensor]
    weights: Dict[str, Tensor]
    way: Dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far an engine may be from plain PyTorch.

    Args:
        loss: of every call, absolute.
        gradient: of each tensor, as a share of the gradient's norm.
        weight: after all steps, absolute.
        way: that all weights together went in these steps, as a share of its length.
    """

    loss: float
    gradient: float
    weight: float
    way: float


def make_model(case: Case) -> TextToImage:
    """The case's model, equal each time."""
    torch.manual_seed(7)
    image_tokenizer = GreyTokenizer()
    return TextToImage(Dalle(case.transformer_options, WORDS, CODES, image_tokenizer.grid), image_tokenizer)


def make_samples(count: int) -> Tuple[Tensor, Tensor]:
    """The first `count` captions (count, T), of different lengths, and pictures (count, 1, Y, X)."""
    words = TRANSFORMER["text_seq_len"]
    generator = torch.Generator().manual_seed(11)
    # row by row, so that the first samples are the same ones for every count
    numbers = torch.randint(0, 2**30, (count, words + 1 + GRID * GRID), generator=generator)
    lengths = numbers[:, :1] % words + 1
    text = (numbers[:, 1 : words + 1] % (WORDS - 1) + 1).masked_fill(torch.arange(words) >= lengths, 0)
    return text, GreyTokenizer().decode(numbers[:, words + 1 :] % CODES)


def make_engine(case: Case, engine: str = "ipu-sim", model: Optional[TextToImage] = None) -> IpuEngine:
    """An engine around the case's model."""
    training = dataclasses.replace(case.training_options, engine=engine)
    made = open_engine(model or make_model(case), training, case.ipu_options, workers=0)
    assert isinstance(made, IpuEngine)
    return made


def calls_of(case: Case, updates: int = STEPS) -> List[Tuple[Tensor, Tensor]]:
    """The whole inputs of each call of the engine, in order; other samples each time."""
    training = case.training_options
    rows = training.global_batch * training.device_iterations
    calls = -(-updates // training.device_iterations)
    text, images = make_samples(calls * rows)
    return list(zip(text.split(rows), images.split(rows)))


def train_on_engine(case: Case, engine: str = "ipu-sim", updates: int = STEPS) -> Outcome:
    """Train the case on an engine."""
    made = make_engine(case, engine)
    calls = calls_of(case, updates)
    batch_size = case.training_options.batch_size
    made.compile(tuple(tensor[:batch_size] for tensor in calls[0]))
    losses, gradients = [], {}
    for inputs in calls:
        losses.append(made.step([inputs]))
        if len(losses) == 1:
            gradients = first_moments(made.state_dict()["optimizer"])
    weights = {name: tensor.clone() for name, tensor in made.state_dict()["weights"].items()}
    made.close()
    return Outcome(torch.stack(losses), gradients, weights, _way(case, weights))


def train_plainly(case: Case, updates: int = STEPS) -> Outcome:
    """Train the case's plain, unsplit model in single precision: each global batch is one batch."""
    options, model = case.training_options, make_model(case).train()
    learning = list(model.dalle.named_parameters(prefix="dalle"))
    groups = [
        {"params": [p for _, p in learning if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for _, p in learning if p.dim() <= 1], "weight_decay": 0.0},
    ]
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[options.optimizer]
    optimizer = kind(groups, lr=options.learning_rate, betas=(0.9, options.adam_beta2), eps=1e-6)
    losses, gradients = [], {}
    for inputs in calls_of(case, updates):
        scalars = []
        for text, images in zip(*(tensor.split(options.global_batch) for tensor in inputs)):
            values = model(text, images)
            optimizer.zero_grad()
            values[0].backward()
            if options.clip_grad_norm:
                nn.utils.clip_grad_norm_([p for _, p in learning], options.clip_grad_norm)
            optimizer.step()
            scalars.append(torch.stack(values).detach())
        losses.append(torch.stack(scalars).mean(dim=0))
        if len(losses) == 1:
            gradients = first_moments({name: optimizer.state[p] for name, p in learning})
    weights = copy.deepcopy(model.state_dict())
    return Outcome(torch.stack(losses), gradients, weights, _way(case, weights))


def first_moments(state: Dict[str, Dict[str, Tensor]]) -> Dict[str, Tensor]:
    """Adam's first moments by name; after one step they are the gradients, but for a factor."""
    return {name: values["exp_avg"].clone() for name, values in state.items()}


def differences(one: Outcome, other: Outcome) -> Tolerance:
    """The largest distances of two outcomes; gradients per weight, as a share of the second one's.

    Raises:
        AssertionError: they are not of the same weights, or nothing was learned.
    """
    assert list(one.weights) == list(other.weights), "the weights have other names"
    assert set(one.gradients) == set(other.gradients), "other weights learn"
    assert one.losses.shape == other.losses.shape
    loss = (one.losses - other.losses).abs().max()
    weight = max((one.weights[name] - other.weights[name]).abs().max() for name in other.weights)
    shares = [_relative(one.gradients[name], gradient) for name, gradient in other.gradients.items()]
    return Tolerance(float(loss), max(shares), float(weight), _relative(_joined(one.way), _joined(other.way)))


def assert_within(one: Outcome, other: Outcome, tolerance: Tolerance) -> None:
    """Hold two outcomes to a tolerance."""
    found = differences(one, other)
    for name, value in dataclasses.asdict(found).items():
        assert value <= getattr(tolerance, name), f"{name}: {value:.3g} apart, {found}"


def _way(case: Case, weights: Dict[str, Tensor]) -> Dict[str, Tensor]:
    start = make_model(case).state_dict()
    return {name: weight - start[name] for name, weight in weights.items() if weight.is_floating_point()}


def _joined(tensors: Dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def _relative(value: Tensor, expected: Tensor) -> float:
    # the floor is for what is zero but for the last bits: the gradients of the layers are of some 1e-4
    return float((value - expected).norm() / expected.norm().clamp(min=1e-6 * expected.numel() ** 0.5))
