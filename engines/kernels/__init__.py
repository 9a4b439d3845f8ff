"""The host engine's own kernels, which take the place of what the models compute with by default."""

from __future__ import annotations

import torch
from torch import nn

from engines.kernels.attention import attention
from engines.kernels.gated_gelu import gated_gelu
from engines.kernels.residual import add_scaled, layer_norm
from engines.kernels.segment_losses import SegmentLosses
from models.attention import Attention
from models.dalle import Dalle
from models.transformer import FeedForward, LayerScale, Norm


def use_kernels(
    model: nn.Module, device: torch.device, dtype: torch.dtype, compiled: bool = False, checkpointed: bool = False
) -> bool:
    """Let a model be trained with the kernels that suit it.

    Args:
        model: its attention in the stable form stays as it is.
        device: on GPUs PyTorch's fused attention is the faster one.
        dtype: of the products.
        compiled: whether the layers are compiled, which fuses their parts by itself.
        checkpointed: whether their activations are computed again, which PyTorch 2.0 can't do for such kernels.

    Returns:
        Whether the layers, beside the losses, have kernels now.
    """
    plain = device.type != "cpu" or compiled or (checkpointed and torch.__version__ < "2.1")
    for module in model.modules():
        if isinstance(module, Dalle) and dtype != torch.float16:
            module.loss_kernel = SegmentLosses(dtype, compiled)
        if plain:
            continue
        if isinstance(module, Attention) and module.pattern is not None and not module.stable:
            module.kernel = attention
        if isinstance(module, FeedForward):
            module.kernel = gated_gelu
        if isinstance(module, Norm):
            module.kernel = layer_norm
        if isinstance(module, LayerScale):
            module.kernel = add_scaled
    return not plain
