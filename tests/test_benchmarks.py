"""benchmarks.yml against the rules of Graphcore's runner, our commands' options, and what our commands really print."""

from __future__ import annotations

import json
import os
import re
import shlex
import string
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import yaml

import train
from args import Settings, read_settings
from data.options import DataOptions
from engines.options import IpuOptions, TrainingOptions
from log import LogOptions
from models.options import TokenizerOptions
from tests.conftest import Run

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "benchmarks.yml"
ENTRIES: Dict[str, Dict[str, Any]] = yaml.load(SPEC.read_text(encoding="utf-8"), Loader=yaml.FullLoader)
BENCHMARKS = {name: entry for name, entry in ENTRIES.items() if "options" not in name}
PREFIX = "pytorch_minidalle_train_"
GRAPHCORES = [PREFIX + name for name in ("real_pod4", "real_pod16", "real_pod64", "real_pod64_conv")]
ANYWHERE = [PREFIX + name for name in ("gen_sim_pod4", "gen_sim_pod16", "gen_host")]
KEYS = {
    "cmd",
    "data",
    "derived",
    "parameters",
    "env",
    "location",
    "timeout",
    "requirements_file",
    "generated",
    "synthetic",
}
IGNORED_KEYS = {"output", "description", "requirements_path"}  # Graphcore's convention
REDUCTIONS = ("mean", "final", "min", "value")

benchmarks = pytest.mark.parametrize("name", BENCHMARKS)


def needs_data(name: str) -> bool:
    """Whether the runner insists on DATASETS_DIR."""
    return not re.search("gen|synth", name)


def words_of(command: str) -> List[str]:
    """A command as the runner starts it: in one line, parameters and variables filled in, split without a shell."""
    line = " ".join(command.split()).format()
    return shlex.split(string.Template(line).safe_substitute(DATASETS_DIR="/datasets"))


def settings_of(name: str, *more: str) -> Settings:
    words = words_of(BENCHMARKS[name]["cmd"])
    return read_settings("", train.GROUPS, [*words[2:], *more], "unit_test")


# ------------------------------------------------------------------------------------------------ what a file can break


def test_it_is_one_mapping_of_mappings_in_which_no_name_comes_twice() -> None:
    text = SPEC.read_text(encoding="utf-8")
    assert len(list(yaml.safe_load_all(text))) == 1
    assert all(isinstance(entry, dict) for entry in ENTRIES.values())
    names = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert sorted(names) == sorted(ENTRIES)


def test_only_blocks_to_merge_have_options_in_their_names() -> None:
    for name, entry in ENTRIES.items():
        assert ("cmd" in entry) == (name in BENCHMARKS), name
    assert len(BENCHMARKS) < len(ENTRIES)


def test_graphcore_s_benchmarks_are_there_under_their_names() -> None:
    assert [name for name in BENCHMARKS if needs_data(name)] == GRAPHCORES
    assert [name for name in BENCHMARKS if "_conv" in name] == GRAPHCORES[3:], "the others run unasked"


@benchmarks
def test_keys_are_those_that_the_runner_reads_or_ignores(name: str) -> None:
    assert set(BENCHMARKS[name]) <= KEYS | IGNORED_KEYS
    assert all(isinstance(value, str) for value in BENCHMARKS[name].get("env", {}).values())


@benchmarks
def test_every_metric_is_one_number_in_one_group(name: str) -> None:
    metrics = BENCHMARKS[name]["data"]
    assert set(metrics) == {"throughput", "loss", "compile_time"}
    for metric in metrics.values():
        assert re.compile(metric["regexp"]).groups == 1
        assert metric.get("reduction_type", "mean") in REDUCTIONS
        assert set(metric) <= {"regexp", "reduction_type", "skip"}


@benchmarks
def test_a_command_is_python3_with_a_script_of_ours_that_it_names_once(name: str) -> None:
    command = BENCHMARKS[name]["cmd"]
    words = words_of(command)
    assert words[0] == "python3" and (ROOT / words[1]).is_file()
    assert command.count(words[1]) == 1, "the runner replaces the script's name wherever it stands"


@benchmarks
def test_a_command_needs_no_shell(name: str) -> None:
    command = BENCHMARKS[name]["cmd"]
    assert command.isascii() and not set("{}|&;<>*?~`()[]") & set(command)
    assert [word for word in words_of(command) if "$" in word] == [], "a variable that nobody sets"
    assert ("$DATASETS_DIR/coco" in command) == needs_data(name)


# ------------------------------------------------------------------------------------------------ our commands' options


@benchmarks
def test_a_command_has_options_that_train_py_takes_in_both_spellings(name: str) -> None:
    words = words_of(BENCHMARKS[name]["cmd"])[2:]
    underscored = [re.sub(r"^--[\w-]+", lambda name: "--" + name.group()[2:].replace("-", "_"), word) for word in words]
    assert words != underscored
    read = read_settings("", train.GROUPS, underscored, "unit_test")
    assert read.as_dict() == settings_of(name).as_dict()


