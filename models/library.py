"""The models as a library, with the keywords and calls of DALLE-pytorch 1.6.6 and of its README.

A program written for `dalle_pytorch` runs with `from models import DiscreteVAE, DALLE, CLIP` in its place. What differs
is said where it differs: pictures come back in 0..1, the cache is on unless turned off, nothing of the caller's is
changed.

Legend: B batch, T text tokens, n tokens, I image tokens, V text and image tokens together, C channels, H W picture.
"""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from models import vae as discrete_vae
from models.clip import Clip
from models.dalle import PADDING, Dalle, drop_texts
from models.decoding import PRIMED_SHARE, TO_DRAW, complete_text, draw_image_tokens
from models.image_tokenizer import ImageTokenizer
from models.openai_vae import OpenAIVAE
from models.options import ClipOptions, SamplingOptions, TransformerOptions
from models.pretrained import load_released, load_vqgan
from models.vqgan import VQGan
from options import OptionError


class _Codebook(ImageTokenizer):
    """What DALLE-pytorch calls the image tokenizers' `encode`."""

    @torch.no_grad()
    def get_codebook_indices(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W) in 0..1 to codes (B, I)."""
        return self.encode(images)


class DiscreteVAE(discrete_vae.DiscreteVAE, _Codebook):
    """The discrete VAE; the keywords are those of `models.vae.DiscreteVAE`."""

    def forward(  # type: ignore[override]
        self,
        img: Tensor,
        return_loss: bool = False,
        return_recons: bool = False,
        return_logits: bool = False,
        temp: Optional[float] = None,
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Rebuild pictures (B, C, H, W) in 0..1 from codes drawn for them, or say how well that goes.

        Args:
            img: the pictures.
            return_loss: give the loss to minimise, a scalar.
            return_recons: with `return_loss`, give the rebuilt pictures beside it.
            return_logits: give the codes' logits (B, N, Y, X) and draw nothing.
            temp: of the Gumbel-softmax; None: the model's.

        Returns:
            The rebuilt pictures (B, C, H, W) on the scale of 0..1, unless something else is asked for.
        """
        if img.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ValueError(
                f"pictures have the shape {tuple(img.shape)}; give (batch, {self.channels}, {self.image_size}, "
                f"{self.image_size}), as channels and image_size say"
            )
        if return_logits:
            return self.encoder(self.normalize(img))
        before, self.temperature = self.temperature, self.temperature if temp is None else temp
        try:
            rebuilt, logits = self.rebuild(self.normalize(img))
        finally:
            self.temperature = before
        if not return_loss:
            return self.denormalize(rebuilt)
        loss = self.losses(self.normalize(img), rebuilt, logits)[0]
        return (loss, self.denormalize(rebuilt)) if return_recons else loss


class OpenAIDiscreteVAE(OpenAIVAE, _Codebook):
    """OpenAI's released dVAE: 256 pixels, 32x32 codes of 8,192.

    Args:
        offline: use the files of an earlier download only; otherwise missing ones are downloaded now.
    """

    def __init__(self, offline: bool = False) -> None:
        _become(self, load_released("openai", offline))


class VQGanVAE(VQGan, _Codebook):
    """A VQGAN of taming-transformers.

    Args:
        vqgan_model_path, vqgan_config_path: its `.ckpt` and `.yaml`; None: the released one of 1,024 codes, f16.
        offline: use the files of an earlier download only; otherwise missing ones are downloaded now.
    """

    def __init__(
        self, vqgan_model_path: Optional[str] = None, vqgan_config_path: Optional[str] = None, offline: bool = False
    ) -> None:
        if vqgan_model_path is None and vqgan_config_path is None:
            _become(self, load_released("vqgan_f16_1024", offline))
        elif vqgan_model_path is None or vqgan_config_path is None:
            raise OptionError("vqgan_model_path and vqgan_config_path go together; give both, or neither")
        else:
            _become(self, load_vqgan(vqgan_model_path, vqgan_config_path))


class CLIP(Clip):
    """CLIP; the keywords are those of `ClipOptions`.

    Args:
        num_text_tokens: ids of the text tokenizer.
        num_visual_tokens: DALLE-pytorch takes it and has no use for it; neither has this.
        options: the others.
    """

    def __init__(self, *, num_text_tokens: int = 10000, num_visual_tokens: int = 512, **options: Any) -> None:
        super().__init__(ClipOptions(**options), num_text_tokens)

    def forward(  # type: ignore[override]
        self, text: Tensor, image: Tensor, text_mask: Optional[Tensor] = None, return_loss: bool = False
    ) -> Tensor:
        """How well texts (B, n) go with pictures (B, C, H, W) in 0..1, pair by pair (B,); or the contrastive loss.

        `text_mask` (B, n) names the tokens that count; None: all of them, padding, too, as in DALLE-pytorch.
        """
        mask = torch.ones_like(text, dtype=torch.bool) if text_mask is None else text_mask
        text_latents, image_latents = self.encode_text(text, mask), self.encode_images(image)
        if return_loss:
            return self.loss(text_latents, image_latents)[0]
        return self.similarity(text_latents, image_latents)


