"""The checks to run first on a machine with IPUs: `make smoke-ipu`. Each proves one thing, the smallest ones first.

`make smoke-ipu ENGINE=ipu-sim` runs them on the simulator. Where no IPUs answer this says what is missing.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from bpe.tokenizer import load_tokenizer
from ipu import has_sdk, open_poptorch
from ipu.options import inference_options, training_options
from models.options import ATTENTION_TYPES
from tests.conftest import Run, as_arguments
from tests.cpu_ipu_test import TOLERANCE
from tests.parity import (
    Case,
    GreyTokenizer,
    assert_within,
    calls_of,
    make_engine,
    make_model,
    make_samples,
    train_on_engine,
    train_plainly,
)

ROOT = Path(__file__).resolve().parent.parent
ENGINE = os.environ.get("ENGINE", "ipu")
IPUS = 4  # what the largest check takes
STEPS = 4
LOSS = 1e-3  # how far a loss may be from the host's in single precision, after a few steps; absolute

Train = Callable[..., Run]


def what_is_missing() -> Optional[str]:
    """Why the checks cannot run here; None where they can."""
    if ENGINE == "ipu-sim":
        return None
    if ENGINE != "ipu":
        return f"ENGINE={ENGINE} is neither ipu nor ipu-sim"
    simulator = "ENGINE=ipu-sim runs the checks without hardware"
    if not has_sdk():
        try:
            importlib.import_module("poptorch")
            found = "poptorch is the simulator here"
        except (ImportError, ValueError, AssertionError) as error:
            found = f"import poptorch: {error}"
        return (
            f"the SDK's PopTorch is missing ({found}); enable the SDK and install its wheel (docs/ipu.md). {simulator}"
        )
    if not open_poptorch("ipu").ipuHardwareIsAvailable(IPUS):
        partition = os.environ.get("IPUOF_VIPU_API_PARTITION_ID", "not set")
        return (
            f"PopTorch is there, and no {IPUS} IPUs answer; look at gc-info -l, and at the partition "
            f"(IPUOF_VIPU_API_PARTITION_ID is {partition}). {simulator}"
        )
    return None


@pytest.fixture(scope="session", autouse=True)
def _machine() -> None:
    """Leaves where there is nothing to check."""
    missing = what_is_missing()
    if missing:
        pytest.exit(f"make smoke-ipu: {missing}", returncode=2)


@pytest.fixture(scope="session")
def smoke(run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs train.py on the engine to check, on one IPU unless told otherwise: `smoke("name", **options)`."""
    root = tmp_path_factory.mktemp("smoke")

    def call(name: str, **options: Any) -> Run:
        given = {"engine": ENGINE, "max_steps": STEPS, "layers_per_ipu": 2, "async_dataloader": False}
        return run_train(root / name, **{**given, **options})

    return call


@pytest.fixture(scope="session")
def expected(smoke: Train) -> Train:
    """As `smoke`, on the host."""

    def call(name: str, **options: Any) -> Run:
        return smoke(f"{name}_host", **{**options, "engine": "host"})

    return call


def assert_same_losses(run: Run, other: Run, tolerance: float = LOSS, event: str = "train") -> None:
    found, meant = run.series("loss", event), other.series("loss", event)
    assert found and found == pytest.approx(meant, abs=tolerance), f"{found}, expected {meant}"


# ------------------------------------------------------------------------------------------------------ SDK and options


