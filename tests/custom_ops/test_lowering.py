"""The lowering that IPUs compile, run on a CPU, against float64 autograd, in every pattern, precision and cut."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from custom_ops import fused_attention
from models.patterns import Layout, Pattern
from tests.custom_ops.host_poptorch import HostPopTorch
from tests.custom_ops.lowering import Lowering, LoweringError

KINDS: Dict[str, Dict[str, Any]] = {
    "full": {},
    "axial_row": {},
    "axial_col": {},
    "conv_like": {"kernel_size": 5},
    "conv_like dilated": {"kernel_size": 3, "dilation": 2},
    "conv_like centered": {"kernel_size": 5, "window": "centered"},
    "sparse": {"block_size": 4},
    "sparse without drawn blocks": {"block_size": 16, "random_blocks": 0},
}
# 80 positions; and 20 of an odd grid, whose last pixel is absent as it always is
LAYOUTS = {"8x8": Layout(17, 8, 8), "5x3": Layout(6, 5, 3)}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}  # absolute, for operands of unit variance
COMMON_MODE_TOLERANCE = 2e-3  # relative, half precision
CHUNKS = (1, 2, 4)
RESULTS = ("out", "log-sum-exp", "dq", "dk", "dv")

by_precision = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
by_chunks = pytest.mark.parametrize("chunks", CHUNKS)
by_pattern = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def lowering(host_library: Any) -> Lowering:
    return Lowering(host_library)


class Operands(NamedTuple):
    """Of one attention: (G, N, d) each."""

    q: Tensor
    k: Tensor
    v: Tensor
    out_gradient: Tensor


def pattern_of(kind: str, layout: Layout) -> Pattern:
    return Pattern(kind.split()[0], layout, **KINDS[kind])


def random_operands(pattern: Pattern, dtype: torch.dtype, groups: int = 2, width: int = 64) -> Operands:
    shape = (groups, pattern.layout.sequence_len, width)
    return Operands(*(torch.randn(shape).to(dtype) for _ in range(4)))


def expected(operands: Operands, pattern: Pattern) -> List[Tensor]:
    """What float64 gives for operands as they were rounded, in the order of `RESULTS`."""
    q, k, v = (t.double().requires_grad_() for t in operands[:3])
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~pattern.mask(q.shape[1]), float("-inf"))
    out = scores.softmax(dim=-1) @ v
    out.backward(operands.out_gradient.double())
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [out.detach(), scores.detach().logsumexp(dim=-1), q.grad, k.grad, v.grad]


def computed(lowering: Lowering, operands: Operands, pattern: Pattern, chunks: int) -> List[Tensor]:
    out, log_sum_exp = lowering.attention(*operands[:3], pattern, chunks)
    gradients = lowering.attention_gradient(operands.out_gradient, *operands[:3], log_sum_exp, pattern, chunks)
    return [out, log_sum_exp, *gradients]


def errors(found: List[Tensor], wanted: List[Tensor]) -> Dict[str, float]:
    return {name: (a - b).abs().max().item() for name, a, b in zip(RESULTS, found, wanted)}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


# ------------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("layout", LAYOUTS)
@by_pattern
def test_the_lowering_masks_as_the_model_does(lowering: Lowering, kind: str, layout: str) -> None:
    pattern = pattern_of(kind, LAYOUTS[layout])
    length = pattern.layout.sequence_len
    assert torch.equal(lowering.allowed(pattern, length), pattern.mask(length))


# ------------------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("layout", LAYOUTS)
@by_chunks
@by_precision
@by_pattern
def test_attention_and_its_gradients_are_those_of_float64(
    lowering: Lowering, kind: str, dtype: torch.dtype, chunks: int, layout: str
) -> None:
    pattern = pattern_of(kind, LAYOUTS[layout])
    operands = random_operands(pattern, dtype)
    found = errors(computed(lowering, operands, pattern, chunks), expected(operands, pattern))
    assert {name: error for name, error in found.items() if not error < TOLERANCE[dtype]} == {}


@by_chunks
@by_precision
@by_pattern
def test_the_operator_gives_the_same_bits_through_popart(
    lowering: Lowering, host_library: Any, kind: str, dtype: torch.dtype, chunks: int
) -> None:
    pattern = pattern_of(kind, LAYOUTS["8x8"])
    operands = random_operands(pattern, dtype)
    given = [operand[None].clone().requires_grad_() for operand in operands[:3]]
    out = fused_attention(*given, pattern, HostPopTorch(host_library), chunks)
    out.backward(operands.out_gradient[None])
    direct = computed(lowering, operands, pattern, chunks)
    for found, wanted in zip([out, *(operand.grad for operand in given)], [direct[0], *direct[2:]]):
        assert torch.equal(found[0].float(), wanted)


@by_precision
def test_the_number_of_chunks_changes_no_bit_of_what_rows_have_to_themselves(
    lowering: Lowering, dtype: torch.dtype
) -> None:
    pattern = pattern_of("axial_col", LAYOUTS["8x8"])
    operands = random_operands(pattern, dtype)
    once, others = computed(lowering, operands, pattern, 1), computed(lowering, operands, pattern, 8)
    assert [torch.equal(a, b) for a, b in zip(once[:3], others[:3])] == [True] * 3


def test_a_sequence_without_all_of_its_picture_is_attended_to_as_well(lowering: Lowering) -> None:
    pattern = pattern_of("axial_row", LAYOUTS["8x8"])
    operands = Operands(*(t[:, :36] for t in random_operands(pattern, torch.float32)))
    found = errors(computed(lowering, operands, pattern, 4), expected(operands, pattern))
    assert max(found.values()) < TOLERANCE[torch.float32]


def common_mode_operands(pattern: Pattern, width: int) -> Operands:
    """Values that have nearly all in common: what half precision keeps of their differences is little."""
    q, k, v, out_gradient = random_operands(pattern, torch.float32, width=width)
    common = torch.randn(1, 1, width)
    return Operands(*(t.half() for t in (q, k, common + 0.01 * v, out_gradient)))


@pytest.mark.parametrize("width", [8, 64])
@by_chunks
def test_gradients_are_right_where_values_have_nearly_all_in_common(
    lowering: Lowering, chunks: int, width: int
) -> None:
    pattern = pattern_of("full", LAYOUTS["8x8"])
    operands = common_mode_operands(pattern, width)
    found, wanted = computed(lowering, operands, pattern, chunks), expected(operands, pattern)
    assert [relative_error(a, b) < COMMON_MODE_TOLERANCE for a, b in zip(found[2:4], wanted[2:4])] == [True, True]


def test_that_case_tells_the_row_sums_of_rounded_outputs_apart(lowering: Lowering) -> None:
    """FlashAttention's identity for them, on halves, misses the same case by far: it is a case that bites."""
    pattern = pattern_of("full", LAYOUTS["8x8"])
    operands = common_mode_operands(pattern, 64)
    q, k, v, gradient = (t.double() for t in operands)
    scores = (q @ k.transpose(1, 2) / 8).masked_fill(~pattern.mask(80), float("-inf"))
    weights = scores.softmax(dim=-1)
    sums = (gradient * (weights @ v).half()).sum(dim=-1, keepdim=True)
    dq = ((gradient @ v.transpose(1, 2) - sums) * weights / 8) @ k
    assert relative_error(dq, expected(operands, pattern)[2]) > 5 * COMMON_MODE_TOLERANCE


