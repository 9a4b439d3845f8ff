"""The options of the models."""

from __future__ import annotations

import dataclasses
from typing import Optional, Tuple

from options import OptionError, Options, option

ATTENTION_TYPES = ("full", "axial_row", "axial_col", "conv_like", "sparse")
CONV_WINDOWS = ("causal", "centered")


@dataclasses.dataclass(frozen=True)
class TransformerOptions(Options):
    """The DALL-E transformer; names and meanings are those of Graphcore's mini DALL-E and of DALLE-pytorch."""

    hidden_size: int = option(512, "width of the transformer", minimum=1, aliases=("dim",))
    num_hidden_layers: int = option(16, "attention and feed-forward layers", minimum=1, aliases=("depth",))
    num_attention_heads: int = option(16, "heads of every attention", minimum=1, aliases=("heads",))
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
    sparse_block_size: int = option(16, "positions of a block of sparse attention", minimum=1)
    sparse_random_blocks: Optional[int] = option(
        None, "blocks that sparse attention draws for each block of queries (none: a quarter of them all)", minimum=0
    )
    sparse_seed: int = option(0, "what they are drawn from; the next layer draws from the next one")
    rotary_emb: bool = option(False, "rotary position embedding instead of a learned one")
    shift_tokens: bool = option(False, "take some channels from the neighbouring tokens, before every layer")
    reversible: bool = option(False, "reversible layers: memory that does not grow with depth, for more arithmetic")
    stable: bool = option(
        False,
        "a softmax and an output that half precision does not overflow, and a smaller gradient of the embeddings",
        aliases=("stable_softmax",),
    )
    shared_attn_ids: Optional[Tuple[str, ...]] = option(
        None, "an id for each layer, cycled; layers with equal ids share their attention (none: nothing is shared)"
    )
    shared_ff_ids: Optional[Tuple[str, ...]] = option(
        None, "an id for each layer, cycled; layers with equal ids share their feed-forward layer"
    )
    share_input_output_emb: bool = option(False, "embed tokens by the rows of the output projection")
    null_cond_prob: float = option(
        0.0, "share of the training samples whose text is left out, for guidance (--cond-scale)", minimum=0, maximum=1
    )
    ff_dropout: float = option(0.0, "dropout inside the feed-forward layers", minimum=0, maximum=1)
    attn_dropout: float = option(0.0, "dropout on the output of attention", minimum=0, maximum=1)
    sandwich_norm: bool = option(False, "normalise the output of every layer as well as its input")
    loss_img_weight: float = option(7.0, "weight w of the image loss: (text + w * image) / (w + 1)", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attn_types:
            raise OptionError(f"attn_types is empty; name at least one of {', '.join(ATTENTION_TYPES)}")
        for name in ("shared_attn_ids", "shared_ff_ids"):
            if getattr(self, name) == ():
                raise OptionError(f"{name} is empty; give an id for each layer, or leave it out")
        if self.rotary_emb and self.dim_head < 6:
            raise OptionError(
                f"rotary_emb turns pairs in thirds of a head, and dim_head={self.dim_head}; give 6 or more"
            )
        if self.shift_tokens and self.hidden_size < 4:
            raise OptionError(f"shift_tokens moves quarters of hidden_size={self.hidden_size}; give 4 or more")
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
    channels: int = option(3, "channels of a picture", minimum=1)
    smooth_l1_loss: bool = option(False, "reconstruct under the smooth L1 loss, not the squared error")
    temperature: float = option(
        0.9,
        "Gumbel-softmax temperature (at the start, when it is annealed)",
        minimum=1e-6,
        aliases=("starting_temp",),
    )
    straight_through: bool = option(False, "sample hard codes forward, soft ones backward")
    reinmax: bool = option(False, "with straight_through, a gradient that is exact to the second order (ReinMax)")
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
        if self.reinmax and not self.straight_through:
            raise OptionError(
                "reinmax=true changes the gradient of hard codes; add --straight-through, or leave it out"
            )


@dataclasses.dataclass(frozen=True)
class ClipOptions(Options):
    """CLIP; names and meanings are those of DALLE-pytorch's class."""

    dim_text: int = option(512, "width of the text encoder", minimum=1)
    dim_image: int = option(512, "width of the image encoder", minimum=1)
    dim_latent: int = option(512, "width of the vectors that texts and pictures become", minimum=1)
    text_enc_depth: int = option(6, "layers of the text encoder", minimum=1)
    text_seq_len: int = option(256, "text tokens of a sample", minimum=1)
    text_heads: int = option(8, "heads of the text encoder", minimum=1)
    visual_enc_depth: int = option(6, "layers of the image encoder", minimum=1)
    visual_heads: int = option(8, "heads of the image encoder", minimum=1)
    visual_image_size: int = option(
        256, "side of the pictures in pixels; a multiple of visual_patch_size", minimum=1, aliases=("image_size",)
    )
    visual_patch_size: int = option(32, "side of a patch in pixels", minimum=1)
    channels: int = option(3, "channels of a picture", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.visual_image_size % self.visual_patch_size:
            raise OptionError(
                f"visual_image_size={self.visual_image_size} is not a multiple of "
                f"visual_patch_size={self.visual_patch_size}; make it one"
            )


@dataclasses.dataclass(frozen=True)
class TextTokenizerOptions(Options):
    """What turns text into tokens."""

    bpe_path: Optional[str] = option(
        None,
        "text vocabulary: a Hugging Face tokenizer JSON or a YouTokenToMe model (none: CLIP's 49,408 words)",
        path=True,
    )
    chinese: bool = option(False, "BERT's Chinese vocabulary, from the hub, or with bpe_path from its vocab.txt")
    hug: bool = option(False, "bpe_path has to be a Hugging Face tokenizer JSON")


@dataclasses.dataclass(frozen=True)
class TokenizerOptions(TextTokenizerOptions):
    """What turns text and pictures into tokens."""

    vae_path: Optional[str] = option(
        None, "trained image tokenizer: a checkpoint of train_vae.py, or its folder", path=True
    )
    vqgan_model_path: Optional[str] = option(
        None, "weights of a VQGAN of taming-transformers (.ckpt or .safetensors)", path=True
    )
    vqgan_config_path: Optional[str] = option(None, "configuration of that VQGAN (.yaml)", path=True)
    taming: bool = option(
        False, "the released VQGAN of 1,024 codes, where no other image tokenizer is named (false: OpenAI's dVAE)"
    )
    offline: bool = option(False, "never download a released image tokenizer; use the files that are there")


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    """How a token is drawn from its logits."""

    top_k: float = option(
        0.9,
        "share of all tokens, of text and image, dropped before drawing one, the least likely first (0: none)",
        minimum=0,
        maximum=1,
    )
    top_p: float = option(
        1.0, "keep the likeliest tokens that together reach this probability (1: all)", minimum=1e-6, maximum=1
    )
    temperature: float = option(1.0, "divides the logits; below 1 draws the likelier ones; 0 the likeliest", minimum=0)
    cond_scale: float = option(
        1.0, "guidance: how far image logits move from those without text towards those with it (1: none)", minimum=0
    )
