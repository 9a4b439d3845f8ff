"""Training steps: ours through the host engine, theirs as DALLE-pytorch's train_dalle.py runs them.

Both clip the gradient at the norm of 0.5 that train_dalle.py clips at, and update with Adam. Every repetition is a step
on the same batch; the loss of the first one has to be equal.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor, nn

from bench.peers import make_their_vqgan, make_theirs
from bench.settings import make_codes, make_dalle, make_pictures, make_setting, make_stand_in, make_text
from bench.worker import Repetition
from engines.host import HostEngine
from engines.options import IpuOptions, TrainingOptions
from models.image_tokenizer import TextToImage
from models.vqgan import VQGan

CLIP, RATE = 0.5, 3e-4  # of train_dalle.py


def ours(
    setting: str,
    precision: str,
    device: str,
    changes: Optional[Dict[str, Any]] = None,
    options: Optional[Dict[str, Any]] = None,
    vqgan: Optional[Dict[str, Any]] = None,
    pictures: bool = False,
    steps: int = 1,
    **_: Any,
) -> Repetition:
    """Our step.

    Args:
        setting: name of the model.
        precision: fp32 or bf16.
        device: cpu or cuda.
        changes: of the setting.
        options: of training, beside these.
        vqgan: sizes of the VQGAN that belongs to the model; None: the smallest discrete VAE.
        pictures: begin at pictures, and encode them in the step.
        steps: of a repetition; a GPU is waited for after the last of them.
    """
    sizes = make_setting(setting, **(changes or {}))
    tokenizer = make_stand_in(sizes) if vqgan is None else make_our_vqgan(**vqgan)
    model = TextToImage(make_dalle(sizes), tokenizer)
    given = {"batch_size": sizes.batch, "learning_rate": RATE, "clip_grad_norm": CLIP, "device": device}
    training = TrainingOptions(**{**given, "bf16": precision == "bf16", **(options or {})})
    engine = HostEngine(model, training, IpuOptions(), workers=0)
    images = make_pictures(sizes, tokenizer.image_size) if pictures else make_codes(sizes)
    inputs = (make_text(sizes).to(device), images.to(device))
    engine.compile(inputs)
    engine.set_learning_rate(RATE)
    return _repetition(lambda: engine.step([inputs])[0], precision, steps)


def theirs(
    setting: str,
    precision: str,
    device: str,
    changes: Optional[Dict[str, Any]] = None,
    vqgan: Optional[Dict[str, Any]] = None,
    pictures: bool = False,
    steps: int = 1,
    **_: Any,
) -> Repetition:
    """Their step; arguments as for `ours`."""
    sizes = make_setting(setting, **(changes or {}))
    vae = None if vqgan is None else make_their_vqgan(**vqgan)
    model = make_theirs(sizes, vae).to(device).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    text = make_text(sizes).to(device)
    image = (make_pictures(sizes, model.vae.image_size) if pictures else make_codes(sizes)).to(device)

    def step() -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(text, image, return_loss=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return _repetition(step, precision, steps)


def our_encoding(
    setting: str, device: str, vqgan: Dict[str, Any], precision: str, changes: Optional[Dict[str, Any]] = None, **_: Any
) -> Repetition:
    """Encode the pictures of a batch, as is done once for all epochs."""
    sizes = make_setting(setting, **(changes or {}))
    tokenizer = make_our_vqgan(**vqgan).to(device, memory_format=torch.channels_last)
    pictures = make_pictures(sizes, tokenizer.image_size).to(device)

    @torch.no_grad()
    def encode() -> Dict[str, Any]:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokenizer.encode(pictures)
        return {}

    return encode


def compare(setting: str, device: str, changes: Optional[Dict[str, Any]] = None, **_: Any) -> Repetition:
    """Whether our model and theirs give the same logits and losses; one repetition is the comparison."""
    sizes = make_setting(setting, **(changes or {}))
    our_model, their_model = make_dalle(sizes).to(device).eval(), make_theirs(sizes).to(device).eval()
    text, codes = make_text(sizes).to(device), make_codes(sizes).to(device)

    @torch.no_grad()
    def run() -> Dict[str, Any]:
        their_logits = their_model(text.clone(), codes)
        text_logits, image_logits = our_model.logits(our_model.number_padding(text), codes)
        split, first = our_model.text_seq_len, our_model.text_vocab_size
        differences = [
            _largest(text_logits - their_logits[:, :split, :first]),
            _largest(image_logits - their_logits[:, split:, first:]),
        ]
        loss, their_loss = float(our_model(text, codes)[0]), float(their_model(text, codes, return_loss=True))
        return {"logits": max(differences), "loss": abs(loss - their_loss)}

    return run


def make_our_vqgan(**sizes: Any) -> VQGan:
    """Our VQGan with the weights of seed 0."""
    torch.manual_seed(0)
    return VQGan(**sizes).eval().requires_grad_(False)


def _repetition(step: Callable[[], Tensor], precision: str, steps: int) -> Repetition:
    def run() -> Dict[str, Any]:
        losses = [step() for _ in range(steps)]
        return {f"{precision} loss": float(losses[0])}

    return run


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())
