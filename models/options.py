"""The options of the models."""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple

from options import OptionError, Options, option

ATTENTION_TYPES = ("full", "axial_row", "axial_col", "conv_like")
CONV_WINDOWS = ("causal", "centered")


@dataclasses.dataclass(frozen=True)
class TransformerOptions(Options):
    """The DALL-E transformer; names and meanings are those of Graphcore's mini DALL-E."""

    hidden_size: int = option(512, "width of the transformer", minimum=1)
    num_hidden_layers: int = option(16, "attention and feed-forward layers", minimum=1)
    num_attention_heads: int = option(16, "heads of every attention", minimum=1)
    dim_head: int = option(64, "width of one head", minimum=1)
    text_seq_len: int = option(80, "text tokens of a sample", minimum=1)
    attn_types: Tuple[str, ...] = option(
        ("full",),
        "attention of each layer, cycled over the layers: " + ", ".join(ATTENTION_TYPES),
        choices=ATTENTION_TYPES,
    )
    conv_kernel_size: int = option(5, "side of the window of conv_like attention; odd", minimum=1)
    conv_dilation: int = option(1, "step between the pixels of that window", minimum=1)
    conv_window: str = option(
        "causal",
        "where that window lies: causal (ends at the pixel) or centered (cut at the pixel)",
        choices=CONV_WINDOWS,
    )
    ff_dropout: float = option(0.0, "dropout inside the feed-forward layers", minimum=0, maximum=1)
    attn_dropout: float = option(0.0, "dropout on the output of attention", minimum=0, maximum=1)
    sandwich_norm: bool = option(False, "normalise the output of every layer as well as its input")
    loss_img_weight: float = option(7.0, "weight w of the image loss: (text + w * image) / (w + 1)", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attn_types:
            raise OptionError(f"attn_types is empty; name at least one of {', '.join(ATTENTION_TYPES)}")
        if self.conv_kernel_size % 2 == 0:
            raise OptionError(f"conv_kernel_size={self.conv_kernel_size} is even; make it odd")


@dataclasses.dataclass(frozen=True)
class DiscreteVAEOptions(Options):
    """The discrete VAE; names and meanings are those of DALLE-pytorch's class."""

    image_size: int = option(128, "side of the pictures in pixels; a multiple of 2 ** num_layers", minimum=2)
    num_tokens: int = option(8192, "codes in the codebook", minimum=2)
    codebook_dim: int = option(512, "width of a code", minimum=1, aliases=("emb_dim",))
    num_layers: int = option(3, "halvings of the picture's side on the way to its codes", minimum=1)
    num_resnet_blocks: int = option(2, "residual blocks at the codes' resolution", minimum=0)
    hidden_dim: int = option(256, "channels inside encoder and decoder", minimum=1)
    channels: int = option(3, "channels of a picture", minimum=1, maximum=4)
    smooth_l1_loss: bool = option(False, "reconstruct under the smooth L1 loss, not the squared error")
    temperature: float = option(0.9, "Gumbel-softmax temperature (at the start, when it is annealed)", minimum=1e-6)
    straight_through: bool = option(False, "sample hard codes forward, soft ones backward")
    kl_div_loss_weight: float = option(
        0.0,
        "weight of the divergence of the codes' distribution from the uniform one",
        minimum=0,
        aliases=("kl_loss_weight",),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        step = 2**self.num_layers
        if self.image_size % step:
            raise OptionError(
                f"image_size={self.image_size} is not a multiple of 2 ** num_layers = {step}; "
                f"take {max(self.image_size // step, 1) * step}"
            )


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(Options):
    """What turns text and pictures into tokens."""

    vae_path: Optional[str] = option(None, "trained image tokenizer: a checkpoint of train_vae.py, or its folder")
    vqgan_model_path: Optional[str] = option(None, "weights of a VQGAN")
    vqgan_config_path: Optional[str] = option(None, "configuration of that VQGAN")
    bpe_path: Optional[str] = option(None, "text vocabulary, a tokenizers JSON file (none: CLIP's 49,408 words)")
