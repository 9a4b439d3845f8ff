"""The codes of a discrete VAE: where they begin, how well they are used, and what becomes of unused ones.

Codes begin as encodings of pictures, and unused ones begin anew as encodings of places that are rebuilt badly. To both
ends a code is a row of the encoder's last layer and a row of the codebook that are set together: the first says which
encodings take the code, the second what the decoder gets.

Legend: B batch, C channels, H W picture, P places of all pictures, D width of an encoding, N codes, E width of a code.
"""

from __future__ import annotations

from typing import Iterator, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image_tokenizer import as_unit_range
from models.vae import DiscreteVAE

DEAD_SHARE = 0.05  # of the share that a code has when all are used alike
FIRST_CONTRAST = 80.0  # nats by which a first code wins at its own center over another one, in the middle
RESTART_CONTRAST = 0.2  # nats by which a restarted code wins at its place, and loses where its donor is at home
_BATCH = 32  # pictures encoded at once
_PLACES_A_CODE, _MOST_PLACES = 64, 65536  # places that are clustered
_CHUNK = 16384  # places whose distances from all codes lie in memory at once
_ROUNDS = 6  # of k-means
_DRAWS = 4  # places drawn for every dead code, of which those of one code count once


def codebook_perplexity(usage: Tensor) -> Tensor:
    """How many codes, used alike, would be as varied as this usage: exp of its entropy; (N,) to a scalar."""
    shares = usage / usage.sum()
    return torch.exp(-torch.xlogy(shares, shares).sum())


def dead_codes(usage: Tensor) -> Tensor:
    """Numbers of the codes that are hardly ever taken; usage (N,)."""
    return (usage < DEAD_SHARE / usage.numel()).nonzero().squeeze(1)


@torch.no_grad()
def start_codes(vae: DiscreteVAE, images: Tensor) -> None:
    """Make every code the center of a cluster of encodings of the pictures (B, C, H, W), found by k-means.

    An encoding then takes the nearest center, with a probability that falls with the squared distance, and clusters
    that lie side by side begin with similar entries in the codebook. From random codes the first pictures decoded say
    nothing about what was encoded, and training often ends with one code for everything. A codebook from clusters of
    encodings: Lancucki et al. 2020, "Robust training of vector quantized bottleneck models".
    """
    encodings = torch.cat([encoded for encoded, _ in _encode(vae, images)])
    mean = encodings.mean(dim=0)
    some = torch.randperm(len(encodings))[: min(_PLACES_A_CODE * vae.num_tokens, _MOST_PLACES)].to(encodings.device)
    centers = _cluster(encodings[some] - mean, vae.num_tokens)
    sharpness = 2 * FIRST_CONTRAST / torch.cdist(centers, centers).square().median().clamp(min=1e-6)
    weight, bias = _last_layer(vae)
    weight.copy_(sharpness * centers)
    bias.copy_(-sharpness * (centers.square().sum(dim=1) / 2 + centers @ mean))
    codes = centers @ nn.init.orthogonal_(torch.empty(centers.shape[1], vae.codebook.embedding_dim)).to(centers)
    vae.codebook.weight.copy_(codes / codes.std().clamp(min=1e-6))


@torch.no_grad()
def restart_dead_codes(vae: DiscreteVAE, images: Tensor) -> int:
    """Let dead codes begin anew at badly rebuilt places of the pictures (B, C, H, W); returns how many.

    Places are drawn in proportion to their squared error, one for each code in use at most. A dead code becomes a copy
    of its donor, the code that the place takes, and is made a little likelier than the donor at the place and a little
    less likely at the mean of all places of the donor: it disturbs nothing, and training draws the two apart. Dhariwal
    et al. 2020, "Jukebox", restart the dead codes of a VQ-VAE from encodings drawn at random.
    """
    dead = dead_codes(vae.usage)
    if not len(dead):
        return 0
    encodings, taken, errors = _rebuild(vae, images)
    means, variances = _moments_by_code(encodings, taken, vae.num_tokens)
    places = _worst_places(taken, errors, len(dead))
    dead, donors = dead[: len(places)], taken[places]
    offsets = encodings[places] - means[donors]
    sharpness = 2 * RESTART_CONTRAST / torch.maximum(offsets.square().sum(dim=1), variances[donors]).clamp(min=1e-6)
    directions = sharpness[:, None] * offsets
    weight, bias = _last_layer(vae)
    weight[dead] = weight[donors] + directions
    bias[dead] = bias[donors] - (directions * (means[donors] + offsets / 2)).sum(dim=1)
    vae.codebook.weight[dead] = vae.codebook.weight[donors]
    vae.usage[dead] = 2 * DEAD_SHARE / vae.num_tokens  # on probation
    return len(dead)


