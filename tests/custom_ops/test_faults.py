"""The tests of the operators can fail: each fault here, put into a copy of the sources, is caught by the test named."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ATTENTION, EMBEDDING, PATTERN = "lowering/attention.cpp", "lowering/embedding.cpp", "lowering/pattern.cpp"
OPERATOR, EMBEDDING_OPERATOR = "popart/attention.cpp", "popart/embedding.cpp"


class Fault(NamedTuple):
    """A replacement in one file, the test that has to catch it, and what that test's failure has to say."""

    file: str
    right: str
    wrong: str
    test: str
    says: str


NUMBERS = "test_lowering.py::test_attention_and_its_gradients_are_those_of_float64"
THROUGH_POPART = "test_lowering.py::test_the_operator_gives_the_same_bits_through_popart"
ROWS = "test_lowering.py::test_gradients_of_the_embedding_are_those_of_float64"
FAULTS = {
    "the keys' gradient is not zeroed": Fault(
        ATTENTION,
        'popops::zero(graph, dk, program, {debugContext, "dk"});',
        "",
        NUMBERS,
        "reads element 0 of variable 'attentionGradient/dk', which nothing has written",
    ),
    "the log-sum-exp lies on no tile": Fault(
        ATTENTION,
        "chunks.emptyChunks(FLOAT, {shape[0], shape[1], shape[2]}",
        "graph.addVariable(FLOAT, {shape[0], shape[1], shape[2]}",
        NUMBERS,
        "variable 'logSumExp' has elements that lie on no tile",
    ),
    "keys and values are swapped on the way to the gradient": Fault(
        OPERATOR,
        "{2, 1, GradOpInType::In},\n                                                                {3, 2,",
        "{2, 2, GradOpInType::In},\n                                                                {3, 1,",
        THROUGH_POPART,
        "assert False",
    ),
    "a chunk's output is written outside of the loop": Fault(
        ATTENTION,
        'chunks.put(out, chunk, chunks.narrowed(weighted, type, step, "out"), step);',
        'chunks.put(out, chunk, chunks.narrowed(weighted, type, step, "out"), program);',
        NUMBERS,
        "which nothing has written|already a part",
    ),
    "an option of matrix products is misspelt": Fault(
        ATTENTION, '"partialsType"', '"partialType"', NUMBERS, "has no option 'partialType'"
    ),
    "the queries are scaled where they lie": Fault(
        ATTENTION,
        "const Tensor out = chunks.emptyChunks(type, shape",
        'popops::mulInPlace(graph, q, q, program, {debugContext, "scale"});\n'
        "  const Tensor out = chunks.emptyChunks(type, shape",
        NUMBERS,
        "writes to variable 'q', which is an input",
    ),
    "the gradient is scaled twice": Fault(
        ATTENTION,
        "(pe::_1 - pe::_2) * chunks.scale()",
        "(pe::_1 - pe::_2) * chunks.scale() * chunks.scale()",
        NUMBERS,
        "'dq'",
    ),
    "an attribute is read under another name": Fault(
        OPERATOR, '"available_memory");', '"memory");', THROUGH_POPART, "attribute memory is missing"
    ),
    "an attribute is never read": Fault(
        OPERATOR,
        'options.partialsType = attributes.getAttribute<Attributes::String>("partials_type");',
        'options.partialsType = "float";',
        THROUGH_POPART,
        "never reads the attribute partials_type",
    ),
    "matrix products have half partial sums": Fault(
        ATTENTION, "options.partialsType}", '"half"}', NUMBERS, "assert {'"
    ),
    "the log-sum-exp has the output's shape in setup": Fault(
        OPERATOR,
        "outInfo(1) = logSumExpInfo(inInfo(0));",
        "outInfo(1) = {popart::DataType::FLOAT, inInfo(0).shape()};",
        THROUGH_POPART,
        r"setup\(\) and the shape inference of FusedAttention differ in output 1",
    ),
    "row sums are kept in half precision": Fault(
        ATTENTION,
        'const Tensor sums = chunks.rowSums(scores, step, "sums");',
        'const Tensor halves = chunks.narrowed(chunks.rowSums(scores, step, "sums"), type, step, "h");\n'
        "    const Tensor sums = popops::cast(graph, halves, FLOAT, step);",
        "test_lowering.py::test_gradients_are_right_where_values_have_nearly_all_in_common",
        "assert .*False",
    ),
    "the weights are narrowed before their gradient's row sums": Fault(
        ATTENTION,
        "popops::mulInPlace(graph, scores, weights, step,",
        'const Tensor halves = chunks.narrowed(weights, type, step, "h");\n'
        "    popops::mulInPlace(graph, scores, popops::cast(graph, halves, FLOAT, step), step,",
        "test_lowering.py::test_gradients_are_right_where_values_have_nearly_all_in_common",
        "assert .*False",
    ),
    "rows and columns of the picture are exchanged": Fault(
        PATTERN, 'pattern.kind == "axial_row"', 'pattern.kind == "axial_col_"', NUMBERS + "[axial_row", "'out'"
    ),
    "a window reaches past the left edge": Fault(
        PATTERN,
        "insideWindow(pattern, column - otherColumn)",
        "insideWindow(pattern, (column - otherColumn + int(pattern.columns)) % int(pattern.columns))",
        "test_lowering.py::test_the_lowering_masks_as_the_model_does",
        "assert False",
    ),
    "the maximum is not taken from the scores": Fault(
        ATTENTION,
        "pe::Exp(pe::_1 - pe::_2)",
        "pe::Exp(pe::_1 + pe::_2 - pe::_2)",
        "test_lowering.py::test_scores_far_beyond_the_range_of_the_exponential_are_no_trouble",
        "",
    ),
    "all scores are computed at once": Fault(
        ATTENTION,
        "const Tensor out = chunks.emptyChunks(type, shape",
        'chunks.product(q, transposed(k), FLOAT, program, "all");\n  const Tensor out = chunks.emptyChunks(type, shape',
        "test_lowering.py::test_chunks_never_hold_the_score_matrix_and_need_the_less_the_more_there_are",
        "3612672",
    ),
    "updates of the table have half partial sums": Fault(
        EMBEDDING,
        '{"partialType", "float"}',
        '{"partialType", options.splits ? "half" : "float"}',
        "test_lowering.py::test_a_row_that_thousands_of_tokens_share_loses_none_of_them_in_half_precision",
        "2048",
    ),
    "indices are not counted from each part's first row": Fault(
        EMBEDDING,
        'popops::subInPlace(graph, counted, step, body, {debugContext, "next"});',
        "",
        ROWS,
        "assert",
    ),
    "a part's sums are not zeroed": Fault(
        EMBEDDING,
        'popops::zero(graph, sums, body, {debugContext, "sums"});',
        "",
        ROWS,
        "which nothing has written",
    ),
    "the padding row gets a gradient": Fault(
        EMBEDDING, "options.paddingRow >= 0", "options.paddingRow > 23", ROWS, "assert"
    ),
    "the position's gradient is not connected": Fault(
        EMBEDDING_OPERATOR,
        "return hasPosition ? both : alone;",
        "return hasPosition ? alone : alone;",
        "test_host_operator.py::test_the_embedding_is_its_twin_in_value_and_gradient",
        "",
    ),
    "an attribute is missing from the outline": Fault(
        OPERATOR,
        'serialiser.appendAttribute("chunks", options.chunks);',
        "",
        "test_driver.py::test_operators_that_differ_in_one_attribute_are_not_outlined_together",
        "chunks",
    ),
    "the embedding's table is laid out for another size": Fault(
        EMBEDDING_OPERATOR,
        "shape.rows = table[0];",
        "shape.rows = table[0] + 1;",
        "test_host_operator.py::test_the_embedding_is_its_twin_in_value_and_gradient",
        "creates input 0 as",
    ),
}


