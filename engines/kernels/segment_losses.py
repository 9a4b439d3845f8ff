"""Cross-entropy of text and image tokens without all of their logits in memory, and without gradients of zeros.

Logits are computed a chunk of positions at a time and become their own gradient at once, so that no more than a chunk
of them exists; the two parts of the vocabulary write their parts of one gradient. As in Hsu et al. 2024, "Liger Kernel"
(arXiv 2410.10989), for a vocabulary in two parts.

Legend: B batch, T text tokens, I image tokens, R positions that meet a part of the vocabulary, D width, V ids of it.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_LOGITS = 2**24  # of a chunk: 64 MiB in single precision
LogitsGradient = Callable[[Tensor, Tensor], Tuple[Tensor, Tensor]]


class SegmentLosses:
    """A `models.dalle.LossKernel`.

    Args:
        dtype: of the products; not float16, which has no room for gradients before a loss is scaled.
        compile: let `torch.compile` fuse what makes a gradient of logits.
        most_logits: of a chunk.
    """

    def __init__(self, dtype: torch.dtype, compile: bool = False, most_logits: int = MOST_LOGITS) -> None:
        self.dtype, self.most_logits = dtype, most_logits
        self.of_logits: LogitsGradient = torch.compile(logits_gradient) if compile else logits_gradient

    def __call__(
        self, x: Tensor, projection: nn.Linear, text_vocab_size: int, text: Tensor, image_tokens: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """See `models.dalle.LossKernel`."""
        texts, images = x.split([text.shape[1], image_tokens.shape[1]], dim=1)
        targets = (text.flatten(), image_tokens.flatten())
        rows = (texts.flatten(0, 1), images.flatten(0, 1))
        return _SegmentLosses.apply(*rows, projection.weight, projection.bias, *targets, text_vocab_size, self)

    def segment(self, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, out: Optional[List[Tensor]]) -> Tensor:
        """The summed cross-entropy of rows x (R, D) with ids (R,) under weight (V, D) and bias (V,), a scalar.

        Args:
            x, weight, bias, targets: as above.
            out: where its gradients of x, weight and bias go; None: nowhere.
        """
        loss, matrix = x.new_zeros((), dtype=torch.float32), weight.to(self.dtype)
        size = max(self.most_logits // len(weight), 1)
        for start in range(0, len(x), size):
            rows = x[start : start + size].to(self.dtype)
            part, gradient = self.of_logits(F.linear(rows, matrix, bias.to(self.dtype)), targets[start : start + size])
            loss += part
            if out is not None:
                of_x, of_weight, of_bias = out
                of_x[start : start + size] = F.linear(gradient, matrix.t())
                _add_product(of_weight, gradient.t(), rows, first=start == 0)
                of_bias += gradient.sum(dim=0)
        return loss


def logits_gradient(logits: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]:
    """The summed cross-entropy of logits (R, V) with ids (R,), and its gradient (R, V) in their type."""
    scores = logits.float().log_softmax(dim=-1)
    loss = F.nll_loss(scores, targets, reduction="sum")
    return loss, scores.exp_().scatter_add_(1, targets[:, None], -torch.ones_like(scores[:, :1])).to(logits.dtype)


class _SegmentLosses(torch.autograd.Function):
    """The gradients, computed forwards, only have to be scaled backwards."""

    @staticmethod
    def forward(
        ctx: Any, texts: Tensor, images: Tensor, weight: Tensor, bias: Tensor, text: Tensor, image_tokens: Tensor,
        text_vocab_size: int, kernel: SegmentLosses,
    ) -> Tuple[Tensor, Tensor]:  # fmt: skip
        learns = any(ctx.needs_input_grad)
        gradients = [torch.empty_like(t) for t in (texts, images, weight)] + [torch.zeros_like(bias)] if learns else []
        losses = []
        parts = slice(0, text_vocab_size), slice(text_vocab_size, None)
        with torch.autocast(texts.device.type, enabled=False):
            for index, (x, targets, part) in enumerate(zip((texts, images), (text, image_tokens), parts)):
                out = [gradients[index], gradients[2][part], gradients[3][part]] if learns else None
                losses.append(kernel.segment(x, weight[part], bias[part], targets, out) / len(targets))
        ctx.gradients, ctx.parts, ctx.counts = gradients, parts, (len(text), len(image_tokens))
        return losses[0], losses[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tuple[Optional[Tensor], ...]:
        texts, images, weight, bias = ctx.gradients
        ctx.gradients = None  # scaled in place, and so good for one pass
        for gradient, count, x, part in zip(gradients, ctx.counts, (texts, images), ctx.parts):
            for tensor in (x, weight[part], bias[part]):
                tensor.mul_((gradient / count).to(tensor.dtype))
        return texts, images, weight, bias, None, None, None, None


def _add_product(total: Tensor, one: Tensor, other: Tensor, first: bool) -> None:
    """Add a product to `total`, in its type; the first one replaces what is in there."""
    if total.dtype != one.dtype:
        product = one @ other
        total.copy_(product) if first else total.add_(product)
    elif first:
        torch.mm(one, other, out=total)
    else:
        total.addmm_(one, other)