def test_the_sdk_is_a_release_that_this_program_knows() -> None:
    poptorch = open_poptorch(ENGINE)
    print(f"PopTorch {poptorch.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    assert poptorch.__version__.split("+")[0].split(".")[:2] in (["3", "3"], ["3", "4"])


@pytest.mark.skipif(ENGINE == "ipu-sim", reason="there is no hardware to ask")
def test_the_ipus_are_of_the_second_generation() -> None:
    assert str(open_poptorch(ENGINE).ipuHardwareVersion()).startswith("2")


def test_every_option_that_a_run_can_set_is_accepted() -> None:
    ipu = {
        "layers_per_ipu": (1, 1), "matmul_proportion": (0.3, 0.6), "stochastic_rounding": True,
        "enable_half_partials": True, "enable_rts": True, "optimizer_state_offchip": True,
        "enable_half_first_order_momentum": True, "recomputation": False,
    }  # fmt: skip
    training = {"fp16": True, "gradient_accumulation": 3, "replication_factor": 2, "enable_als": True}
    made = make_engine(Case("everything", {}, training, ipu), ENGINE)
    poptorch = open_poptorch(ENGINE)
    for options in (training_options(poptorch, made._run), inference_options(poptorch, made._run)):
        assert options.replication_factor == 2


# ----------------------------------------------------------------------------------------- numbers, in single precision

SINGLE: List[Case] = [
    Case("one IPU"),
    Case("micro batches accumulated", {}, {"gradient_accumulation": 4}),
    Case("a pipeline of two IPUs", {}, {"gradient_accumulation": 3}, {"layers_per_ipu": (1, 1)}),
    Case(
        "a pipeline of four IPUs, the first without layers",
        {"num_hidden_layers": 3},
        {"gradient_accumulation": 7},
        {"layers_per_ipu": (0, 1, 1, 1)},
    ),
    Case("two replicas", {}, {"replication_factor": 2}),
    Case("two replicas that share the optimizer's state", {}, {"replication_factor": 2}, {"enable_rts": True}),
    Case("the optimizer's state in the host's memory", {}, {}, {"optimizer_state_offchip": True}),
    Case("two updates a call", {}, {"device_iterations": 2}),
    Case("losses scaled", {}, {"loss_scaling": 4096.0}),
    Case("embedding and projection in four parts", {}, {}, {"embedding_serialization_factor": 4}),
    Case("every activation kept", {}, {}, {"recomputation": False}),
    Case("little memory for products", {}, {}, {"matmul_proportion": (0.1,)}),
    Case("gradients clipped", {}, {"clip_grad_norm": 0.01}),
    Case("AdamW with decay", {}, {"optimizer": "AdamW", "weight_decay": 0.1}),
    Case("rows and columns", {"attn_types": ("axial_row", "axial_col")}),
    Case("windows and blocks", {"attn_types": ("conv_like", "sparse"), "sparse_block_size": 4}),
    Case("reversible, rotary, shifted", {"reversible": True, "rotary_emb": True, "shift_tokens": True}),
]
FUSED: Dict[str, Any] = {"fused_attention": True, "fused_embedding": True}
WITH_OWN_OPERATORS: List[Case] = [
    Case("fused attention, one chunk", {"num_hidden_layers": 1}, {}, {"fused_attention": True, "attention_chunks": 1}),
    *(
        Case(
            f"fused attention, {kind}",
            {"num_hidden_layers": 1, "attn_types": (kind,), "sparse_block_size": 4},
            {},
            {"fused_attention": True},
        )
        for kind in ATTENTION_TYPES
    ),
    Case("fused embedding", {"num_hidden_layers": 1}, {}, {"fused_embedding": True}),
    Case("fused embedding in four parts", {}, {}, {"fused_embedding": True, "embedding_serialization_factor": 4}),
    Case(
        "all fused, a pipeline of two IPUs, replicated",
        {"rotary_emb": True},
        {"gradient_accumulation": 3, "replication_factor": 2},
        {**FUSED, "layers_per_ipu": (1, 1)},
    ),
]


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case.name)
def test_training_is_that_of_plain_pytorch(case: Case) -> None:
    assert_within(train_on_engine(case, ENGINE), train_plainly(case), TOLERANCE["single"])