def test_there_are_faults_of_every_part() -> None:
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert len(FAULTS) >= 12 and {fault.file for fault in FAULTS.values()} == {
        ATTENTION,
        EMBEDDING,
        PATTERN,
        OPERATOR,
        EMBEDDING_OPERATOR,
    }
    assert [name for name in FAULTS if f"| {name} |" not in readme] == []


def faulty_library(fault: Fault, folder: Path) -> Path:
    """The library with a fault in it: one file compiled anew, linked with what the right library is made of."""
    built, source = ROOT / "custom_ops" / "build", folder / Path(fault.file).name
    text = (ROOT / "custom_ops" / fault.file).read_text(encoding="utf-8")
    assert text.count(fault.right) == 1, f"{fault.file} has changed: it has not once {fault.right!r}"
    source.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    includes = [f"-I{ROOT / 'custom_ops' / part}" for part in ("", "popart", "host/include", "host/src")]
    compiler = ["g++", "-std=c++14", "-O0", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", *includes]
    subprocess.run([*compiler, "-c", str(source), "-o", str(folder / "faulty.o")], check=True)
    replaced = built / "host" / Path(fault.file).with_suffix(".o")
    others = [path for path in (built / "host").rglob("*.o") if path != replaced and "tests" not in path.parts]
    library = folder / "libfaulty.so"
    subprocess.run([*compiler, "-shared", "-o", str(library), str(folder / "faulty.o"), *map(str, others)], check=True)
    return library


@pytest.mark.parametrize("name", FAULTS)
def test_the_tests_catch_it_that(name: str, host_library: Any, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: no faults can be compiled")
    fault = FAULTS[name]
    file, _, test = fault.test.partition("::")
    environment = {**os.environ, "HOST_CUSTOM_OPS": str(faulty_library(fault, tmp_path)), "OMP_NUM_THREADS": "1"}
    chosen = test.split("[")[0] + (" and " + test.split("[")[1] if "[" in test else "")
    pytest_alone = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*pytest_alone, str(HERE / file), "-k", chosen],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1 and re.search(fault.says, run.stdout), run.stdout[-3000:] + run.stderr[-1000:]
