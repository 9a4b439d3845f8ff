"""The documentation against the program: every option that a table names is one."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
import torch
from torch import Tensor, nn

import train
from args import read_settings
from engines.options import IpuOptions, TrainingOptions
from engines.placement import place
from ipu import simulator
from models.options import TransformerOptions

ROOT = Path(__file__).resolve().parent.parent
TABLES = [
    ("train_dalle.py", "train"),
    ("train_vae.py", "train_vae"),
    ("generate.py", "generate"),
    ("Its options", "train"),
]


def spellings(command: str) -> Set[str]:
    """Every name under which a command takes an option."""
    groups = importlib.import_module(command).GROUPS
    fields = [field for group in groups for field in dataclasses.fields(group)]
    names = {name for field in fields for name in (field.name, *field.metadata["aliases"])}
    return names | {"no_" + name for name in names} | {"resume"}


def rows(heading: str) -> List[Tuple[str, str]]:
    """The first two columns of the table under a heading."""
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"### {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return [(row[0].strip(), row[1].strip()) for row in cells if not row[0].startswith(" ---")]


@pytest.mark.parametrize("heading, command", TABLES)
def test_what_the_tables_call_same_or_accepted_is_an_option(heading: str, command: str) -> None:
    found = rows(heading)
    assert len(found) > 5
    for there, here in found:
        named = re.findall(r"`(?:--)?([a-z0-9_]+)`", there) if here in ("same", "accepted") else []
        assert here not in ("same", "accepted") or named
        assert [name for name in named if name not in spellings(command)] == []


@pytest.mark.parametrize("heading, command", TABLES)
def test_what_the_tables_name_in_its_place_is_an_option(heading: str, command: str) -> None:
    for _, here in rows(heading):
        named = [name.replace("-", "_") for name in re.findall(r"`--([a-z0-9-]+)", here)]
        assert [name for name in named if name not in spellings(command)] == []


COMMANDS = ("train", "train_vae", "train_clip", "generate", "evaluate", "models.convert", "data.encode_images")
OTHERS = {"captions", "out", "vocab_size", "from", "to", "help", "config", "config_file", "print_config", "text"}
# what belongs to the simulator's command, PopRun and Graphcore's runner of benchmarks
ON_IPUS = set(
    """
    force its_options host vipu_server_host vipu_partition num_instances num_replicas ipus_per_replica spec benchmark
    """.split()
)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/shards.md", "docs/encoded.md", "docs/ipu.md", "docs/performance.md"]
)
def test_every_option_that_a_page_names_is_one_of_a_command(page: str) -> None:
    known = set().union(*(spellings(command) for command in COMMANDS)) | OTHERS | {"samples_per_shard", "out_dir"}
    known |= ON_IPUS if page == "docs/ipu.md" else set()
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9_-]+)", text)}
    assert len(named) > 5 and named - known == set()


def test_the_program_in_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: Dict[str, Any] = {}
    exec(program, found)
    assert found["pictures"].shape == (4, 3, 64, 64) and 0 <= found["pictures"].min() <= found["pictures"].max() <= 1


IPU_PAGE = (ROOT / "docs" / "ipu.md").read_text(encoding="utf-8")


def test_options_that_the_page_on_ipus_names_without_hyphens_are_options_of_train_py() -> None:
    first = [line.split("|")[1] for line in IPU_PAGE.splitlines() if line.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`([a-z0-9]+_[a-z0-9_]+)`", cell)]
    others = {"unit_test"}
    assert len(named) > 8 and [name for name in named if name not in spellings("train") | others] == []


def test_the_placement_on_the_page_on_ipus_is_the_program_s() -> None:
    settings = read_settings("", train.GROUPS, ["--config", "L16"])
    table = place(settings[TransformerOptions], settings[IpuOptions], settings[TrainingOptions]).table()
    assert f"```\n{table}\n```" in IPU_PAGE


def test_the_custom_operator_on_the_page_on_ipus_runs_on_the_simulator() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", IPU_PAGE, re.DOTALL)
    exec(program, {})

    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return simulator.custom_op([x], "Cube", "my.ops", 1, example_outputs=[x], attributes={"scale": 2.0})[0]

    assert simulator.inferenceModel(Cube())(torch.tensor([1.0, 3.0])).tolist() == [2.0, 54.0]


def test_the_tests_that_the_page_on_ipus_names_are_there() -> None:
    named = re.findall(r"`(tests/\S+?)`", IPU_PAGE)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", page.read_text(encoding="utf-8")):
            path, _, anchor = target.partition("#")
            found = page.parent / path if path else page
            assert found.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert not anchor or anchor in anchors, f"{page.name}: {target}"
