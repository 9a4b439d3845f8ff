"""Drawing image tokens: ours with and without caches, theirs as shipped and repaired (`bench.peers`)."""

from __future__ import annotations

from typing import Any, Dict, Optional

import torch
from torch import Tensor

from bench.peers import make_their_vqgan, make_theirs, repair, steps_as_shipped, their_tokens
from bench.settings import make_dalle, make_setting, make_text
from bench.training import make_our_vqgan
from bench.worker import Repetition
from large_pages import use_large_pages
from models.decoding import draw_image_tokens, uniform_numbers
from models.options import SamplingOptions

TOP_K = 0.9  # of either program's command


def ours(
    setting: str,
    device: str,
    batch: int,
    greedy: bool,
    use_cache: Optional[bool] = None,
    precision: str = "fp32",
    cond_scale: float = 1.0,
    changes: Optional[Dict[str, Any]] = None,
    vqgan: Optional[Dict[str, Any]] = None,
    **_: Any,
) -> Repetition:
    """Draw a batch.

    Args:
        setting: name of the model.
        device: cpu or cuda.
        batch: pictures.
        greedy: always the likeliest token.
        use_cache: None: as the program would.
        precision: fp32 or bf16.
        cond_scale: guidance.
        changes: of the setting.
        vqgan: sizes of the VQGAN that decodes what was drawn; None: the tokens are enough.
    """
    sizes = make_setting(setting, **(changes or {}))
    dalle = make_dalle(sizes).to(device).eval()
    if device == "cpu":
        use_large_pages()  # as `drawing.py` does
    decoder = None if vqgan is None else make_our_vqgan(**vqgan).to(device)
    text = make_text(sizes, batch).to(device)
    uniform = uniform_numbers(list(range(batch)), sizes.grid**2)
    sampling = SamplingOptions(temperature=0 if greedy else 1, top_k=TOP_K, cond_scale=cond_scale)

    @torch.no_grad()
    def draw() -> Dict[str, Any]:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            tokens = draw_image_tokens(dalle, text, uniform, sampling, use_cache=use_cache)
            if decoder is not None:
                decoder.decode(tokens)
        return _drawn(tokens, greedy)

    return draw


def theirs(
    setting: str,
    device: str,
    batch: int,
    greedy: bool,
    repaired: bool,
    masked: bool = False,
    precision: str = "fp32",
    cond_scale: float = 1.0,
    steps: Optional[int] = None,
    changes: Optional[Dict[str, Any]] = None,
    vqgan: Optional[Dict[str, Any]] = None,
    **_: Any,
) -> Repetition:
    """Draw a batch with `generate_images`; arguments as for `ours`, and

    Args:
        repaired: its cache, switched on, and its guidance.
        masked: axial layers as masked dense ones, which can be cached.
        steps: time so many tokens only, evenly spread over the picture, and take all to cost their mean.
    """
    sizes = make_setting(setting, **(changes or {}))
    vae = None if vqgan is None else make_their_vqgan(**vqgan)
    model = make_theirs(sizes, vae, masked=masked).to(device).eval()
    if repaired:
        repair(model)
    text = make_text(sizes, batch).to(device)
    sampling = {"filter_thres": 1.0 if greedy else TOP_K, "cond_scale": cond_scale, "use_cache": repaired}

    @torch.no_grad()
    def draw() -> Dict[str, Any]:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            if vae is not None:
                model.generate_images(text.clone(), **sampling)
                return {}
            drawn = their_tokens(model, text, **sampling)
            # as shipped, guidance empties the texts on the way, and what follows is drawn without them
            return _drawn(drawn, greedy and (repaired or cond_scale == 1))

    total = sizes.grid**2
    if steps is None or steps >= total:
        return draw
    lengths = [int((step + 0.5) * total / steps) for step in range(steps)]

    def draw_some() -> Dict[str, Any]:
        for _ in steps_as_shipped(model, text, lengths, sampling["filter_thres"], cond_scale):
            pass
        return {"scale": total / len(lengths), "timed": f"{steps} of {total} tokens"}

    return draw_some


def _drawn(tokens: Tensor, greedy: bool) -> Dict[str, Any]:
    return {"tokens": tokens.tolist()} if greedy else {}
