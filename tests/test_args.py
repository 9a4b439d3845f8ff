"""Options from defaults, YAML and the command line."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable, Optional, Tuple, Type

import pytest
import yaml

import data.demo
import evaluate
import generate
import train
import train_vae
from args import Settings, read_settings, run_command
from options import OptionError, Options, UserError, option

COMMANDS = (train, train_vae, generate, evaluate)
ALL_GROUPS = sorted({group for command in COMMANDS for group in command.GROUPS} | {data.demo.DemoOptions}, key=repr)
of_each_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)


@dataclasses.dataclass(frozen=True)
class Model(Options):
    """The model."""

    hidden_size: int = option(8, "width", minimum=1, aliases=("dim",))
    layers_per_ipu: Tuple[int, ...] = option((0, 8), "layers on each IPU")


@dataclasses.dataclass(frozen=True)
class Run(Options):
    """The run."""

    enable_rts: bool = option(False, "shard the optimizer state")
    vae_path: Optional[str] = option(None, "image tokenizer")


YAML = """
defaults: &defaults
  hidden_size: 16
  vae_path: vae.pt
small: &small
  <<: *defaults
  hidden_size: 32
  layers-per-ipu: [1, 2]
smaller:
  <<: *small
  dim: 4
  vae_path:
"""


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Settings]:
    """Reads the two groups: `read(*words, yaml=text)`; the YAML file is the one above unless given."""

    def read(*words: str, yaml: str = YAML, default_config: Optional[str] = None) -> Settings:
        file = tmp_path / "configs.yml"
        file.write_text(yaml, encoding="utf-8")
        return read_settings("Try.", (Model, Run), [f"--config-file={file}", *words], default_config)

    return read


def in_entry(line: str) -> str:
    """A YAML file whose entry `mine` has this line."""
    return f"mine:\n  {line}"


@pytest.mark.parametrize(
    "words, hidden_size",
    [
        (("--config", "defaults"), 16),
        (("--config", "small"), 32),
        (("--config", "smaller"), 4),
        (("--config", "small", "--hidden-size", "64"), 64),
        (("--hidden-size", "64", "--config", "small"), 64),
        (("--config", "small", "--dim", "64"), 64),
    ],
)
def test_the_command_line_comes_before_the_entry_and_the_entry_before_the_default(
    read: Callable[..., Settings], words: Tuple[str, ...], hidden_size: int
) -> None:
    settings = read(*words)
    assert settings[Model].hidden_size == hidden_size
    assert settings[Run].enable_rts is False


def test_without_an_entry_options_have_their_defaults() -> None:
    assert read_settings("Try.", (Model, Run), []).as_dict() == Settings((Model, Run), {}).as_dict()


def test_an_entry_takes_over_what_its_anchor_has_and_may_unset_it(read: Callable[..., Settings]) -> None:
    small, smaller = read("--config", "small"), read("--config", "smaller")
    assert (small[Run].vae_path, small[Model].layers_per_ipu) == ("vae.pt", (1, 2))
    assert (smaller[Run].vae_path, smaller[Model].layers_per_ipu) == (None, (1, 2))


def test_a_command_may_have_an_entry_of_its_own(read: Callable[..., Settings]) -> None:
    assert read(default_config="small")[Model].hidden_size == 32
    assert read("--config", "defaults", default_config="small")[Model].hidden_size == 16


@pytest.mark.parametrize("key", ["layers_per_ipu", "layers-per-ipu"])
def test_hyphens_and_underscores_are_one(read: Callable[..., Settings], key: str) -> None:
    assert read("--config", "mine", yaml=in_entry(f"{key}: [3]"))[Model].layers_per_ipu == (3,)
    assert read("--config", "small", f"--{key}", "3")[Model].layers_per_ipu == (3,)
    assert read("--config", "small", f"--{key}=3")[Model].layers_per_ipu == (3,)


@pytest.mark.parametrize(
    "words", [("1", "2", "3"), ("1,2,3",), ("1,", "2,", "3"), ("[1, 2, 3]",)], ids=lambda words: " ".join(words)
)
def test_several_values_may_be_written_in_many_ways(read: Callable[..., Settings], words: Tuple[str, ...]) -> None:
    assert read("--config", "small", "--layers-per-ipu", *words)[Model].layers_per_ipu == (1, 2, 3)


@pytest.mark.parametrize(
    "words, value",
    [
        (("--enable-rts",), True),
        (("--enable_rts", "--hidden-size", "4"), True),
        (("--enable-rts", "true"), True),
        (("--enable-rts", "False"), False),
        (("--enable-rts=false",), False),
        (("--no-enable-rts",), False),
        (("--no-enable_rts",), False),
        (("--no_enable_rts",), False),
        (("--enable-rts", "--no-enable-rts"), False),
        (("--no-enable-rts", "--enable-rts"), True),
    ],
)
@pytest.mark.parametrize("before", ["true", "no"])
def test_a_switch_is_set_bare_by_a_word_or_by_its_negation_and_the_last_counts(
    read: Callable[..., Settings], words: Tuple[str, ...], value: bool, before: str
) -> None:
    entry = in_entry(f"enable_rts: {before}")
    assert read("--config", "mine", *words, yaml=entry)[Run].enable_rts is value
    assert read("--config", "mine", yaml=entry)[Run].enable_rts is (before == "true")


@pytest.mark.parametrize(
    "typed, nearest", [("hiden_size", "hidden_size"), ("enable-rtss", "enable_rts"), ("dimm", "dim")]
)
def test_an_unknown_name_suggests_the_nearest(read: Callable[..., Settings], typed: str, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"entry mine: '{typed}' is no option; did you mean {nearest}[?]"):
        read("--config", "mine", yaml=in_entry(f"{typed}: 1"))
    hyphened = nearest.replace("_", "-")
    with pytest.raises(OptionError, match=f"--{typed} is no option of this command; did you mean --{hyphened}[?]"):
        read("--config", "small", f"--{typed}", "1")


def test_the_beginning_of_a_name_is_not_the_name(read: Callable[..., Settings]) -> None:
    with pytest.raises(OptionError, match="--hidden is no option"):
        read("--config", "small", "--hidden", "4")


def test_a_word_that_belongs_to_no_option_is_an_error(read: Callable[..., Settings]) -> None:
    with pytest.raises(OptionError, match="'stray' is not understood"):
        read("stray", "--config", "small")


@pytest.mark.parametrize(
    "content, message",
    [
        ("small: {dim: 4}", "config='smal' is not an entry of .*; did you mean small[?]?; it has small"),
        ("8: {dim: 4}", "config='smal' is not an entry of .*; it has 8"),
        ("[small]", "config='smal' is not an entry of"),
        ("", "config='smal' is not an entry of"),
        ("smal: 3", "config='smal' is not an entry of"),
        ("smal: {dim: 'x}", "is not plain YAML"),
    ],
)
def test_an_unknown_entry_or_a_broken_file_is_an_error(
    read: Callable[..., Settings], content: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        read("--config", "smal", yaml=content)


def test_an_absent_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="config_file=.*absent.yml cannot be read .*; check the path"):
        read_settings("Try.", (Model,), ["--config", "x", "--config-file", str(tmp_path / "absent.yml")])


def test_a_yaml_file_that_names_something_to_run_is_refused_and_nothing_runs(
    read: Callable[..., Settings], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    malicious = in_entry(f"vae_path: !!python/object/apply:os.system ['touch {marker}']")
    with pytest.raises(OptionError, match="is not plain YAML"):
        read("--config", "mine", yaml=malicious)
    assert not marker.exists()
    yaml.unsafe_load(malicious)
    assert marker.exists(), "the file does nothing at all"


def test_a_file_without_an_entry_to_take_from_it_is_an_error(read: Callable[..., Settings]) -> None:
    with pytest.raises(OptionError, match="config_file=.* is given, and config is not; name .* --config"):
        read("--hidden-size", "4")


def test_print_config_prints_what_loads_back_and_leaves(
    read: Callable[..., Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--config", "smaller", "--enable-rts", "--layers-per-ipu", "1", "2")
    with pytest.raises(SystemExit) as leave:
        read(*words, "--print-config")
    assert leave.value.code == 0
    printed = capsys.readouterr().out
    assert read("--config", "smaller", yaml=printed).as_dict() == read(*words).as_dict()


@of_each_command
def test_the_printed_options_of_every_command_load_back(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read_settings("Try.", command.GROUPS, ["--print-config"])
    (tmp_path / "configs.yml").write_text(capsys.readouterr().out)
    words = ["--config", "options", "--config-file", str(tmp_path / "configs.yml")]
    loaded = read_settings("Try.", command.GROUPS, words).as_dict()
    assert loaded == read_settings("Try.", command.GROUPS, []).as_dict()
    assert set(loaded) == {field.name for group in command.GROUPS for field in dataclasses.fields(group)}


@of_each_command
def test_no_option_has_two_homes(command: ModuleType) -> None:
    names = ["config", "config_file", "print_config", "help"]
    for group in command.GROUPS:
        for field in dataclasses.fields(group):
            names += [field.name, *field.metadata["aliases"]]
    assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def test_two_homes_for_one_option_are_noticed() -> None:
    with pytest.raises(AssertionError, match="option hidden_size has two homes"):
        read_settings("Try.", (Model, Model), [])


@pytest.mark.parametrize("group", ALL_GROUPS, ids=lambda group: group.__name__)
def test_every_option_has_help_and_every_group_a_heading(group: Type[Options]) -> None:
    assert (group.__doc__ or "").strip() and not (group.__doc__ or "").startswith(f"{group.__name__}(")
    assert [field.name for field in dataclasses.fields(group) if not field.metadata["help"].strip()] == []


@of_each_command
def test_help_tells_every_option_with_its_default(
    command: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        read_settings("Try.", command.GROUPS, ["--help"])
    lines = re.split(r"\n  (?=-)", capsys.readouterr().out)
    for group in command.GROUPS:
        for field in dataclasses.fields(group):
            spelled = f"--{field.name.replace('_', '-')} "
            line = next(line for line in lines if line.startswith(spelled) or f"{spelled.strip()}," in line)
            assert field.metadata["help"] in line and "(default: " in line


def test_what_the_user_can_mend_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("batch_size=0 is below 1")

    with pytest.raises(SystemExit) as leave:
        run_command(main)
    assert leave.value.code == 2
    assert capsys.readouterr().err == "error: batch_size=0 is below 1\n"


def test_a_path_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as leave:
        run_command(lambda: (tmp_path / "file" / "folder").mkdir())
    assert leave.value.code == 2
    said = f"error: {tmp_path / 'file' / 'folder'}: Not a directory; check the path and its permissions\n"
    assert capsys.readouterr().err == said


def test_what_only_we_can_mend_keeps_its_traceback() -> None:
    def main() -> None:
        raise KeyError("weights")

    with pytest.raises(KeyError):
        run_command(main)


@of_each_command
def test_a_mistyped_option_ends_a_command_before_it_does_anything(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(Path(command.__file__ or "").resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [file, "--batch_sise", "3"])
    with pytest.raises(SystemExit) as leave:
        runpy.run_path(file, run_name="__main__")
    assert leave.value.code == 2
    assert "--batch_sise is no option of this command; did you mean --batch-size" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
