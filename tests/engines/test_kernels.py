"""The host engine's own kernels against what the models compute with by default, gradients included."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines import open_engine
from engines.host import HostEngine
from engines.kernels import use_kernels
from engines.kernels.attention import attention
from engines.kernels.gated_gelu import gated_gelu
from engines.kernels.segment_losses import SegmentLosses, logits_gradient
from engines.options import IpuOptions, TrainingOptions
from models.attention import Attention
from models.dalle import Dalle
from models.patterns import PATTERNS, Layout, Pattern
from models.transformer import FeedForward, gate
from tests.parity import Case, make_model, make_samples

EXACT = 1e-12  # in double precision
LAYOUT = Layout(5, 3, 4)


def results(function: Callable[..., Any], *inputs: Tensor) -> List[Tensor]:
    """What a function gives, and the gradients of its inputs, for drawn gradients of what it gives."""
    given = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = function(*given)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    learned = [t for t in given if t.requires_grad]
    return [*outputs, *torch.autograd.grad(outputs, learned, drawn)]


def assert_alike(found: List[Tensor], wanted: List[Tensor], tolerance: float = EXACT) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# ----------------------------------------------------------------------------------------------------------- attention


def heads(length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """q, k and v side by side (B, n, 3, H, K)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, length, 3, 3, 6, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("length", [1, 5, 6, 9, 13, 16], ids="{} positions".format)
def test_attention_is_that_of_the_model(kind: str, length: int) -> None:
    module = Attention(18, 3, 6, Pattern(kind, LAYOUT, kernel_size=3, block_size=4)).double()

    def plain(qkv: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        return module._attend(q, k, v, module.pattern).transpose(1, 2)

    assert_alike(results(lambda qkv: attention(qkv, module.pattern), heads(length)), results(plain, heads(length)))


@pytest.mark.parametrize("kind", ["axial_row", "axial_col", "full"])
def test_attention_in_bfloat16_stays_near(kind: str) -> None:
    pattern = Pattern(kind, LAYOUT)
    wanted = results(lambda qkv: attention(qkv, pattern), heads(16))
    found = results(lambda qkv: attention(qkv, pattern), heads(16, torch.bfloat16))
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one.double(), other, rtol=0.1, atol=0.1)


# ---------------------------------------------------------------------------------------------------------- gated GELU


def test_the_gated_gelu_is_that_of_the_model() -> None:
    inner = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_alike(results(gated_gelu, inner), results(gate, inner))


# -------------------------------------------------------------------------------------------------------------- losses

TEXT_IDS, IMAGE_IDS, WIDTH = 11, 7, 6


def losses_inputs(batch: int = 2, texts: int = 5, images: int = 9) -> Tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, weight = torch.randn(batch, texts + images, WIDTH), torch.randn(TEXT_IDS + IMAGE_IDS, WIDTH)
    text, codes = torch.randint(TEXT_IDS, (batch, texts)), torch.randint(IMAGE_IDS, (batch, images))
    return x.double(), weight.double(), torch.randn(len(weight)).double(), text, codes


def plain_losses(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor, codes: Tensor) -> Tuple[Tensor, ...]:
    logits = F.linear(x, weight, bias)
    texts, images = logits[:, : text.shape[1], :TEXT_IDS], logits[:, text.shape[1] :, TEXT_IDS:]
    return F.cross_entropy(texts.flatten(0, 1), text.flatten()), F.cross_entropy(images.flatten(0, 1), codes.flatten())


def kernel_losses(kernel: SegmentLosses) -> Callable[..., Tuple[Tensor, ...]]:
    def losses(x: Tensor, weight: Tensor, bias: Tensor, text: Tensor, codes: Tensor) -> Tuple[Tensor, ...]:
        projection = nn.Linear(WIDTH, TEXT_IDS + IMAGE_IDS)
        del projection.weight, projection.bias
        projection.weight, projection.bias = weight, bias
        return kernel(x, projection, TEXT_IDS, text, codes)

    return losses


