"""The models as a library: the calls of DALLE-pytorch's README, at small sizes, and what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from torch import Tensor

import models.library
from models import CLIP, DALLE, DiscreteVAE, OpenAIDiscreteVAE, VQGanVAE
from models.build import build_image_tokenizer, describe_image_tokenizer
from models.image_tokenizer import ImageTokenizer
from models.openai_vae import OpenAIVAE
from models.vqgan import VQGan
from options import OptionError

TEXT = torch.randint(0, 100, (2, 8), generator=torch.Generator().manual_seed(3))
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def make_vae(**options: Any) -> DiscreteVAE:
    sizes = {"image_size": 32, "num_layers": 3, "num_tokens": 24, "codebook_dim": 16, "hidden_dim": 8}
    return DiscreteVAE(**{**sizes, "num_resnet_blocks": 1, "temperature": 0.9, **options})


def make_dalle(**options: Any) -> DALLE:
    sizes = {"dim": 32, "vae": make_vae(), "num_text_tokens": 100, "text_seq_len": 8, "depth": 2, "heads": 2}
    return DALLE(**{**sizes, "dim_head": 16, "attn_dropout": 0.1, "ff_dropout": 0.1, **options})


def make_clip() -> CLIP:
    return CLIP(
        dim_text=16,
        dim_image=24,
        dim_latent=8,
        num_text_tokens=100,
        text_enc_depth=2,
        text_seq_len=8,
        text_heads=2,
        num_visual_tokens=24,
        visual_enc_depth=1,
        visual_image_size=32,
        visual_patch_size=8,
        visual_heads=2,
    )


class Words:
    """A tokenizer of numbers written as words."""

    def encode(self, text: str) -> List[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: List[int]) -> str:
        return " ".join(map(str, ids))


# The README's snippets, in its order


def test_train_vae() -> None:
    vae = make_vae(straight_through=False)
    loss = vae(IMAGES, return_loss=True)
    loss.backward()
    assert loss.ndim == 0 and all(p.grad is not None for p in vae.parameters())


def test_train_dalle_and_generate_images() -> None:
    dalle = make_dalle()
    mask = torch.ones_like(TEXT).bool()
    loss = dalle(TEXT, IMAGES, mask=mask, return_loss=True)
    loss.backward()
    assert all(p.grad is not None for p in dalle.dalle.parameters())
    assert all(p.grad is None for p in dalle.vae.parameters())
    images = dalle.generate_images(TEXT, mask=mask)
    assert images.shape == (2, 3, 32, 32) and images.min() >= 0 and images.max() <= 1


def test_prime_with_the_beginning_of_a_picture() -> None:
    dalle = make_dalle(vae=make_vae(num_resnet_blocks=0))
    images = dalle.generate_images(TEXT, img=IMAGES, num_init_img_tokens=12)
    assert images.shape == (2, 3, 32, 32)
    kept = dalle.vae.decode(dalle.vae.encode(IMAGES))
    assert torch.equal(images[:, :, :16], kept[:, :, :16])  # three rows of codes, and what the fourth does not reach
    assert not torch.equal(images, kept)


def test_generate_texts() -> None:
    dalle = make_dalle()
    tokens, texts = dalle.generate_texts(Words(), "5 7")
    assert tokens.shape == (1, 8) and tokens[0, :2].tolist() == [5, 7] and texts[0].startswith("5 7")
    assert dalle.generate_texts(Words())[0].shape == (1, 8)
    tokens, ids = dalle.generate_texts(TEXT)
    assert tokens.shape == (2, 8)
    for row, beginning, continued in zip(tokens, TEXT, ids):
        given = beginning[beginning != 0]
        assert torch.equal(row[: len(given)], given) and continued == row[row != 0].tolist()


@pytest.mark.parametrize("kind", [OpenAIDiscreteVAE, VQGanVAE])
def test_train_dalle_with_a_pretrained_vae(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    asked = []

    def load(name: str, offline: bool) -> ImageTokenizer:
        asked.append((name, offline))
        return small_pretrained(kind)

    monkeypatch.setattr(models.library, "load_released", load)
    vae = kind()
    assert asked == [("openai" if kind is OpenAIDiscreteVAE else "vqgan_f16_1024", False)]
    dalle = make_dalle(vae=vae)
    dalle(TEXT, IMAGES, mask=torch.ones_like(TEXT).bool(), return_loss=True).backward()
    assert dalle.generate_images(TEXT).shape == (2, 3, 32, 32)
    rebuilt = build_image_tokenizer(describe_image_tokenizer(vae))
    rebuilt.load_state_dict(vae.state_dict())
    assert torch.equal(rebuilt.encode(IMAGES), vae.get_codebook_indices(IMAGES))


def small_pretrained(kind: Any) -> ImageTokenizer:
    if kind is OpenAIDiscreteVAE:
        return OpenAIVAE(n_hid=8, vocab_size=24, n_init=8, image_size=32)
    ddconfig: Dict[str, Any] = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
    ddconfig.update(in_channels=3, out_ch=3, resolution=32, z_channels=8)
    return VQGan(embed_dim=8, n_embed=24, gumbel=False, **ddconfig)


def test_train_clip() -> None:
    clip = make_clip()
    mask = torch.ones_like(TEXT).bool()
    loss = clip(TEXT, IMAGES, text_mask=mask, return_loss=True)
    loss.backward()
    assert loss.ndim == 0 and all(p.grad is not None for p in clip.parameters())


def test_generate_images_with_scores() -> None:
    images, scores = make_dalle().generate_images(TEXT, mask=torch.ones_like(TEXT).bool(), clip=make_clip())
    assert scores.shape == (2,) and images.shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    "options",
    [{"depth": 4, "reversible": True}, {"attn_types": ("full", "axial_row", "axial_col", "conv_like"), "depth": 4}],
)
def test_reversible_and_sparse_models_train(options: Dict[str, Any]) -> None:
    make_dalle(**options)(TEXT, IMAGES, return_loss=True).backward()


# What the calls promise


def test_the_keywords_left_out_are_those_of_dalle_pytorch() -> None:
    options = DALLE(dim=32, vae=make_vae(), depth=1).dalle.options
    assert (options.num_attention_heads, options.dim_head, options.text_seq_len) == (8, 64, 256)
    assert options.rotary_emb and options.shift_tokens and options.loss_img_weight == 7
    assert not (options.reversible or options.stable or options.sandwich_norm or options.share_input_output_emb)


@pytest.mark.parametrize("codes", [0, 1, 7, 16])
def test_logits_are_lowest_where_a_token_cannot_follow(codes: int) -> None:
    dalle = make_dalle().eval()
    image = dalle.vae.encode(IMAGES)[:, :codes] if codes else None
    logits = dalle(TEXT, image)
    assert logits.shape == (2, min(9 + codes, 24), 108 + 24)
    possible = logits != torch.finfo(logits.dtype).min
    assert possible[:, :8, :108].all() and not possible[:, :8, 108:].any()
    assert possible[:, 8:, 108:].all() and not possible[:, 8:, :108].any()
    complete = dalle(TEXT, IMAGES)
    torch.testing.assert_close(logits, complete[:, : logits.shape[1]])


def test_the_loss_is_that_of_the_logits() -> None:
    dalle = make_dalle().eval()
    codes = dalle.vae.encode(IMAGES)
    numbered = torch.where(TEXT == 0, torch.arange(8) + 100, TEXT)
    log_shares = dalle(TEXT, codes).log_softmax(dim=-1)
    losses = -log_shares.gather(2, torch.cat((numbered, codes + 108), dim=1)[..., None])[..., 0]
    wanted = (losses[:, :8].mean() + 7 * losses[:, 8:].mean()) / 8
    torch.testing.assert_close(dalle(TEXT, IMAGES, return_loss=True), wanted)
    torch.testing.assert_close(dalle(TEXT, codes, return_loss=True), wanted)


def test_masked_tokens_are_padding_and_the_caller_s_text_stays() -> None:
    dalle, text = make_dalle().eval(), TEXT.clone()
    mask = torch.arange(8).expand(2, -1) < 5
    assert torch.equal(dalle(text, IMAGES, mask=mask), dalle(text * mask, IMAGES))
    nothing = dalle(torch.zeros_like(text), IMAGES)
    assert torch.equal(dalle(text, IMAGES, null_cond_prob=1.0), nothing)
    dalle.generate_images(text, cond_scale=3, mask=mask)
    assert torch.equal(text, TEXT)


@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
def test_the_cache_changes_no_picture_and_guidance_does(cond_scale: float) -> None:
    dalle = make_dalle(attn_types=("axial_row", "sparse"))
    torch.nn.init.normal_(dalle.dalle.to_logits.weight, std=0.5)

    def draw(**options: Any) -> Tensor:
        torch.manual_seed(5)
        return dalle.generate_images(TEXT, **options)  # type: ignore[return-value]

    assert torch.equal(draw(cond_scale=cond_scale), draw(cond_scale=cond_scale, use_cache=False))
    assert torch.equal(draw(cond_scale=cond_scale), draw()) == (cond_scale == 1)


def test_drawing_leaves_the_modes_as_they_were() -> None:
    dalle, clip = make_dalle().train(), make_clip().train()
    dalle.generate_images(TEXT, clip=clip)
    assert dalle.training and dalle.dalle.training and clip.training and not dalle.vae.training


def test_a_vae_gives_pictures_in_0_to_1_whatever_it_is_asked_for() -> None:
    vae = make_vae()
    rebuilt = vae(IMAGES)
    loss, same_kind = vae(IMAGES, return_loss=True, return_recons=True)
    assert rebuilt.shape == same_kind.shape == IMAGES.shape and loss.ndim == 0
    logits = vae(IMAGES, return_logits=True)
    assert torch.equal(logits.argmax(dim=1).flatten(1), vae.get_codebook_indices(IMAGES))
    vae.temperature = 1e6  # all codes alike: the mean of the codebook
    even = vae.decoder(vae.codebook.weight.mean(dim=0).expand(2, 4, 4, 16).permute(0, 3, 1, 2))
    torch.testing.assert_close(vae(IMAGES), even * 0.5 + 0.5, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(vae(IMAGES, temp=0.1), vae(IMAGES), atol=1e-3) and vae.temperature == 1e6


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_dalle(sparse_attn=True), "sparse_attn=True names no layers"),
        (lambda: make_dalle()(TEXT[:, :5]), "texts have 5 tokens; pad them with 0 to text_seq_len=8"),
        (lambda: make_dalle()(TEXT, return_loss=True), "the loss needs a picture's 16 codes, not 0"),
        (lambda: make_dalle()(TEXT, IMAGES[:, :1]), "pictures have the shape"),
        (lambda: make_dalle().generate_images(TEXT, img=IMAGES, num_init_img_tokens=16), "leaves nothing to draw"),
        (lambda: make_vae()(IMAGES[:, :, :8]), "pictures have the shape"),
        (lambda: VQGanVAE("model.ckpt"), "vqgan_model_path and vqgan_config_path go together"),
        (lambda: make_dalle(attn_types=("dense",)), "attn_types='dense' is not one of"),
    ],
)
def test_what_cannot_be_is_an_error(call: Any, message: str) -> None:
    with pytest.raises((ValueError, OptionError), match=message):
        call()


def test_importing_loads_no_model_and_nothing_is_downloaded() -> None:
    program = "import sys, models, models.options; print('models.library' in sys.modules); models.DALLE"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'Dall'"):
        models.Dall  # noqa: B018
