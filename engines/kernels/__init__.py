"""The host engine's own kernels, which take the place of what the models compute with by default."""

from __future__ import annotations

import torch
from torch import nn

from engines.kernels.attention import attention
from engines.kernels.gated_gelu import gated_gelu
from engines.kernels.segment_losses import SegmentLosses
from models.attention import Attention
from models.dalle import Dalle
from models.transformer import FeedForward


def use_kernels(model: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool) -> None:
    """Let a model be trained with the kernels that suit it.

    Args:
        model: its attention in the stable form stays as it is.
        device: on GPUs PyTorch's fused attention is the faster one.
        dtype: of the products.
        compiled: whether the layers are compiled, which fuses their parts by itself.
    """
    for module in model.modules():
        if isinstance(module, Dalle) and dtype != torch.float16:
            module.loss_kernel = SegmentLosses(dtype, compiled)
        if device.type != "cpu" or compiled:
            continue
        if isinstance(module, Attention) and module.pattern is not None and not module.stable:
            module.kernel = attention
        if isinstance(module, FeedForward):
            module.kernel = gated_gelu