class DALLE(nn.Module):
    """Text-to-image transformer with its image tokenizer, which does not learn.

    Args:
        dim: width of the transformer.
        vae: the image tokenizer.
        num_text_tokens: ids of the text tokenizer.
        depth: layers.
        heads: of every attention.
        sparse_attn: without effect in DALLE-pytorch, refused here: `attn_types` names sparse layers.
        optimize_for_inference: chooses between two computations of the same in DALLE-pytorch; here there is one.
        the others: as the options of the same names, see `TransformerOptions`.

    Raises:
        OptionError: a value is not admitted.
    """

    def __init__(
        self,
        *,
        dim: int,
        vae: ImageTokenizer,
        num_text_tokens: int = 10000,
        text_seq_len: int = 256,
        depth: int,
        heads: int = 8,
        dim_head: int = 64,
        reversible: bool = False,
        attn_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        sparse_attn: bool = False,
        attn_types: Optional[Sequence[str]] = None,
        loss_img_weight: float = 7,
        stable: bool = False,
        sandwich_norm: bool = False,
        shift_tokens: bool = True,
        rotary_emb: bool = True,
        shared_attn_ids: Optional[Sequence[Any]] = None,
        shared_ff_ids: Optional[Sequence[Any]] = None,
        share_input_output_emb: bool = False,
        optimize_for_inference: bool = False,
    ) -> None:
        super().__init__()
        if sparse_attn:
            raise OptionError(f"sparse_attn={sparse_attn!r} names no layers; write attn_types=('full', 'sparse')")
        options = TransformerOptions(
            hidden_size=dim,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            dim_head=dim_head,
            text_seq_len=text_seq_len,
            attn_types=("full",) if attn_types is None else tuple(attn_types),
            reversible=reversible,
            attn_dropout=attn_dropout,
            ff_dropout=ff_dropout,
            loss_img_weight=loss_img_weight,
            stable=stable,
            sandwich_norm=sandwich_norm,
            shift_tokens=shift_tokens,
            rotary_emb=rotary_emb,
            shared_attn_ids=None if shared_attn_ids is None else tuple(map(str, shared_attn_ids)),
            shared_ff_ids=None if shared_ff_ids is None else tuple(map(str, shared_ff_ids)),
            share_input_output_emb=share_input_output_emb,
        )
        self.vae = vae.requires_grad_(False).eval()
        self.dalle = Dalle(options, num_text_tokens, vae.num_tokens, vae.grid)
        self.text_seq_len, self.image_seq_len = text_seq_len, self.dalle.layout.image_len
        self.num_text_tokens, self.num_image_tokens = self.dalle.text_vocab_size, vae.num_tokens

    def train(self, mode: bool = True) -> DALLE:
        """Put the transformer into training mode; the tokenizer stays as it is evaluated."""
        super().train(mode)
        self.vae.eval()
        return self

    def forward(
        self,
        text: Tensor,
        image: Optional[Tensor] = None,
        return_loss: bool = False,
        null_cond_prob: float = 0.0,
        mask: Optional[Tensor] = None,
    ) -> Tensor:
        """The training loss, or what comes next after each token.

        Args:
            text: (B, T) ids, 0 is padding.
            image: pictures (B, C, H, W) in 0..1, or their codes (B, n), n at most I; None: none yet.
            return_loss: give the loss, a scalar; needs the whole picture.
            null_cond_prob: share of the texts to leave out.
            mask: (B, T), false where a text is padding in spite of its id.

        Returns:
            Logits (B, T + 1 + n, V), at most T + I of them, lowest where text cannot be followed by that token.
        """
        text = self._texts(text, mask)
        if null_cond_prob:
            text = drop_texts(text, null_cond_prob)
        codes = self._codes(text, image)
        if not return_loss:
            return self._logits(self.dalle.number_padding(text), codes)
        if codes.shape[1] != self.image_seq_len:
            raise ValueError(f"the loss needs a picture's {self.image_seq_len} codes, not {codes.shape[1]}; give image")
        return self.dalle(text, codes)[0]

    @torch.no_grad()
    def generate_images(
        self,
        text: Tensor,
        *,
        clip: Optional[CLIP] = None,
        filter_thres: float = 0.5,
        temperature: float = 1.0,
        img: Optional[Tensor] = None,
        num_init_img_tokens: Optional[int] = None,
        cond_scale: float = 1.0,
        use_cache: bool = True,
        mask: Optional[Tensor] = None,
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Draw a picture for each text, with torch's random numbers.

        Args:
            text: (B, n) ids, n at least T; what is beyond T is cut off.
            clip: scores the pictures.
            filter_thres: share of all tokens dropped before drawing one.
            temperature: divides the logits.
            img: pictures (B, C, H, W) in 0..1 to begin with.
            num_init_img_tokens: how many of their tokens to keep; None: 14 of 32 rows.
            cond_scale: guidance; 1: none.
            use_cache: keep keys and values of earlier positions; off: slower, with the same result.
            mask: as in `forward`.

        Returns:
            Pictures (B, C, H, W) in 0..1; with `clip`, their scores (B,), too.
        """
        text = self._texts(text[:, : self.text_seq_len], None if mask is None else mask[:, : self.text_seq_len])
        sampling = SamplingOptions(top_k=filter_thres, temperature=temperature, cond_scale=cond_scale)
        uniform = torch.rand(len(text), self.image_seq_len)
        with _Evaluation(self):
            known = None if img is None else self._beginning(img, num_init_img_tokens)
            codes = draw_image_tokens(self.dalle, text, uniform, sampling, known, use_cache)
            images = self.vae.decode(codes)
        if clip is None:
            return images
        with _Evaluation(clip):
            return images, clip(text, images)

    @torch.no_grad()
    def generate_texts(
        self, tokenizer: Any, text: Optional[str] = None, *, filter_thres: float = 0.5, temperature: float = 1.0
    ) -> Tuple[Tensor, List[Any]]:
        """Continue texts to the end that the model gives them, with torch's random numbers.

        Args:
            tokenizer: has `encode(text)` and `decode(ids)`; or, in its place, beginnings as ids (B, n), 0 is padding.
            text: the beginning; None: the model begins.
            filter_thres: share of all tokens dropped before drawing one.
            temperature: divides the logits.

        Returns:
            Ids (B, T), and the texts; without a tokenizer, the ids of each up to its padding.
        """
        if isinstance(tokenizer, Tensor):
            beginnings, decode = [row[row != PADDING] for row in tokenizer], list
        else:
            ids = tokenizer.encode(text) if text else []
            beginnings, decode = [torch.tensor(ids, dtype=torch.long)], tokenizer.decode
        sampling = SamplingOptions(top_k=filter_thres, temperature=temperature)
        device, rows = next(self.dalle.parameters()).device, []
        with _Evaluation(self):
            for beginning in beginnings:
                beginning = beginning[: self.text_seq_len].to(device)
                uniform = torch.rand(1, self.text_seq_len)
                rows.append(complete_text(self.dalle, beginning[None], uniform, sampling)[0])
        return torch.stack(rows), [decode(row[row != PADDING].tolist()) for row in rows]

    def _texts(self, text: Tensor, mask: Optional[Tensor]) -> Tensor:
        if text.shape[-1] != self.text_seq_len:
            raise ValueError(f"texts have {text.shape[-1]} tokens; pad them with 0 to text_seq_len={self.text_seq_len}")
        return text if mask is None else text.masked_fill(~mask, PADDING)

    def _codes(self, text: Tensor, image: Optional[Tensor]) -> Tensor:
        if image is None:
            return text.new_empty(len(text), 0)
        if image.ndim != 4:
            return image
        expected = (self.vae.channels, self.vae.image_size, self.vae.image_size)
        if image.shape[1:] != expected:
            raise ValueError(f"pictures have the shape {tuple(image.shape[1:])}; the image tokenizer takes {expected}")
        with torch.no_grad():
            return self.vae.encode(image)

    def _logits(self, text: Tensor, codes: Tensor) -> Tensor:
        x = torch.cat((self.dalle.embed_text(text), self.dalle.embed_image(codes[:, : self.image_seq_len - 1])), dim=1)
        x = self.dalle.run(x)
        of_text = self.dalle.text_logits(x[:, : self.text_seq_len])
        of_image = self.dalle.image_logits(x[:, self.text_seq_len :])
        lowest = torch.finfo(of_text.dtype).min
        logits = of_text.new_full((*x.shape[:2], self.num_text_tokens + self.num_image_tokens), lowest)
        logits[:, : self.text_seq_len, : self.num_text_tokens] = of_text
        logits[:, self.text_seq_len :, self.num_text_tokens :] = of_image
        return logits

    def _beginning(self, img: Tensor, count: Optional[int]) -> Tensor:
        count = int(PRIMED_SHARE * self.image_seq_len) if count is None else count
        if not 0 <= count < self.image_seq_len:
            raise ValueError(
                f"num_init_img_tokens={count} leaves nothing to draw of {self.image_seq_len} image tokens; lower it"
            )
        codes = self._codes(img, img)
        return torch.where(torch.arange(self.image_seq_len, device=codes.device) < count, codes, TO_DRAW)


class _Evaluation:
    """Puts a module into evaluation mode within a `with` block."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *error: Any) -> None:
        self.module.train(self.training)


def _become(module: ImageTokenizer, loaded: ImageTokenizer) -> None:
    """Let a module under construction take over all of a loaded one."""
    nn.Module.__init__(module)
    module.__dict__.update(loaded.__dict__)