@pytest.mark.parametrize("case", WITH_OWN_OPERATORS, ids=lambda case: case.name)
def test_the_fused_operators_give_the_logits_of_plain_pytorch(case: Case) -> None:
    engine, plain = make_engine(case, ENGINE), make_model(case).eval()
    text, images = make_samples(2)
    text, codes = plain.dalle.number_padding(text), GreyTokenizer().encode(images)
    with engine.inference() as model, torch.no_grad():
        found, expected = model.dalle.logits(text, codes), plain.dalle.logits(text, codes)
    engine.close()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", WITH_OWN_OPERATORS, ids=lambda case: case.name)
def test_the_fused_operators_train_as_plain_pytorch(case: Case) -> None:
    assert_within(train_on_engine(case, ENGINE), train_plainly(case), TOLERANCE["single"])


# ------------------------------------------------------------------------------------------------------- half precision

SCALED: Dict[str, Any] = {"fp16": True, "loss_scaling": 1024.0}
STOCHASTIC: Dict[str, Any] = {"stochastic_rounding": True, "enable_half_first_order_momentum": True}


@pytest.mark.parametrize("rounding, ipu", [("half", {}), ("stochastic", STOCHASTIC)])
def test_half_precision_is_plain_pytorch_within_its_tolerance(rounding: str, ipu: Dict[str, Any]) -> None:
    case = Case(rounding, {}, SCALED, ipu)
    assert_within(train_on_engine(case, ENGINE), train_plainly(case), TOLERANCE[rounding])


def test_the_fused_operators_in_half_precision_are_plain_pytorch_within_its_tolerance() -> None:
    case = Case("half, fused", {"attn_types": ("full", "conv_like")}, SCALED, FUSED)
    assert_within(train_on_engine(case, ENGINE), train_plainly(case), TOLERANCE["half"])


def test_half_partial_sums_are_plain_pytorch_within_the_tolerance_of_half_precision() -> None:
    case = Case("half partials", {"hidden_size": 64}, SCALED, {"enable_half_partials": True})
    assert_within(train_on_engine(case, ENGINE), train_plainly(case), TOLERANCE["half"])


def test_automatic_loss_scaling_changes_the_factor() -> None:
    case = Case("loss scaling adapted", {}, {**SCALED, "enable_als": True})
    engine = make_engine(case, ENGINE)
    for inputs in calls_of(case, updates=3):
        engine.step([inputs])
    factor = engine.state_dict()["scaler"]["loss_scale_update_factor"]
    engine.close()
    assert factor > 0 and factor != 1, "it doubles while gradients are small"


# ------------------------------------------------------------------------------------------------------------- commands


def test_train_py_on_one_ipu_has_the_losses_of_the_host(smoke: Train, expected: Train) -> None:
    assert_same_losses(smoke("one"), expected("one"))


def test_batches_loaded_ahead_by_other_processes_are_the_same(smoke: Train, expected: Train) -> None:
    options = {"batch_size": 1, "gradient_accumulation": 4}
    assert_same_losses(
        smoke("ahead", dataloader_workers=2, async_dataloader=True, **options), expected("ahead", **options)
    )


def test_pictures_that_travel_as_bytes_are_the_same(smoke: Train, expected: Train) -> None:
    assert_same_losses(smoke("bytes", byteio=True), expected("bytes"))


def test_a_checkpoint_goes_from_ipus_to_the_host_and_back(smoke: Train, expected: Train, vocabulary: Path) -> None:
    words = load_tokenizer(str(vocabulary)).vocab_size
    # with a padding id a position the text has an even number of ids, to be cut into two parts
    options = {"embedding_serialization_factor": 2, "text_seq_len": 8 + words % 2}
    whole = expected("whole", max_steps=6, **options)
    run = smoke("moving", max_steps=2, **options)
    smoke("moving", max_steps=4, resume=True, **{**options, "engine": "host"})
    smoke("moving", max_steps=6, resume=True, **options)
    assert run.series("step") == [1, 2, 3, 4, 5, 6]
    assert_same_losses(run, whole)


