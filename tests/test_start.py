"""A command starts at once: help and errors come before anything that takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import List, Tuple

import PIL
import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "tokenizers", "safetensors", "einops", "numpy")
# Pillow of before release 11 loads numpy where there is one, for the names of its types.
BROUGHT = ("numpy",) if int(PIL.__version__.split(".")[0]) < 11 else ()
READING_SETTINGS = ["train", "train_vae", "train_clip", "generate", "evaluate"]
READING_SETTINGS += ["models.convert", "data.demo", "data.encode_images"]
COMMANDS = [*READING_SETTINGS, "process_captions", "data.check"]

PROGRAM = f"""
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    print("loaded:", *(name for name in {HEAVY} if name in sys.modules))
"""


def start(command: str, *arguments: str) -> Tuple[int, str, List[str]]:
    """The exit status of a command, what it printed, and the heavy packages that it loaded."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, command, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    (loaded,) = [line for line in process.stdout.splitlines() if line.startswith("loaded:")]
    return process.returncode, process.stdout, [name for name in loaded.split()[1:] if name not in BROUGHT]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_package(command: str) -> None:
    status, printed, loaded = start(command, "--help")
    assert status == 0 and "usage:" in printed
    assert loaded == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_told_without_a_heavy_package(command: str) -> None:
    status, printed, loaded = start(command, "--unheard-of", "3")
    assert status == 2 and "--unheard-of" in printed
    assert loaded == []


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        ("train", ["--config", "unheard_of"], "config='unheard_of' is not an entry of"),
        ("train", ["--batch-size", "many"], "batch_size='many' is not a whole number"),
        ("train", ["--input-folder", "absent"], "input_folder=absent does not exist; check the path"),
        ("train", ["--vae-path", "absent"], "vae_path=absent does not exist"),
        ("train_vae", ["--validation-folder", "absent"], "validation_folder=absent does not exist"),
        ("train_clip", ["--batch-size", "1"], "batch_size=1 leaves nothing to tell a picture apart from"),
        ("generate", ["--text", "|"], "text holds no prompt"),
        ("generate", ["--text", "x", "--dalle-path", "absent"], "dalle_path=absent does not exist"),
        ("evaluate", [], "nothing to measure"),
        ("evaluate", ["--prompts", "absent"], "prompts=absent does not exist"),
        ("models.convert", ["--from", "a.pt"], "out is not set"),
        ("process_captions", ["--captions", "absent"], "absent"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_without_a_heavy_package(
    command: str, arguments: List[str], message: str
) -> None:
    status, printed, loaded = start(command, *arguments)
    assert status != 0 and message in printed
    assert loaded == []


def test_a_missing_dataset_is_no_error_of_a_plan_or_of_generated_data(tmp_path: Path) -> None:
    for arguments in (["--plan"], ["--generated-data", "--max-steps", "1", "--checkpoint-output-dir="]):
        common = ["--config", "unit_test", "--input-folder", "absent", "--output-dir", str(tmp_path)]
        status, printed, _ = start("train", *common, *arguments)
        assert status == 0, printed
