"""The rules of the tree that a machine can check: what imports what, which grammar, what is documented."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from pathlib import Path
from typing import Iterator, List, Set

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path.relative_to(ROOT) for depth in ("*.py", "[!.]*/*.py", "[!.]*/*/*.py") for path in ROOT.glob(depth))
TOP = [path for path in FILES if len(path.parts) == 1]
FOLDERS = {path.parts[0] for path in FILES if len(path.parts) > 1}
PROJECT = {path.stem for path in TOP} | FOLDERS

# What the modules of a package may import of the project beside each other. Tests and benchmarks may import everything.
MAY_IMPORT = {
    "native": {"processor"},
    "models": {"options", "native"},
    "bpe": {"options"},
    "data": {"options", "bpe"},
    "engines": {"options", "optim", "large_pages", "processor", "native", "models", "ipu"},
    "ipu": {"options", "models", "custom_ops"},
    "custom_ops": {"options", "models"},
    "commands": PROJECT - {"tests", "bench"},
}
# Commands inside a package may import what makes them commands, too.
COMMANDS_MAY_IMPORT = {
    Path("models/convert.py"): {"args", "commands"},
    Path("data/encode_images.py"): {"args", "commands", "log", "models"},
}
CORE = {"torch", "torchvision", "einops", "yaml", "tokenizers", "safetensors", "PIL", "tqdm"}


@functools.lru_cache(maxsize=None)
def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path), feature_version=(3, 8))


def imported(tree: ast.AST) -> Iterator[str]:
    """The first part of every imported name, wherever the import stands; of relative imports an empty one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "" if node.level else (node.module or "").split(".")[0]


def imported_on_loading(path: Path) -> Set[str]:
    """As `imported`, without what functions and classes import when they are used."""
    outside = [node for node in parse(path).body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {name for node in outside for name in imported(node)}


def comes_with_python(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and not re.search("(site|dist)-packages", spec.origin or "")


def test_every_package_has_its_row_in_the_table() -> None:
    assert FOLDERS - {"tests", "bench"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("package", sorted(FOLDERS & set(MAY_IMPORT)))
def test_imports_between_packages_point_one_way(package: str) -> None:
    allowed = {package} | MAY_IMPORT[package]
    files = [path for path in FILES if path.parts[0] == package]
    refused = {path: PROJECT - allowed - COMMANDS_MAY_IMPORT.get(path, set()) for path in files}
    found = [f"{path} imports {name}" for path in files for name in imported(parse(path)) if name in refused[path]]
    assert found == []


def test_models_touch_no_file_but_where_others_files_are_read() -> None:
    reading = {Path("models") / name for name in ("foreign.py", "pretrained.py", "convert.py")}
    found = {
        path for path in FILES if path.parts[0] == "models" and {"os", "pathlib", "urllib"} & set(imported(parse(path)))
    }
    assert found == reading


def test_only_commands_import_commands() -> None:
    commands = [path for path in TOP if 'if __name__ == "__main__":' in (ROOT / path).read_text(encoding="utf-8")]
    names = {path.stem for path in commands}
    assert {"train", "train_vae", "generate", "evaluate"} <= names
    others = [path for path in FILES if path.parts[0] not in ("tests", "bench") and path not in commands]
    assert [f"{path} imports {name}" for path in others for name in names & set(imported(parse(path)))] == []


def test_no_file_needs_a_package_that_is_not_asked_for() -> None:
    def not_asked_for(path: Path) -> List[str]:
        allowed = PROJECT | CORE | ({"pytest"} if path.parts[0] == "tests" else set())
        return [name for name in imported_on_loading(path) - allowed if not comes_with_python(name)]

    found = {str(path): not_asked_for(path) for path in FILES if path.parts[0] != "bench"}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("name, why", [("numpy", "it is not asked for"), ("", "imports are absolute")])
def test_no_file_imports_what_it_should_not(name: str, why: str) -> None:
    assert [str(path) for path in FILES if name in imported(parse(path))] == [], why


def test_every_file_says_at_its_top_what_it_is() -> None:
    assert [str(path) for path in FILES if not (ast.get_docstring(parse(path)) or "").strip()] == []


def test_no_annotation_is_evaluated_where_python_3_8_cannot() -> None:
    def postpones(path: Path) -> bool:
        imports = [node for node in parse(path).body if isinstance(node, ast.ImportFrom)]
        return any(node.module == "__future__" and node.names[0].name == "annotations" for node in imports)

    assert [str(path) for path in FILES if len(parse(path).body) > 1 and not postpones(path)] == []


def test_the_readme_names_every_make_target() -> None:
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [target for target in phony.group(1).split() if not re.search(rf"make {target}(?![\w-])", readme)] == []