def _last_layer(vae: DiscreteVAE) -> Tuple[Tensor, Tensor]:
    """What makes logits of encodings: weight (N, D) and bias (N,), to be written to."""
    layer = vae.encoder[-1]
    assert isinstance(layer, nn.Conv2d) and layer.bias is not None
    return layer.weight[:, :, 0, 0], layer.bias


def _encode(vae: DiscreteVAE, images: Tensor) -> Iterator[Tuple[Tensor, Tensor]]:
    """Encodings (P, D) and normalised pictures, batch by batch."""
    for batch in images.to(vae.codebook.weight.device).split(_BATCH):
        normalized = vae.normalize(as_unit_range(batch))
        yield vae.encoder[:-1](normalized).movedim(1, -1).flatten(0, 2), normalized


def _rebuild(vae: DiscreteVAE, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Of every place its encoding (P, D), the code taken (P,), and the mean squared error made there (P,)."""
    weight, bias = _last_layer(vae)
    places: List[Tuple[Tensor, Tensor, Tensor]] = []
    for encodings, pictures in _encode(vae, images):
        taken = (encodings @ weight.T + bias).argmax(dim=1)
        codes = vae.codebook(taken).view(len(pictures), *vae.grid, -1).movedim(-1, 1)
        difference = (vae.decoder(codes) - pictures).square().mean(dim=1)
        places.append((encodings, taken, F.adaptive_avg_pool2d(difference, vae.grid).flatten()))
    encodings, taken, errors = (torch.cat(parts) for parts in zip(*places))
    return encodings, taken, errors


def _moments_by_code(encodings: Tensor, taken: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    """Mean (N, D) and variance (N,) of the encodings that take each code."""
    share = 1 / torch.bincount(taken, minlength=count).clamp(min=1).to(encodings.dtype)
    means = encodings.new_zeros(count, encodings.shape[1]).index_add_(0, taken, encodings) * share[:, None]
    squares = (encodings - means[taken]).square().sum(dim=1)
    return means, encodings.new_zeros(count).index_add_(0, taken, squares) * share


def _worst_places(taken: Tensor, errors: Tensor, count: int) -> Tensor:
    """At most `count` places, drawn in proportion to their error, no two of which take the same code."""
    wrong = int((errors > 0).sum())
    if not wrong:
        return taken[:0]
    drawn = torch.multinomial(errors, min(_DRAWS * count, wrong))
    by_code = dict(zip(taken[drawn].tolist(), drawn.tolist()))
    return drawn.new_tensor(list(by_code.values())[:count])


def _cluster(points: Tensor, count: int) -> Tensor:
    """Centers (count, D) of clusters of the points (P, D), by k-means."""
    centers = _choose_far_apart(points, count)
    for _ in range(_ROUNDS):
        nearest = torch.cat([torch.cdist(chunk, centers).argmin(dim=1) for chunk in points.split(_CHUNK)])
        means, _ = _moments_by_code(points, nearest, count)
        filled = torch.bincount(nearest, minlength=count) > 0
        centers = torch.where(filled[:, None], means, centers)
    return centers


def _choose_far_apart(points: Tensor, count: int) -> Tensor:
    """`count` of the points (P, D), each drawn in proportion to its squared distance from those before.

    The start of k-means++ (Arthur and Vassilvitskii 2007).
    """
    chosen = [points[0]]
    distances = (points - chosen[0]).square().sum(dim=1)
    for _ in range(count - 1):
        left = distances if distances.any() else torch.ones_like(distances)  # fewer different points than codes
        chosen.append(points[torch.multinomial(left, 1)[0]])
        distances = torch.minimum(distances, (points - chosen[-1]).square().sum(dim=1))
    return torch.stack(chosen)