@benchmarks
def test_the_runner_s_flag_to_compile_alone_is_an_option(name: str) -> None:
    assert settings_of(name, "--compile-only")[IpuOptions].compile_only


# an option with the word after it; older runners cut the option alone
@pytest.mark.parametrize("cut_out", [r"--?\S*wandb\S*(\s+[^-\s]\S*)?", r"--wandb\S*"])
@benchmarks
def test_a_command_is_whole_when_the_runner_cuts_out_wandb(name: str, cut_out: str) -> None:
    line = re.sub(cut_out, "", BENCHMARKS[name]["cmd"])
    cut = read_settings("", train.GROUPS, words_of(line)[2:], "unit_test")
    expected = settings_of(name).as_dict()
    changed = {key for key, value in cut.as_dict().items() if value != expected[key]}
    assert changed <= {"wandb", "wandb_project_name", "wandb_run_name"} and not cut[LogOptions].wandb


@benchmarks
def test_a_pod_s_benchmark_takes_as_many_ipus_as_the_pod_has(name: str) -> None:
    settings = settings_of(name)
    training, ipu = settings[TrainingOptions], settings[IpuOptions]
    engine = "ipu-sim" if "_sim_" in name else "host" if "_host" in name else "ipu"
    assert training.engine == engine, "auto would train on the host where no IPU answers"
    size = re.search(r"pod(\d+)", name)
    if engine == "ipu":
        assert size and ipu.ipus_per_replica * training.replication_factor == int(size.group(1))


@benchmarks
def test_a_benchmark_without_data_needs_no_network_and_no_file_of_others(name: str) -> None:
    settings = settings_of(name)
    data, tokenizers = settings[DataOptions], settings[TokenizerOptions]
    assert data.generated_data != needs_data(name)
    assert tokenizers.bpe_path == "bpe/coco8192.json", "CLIP's vocabulary is another package's"
    assert data.generated_data is False or not settings[LogOptions].wandb
    assert (tokenizers.vae_path, tokenizers.vqgan_model_path, tokenizers.taming) == (None, None, True)


def test_no_two_benchmarks_write_into_one_folder() -> None:
    folders = [settings_of(name)[LogOptions].output_dir for name in BENCHMARKS]
    assert len(set(folders)) == len(folders)
    assert all(folder.startswith("output/benchmarks/") for folder in folders)
    kept = [name for name in BENCHMARKS if settings_of(name)[LogOptions].checkpoint_folder]
    assert kept == GRAPHCORES[3:], "the next run of another would be refused beside its checkpoints"


# --------------------------------------------------------------------------------------------- what a run really prints


def run_benchmark(name: str, folder: Path, *more: str) -> Tuple[str, str]:
    """Standard output and error of a benchmark's command, as a process, with its output elsewhere."""
    words = words_of(BENCHMARKS[name]["cmd"])
    process = subprocess.run(
        [sys.executable, *words[1:], "--output-dir", str(folder), *more],
        cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout, process.stderr


def figures(entry: Dict[str, Any], said: str) -> Dict[str, float]:
    """The metrics as the runner reads them: every match of every line counts."""
    found = {}
    for name, metric in entry["data"].items():
        values = [float(text) for line in said.split("\n") for text in re.findall(metric["regexp"], line)]
        assert values, f"no line has {name}"
        found[name] = values[-1] if metric.get("reduction_type") == "final" else sum(values) / len(values)
    return found


@pytest.mark.parametrize("name", ANYWHERE)
def test_the_figures_are_found_in_what_the_command_really_prints(name: str, vae: Run, tmp_path: Path) -> None:
    # with small pictures: the encoder of the released image tokenizer's shape takes half a minute
    out, err = run_benchmark(name, tmp_path, "--vae_path", str(vae.folder))
    read = figures(BENCHMARKS[name], out)
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()[-1:])
    assert read["loss"] == pytest.approx(line["loss"], abs=1e-4)
    assert out.splitlines()[-1] == f"throughput: {read['throughput']:5f} samples/sec.", "that of the whole run"
    assert read["throughput"] > 0 and read["compile_time"] >= 0
    # what stands there is read as later than what stands on standard output
    for metric in BENCHMARKS[name]["data"].values():
        assert not re.search(metric["regexp"], err)
    assert list(tmp_path.rglob("*.pt")) == [] and out.isascii()


def test_losses_that_are_not_the_training_loss_are_not_read_as_it() -> None:
    entry = BENCHMARKS[GRAPHCORES[0]]
    pattern = entry["data"]["loss"]["regexp"]
    step = "Lr: 0.000300 loss: 0.750 throughput: 1.50 samples/sec text: 3.0 image: 2.5"
    assert re.findall(pattern, step) == ["0.750"]
    for line in ("validation after step 3: loss 3.0861 text 5.8117", "val_loss: 3.0861", "loss: nan"):
        assert re.findall(pattern, line) == []
    whole = f"Compiled model in 1.25 secs\n{step}\nthroughput: 104.000000 samples/sec.\n"
    assert figures(entry, whole) == {"throughput": 104.0, "loss": 0.75, "compile_time": 1.25}
