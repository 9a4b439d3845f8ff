"""How options are read: a field's default, then the named entry of a YAML file, then the command line.

A command names the option groups it understands; everything else about an option stands with its field. Names may be
written with hyphens or underscores.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NoReturn,
    Optional,
    Sequence,
    Type,
    TypeVar,
    get_type_hints,
)

import yaml

from options import OptionError, Options, UserError, is_flag, is_several, plain_values

CONFIGS = Path(__file__).resolve().parent / "configs.yml"
Group = TypeVar("Group", bound=Options)


class Settings:
    """The options of a run, by group: `settings[DataOptions].input_folder`."""

    def __init__(self, groups: Iterable[Type[Options]], values: Mapping[str, Any]) -> None:
        """Fill each group with its share of `values`.

        Raises:
            OptionError: a value is not admitted.
        """
        self._groups: Dict[Type[Options], Options] = {}
        for group in groups:
            names = [field.name for field in dataclasses.fields(group)]  # type: ignore[arg-type]
            self._groups[group] = group(**{name: values[name] for name in names if name in values})

    def __getitem__(self, group: Type[Group]) -> Group:
        """The options of one group."""
        return self._groups[group]  # type: ignore[return-value]

    def check_paths(self) -> None:
        """Look for the files and folders that the options name; see `Options.check_paths`.

        Raises:
            OptionError: one is not there.
        """
        for group in self._groups.values():
            group.check_paths()

    def as_dict(self) -> Dict[str, Any]:
        """All options in plain containers, by name."""
        values: Dict[str, Any] = {}
        for group in self._groups.values():
            values.update(plain_values(group))
        return values


def read_settings(
    description: str,
    groups: Sequence[Type[Options]],
    arguments: Optional[Sequence[str]] = None,
    default_config: Optional[str] = None,
) -> Settings:
    """Read the options of a command.

    Args:
        description: what the command does, for `--help`.
        groups: the option groups it understands.
        arguments: the command line; default: the process's.
        default_config: the entry of configs.yml to take when `--config` names none.

    Raises:
        OptionError: an unknown entry, key or option, or a value that is not admitted.
    """
    fields = _fields(groups)
    parser = _make_parser(description, groups, default_config)
    given, unknown = parser.parse_known_args(sys.argv[1:] if arguments is None else list(arguments))
    if unknown:
        raise OptionError(_unknown_option(unknown, fields))
    typed = vars(given)
    config, file = typed.pop("config"), typed.pop("config_file")
    if file and config is None:
        raise OptionError(f"config_file={file} is given, and config is not; name one of its entries with --config")
    print_config = typed.pop("print_config")
    values = {} if config is None else read_entry(Path(file or CONFIGS), config, fields)
    values.update(typed)
    settings = Settings(groups, values)
    if print_config:
        print(yaml.safe_dump({config or "options": settings.as_dict()}, sort_keys=False), end="")
        raise SystemExit(0)
    return settings


def read_entry(file: Path, entry: str, names: Mapping[str, str]) -> Dict[str, Any]:
    """The values of one entry of a YAML file, under the options' own names.

    Args:
        file: the YAML file.
        entry: its name there.
        names: from every admitted spelling of an option to its own name.

    Raises:
        OptionError: the file is no YAML, has no such entry, or the entry a key that is no option.
    """
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"config_file={file} cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"config_file={file} is not plain YAML: {error}") from None
    if isinstance(document, dict) and entry in document and document[entry] is None:
        return {}  # an entry without keys: all defaults
    if not isinstance(document, dict) or not isinstance(document.get(entry), dict):
        known = [str(name) for name in document] if isinstance(document, dict) else []
        raise OptionError(
            f"config={entry!r} is not an entry of {file}{_nearest(entry, known)}; it has {', '.join(known)}"
        )
    values = {}
    for key, value in document[entry].items():
        name = names.get(str(key).replace("-", "_"))
        if name is None:
            raise OptionError(f"{file}, entry {entry}: {key!r} is no option{_nearest(str(key), names)}")
        values[name] = value
    return values


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run a command's `main`; what the user can mend is told in one line, without a traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:  # not about a file that somebody named
            raise
        print(f"error: {error.filename}: {error.strerror}; check the path and its permissions", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(0)


def _fields(groups: Sequence[Type[Options]]) -> Dict[str, str]:
    """From every spelling of an option to its own name."""
    names: Dict[str, str] = {}
    for group in groups:
        for field in dataclasses.fields(group):  # type: ignore[arg-type]
            for name in (field.name, *field.metadata["aliases"]):
                assert name not in names, f"option {name} has two homes"
                names[name] = field.name
    return names


def _make_parser(
    description: str, groups: Sequence[Type[Options]], default_config: Optional[str]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    general = parser.add_argument_group("configuration")
    general.add_argument("--config", default=default_config, help=f"entry of the YAML file (default: {default_config})")
    general.add_argument("--config-file", "--config_file", help="YAML file (default: configs.yml of the program)")
    general.add_argument(
        "--print-config", "--print_config", action="store_true", help="print the resolved options as YAML and leave"
    )
    for group in groups:
        hints = get_type_hints(group)
        section = parser.add_argument_group((group.__doc__ or "").split("\n")[0])
        for field in dataclasses.fields(group):  # type: ignore[arg-type]
            _add_option(section, field, hints[field.name])
    return parser


def _add_option(section: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    spellings = [s for name in (field.name, *field.metadata["aliases"]) for s in _spellings("--", name)]
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text = f"{field.metadata['help']} (default: {default})".replace("%", "%%")
    form: Dict[str, Any] = {"nargs": "+"} if is_several(hint) else {}
    if is_flag(hint):
        form = {"nargs": "?", "const": True}
        negated = _spellings("--no-", field.name)
        section.add_argument(
            *negated, dest=field.name, action="store_const", const=False, default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )  # fmt: skip
    section.add_argument(
        *spellings, dest=field.name, default=argparse.SUPPRESS, help=text, metavar=field.name.upper(), **form
    )


def _spellings(prefix: str, name: str) -> List[str]:
    return list(dict.fromkeys([prefix + name.replace("_", "-"), prefix + name, prefix.replace("-no-", "-no_") + name]))


def _unknown_option(unknown: Sequence[str], names: Mapping[str, str]) -> str:
    for word in unknown:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            return f"{word.split('=')[0]} is no option of this command{_nearest(name, names, '--')}; see --help"
    return f"{unknown[0]!r} is not understood; options start with --, see --help"


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"; did you mean {prefix}{near[0].replace('_', '-') if prefix else near[0]}?" if near else ""