def test_gradients_under_loss_scaling_are_the_scaled_ones(lowering: Lowering) -> None:
    pattern, scale = pattern_of("conv_like", LAYOUTS["8x8"]), 2.0**12
    operands = random_operands(pattern, torch.float16)
    scaled = operands._replace(out_gradient=(operands.out_gradient * 0.1 * scale).half())
    found, wanted = computed(lowering, scaled, pattern, 2), expected(scaled, pattern)
    assert max(errors(found, wanted)[name] for name in RESULTS[2:]) < TOLERANCE[torch.float16] * 0.1 * scale


@by_precision
def test_scores_far_beyond_the_range_of_the_exponential_are_no_trouble(lowering: Lowering, dtype: torch.dtype) -> None:
    """The largest of these scores are some hundreds, and e to the 89th is the last that single precision has."""
    pattern = pattern_of("full", LAYOUTS["8x8"])
    operands = random_operands(pattern, dtype)
    large = operands._replace(q=operands.q * 128)
    found, wanted = computed(lowering, large, pattern, 2), expected(large, pattern)
    assert wanted[1].max() > 300
    assert relative_error(found[0], wanted[0]) < 1e-3 and relative_error(found[1], wanted[1]) < 1e-5


def test_half_partial_sums_are_seen(lowering: Lowering) -> None:
    pattern = pattern_of("full", LAYOUTS["8x8"])
    operands = random_operands(pattern, torch.float32)
    exact = expected(operands, pattern)[0]
    single, half = (lowering.attention(*operands[:3], pattern, 1, partials)[0] for partials in ("float", "half"))
    assert (single - exact).abs().max() < 1e-5 < 1e-4 < (half - exact).abs().max()


def test_a_full_size_layer_of_l16_is_right(lowering: Lowering) -> None:
    """Batch 2, 16 heads of 64, 336 positions, 4 chunks, half precision."""
    pattern = Pattern("axial_row", Layout(81, 16, 16))
    operands = random_operands(pattern, torch.float16, groups=32)
    found = errors(computed(lowering, operands, pattern, 4), expected(operands, pattern))
    assert max(found.values()) < TOLERANCE[torch.float16]


# --------------------------------------------------------------------------------------------------- attention's memory