def test_a_resumed_run_repeats_the_losses(smoke: Train) -> None:
    options = {"fp16": True, "loss_scaling": 1024, "stochastic_rounding": True, "attn_dropout": 0.1}
    whole = smoke("uninterrupted", **options)
    halves = smoke("interrupted", **{**options, "max_steps": 2})
    smoke("interrupted", resume=True, **options)
    assert halves.series("loss") == whole.series("loss"), "weights, moments, loss scale and random numbers are all kept"


def test_validation_on_ipus_has_the_losses_of_the_host(smoke: Train, expected: Train) -> None:
    options = {"validation_steps": 2}
    run = smoke("validation", **options)
    assert [line["step"] for line in run.log("validation")] == [2, 4]
    assert_same_losses(run, expected("validation", **options), event="validation")


def test_training_goes_on_as_it_would_have_after_validating_and_drawing(smoke: Train, expected: Train) -> None:
    often = smoke("often", validation_steps=1, sample_steps=2, sample_prompts="a red circle")
    assert_same_losses(often, expected("often"))


def test_pictures_drawn_on_ipus_are_those_of_the_host(smoke: Train, expected: Train) -> None:
    options = {"sample_steps": 4, "sample_prompts": "a red circle|a blue square"}
    grids = []
    for run in (smoke("drawing", **options), expected("drawing", **options)):
        with Image.open(run.folder / "samples" / "step_00000004.png") as picture:
            grids.append(pil_to_tensor(picture))
    # a number that falls between two tokens' shares may draw the other one
    assert (grids[0] != grids[1]).float().mean() < 0.1


def test_a_pipeline_validates_and_draws(smoke: Train, expected: Train) -> None:
    options = {
        "ipus_per_replica": 2, "layers_per_ipu": "1,1", "gradient_accumulation": 3, "batch_size": 1,
        "validation_steps": 2, "sample_steps": 2, "sample_prompts": "a red circle",
    }  # fmt: skip
    run = smoke("pipeline", **options)
    assert (run.folder / "samples" / "step_00000002.png").exists()
    assert_same_losses(run, expected("pipeline", **options), event="validation")


def test_synthetic_data_trains(smoke: Train) -> None:
    assert len(smoke("synthetic", synthetic_data=True).log()) == STEPS


def test_compile_only_compiles_and_trains_nothing(smoke: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = smoke("compiled", compile_only=True)
    assert "Compiled model in" in capsys.readouterr().out
    assert run.log() == [] and run.saved_steps() == []


def test_a_compiled_program_is_kept_and_used_again(smoke: Train, tmp_path: Path) -> None:
    first = smoke("cold", executable_cache_dir=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert kept, "nothing was kept"
    again = smoke("warm", executable_cache_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert again.series("loss") == first.series("loss")


@pytest.mark.skipif(ENGINE == "ipu-sim", reason="the simulator writes no profiles")
def test_a_profile_is_written(smoke: Train, tmp_path: Path) -> None:
    smoke("profiled", profile_dir=tmp_path)
    assert list(tmp_path.rglob("*.pop")), "no profile.pop"


# ---------------------------------------------------------------------------------------------------- several processes


@pytest.mark.skipif(ENGINE == "ipu-sim", reason="the simulator does not exchange gradients among processes")
def test_two_processes_under_poprun_have_the_losses_of_the_host(
    dalle_options: Dict[str, Any], expected: Train, tmp_path: Path
) -> None:
    assert shutil.which("poprun"), "poprun is not on the PATH; enable the SDK, and not PopTorch's wheel alone"
    options = {"batch_size": 2, "max_steps": STEPS, "layers_per_ipu": 2, "async_dataloader": False}
    run = Run(tmp_path, "dalle")
    arguments = as_arguments({**dalle_options, **options, "engine": ENGINE, "output_dir": tmp_path})
    poprun = ["poprun", "--num-instances", "2", "--num-replicas", "2", "--ipus-per-replica", "1", sys.executable]
    process = subprocess.run([*poprun, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert process.returncode == 0, process.stdout + process.stderr
    assert run.series("step") == [1, 2, 3, 4], "one process logs"
    assert_same_losses(run, expected("poprun", replication_factor=2, **options))
