"""The documentation against the program: every option that a table names is one."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest

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


COMMANDS = ("train", "train_vae", "train_clip", "generate", "evaluate", "models.convert")
OTHERS = {"captions", "out", "vocab_size", "from", "to", "help", "config", "config_file", "print_config", "text"}


@pytest.mark.parametrize("page", ["README.md", "docs/shards.md"])
def test_every_option_that_a_page_names_is_one_of_a_command(page: str) -> None:
    known = set().union(*(spellings(command) for command in COMMANDS)) | OTHERS | {"samples_per_shard", "out_dir"}
    text = (ROOT / page).read_text(encoding="utf-8")
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z0-9_-]+)", text)}
    assert len(named) > 5 and named - known == set()


def test_the_program_in_the_readme_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found: Dict[str, Any] = {}
    exec(program, found)
    assert found["pictures"].shape == (4, 3, 64, 64) and 0 <= found["pictures"].min() <= found["pictures"].max() <= 1