def variables(lowering: Lowering, operands: Operands, pattern: Pattern, chunks: int) -> List[Tuple[int, int]]:
    """Bytes of all variables, and elements of the largest one: of the forward and of the backward pass."""
    _, log_sum_exp = lowering.attention(*operands[:3], pattern, chunks)
    forward = (lowering.memories.total_bytes, lowering.memories.largest_elements)
    lowering.attention_gradient(operands.out_gradient, *operands[:3], log_sum_exp, pattern, chunks)
    return [forward, (lowering.memories.total_bytes, lowering.memories.largest_elements)]


def test_chunks_never_hold_the_score_matrix_and_need_the_less_the_more_there_are(lowering: Lowering) -> None:
    pattern = Pattern("full", Layout(81, 16, 16))
    operands = random_operands(pattern, torch.float16, groups=32)
    scores = 32 * 336 * 336
    table = {chunks: variables(lowering, operands, pattern, chunks) for chunks in (1, 2, 4, 8)}
    print(f"\nL16's attention, micro batch 2, half: a score matrix has {scores} elements")
    print("chunks  forward MB  largest elements  backward MB  largest elements")
    for chunks, ((forward, most), (backward, most_backward)) in table.items():
        print(f"{chunks:6}  {forward / 1e6:10.2f}  {most:16}  {backward / 1e6:11.2f}  {most_backward:16}")
    assert [most for passes in list(table.values())[1:] for _, most in passes if most >= scores] == []
    for direction in (0, 1):
        totals = [passes[direction][0] for passes in table.values()]
        assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)


# ------------------------------------------------------------------------------------------------------------ embedding


def ids_of(rows: int, batch: int = 3, positions: int = 8) -> Tensor:
    """The first row, the last one, one that many tokens share, and others."""
    ids = torch.randint(0, rows, (batch, positions))
    ids[0, :3], ids[:, -1], ids[1] = 0, rows - 1, 5
    return ids


@pytest.mark.parametrize("positions", [True, False])
@by_precision
def test_embedding_is_the_row_and_its_position(lowering: Lowering, dtype: torch.dtype, positions: bool) -> None:
    table, position, ids = torch.randn(24, 16).to(dtype), torch.randn(8, 16).to(dtype), ids_of(24)
    found = lowering.embedding(table, ids, position if positions else None)
    wanted = F.embedding(ids, table.double()) + (position.double() if positions else 0)
    assert torch.equal(found, wanted.to(dtype).float())


@pytest.mark.parametrize("padding_row", [-1, 5, 0, 23])
@pytest.mark.parametrize("splits", [1, 2, 4, 24])
@by_precision
def test_gradients_of_the_embedding_are_those_of_float64(
    lowering: Lowering, dtype: torch.dtype, splits: int, padding_row: int
) -> None:
    ids, gradient = ids_of(24), torch.randn(3, 8, 16).to(dtype)
    table = torch.zeros(24, 16, dtype=torch.float64, requires_grad=True)
    F.embedding(ids, table, padding_row if padding_row >= 0 else None).backward(gradient.double())
    found_table, found_position = lowering.embedding_gradient(gradient, ids, 24, splits, padding_row)
    assert table.grad is not None
    assert (found_table - table.grad).abs().max() < TOLERANCE[dtype]
    assert (found_position - gradient.double().sum(dim=0)).abs().max() < TOLERANCE[dtype]
    unused = set(range(24)) - set(ids.flatten().tolist())
    assert unused and not found_table[sorted(unused)].any()


def test_a_row_that_thousands_of_tokens_share_loses_none_of_them_in_half_precision(lowering: Lowering) -> None:
    # rounded after every addition, the sum would stay at 2048
    ids, gradient = torch.ones(64, 64, dtype=torch.int64), torch.ones(64, 64, 2).half()
    table, position = lowering.embedding_gradient(gradient, ids, 4, splits=2)
    assert table.tolist() == [[0, 0], [4096, 4096], [0, 0], [0, 0]]
    assert position.unique().tolist() == [64.0]


def test_an_id_beyond_the_table_is_an_error(lowering: Lowering) -> None:
    with pytest.raises(LoweringError, match="row 4 of a table of 4"):
        lowering.embedding(torch.zeros(4, 2), torch.full((1, 1), 4), None)


def test_splits_hold_a_part_of_the_partial_sums(lowering: Lowering) -> None:
    """With one part there are sums as large as the table beside the gradient itself; with 8 an eighth of them."""
    ids, gradient = torch.zeros(1, 2, dtype=torch.int64), torch.randn(1, 2, 16)
    totals = {}
    for splits in (1, 8):
        lowering.embedding_gradient(gradient, ids, 512, splits)
        totals[splits] = lowering.memories.total_bytes
    assert totals[1] - totals[8] == 512 * 16 * 4 * 7 // 8