@pytest.mark.parametrize("most_logits", [1, 25, 2**24], ids="{} logits at once".format)
def test_losses_by_chunks_are_those_of_all_logits(most_logits: int) -> None:
    inputs = losses_inputs()
    found = results(kernel_losses(SegmentLosses(torch.float64, most_logits=most_logits)), *inputs)
    wanted = results(plain_losses, *inputs)
    assert [t.dtype for t in found[:2]] == [torch.float32] * 2  # what a loss needs
    assert_alike([t.double() for t in found], [t.double() for t in wanted], 1e-6)


def test_no_more_logits_than_a_chunk_exist_at_once() -> None:
    sizes: List[int] = []
    kernel = SegmentLosses(torch.float64, most_logits=24)

    def counted(logits: Tensor, targets: Tensor) -> Tuple[Tensor, Tensor]:
        sizes.append(logits.numel())
        return logits_gradient(logits, targets)

    kernel.of_logits = counted
    results(kernel_losses(kernel), *losses_inputs())
    assert max(sizes) <= 24 and sum(sizes) == 10 * TEXT_IDS + 18 * IMAGE_IDS


def test_losses_without_gradients_compute_none() -> None:
    inputs = losses_inputs()
    with torch.no_grad():
        found = kernel_losses(SegmentLosses(torch.float64))(*inputs)
        wanted = plain_losses(*inputs)
    assert not any(loss.requires_grad for loss in found)
    assert_alike([loss.double() for loss in found], list(wanted), 1e-6)


def test_losses_in_bfloat16_keep_gradients_of_weights_in_single_precision() -> None:
    inputs = [t.float() if t.is_floating_point() else t for t in losses_inputs()]
    exact = results(plain_losses, *inputs)
    kernel = SegmentLosses(torch.bfloat16, most_logits=25)
    assert_alike(results(kernel_losses(kernel), *inputs), exact, 0.05)


# -------------------------------------------------------------------------------------------------------------- models

MODELS: List[Dict[str, Any]] = [
    {},
    {"attn_types": ("axial_row", "axial_col", "conv_like", "sparse", "full"), "num_hidden_layers": 5},
    {"share_input_output_emb": True, "rotary_emb": True, "shift_tokens": True},
    {"stable": True, "sandwich_norm": True},
    {"reversible": True, "attn_types": ("axial_col",)},
    {"shared_attn_ids": ("a",), "shared_ff_ids": ("f",), "attn_types": ("axial_row",)},
]


@pytest.mark.parametrize("transformer", MODELS, ids=str)
def test_a_model_with_kernels_has_the_losses_and_gradients_of_one_without(transformer: Dict[str, Any]) -> None:
    outcomes = []
    for with_kernels in (False, True):
        model = make_model(Case("kernels", transformer))
        if with_kernels:
            use_kernels(model, torch.device("cpu"), torch.float32)
        losses = model(*make_samples(3))
        losses[0].backward()
        outcomes.append([*losses, *(p.grad for p in model.dalle.parameters())])
    assert_alike(outcomes[1], outcomes[0], 2e-5)


def engine_of(**options: Any) -> HostEngine:
    training = TrainingOptions(**{"engine": "host", "device": "cpu", **options})
    engine = open_engine(make_model(Case("kernels", {})), training, IpuOptions(), 0)
    assert isinstance(engine, HostEngine)
    return engine


@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=str)
def test_the_host_engine_sets_them(options: Dict[str, Any]) -> None:
    modules = list(engine_of(**options).model.modules())
    assert [m.loss_kernel.dtype for m in modules if isinstance(m, Dalle)]
    assert all(m.kernel is attention for m in modules if isinstance(m, Attention))
    assert all(m.kernel is gated_gelu for m in modules if isinstance(m, FeedForward))


def test_layers_that_are_compiled_or_on_gpus_have_their_own_and_half_precision_has_logits() -> None:
    for device, dtype, compiled in (("cpu", torch.float32, True), ("cuda", torch.bfloat16, False)):
        model = make_model(Case("kernels", {}))
        use_kernels(model, torch.device(device), dtype, compiled)
        assert model.dalle.loss_kernel is not None and model.dalle.layers[0].attention.kernel is None
    model = make_model(Case("kernels", {}))
    use_kernels(model, torch.device("cuda"), torch.float16)
    assert model.dalle.loss_kernel is None
