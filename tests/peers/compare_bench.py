"""What `bench` measures of DALLE-pytorch is DALLE-pytorch: repaired, it draws what it draws without a cache."""

from __future__ import annotations

import pytest
import torch

from bench.cases import TINY_VQGAN
from bench.peers import make_their_vqgan, make_theirs, repair, their_tokens
from bench.settings import TINY, make_dalle, make_setting, make_text
from bench.training import make_our_vqgan
from models.decoding import draw_image_tokens
from models.options import SamplingOptions

KINDS = ("axial_row", "axial_row", "axial_col", "conv_like", "full")


@pytest.mark.parametrize("cond_scale", [1.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
def test_repaired_it_draws_with_its_cache_what_ours_draws(masked: bool, cond_scale: float) -> None:
    kinds = tuple(kind for kind in KINDS if not masked or kind != "conv_like")  # which has no masked form
    setting = make_setting("tiny", attn_types=kinds, depth=len(kinds))
    text = make_text(setting)
    theirs = make_theirs(setting, masked=masked)
    repair(theirs)
    sampling = SamplingOptions(temperature=0, cond_scale=cond_scale)
    ours = draw_image_tokens(make_dalle(setting).eval(), text, torch.rand(len(text), setting.grid**2), sampling)
    drawn = their_tokens(theirs, text, filter_thres=1.0, cond_scale=cond_scale, use_cache=True)
    assert drawn.tolist() == ours.tolist()


def test_its_image_tokenizer_has_the_codes_of_ours() -> None:
    images = torch.rand(2, 3, TINY_VQGAN["resolution"], TINY_VQGAN["resolution"])
    theirs, ours = make_their_vqgan(**TINY_VQGAN), make_our_vqgan(**TINY_VQGAN)
    codes = theirs.get_codebook_indices(images)
    assert codes.tolist() == ours.encode(images).tolist()
    assert codes.shape[1] == TINY.grid**2
    torch.testing.assert_close(theirs.decode(codes), ours.decode(codes), atol=1e-5, rtol=0)
