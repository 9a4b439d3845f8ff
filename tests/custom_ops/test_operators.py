"""What the functions give to PopTorch, and where they compute."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import pytest
import torch
from torch import Tensor

import custom_ops
import ipu.simulator as simulator
from custom_ops import fused_attention, fused_embedding, host_library, open_operators, twins
from ipu.simulator.ops import _custom_ops
from models.patterns import Layout, Pattern
from options import OptionError

LAYOUT = Layout(3, 2, 2)


class Recorder:
    """A PopTorch that notes how an operator is called and gives its examples back."""

    def __init__(self, on_ipu: bool = True) -> None:
        self.on_ipu = on_ipu
        self.calls: List[Dict[str, Any]] = []

    def isRunningOnIpu(self) -> bool:
        return self.on_ipu

    def custom_op(self, **call: Any) -> List[Tensor]:
        self.calls.append(call)
        return list(call["example_outputs"])


def attributes_of(pattern: Pattern, **options: Any) -> Dict[str, Any]:
    poptorch, q = Recorder(), torch.zeros(1, 2, 6, 4)
    fused_attention(q, q, q, pattern, poptorch, **options)
    return poptorch.calls[0]["attributes"]


COMMON = {
    "text_len": 3,
    "rows": 2,
    "columns": 2,
    "scale": 0.5,
    "chunks": 1,
    "available_memory": 0.6,
    "partials_type": "float",
}


@pytest.mark.parametrize("kind", ["full", "axial_row", "axial_col"])
def test_a_simple_pattern_is_its_layout(kind: str) -> None:
    assert attributes_of(Pattern(kind, LAYOUT)) == {"pattern": kind, **COMMON}


def test_a_window_is_a_few_numbers_more() -> None:
    pattern = Pattern("conv_like", LAYOUT, kernel_size=3, dilation=2, window="centered")
    window = {"kernel_size": 3, "dilation": 2, "window": "centered"}
    assert attributes_of(pattern) == {"pattern": "conv_like", **COMMON, **window}


def test_sparse_blocks_are_those_that_the_mask_has() -> None:
    pattern = Pattern("sparse", Layout(1, 5, 4), block_size=2, random_blocks=1, seed=3)
    found = attributes_of(pattern)
    assert found["block_size"] == 2 and set(found["drawn_blocks"]) == {0, 1}
    drawn = torch.tensor(found["drawn_blocks"]).view(10, 10)
    assert drawn.sum(dim=1).tolist() == [1] * 10
    mask = pattern.mask(20)
    assert all(mask[2 * row + 1, 2 * column] for row, column in drawn.nonzero().tolist() if column <= row)


def test_the_options_of_a_layer_are_attributes() -> None:
    found = attributes_of(Pattern("full", LAYOUT), chunks=3, available_memory=0.25, partials_type="half")
    assert found == {"pattern": "full", **COMMON, "chunks": 3, "available_memory": 0.25, "partials_type": "half"}


def test_attention_is_called_as_it_is_registered() -> None:
    poptorch = Recorder()
    q, k, v = (torch.zeros(1, 2, 6, 4).half() for _ in range(3))
    out = fused_attention(q, k, v, Pattern("full", LAYOUT), poptorch)
    call = poptorch.calls[0]
    assert (call["name"], call["domain"], call["domain_version"]) == ("FusedAttention", "minidalle.ops", 1)
    assert all(one is other for one, other in zip(call["inputs"], (q, k, v)))
    assert [(example.shape, example.dtype) for example in call["example_outputs"]] == [
        (q.shape, torch.float16),
        (q.shape[:3], torch.float32),
    ]
    assert out.shape == q.shape


@pytest.mark.parametrize("has_position", [True, False])
def test_an_embedding_is_called_as_it_is_registered(has_position: bool) -> None:
    poptorch, table, ids = Recorder(), torch.zeros(8, 4).half(), torch.zeros(2, 3, dtype=torch.long)
    position = torch.zeros(3, 4).half() if has_position else None
    out = fused_embedding(table, ids, position, 5, poptorch, splits=4, available_memory=0.3)
    call = poptorch.calls[0]
    assert (call["name"], call["domain"], call["domain_version"]) == ("FusedEmbedding", "minidalle.ops", 1)
    assert [given.dtype for given in call["inputs"]] == [torch.float16, torch.int32, torch.float16][: 2 + has_position]
    assert call["inputs"][0] is table
    assert call["attributes"] == {"splits": 4, "padding_idx": 5, "available_memory": 0.3}
    assert (out.shape, out.dtype) == ((2, 3, 4), torch.float16)
    fused_embedding(table, ids, position, poptorch=poptorch)
    assert poptorch.calls[1]["attributes"] == {"splits": 1, "padding_idx": -1, "available_memory": 0.6}


def test_outside_of_a_model_on_ipus_pytorch_computes() -> None:
    host, q, table = Recorder(on_ipu=False), torch.randn(1, 2, 6, 4), torch.randn(8, 4)
    pattern, ids = Pattern("full", LAYOUT), torch.tensor([[1, 7]])
    assert torch.equal(fused_attention(q, q, q, pattern, host), twins.attention(q, q, q, pattern))
    assert torch.equal(fused_embedding(table, ids, poptorch=host), table[ids])
    assert host.calls == []


# ------------------------------------------------------------------------------------------- making the operators known


def test_operators_that_were_not_compiled_for_the_sdk_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_ops, "COMPILED", tmp_path / "custom_ops.so")
    with pytest.raises(OptionError, match=r"custom_ops.so is not there; run `make custom_ops` with the SDK enabled"):
        open_operators(SimpleNamespace())
    (tmp_path / "custom_ops.so").write_text("of another SDK")
    with pytest.raises(OptionError, match=r"cannot be loaded \(.*\); enable the SDK that it was built with"):
        open_operators(SimpleNamespace())


def test_the_operators_of_the_sdk_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: List[str] = []
    path = tmp_path / "custom_ops.so"
    path.touch()
    monkeypatch.setattr(custom_ops, "COMPILED", path)
    monkeypatch.setattr(custom_ops.ctypes, "CDLL", lambda name: loaded.append(name) or object())
    sdk = SimpleNamespace()
    assert open_operators(sdk) is sdk and open_operators(sdk) is sdk
    assert loaded == [str(path)]


def test_without_a_compiler_the_twins_compute_and_the_log_says_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    custom_ops._tell_about_twins.cache_clear()
    monkeypatch.delenv(host_library.OTHER_LIBRARY, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert open_operators(simulator) is None and open_operators(simulator) is None
    assert len(caplog.messages) == 1
    assert "no make here" in caplog.messages[0] and "PyTorch's operators" in caplog.messages[0]


@pytest.fixture
def unregistered() -> Iterator[None]:
    """The simulator as it is before anybody opens the operators."""
    before = dict(_custom_ops)
    _custom_ops.clear()
    yield
    _custom_ops.clear()
    _custom_ops.update(before)


def test_the_simulator_gets_the_operators_built_for_this_cpu(host_library: Any, unregistered: None) -> None:
    assert open_operators(simulator) is simulator
    assert set(_custom_ops) == {("minidalle.ops", name, 1) for name in ("FusedAttention", "FusedEmbedding")}
