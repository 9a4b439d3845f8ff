"""CLIP: its numbers, what padding does not do, and what it learns from."""

from __future__ import annotations

import math
from typing import Any, Callable, Optional, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.clip import Clip, Encoder
from models.options import ClipOptions
from models.transformer import LayerScale

WORDS = 13
SIZES = {
    "dim_text": 6,
    "dim_image": 10,
    "dim_latent": 5,
    "text_enc_depth": 2,
    "text_seq_len": 7,
    "text_heads": 2,
    "visual_enc_depth": 3,
    "visual_heads": 1,
    "visual_image_size": 12,
    "visual_patch_size": 4,
}


@pytest.fixture
def make_clip() -> Callable[..., Clip]:
    """Builds a small CLIP in double precision, whose layers are strong enough for a wrong one to show."""

    def make(**options: Any) -> Clip:
        clip = Clip(ClipOptions(**{**SIZES, **options}), WORDS).double()
        for name, parameter in clip.named_parameters():
            if "norm" in name or name.endswith("bias"):
                nn.init.normal_(parameter, mean=1.0, std=0.3)
        for module in clip.modules():
            if isinstance(module, LayerScale):
                nn.init.normal_(module.scale, mean=1.0, std=0.3)
        return clip

    return make


def make_batch(length: int = 7, channels: int = 3) -> Tuple[Tensor, Tensor]:
    """Texts (3, length) of 7, 3 and 1 words, and pictures (3, channels, 12, 12) in 0..1."""
    text = torch.randint(1, WORDS, (3, length))
    text[1, 3:] = text[2, 1:] = 0
    return text, torch.rand(3, channels, 12, 12, dtype=torch.double)


def encode_plainly(encoder: Encoder, x: Tensor, heads: int) -> Tensor:
    """The latent (L,) of one sequence of embedded positions (n, D), all of which count, in plain loops."""
    for layer in encoder.layers:
        normed = layer.attention_norm(x)
        q, k, v = layer.attention.to_qkv(normed).chunk(3, dim=-1)
        mixed = []
        for head in range(heads):
            own = slice(64 * head, 64 * (head + 1))
            shares = (q[:, own] @ k[:, own].t() / math.sqrt(64)).exp()
            mixed.append(shares / shares.sum(dim=1, keepdim=True) @ v[:, own])
        x = x + layer.attention_scale.scale * layer.attention.to_out(torch.cat(mixed, dim=1))
        values, gates = layer.feed_forward.to_inner(layer.feed_forward_norm(x)).chunk(2, dim=-1)
        gated = values * gates * (1 + torch.erf(gates / math.sqrt(2))) / 2
        x = x + layer.feed_forward_scale.scale * layer.feed_forward.to_out(gated)
    latent = encoder.to_latent.weight @ x.mean(dim=0)
    return latent / latent.square().sum().sqrt()


def patches_of(image: Tensor, patch: int) -> Tensor:
    """The patches of a picture (C, H, W) in reading order; of each its pixels in reading order, channels innermost."""
    side = image.shape[1] // patch
    rows = []
    for y in range(side):
        for x in range(side):
            block = image[:, patch * y : patch * (y + 1), patch * x : patch * (x + 1)]
            rows.append(torch.stack([block[c, i, j] for i in range(patch) for j in range(patch) for c in range(3)]))
    return torch.stack(rows)


@torch.no_grad()
def plain_latents(clip: Clip, text: Tensor, images: Tensor) -> Tuple[Tensor, Tensor]:
    texts, pictures = [], []
    for row in text:
        words = row[row != 0]
        embedded = clip.text_embedding.weight[words] + clip.text_position.weight[: len(words)]
        texts.append(encode_plainly(clip.text_encoder, embedded, clip.options.text_heads))
    for image in images:
        embedded = clip.patch_embedding(patches_of(image, clip.options.visual_patch_size)) + clip.patch_position.weight
        pictures.append(encode_plainly(clip.image_encoder, embedded, clip.options.visual_heads))
    return torch.stack(texts), torch.stack(pictures)


def test_loss_accuracy_and_latents_are_those_of_plain_loops_over_words_and_patches(
    make_clip: Callable[..., Clip],
) -> None:
    clip, (text, images) = make_clip(), make_batch()
    nn.init.constant_(clip.temperature, 1.3)
    texts, pictures = plain_latents(clip, text, images)
    torch.testing.assert_close(clip.encode_text(text), texts)
    torch.testing.assert_close(clip.encode_images(images), pictures)
    factor = math.exp(1.3)
    torch.testing.assert_close(clip.similarity(texts, pictures), factor * torch.diag(texts @ pictures.t()))
    losses = []
    for own in range(3):
        weights = [math.exp(factor * texts[own] @ pictures[other]) for other in range(3)]
        losses.append(-math.log(weights[own] / sum(weights)))
        weights = [math.exp(factor * texts[other] @ pictures[own]) for other in range(3)]
        losses.append(-math.log(weights[own] / sum(weights)))
    right = sum(int((texts[own] @ pictures.t()).argmax()) == own for own in range(3))
    with torch.no_grad():
        loss, accuracy = clip(text, images)
    assert float(loss) == pytest.approx(sum(losses) / 6)
    assert float(accuracy) == pytest.approx(right / 3)


