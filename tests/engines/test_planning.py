"""The plan of a run: taken from the options of the command, before anything is built."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

import train
from args import Settings, read_settings
from engines.options import IpuOptions, TrainingOptions
from engines.planning import RunPlan
from models.options import TransformerOptions
from options import OptionError

VQGAN: Dict[str, Any] = {"kind": "VQGan", "arguments": {}}


def settings_of(*arguments: str) -> Settings:
    return read_settings("", train.GROUPS, list(arguments))


def plan_of(*arguments: str) -> RunPlan:
    settings = settings_of(*arguments)
    options = (settings[TrainingOptions], settings[IpuOptions], settings[TransformerOptions])
    return RunPlan(*options, 8192, VQGAN, byteio=True)


@pytest.mark.parametrize("config, replicas", [("L16", 1), ("L16_POD16", 4), ("L16_POD64", 16)])
def test_the_named_configurations_fit_their_machines_and_gain_with_replicas(config: str, replicas: int) -> None:
    plan = plan_of("--config", config)
    assert plan.plan.fits
    assert f"Bow Pod{4 * replicas}" in plan.plan.table()
    assert plan.plan.throughput > 0.7 * replicas * plan_of("--config", "L16").plan.throughput


def test_a_gc200_is_slower_than_a_bow_by_its_clock() -> None:
    bow, gc200 = (plan_of("--config", "L16", "--machine", kind).plan for kind in ("bow", "gc200"))
    assert 1.2 < bow.throughput / gc200.throughput < 1.45


def test_the_last_line_is_the_predicted_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of("--config", "L16_POD16")
    plan.show(tmp_path / "run", with_proposal=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("as configured: layers_per_ipu [0, 6, 6, 4]")
    assert lines[-1] == f"predicted throughput: {plan.plan.throughput:,.0f} samples/s"
    assert (tmp_path / "run" / "plan.png").stat().st_size > 5000


def test_a_model_too_large_for_its_ipus_is_refused_with_the_numbers_and_the_remedies() -> None:
    plan = plan_of("--config", "L16", "--hidden-size", "4096", "--batch-size", "8")
    with pytest.raises(OptionError, match=r"(?s)IPU 1 would.*MB.*--no-plan-check"):
        plan.check()


def test_the_command_refuses_it_before_it_looks_at_data_or_image_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["train.py", *"--config L16 --engine ipu-sim --hidden-size 4096 --input-folder".split(), str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--output-dir", str(tmp_path)])
    with pytest.raises(OptionError, match="MB"):
        train.main()
    monkeypatch.setattr("sys.argv", [*words, "--no-plan-check", "--offline", "--output-dir", str(tmp_path)])
    with pytest.raises(OptionError, match="vae_path|holds no image"):
        train.main()


def test_the_plan_is_shown_without_an_image_tokenizer_at_hand(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "--config", "unit_test", "--plan", "--output-dir", str(tmp_path)])
    train.main()
    assert "predicted throughput: " in capsys.readouterr().out.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]


@pytest.mark.parametrize(
    "shared, message",
    [
        (("--shared-ff-ids", "a"), "shared_ff_ids gives layer 7, on IPU 2, the id a of a layer on IPU 1"),
        (
            ("--share-input-output-emb",),
            "share_input_output_emb=true ties the embeddings, on IPU 0, .* set cls_ipu_id=0",
        ),
    ],
)
def test_the_plan_refuses_what_the_engine_refuses(shared: Tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan_of("--config", "L16", *shared)


def test_layers_that_share_weights_stay_together_in_the_proposal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = "a,a,a,a,a,a,a,a,b,b,b,b,b,b,b,b"
    plan = plan_of("--config", "L16", "--shared-ff-ids", ids, "--layers-per-ipu", "0", "8", "0", "8")
    plan.show(tmp_path, with_proposal=True)
    splits = re.findall(r"best split.*: layers_per_ipu \[(.*?)\]", capsys.readouterr().out)
    assert len(splits) == 2
    for split in splits:
        assert sorted(int(number) for number in split.split(",")) == [0, 0, 8, 8]


def test_fused_attention_in_more_chunks_holds_less_and_takes_longer() -> None:
    full = ("--config", "L16", "--attn-types", "full")
    stock = plan_of(*full).plan
    one, four = (plan_of(*full, "--fused-attention", "--attention-chunks", chunks).plan for chunks in ("1", "4"))
    assert plan_of(*full, "--fused-attention").plan.memory == four.memory
    assert four.memory[1].layer < one.memory[1].layer and four.memory[1].layer < stock.memory[1].layer
    assert four.throughput < one.throughput < stock.throughput


def test_the_plan_refuses_chunks_that_the_engine_refuses() -> None:
    with pytest.raises(
        OptionError, match="attention_chunks=5 does not divide the 336 positions .* take one of 1, 2, 3, 4, 6"
    ):
        plan_of("--config", "L16", "--fused-attention", "--attention-chunks", "5")


def test_a_better_split_without_a_plan_and_products_without_memory_are_refused() -> None:
    with pytest.raises(OptionError, match="solve=true is a part of the plan; add --plan"):
        settings_of("--config", "L16", "--solve")
    with pytest.raises(OptionError, match=r"matmul_proportion=\[0.2, 0.0\] leaves products no memory"):
        IpuOptions(matmul_proportion=(0.2, 0.0))


def test_every_option_of_a_plan_is_an_option_of_the_command() -> None:
    from ipu.placement import PlanOptions

    known = {field.name for group in (TrainingOptions, IpuOptions) for field in dataclasses.fields(group)}
    assert {field.name for field in dataclasses.fields(PlanOptions)} - known == {"instances"}
