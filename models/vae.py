"""The discrete VAE: pictures to a grid of codes and back, trained with the Gumbel-softmax (Jang et al. 2017).

Layers, losses and normalisation are those of DALLE-pytorch's DiscreteVAE, so that its weights give the same numbers.
Legend: B batch, C channels, H W picture, Y X grid of codes, N codes, E width of a code.
"""

from __future__ import annotations

import math
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.image_tokenizer import ImageTokenizer, as_unit_range

HALF = ((0.5, 0.5, 0.5, 0.0), (0.5, 0.5, 0.5, 1.0))  # channels from the fourth on are left as they are
USAGE_DECAY = 0.95


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a 1x1 one, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return self.net(x) + x


class DiscreteVAE(ImageTokenizer):
    """Discrete VAE.

    Args:
        image_size: side of the pictures in pixels, a multiple of 2 ** num_layers.
        num_tokens: codes.
        codebook_dim: width of a code.
        num_layers: halvings of the side.
        num_resnet_blocks: residual blocks at the codes' resolution.
        hidden_dim: channels inside.
        channels: channels of a picture.
        smooth_l1_loss: reconstruct under the smooth L1 loss, not the squared error.
        temperature: of the Gumbel-softmax; may be set anew at every step.
        straight_through: hard codes forward, soft ones backward.
        reinmax: with `straight_through`, a gradient that is exact to the second order.
        kl_div_loss_weight: weight of the codes' divergence from the uniform distribution.
        normalization: means and deviations of the channels, those left out being 0 and 1; None: pictures are taken as
            they are.
    """

    kind = "DiscreteVAE"
    usage: Tensor

    def __init__(
        self,
        image_size: int = 256,
        num_tokens: int = 512,
        codebook_dim: int = 512,
        num_layers: int = 3,
        num_resnet_blocks: int = 0,
        hidden_dim: int = 64,
        channels: int = 3,
        smooth_l1_loss: bool = False,
        temperature: float = 0.9,
        straight_through: bool = False,
        reinmax: bool = False,
        kl_div_loss_weight: float = 0.0,
        normalization: Optional[Tuple[Sequence[float], Sequence[float]]] = HALF,
    ) -> None:
        super().__init__()
        self.image_size, self.num_tokens, self.channels = image_size, num_tokens, channels
        self.grid = (image_size // 2**num_layers, image_size // 2**num_layers)
        self.smooth_l1_loss, self.kl_div_loss_weight = smooth_l1_loss, kl_div_loss_weight
        self.temperature, self.straight_through, self.reinmax = temperature, straight_through, reinmax
        self.normalization = normalization
        self.encoder_rests = False  # whether training leaves the encoder as it is
        self.codebook = nn.Embedding(num_tokens, codebook_dim)
        self.encoder = _make_encoder(channels, hidden_dim, num_layers, num_resnet_blocks, num_tokens)
        self.decoder = _make_decoder(channels, hidden_dim, num_layers, num_resnet_blocks, codebook_dim)
        self.arguments = {
            "image_size": image_size,
            "num_tokens": num_tokens,
            "codebook_dim": codebook_dim,
            "num_layers": num_layers,
            "num_resnet_blocks": num_resnet_blocks,
            "hidden_dim": hidden_dim,
            "channels": channels,
            "smooth_l1_loss": smooth_l1_loss,
            "temperature": temperature,
            "straight_through": straight_through,
            "reinmax": reinmax,
            "kl_div_loss_weight": kl_div_loss_weight,
            "normalization": normalization,
        }
        self.reset_parameters()
        # Moving average of the share of places that take each code; `models/codebook.py` says what for.
        self.register_buffer("usage", torch.full((num_tokens,), 1 / num_tokens))

    def reset_parameters(self) -> None:
        """Draw fresh weights that carry a signal's size through the ReLUs (He et al. 2015).

        With torch's own initialisation the decoder's output hardly depends on the codes at first, and a codebook that
        makes no difference collapses onto one code.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                inputs = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
                if isinstance(module, nn.ConvTranspose2d):
                    inputs //= module.stride[0] * module.stride[1]  # how many of them reach one pixel
                nn.init.normal_(module.weight, std=(2 / inputs) ** 0.5)
                module.bias.data.zero_()
        for block in self.modules():
            if isinstance(block, ResidualBlock):  # starts close to the identity
                block.net[-1].weight.data.mul_(0.3)

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """The training losses of pictures (B, C, H, W), in 0..1 or bytes.

        Returns:
            The loss to minimise, the reconstruction loss and the divergence from the uniform distribution in nats,
            the latter summed over batch and grid as DALLE-pytorch has it; all scalars.
        """
        images = self.normalize(as_unit_range(images))
        rebuilt, logits = self.rebuild(images)
        if self.training:
            self._count(logits)
        return self.losses(images, rebuilt, logits)

    def losses(self, images: Tensor, rebuilt: Tensor, logits: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """As `forward`, of normalised pictures and what `rebuild` made of them."""
        reconstruction = F.smooth_l1_loss if self.smooth_l1_loss else F.mse_loss
        reconstruction_loss = reconstruction(rebuilt, images)
        divergence = _divergence_from_uniform(logits)
        return reconstruction_loss + self.kl_div_loss_weight * divergence, reconstruction_loss, divergence

    def rebuild(self, images: Tensor) -> Tuple[Tensor, Tensor]:
        """Normalised pictures (B, C, H, W) from codes drawn for them, and the logits (B, N, Y, X) of those codes."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_rests):
            logits = self.encoder(images).float()  # in lower precision the Gumbel noise is too coarse
        codes = gumbel_softmax(logits, self.temperature, self.straight_through)
        if self.straight_through and self.reinmax:
            codes = reinmax(codes.detach(), logits, self.temperature)
        codes = codes.to(self.codebook.weight.dtype)
        return self.decoder(torch.einsum("b n y x, n e -> b e y x", codes, self.codebook.weight)), logits

    def encode(self, images: Tensor) -> Tensor:
        """The likeliest codes, see `ImageTokenizer.encode`."""
        return self.encoder(self.normalize(as_unit_range(images))).argmax(dim=1).flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        """See `ImageTokenizer.decode`."""
        codes = rearrange(self.codebook(tokens), "b (y x) e -> b e y x", x=self.grid[1])
        return self.denormalize(self.decoder(codes)).clamp(0, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """0..1 to what the networks see."""
        means, deviations = self._moments(images)
        return (images - means) / deviations

    def denormalize(self, images: Tensor) -> Tensor:
        """What the networks give to 0..1."""
        means, deviations = self._moments(images)
        return images * deviations + means

    def _moments(self, like: Tensor) -> Tuple[Tensor, Tensor]:
        given = self.normalization or ((), ())
        means, deviations = ([*values, *[rest] * self.channels] for values, rest in zip(given, (0.0, 1.0)))
        shape = (1, self.channels, 1, 1)
        return (
            like.new_tensor(means[: self.channels]).view(shape),
            like.new_tensor(deviations[: self.channels]).view(shape),
        )

    @torch.no_grad()
    def _count(self, logits: Tensor) -> None:
        counts = torch.bincount(logits.argmax(dim=1).flatten(), minlength=self.num_tokens)
        self.usage.lerp_((counts / counts.sum()).to(self.usage.dtype), 1 - USAGE_DECAY)


def gumbel_softmax(logits: Tensor, temperature: float, straight_through: bool) -> Tensor:
    """Sample codes from logits (B, N, Y, X): soft ones, or one-hot ones with the gradient of the soft ones.

    As torch's own, with the noise drawn through uniform numbers: on a CPU that is several times faster than drawing
    exponential ones, which took a third of a training step.
    """
    uniform = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
    soft = ((logits - uniform.log().neg().log()) / temperature).softmax(dim=1)
    if not straight_through:
        return soft
    hard = torch.zeros_like(soft).scatter(1, soft.argmax(dim=1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


def reinmax(codes: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """One-hot codes (B, N, Y, X), drawn from logits (B, N, Y, X), with the gradient of ReinMax.

    Liu et al. 2023, "Bridging Discrete and Backpropagation: Straight-Through and Beyond", algorithm 2: the gradient is
    taken halfway between the code drawn and the distribution it was drawn from.
    """
    halfway = (codes + (logits / temperature).softmax(dim=1)) / 2
    halfway = ((halfway.clamp(min=1e-20).log() - logits).detach() + logits).softmax(dim=1)
    soft = 2 * halfway - logits.softmax(dim=1) / 2
    return soft - soft.detach() + codes


def _divergence_from_uniform(logits: Tensor) -> Tensor:
    log_shares = F.log_softmax(logits, dim=1)
    return (log_shares.exp() * (log_shares + math.log(logits.shape[1]))).sum()


def _make_encoder(channels: int, hidden_dim: int, num_layers: int, blocks: int, num_tokens: int) -> nn.Sequential:
    layers: List[nn.Module] = []
    for index in range(num_layers):
        before = channels if index == 0 else hidden_dim
        layers.append(nn.Sequential(nn.Conv2d(before, hidden_dim, 4, stride=2, padding=1), nn.ReLU()))
    layers += [ResidualBlock(hidden_dim) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.Conv2d(hidden_dim, num_tokens, 1))


def _make_decoder(channels: int, hidden_dim: int, num_layers: int, blocks: int, codebook_dim: int) -> nn.Sequential:
    layers: List[nn.Module] = []
    if blocks:
        layers.append(nn.Conv2d(codebook_dim, hidden_dim, 1))
        layers += [ResidualBlock(hidden_dim) for _ in range(blocks)]
    for index in range(num_layers):
        before = codebook_dim if index == 0 and not blocks else hidden_dim
        layers.append(nn.Sequential(nn.ConvTranspose2d(before, hidden_dim, 4, stride=2, padding=1), nn.ReLU()))
    return nn.Sequential(*layers, nn.Conv2d(hidden_dim, channels, 1))