def test_padding_does_not_count_however_it_is_embedded(make_clip: Callable[..., Clip]) -> None:
    clip, (text, _) = make_clip(), make_batch()
    padded = clip.encode_text(text)
    for row, words in enumerate((7, 3, 1)):
        torch.testing.assert_close(clip.encode_text(text[row : row + 1, :words])[0], padded[row])
    with torch.no_grad():
        clip.text_embedding.weight[0] += 100
        clip.text_position.weight[3:] += 100
    after = clip.encode_text(text)
    torch.testing.assert_close(after[1:], padded[1:])
    assert (after[0] - padded[0]).abs().max() > 1e-3, "the full text has words at the places that changed"


def test_a_given_mask_says_what_counts(make_clip: Callable[..., Clip]) -> None:
    clip, (text, _) = make_clip(), make_batch()
    text[1:] = text[0]
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 7])
    latents = clip.encode_text(text, mask)
    torch.testing.assert_close(latents[1], clip.encode_text(text[:1, :3])[0])
    torch.testing.assert_close(latents[2], latents[0])
    assert (latents[1] - latents[0]).abs().max() > 1e-3


def test_the_loss_is_the_same_with_texts_and_pictures_exchanged(make_clip: Callable[..., Clip]) -> None:
    clip = make_clip()
    texts, pictures = torch.randn(2, 4, 5, dtype=torch.double)
    loss = clip.loss(texts, pictures)[0]
    torch.testing.assert_close(clip.loss(pictures, texts)[0], loss)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(clip.loss(texts[order], pictures[order])[0], loss)
    assert (clip.loss(texts[order], pictures)[0] - loss).abs() > 1e-3


def test_accuracy_is_the_share_of_texts_nearest_to_their_own_picture(make_clip: Callable[..., Clip]) -> None:
    pictures = torch.eye(4, 5, dtype=torch.double)
    for order, share in (([0, 1, 2, 3], 1.0), ([1, 0, 2, 3], 0.5), ([0, 0, 0, 0], 0.25), ([1, 2, 3, 0], 0.0)):
        assert float(make_clip().loss(pictures[order], pictures)[1]) == share


def test_gradients_reach_every_parameter(make_clip: Callable[..., Clip]) -> None:
    clip = make_clip()
    text = torch.arange(1, WORDS).repeat(2)[:21].view(3, 7)  # every word but padding
    clip(text, make_batch()[1])[0].backward()
    for name, parameter in clip.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert not clip.text_embedding.weight.grad[0].any(), "of padding nothing is learnt"  # type: ignore[index]


def test_bytes_are_the_same_pictures_as_shares(make_clip: Callable[..., Clip]) -> None:
    clip = make_clip().float()
    pixels = torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    torch.testing.assert_close(clip.encode_images(pixels), clip.encode_images(pixels.float() / 255))


def test_an_untrained_clip_knows_no_better_than_chance() -> None:
    clip = Clip(ClipOptions(**{**SIZES, "dim_latent": 64}), WORDS)
    text, images = torch.randint(1, WORDS, (64, 7)), torch.rand(64, 3, 12, 12)
    with torch.no_grad():
        loss, accuracy = clip(text, images)
    assert float(loss) == pytest.approx(math.log(64), abs=0.5)
    assert float(accuracy) < 0.2


def test_pictures_of_other_channels_are_taken_when_asked_for(make_clip: Callable[..., Clip]) -> None:
    clip, (text, images) = make_clip(channels=1), make_batch(channels=1)
    assert clip(text, images)[0].isfinite()


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 3, 12, 8), (3, 1, 12, 12), (3, 12, 12)])
def test_pictures_of_another_shape_are_refused_with_the_right_one(
    make_clip: Callable[..., Clip], shape: Tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"pictures have the shape \(3, .*give \(batch, 3, 12, 12\)"):
        make_clip().encode_images(torch.rand(shape, dtype=torch.double))


@pytest.mark.parametrize("mask", [None, torch.ones(3, 8, dtype=torch.bool)])
def test_texts_that_are_too_long_are_refused(make_clip: Callable[..., Clip], mask: Optional[Tensor]) -> None:
    with pytest.raises(ValueError, match="texts have 8 tokens, text_seq_len=7; cut them"):
        make_clip().encode_text(make_batch(8)[0], mask)
