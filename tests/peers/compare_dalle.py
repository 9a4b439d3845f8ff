"""Our transformer beside DALLE-pytorch's, with its weights: logits, loss, gradients, greedy tokens, guidance, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest
import torch
from torch import Tensor, nn

from models.dalle import Dalle
from models.dalle_pytorch_format import read_weights, write_dalle, write_weights
from models.decoding import SamplingOptions, draw_image_tokens
from models.options import TransformerOptions
from models.vae import DiscreteVAE
from options import plain_values
from tests.peers.cases import (
    CASES,
    REPAIRED,
    TEXT_TOKENS,
    Inputs,
    give_masks,
    layout_of,
    make_inputs,
    make_ours,
    make_theirs,
    their_greedy_tokens,
)

LOGITS, GRADIENTS = 1e-5, 1e-4
Pair = Tuple[nn.Module, Dalle, Inputs, Dict[str, Any]]


@pytest.fixture(params=sorted(CASES), scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Its model, ours with its weights, inputs, and the options of the case."""
    case = CASES[request.param]
    theirs, contents = make_theirs(case)
    ours = make_ours(case, contents)
    give_masks(theirs, ours, case)
    yield theirs.train(), ours.train(), make_inputs(case), case


def their_loss(theirs: nn.Module, inputs: Inputs, case: Dict[str, Any]) -> Tensor:
    chance = {"null_cond_prob": case["null_cond_prob"]} if "null_cond_prob" in case else {}
    return theirs(inputs.text.clone(), inputs.image_tokens, return_loss=True, **chance)  # it writes into its texts


def test_logits_are_equal(pair: Pair) -> None:
    theirs, ours, inputs, case = pair
    split, first_code = ours.text_seq_len, ours.text_vocab_size
    with torch.no_grad():
        wanted = theirs(inputs.text.clone(), inputs.image_tokens)
        text_logits, image_logits = ours.logits(ours.number_padding(inputs.text), inputs.image_tokens)
    torch.testing.assert_close(text_logits, wanted[:, :split, :first_code], rtol=LOGITS, atol=LOGITS)
    torch.testing.assert_close(image_logits, wanted[:, split:, first_code:], rtol=LOGITS, atol=LOGITS)


def test_losses_are_equal(pair: Pair) -> None:
    theirs, ours, inputs, case = pair
    with torch.no_grad():
        torch.testing.assert_close(
            ours(inputs.text, inputs.image_tokens)[0], their_loss(theirs, inputs, case), rtol=LOGITS, atol=LOGITS
        )


def test_gradients_of_all_parameters_are_equal(pair: Pair) -> None:
    theirs, ours, inputs, case = pair
    theirs.zero_grad()
    ours.zero_grad()
    their_loss(theirs, inputs, case).backward()
    ours(inputs.text, inputs.image_tokens)[0].backward()
    named = {name: p for name, p in theirs.named_parameters() if not name.startswith("vae.")}
    theirs_by_our_name = read_weights(
        {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()},
        plain_values(ours.options),
    )
    parameters = dict(ours.named_parameters())
    assert set(theirs_by_our_name) == set(parameters)
    wrong = {}
    for name, parameter in parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        difference = (gradient - theirs_by_our_name[name]).norm() / theirs_by_our_name[name].norm().clamp(min=1e-6)
        if not difference <= GRADIENTS:
            wrong[name] = float(difference)
    assert wrong == {}


@pytest.mark.parametrize("scale", [1.0, REPAIRED["cond_scale"]])
@pytest.mark.parametrize("use_cache", [False, True])
def test_greedy_image_tokens_are_equal(pair: Pair, scale: float, use_cache: bool) -> None:
    theirs, ours, inputs, case = pair
    wanted = their_greedy_tokens(theirs, inputs.text, scale)
    sampling = SamplingOptions(temperature=0, cond_scale=scale)
    uniform = torch.rand(inputs.image_tokens.shape)
    drawn = draw_image_tokens(ours.eval(), inputs.text, uniform, sampling, use_cache=use_cache)
    ours.train()
    assert drawn.tolist() == wanted.tolist()


def test_written_weights_have_its_names_shapes_order_of_values(pair: Pair) -> None:
    theirs, ours, _, case = pair
    wanted = {name: weight for name, weight in theirs.state_dict().items() if not name.startswith("vae.")}
    written = write_weights(ours.state_dict(), ours.options, layout_of(case))
    assert {name: w.shape for name, w in written.items()} == {name: w.shape for name, w in wanted.items()}
    for name, weight in wanted.items():
        torch.testing.assert_close(written[name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [4, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotary_emb": True, "shift_tokens": True, "reversible": True, "attn_types": ("axial_row", "conv_like")},
        {"share_input_output_emb": True, "stable": True, "sandwich_norm": True, "shared_ff_ids": ("0",)},
    ],
)
def test_it_loads_the_files_that_we_write_and_draws_the_same(
    grid: int, options: Dict[str, Any], tmp_path: Path
) -> None:
    from dalle_pytorch import DALLE
    from dalle_pytorch import DiscreteVAE as TheirDiscreteVAE

    torch.manual_seed(0)
    ours, vae = our_model(grid, options)
    description = {"kind": "DiscreteVAE", "arguments": vae.arguments}
    contents = write_dalle(ours.options, TEXT_TOKENS, ours.layout, ours.state_dict(), description, vae.state_dict())
    torch.save(contents, tmp_path / "dalle.pt")
    # as its generate.py does
    loaded = torch.load(tmp_path / "dalle.pt", weights_only=True)
    assert loaded["vae_class_name"] == TheirDiscreteVAE.__name__
    theirs = DALLE(vae=TheirDiscreteVAE(**loaded["vae_params"]), **loaded["hparams"])
    theirs.load_state_dict(loaded["weights"])
    text = torch.randint(1, TEXT_TOKENS, (2, ours.text_seq_len))
    drawn = draw_image_tokens(ours, text, torch.rand(2, grid * grid), SamplingOptions(temperature=0))
    assert drawn.tolist() == their_greedy_tokens(theirs, text, 1.0).tolist()
    decoded = vae.normalize(vae.decode(drawn))
    torch.testing.assert_close(theirs.vae.decode(drawn).clamp(-1, 1), decoded, rtol=1e-5, atol=1e-5)


def our_model(grid: int, options: Dict[str, Any]) -> Tuple[Dalle, DiscreteVAE]:
    """A model whose layers are strong, so that a wrong weight shows."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "dim_head": 12, "text_seq_len": 5}
    vae = DiscreteVAE(image_size=4 * grid, num_tokens=17, codebook_dim=4, num_layers=2, hidden_dim=4)
    ours = Dalle(TransformerOptions(**{**sizes, **options}), TEXT_TOKENS, 17, (grid, grid)).eval()
    for name, parameter in ours.named_parameters():
        if name.endswith("scale"):
            nn.init.ones_(parameter)
    nn.init.normal_(ours.to_logits.weight, std=0.5)
    return ours, vae.eval()
