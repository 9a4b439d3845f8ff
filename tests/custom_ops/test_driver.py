"""The driver that takes PopART's place: what it refuses of operators made wrong, and what our operators refuse."""

from __future__ import annotations

import ctypes
import re
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import torch

from custom_ops import DOMAIN, VERSION
from custom_ops.host_library import Library
from custom_ops.host_operator import Attribute, HostOperator, HostOperatorError

Input = Tuple[torch.dtype, Tuple[int, ...]]
Attributes = Dict[str, Attribute]

SINGLE, HALF, WHOLE = torch.float32, torch.float16, torch.int32
X: Input = (SINGLE, (3,))


def operator(
    library: Library, name: str, inputs: List[Input], attributes: Attributes, domain: str = DOMAIN
) -> HostOperator:
    return HostOperator(library, domain, name, VERSION, attributes, inputs)


def outline(library: Library, made: HostOperator) -> str:
    library.host_operator_outline.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    text = ctypes.create_string_buffer(4096)
    assert library.host_operator_outline(made._handle, text, len(text)) == 0
    return text.value.decode()


# --------------------------------------------------------------------------------------------- operators with one flaw


def flawed(library: Library, flaw: str, inputs: int = 1, factor: float = 2.0, **others: Attribute) -> HostOperator:
    return operator(library, flaw, [X] * inputs, {"factor": factor, **others}, "tests.wrong")


@pytest.mark.parametrize("name", ["Sound", "InputSound"])
def test_an_operator_without_a_flaw_runs_as_often_as_one_likes(testing_library: Library, name: str) -> None:
    sound = flawed(testing_library, name)
    assert sound.inputs == sound.outputs == (X,) and sound.has_gradient == [True]
    for x in (torch.randn(3), torch.randn(3)):
        (out,) = sound.forward([x])
        assert torch.equal(out, 2 * x)
        assert torch.equal(sound.backward([x], [out], [x + 1])[0], 2 * (x + 1))


def test_each_input_may_have_a_gradient_operator_of_its_own(testing_library: Library) -> None:
    sound, given, gradient = flawed(testing_library, "Sound", inputs=2), torch.randn(2, 3), torch.randn(3)
    assert sound.has_gradient == [True, True]
    for found in sound.backward(list(given), sound.forward(list(given)), [gradient]):
        assert torch.equal(found, 2 * gradient)


def test_an_operator_may_have_no_gradient(testing_library: Library) -> None:
    sound = flawed(testing_library, "WithoutGradient")
    assert sound.has_gradient == [False]
    with pytest.raises(HostOperatorError, match="has no gradient"):
        sound.backward([torch.ones(3)], [torch.ones(3)], [torch.ones(3)])


FLAWS = {
    "WithoutLowering": "no lowering of tests.wrong.WithoutLowering:1 is registered; these are:.*Sound",
    "WithoutShapeInference": "no shape inference of tests.wrong.WithoutShapeInference:1",
    "SetupOfNothing": "setup.* does not set output 0",
    "SetupThatChanges": r"setup.* changes output 0: FLOAT \[3\] and FLOAT \[4\]",
    "SetupOfTwoOutputs": "nothing is connected at index 1",
    "ShapeInferenceOfAnotherShape": r"setup.* and the shape inference .* output 0: FLOAT \[3\] and FLOAT \[4\]",
    "ShapeInferenceOfTwoOutputs": r"setup.* and the shape inference .* output 1: FLOAT \[3\] and nothing",
    "OutlineWithoutBase": r"appendOutlineAttributes\(\) .*call it first",
    "CloneOfAnotherAttribute": r"clone\(\) .* has other attributes",
    "CloneOfAnotherClass": r"clone\(\) .* another class",
    "CloneOfAnotherName": r"clone\(\) .* gives tests.wrong.Sound:1",
    "ReadsMissingInput": "nothing is connected at index 1",
    "OutputNeverSet": "does not set output 0",
    "OutputSetTwice": "sets output 0 twice",
    "OutputOfAnotherShape": r"sets output 0 to float \[4\], and setup\(\) says FLOAT \[3\]",
    "OutputOfAnotherType": r"sets output 0 to half \[3\], and setup\(\) says FLOAT \[3\]",
    "OutputNeverAssigned": "sets output 0 to no tensor",
    "OutputIsInput": "output 0 .* has elements of input 0",
    "OutputIsPartOfInput": "output 0 .* has elements of input 0",
    "OutputOfRepeats": "output 0 to repeated or constant elements",
    "OutputOfConstants": "output 0 to repeated or constant elements",
    "OutputUnmapped": "'lost' has elements that lie on no tile",
    "InputUnwound": "input 0 by unwinding",
    "InputWithoutCreation": r"has no createInput\(\) for input 0",
    "InputWithoutNeeds": r"has no mustExistBeforeCreate\(\) for input 0",
    "InputOfLaterOnes": "input 0 from later, which is not there",
    "InputOfAnotherShape": r"creates input 0 as float \[4\]; make it FLOAT \[3\]",
    "InputOfAnotherType": r"creates input 0 as half \[3\]; make it FLOAT \[3\]",
    "InputOfRepeats": "creates input 0 of repeated",
    "InputUnmapped": "'input 0' has elements that lie on no tile",
    "GradientOfMissingInput": r"gradInputInfo\(\) .* takes input 1",
    "GradientOfMissingOutput": r"gradInputInfo\(\) .* takes output 1",
    "GradientConnectedTwice": r"gradInputInfo\(\) .* gives input 0 twice",
    "GradientForMissingInput": r"gradOutToNonGradIn\(\) .* gradient of input 5",
    "GradientOfAnotherShape": r"gradient of input 0 FLOAT \[4\], and the input is FLOAT \[3\]",
    "GradientWithoutLowering": "no lowering of tests.wrong.GradientWithoutLoweringGrad:1",
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_found_when_the_operator_is_compiled(testing_library: Library, flaw: str) -> None:
    with pytest.raises(HostOperatorError, match=FLAWS[flaw]):
        flawed(testing_library, flaw)


def test_two_gradients_of_one_input_are_an_error(testing_library: Library) -> None:
    with pytest.raises(HostOperatorError, match="gradient of input 0 a second time"):
        flawed(testing_library, "GradientsForOneInput", inputs=2)


@pytest.mark.parametrize(
    "flaw, words", [("WritesInput", "'input 0', which is an input"), ("OutputNeverWritten", "'made'")]
)
def test_a_flaw_of_the_program_is_found_when_it_runs(testing_library: Library, flaw: str, words: str) -> None:
    with pytest.raises(HostOperatorError, match=words):
        flawed(testing_library, flaw).forward([torch.ones(3)])


def test_a_gradient_that_is_written_to_is_an_error(testing_library: Library) -> None:
    wrong, x = flawed(testing_library, "GradientWritesInput"), torch.ones(3)
    with pytest.raises(HostOperatorError, match="'gradient of output 0', which is an input"):
        wrong.backward([x], wrong.forward([x]), [x])


@pytest.mark.parametrize(
    "flaw, factors",
    [
        ("OutlineWithoutAttribute", (2.0, 3.0)),
        ("GradientOutlineWithoutAttribute", (2.0, 3.0)),
        ("OutlineOfSixDigits", (1e-7, 2e-7)),
    ],
)
def test_operators_that_differ_in_what_they_do_not_tell_are_an_error(
    testing_library: Library, flaw: str, factors: Tuple[float, float]
) -> None:
    flawed(testing_library, flaw, factor=factors[0])
    flawed(testing_library, flaw, factor=factors[0])
    with pytest.raises(HostOperatorError, match=r"appendOutlineAttributes\(\) .* append every attribute.* factor="):
        flawed(testing_library, flaw, factor=factors[1])


def test_an_attribute_that_nobody_reads_is_an_error(testing_library: Library) -> None:
    with pytest.raises(HostOperatorError, match="never reads the attribute faktor"):
        flawed(testing_library, "Sound", faktor=1)


def test_a_gradient_that_would_be_dropped_or_is_missing_is_an_error(host_library: Library) -> None:
    made = attention(host_library)
    given = [torch.randn(shape) for _, shape in made.inputs]
    out, log_sum_exp = made.forward(given)
    with pytest.raises(HostOperatorError, match="do not take the gradient of output 1"):
        made.backward(given, [out, log_sum_exp], [out, log_sum_exp])
    with pytest.raises(HostOperatorError, match="gradient of output 0 is needed and not given"):
        made.backward(given, [out, log_sum_exp], [None, None])


@pytest.mark.parametrize("which", range(3))
def test_registering_twice_is_an_error(testing_library: Library, which: int) -> None:
    assert testing_library.wrong_ops_register_again(which)
    assert b"of tests.wrong.Sound:1 is registered already" in testing_library.host_last_error()


@pytest.mark.parametrize(
    "arguments, words", [(1, b"another place"), (2, b"1 of {} and two"), (3, b"leaves arguments out")]
)
def test_an_errors_format_has_a_place_for_each_argument(testing_library: Library, arguments: int, words: bytes) -> None:
    assert testing_library.wrong_ops_format(arguments)
    assert words in testing_library.host_last_error()


@pytest.mark.parametrize(
    "domain, name, version", [("other", "FusedAttention", 1), (DOMAIN, "Fused", 1), (DOMAIN, "FusedAttention", 2)]
)
def test_an_operator_is_found_by_domain_name_and_version(
    host_library: Library, domain: str, name: str, version: int
) -> None:
    with pytest.raises(
        HostOperatorError, match=f"no operator of {domain}.{name}:{version} .* minidalle.ops.FusedAttention:1"
    ):
        HostOperator(host_library, domain, name, version, {}, [X])


def test_an_operator_is_used_only_after_it_was_compiled_and_changed_only_before(host_library: Library) -> None:
    handle = host_library.host_operator_new(DOMAIN.encode(), b"FusedAttention", VERSION)
    assert host_library.host_operator_output_count(handle) < 0
    assert host_library.host_operator_has_gradient(handle, 0) < 0
    assert host_library.host_operator_forward(handle, None, None)
    assert b"not compiled yet" in host_library.host_last_error()
    host_library.host_operator_delete(handle)
    made = attention(host_library)
    assert host_library.host_operator_attribute_int(made._handle, b"more", 1)
    assert b"compiled already" in host_library.host_last_error()


def test_an_attribute_is_passed_once(host_library: Library) -> None:
    handle = host_library.host_operator_new(DOMAIN.encode(), b"FusedAttention", VERSION)
    assert host_library.host_operator_attribute_int(handle, b"chunks", 1) == 0
    assert host_library.host_operator_attribute_float(handle, b"chunks", 1.0)
    assert b"chunks is passed twice" in host_library.host_last_error()
    host_library.host_operator_delete(handle)


def test_a_type_has_one_of_three_numbers(host_library: Library) -> None:
    handle = host_library.host_operator_new(DOMAIN.encode(), b"FusedAttention", VERSION)
    assert host_library.host_operator_input(handle, 3, 1, (ctypes.c_int64 * 1)(3))
    assert b"there is no type 3" in host_library.host_last_error()
    host_library.host_operator_delete(handle)


# ----------------------------------------------------------------------------------------------------------- attention

ATTENTION: Attributes = {
    "pattern": "full",
    "text_len": 5,
    "rows": 2,
    "columns": 2,
    "scale": 0.5,
    "chunks": 2,
    "available_memory": 0.5,
    "partials_type": "float",
}
CONVOLUTION: Attributes = {**ATTENTION, "pattern": "conv_like", "kernel_size": 3, "dilation": 1, "window": "causal"}
SPARSE: Attributes = {**ATTENTION, "pattern": "sparse", "block_size": 5, "drawn_blocks": (1, 0, 0, 1)}
Q: Input = (SINGLE, (2, 8, 4))


def attention(
    library: Library, inputs: Optional[List[Input]] = None, base: Attributes = ATTENTION, **changes: Any
) -> HostOperator:
    """The operator with some attributes changed, or left out where they are None."""
    attributes = {key: value for key, value in {**base, **changes}.items() if value is not None}
    return operator(library, "FusedAttention", [Q] * 3 if inputs is None else inputs, attributes)


@pytest.mark.parametrize("dtype", [SINGLE, HALF], ids=str)
@pytest.mark.parametrize("leading", [(2,), (2, 3), (1, 2, 1, 3)], ids=str)
def test_attention_takes_any_leading_dimensions(
    host_library: Library, leading: Tuple[int, ...], dtype: torch.dtype
) -> None:
    made = attention(host_library, [(dtype, (*leading, 8, 4))] * 3)
    assert made.outputs == ((dtype, (*leading, 8, 4)), (SINGLE, (*leading, 8)))
    assert made.has_gradient == [True, True, True]
    given = [torch.randn(*leading, 8, 4).to(dtype) for _ in range(3)]
    flat = [tensor.reshape(-1, 8, 4) for tensor in given]
    alone = attention(host_library, [(dtype, tuple(tensor.shape)) for tensor in flat])
    for one, other in zip(made.forward(given), alone.forward(flat)):
        assert torch.equal(one.flatten(), other.flatten())


ATTENTION_ATTRIBUTES: List[Tuple[Attributes, Attributes, str]] = [
    (ATTENTION, {"pattern": "round"}, "pattern=round is none of"),
    (ATTENTION, {"text_len": 0}, "text_len=0"),
    (ATTENTION, {"text_len": -1}, "text_len=-1 is out of range"),
    (ATTENTION, {"rows": 0}, "rows=0"),
    (ATTENTION, {"columns": 0}, "columns=0"),
    (ATTENTION, {"columns": 2**31}, "columns=2147483648 is out of range"),
    (ATTENTION, {"rows": 1}, "8 positions is longer than text_len=5 and rows=1 times columns=2 without .*; give 6"),
    (ATTENTION, {"scale": 0.0}, "scale=0"),
    (ATTENTION, {"scale": float("nan")}, "scale=nan"),
    (ATTENTION, {"scale": float("inf")}, "scale=inf"),
    (ATTENTION, {"chunks": 0}, "chunks=0"),
    (ATTENTION, {"chunks": 3}, "chunks=3 does not divide a sequence of 8 positions"),
    (ATTENTION, {"available_memory": 0.0}, "available_memory=0 .* more than 0 and at most 1"),
    (ATTENTION, {"available_memory": 1.5}, "available_memory=1.5"),
    (ATTENTION, {"available_memory": float("nan")}, "available_memory=nan"),
    (ATTENTION, {"partials_type": "double"}, "partials_type=double is neither float nor half"),
    (CONVOLUTION, {"kernel_size": 2}, "kernel_size=2"),
    (CONVOLUTION, {"dilation": 0}, "dilation=0"),
    (CONVOLUTION, {"window": "open"}, "window=open"),
    (SPARSE, {"block_size": 0}, "block_size=0"),
    (SPARSE, {"drawn_blocks": (1, 0, 0)}, "drawn_blocks has 3"),
]


@pytest.mark.parametrize(
    "base, changes, words", ATTENTION_ATTRIBUTES, ids=[words for _, _, words in ATTENTION_ATTRIBUTES]
)
def test_attention_refuses_an_attribute_by_its_name_and_value(
    host_library: Library, base: Attributes, changes: Attributes, words: str
) -> None:
    attention(host_library, base=base)
    with pytest.raises(HostOperatorError, match=f"FusedAttention: .*{words}"):
        attention(host_library, base=base, **changes)


ATTENTION_INPUTS: List[Tuple[List[Input], str]] = [
    ([Q, Q], "it has 2 inputs; give it 3"),
    ([Q] * 4, "it has 4 inputs; give it 3"),
    ([(WHOLE, Q[1])] * 3, "q is of type INT32; make it FLOAT or FLOAT16"),
    ([(SINGLE, (8, 4))] * 3, r"q has the shape \[8, 4\]; give it 3 dimensions"),
    ([(SINGLE, (0, 8, 4))] * 3, r"q has the shape \[0, 8, 4\].*none empty"),
    ([Q, (SINGLE, (2, 7, 4)), Q], r"k is FLOAT \[2, 7, 4\], and q is FLOAT \[2, 8, 4\]"),
    ([Q, Q, (SINGLE, (2, 8, 3))], r"v is FLOAT \[2, 8, 3\], and q is FLOAT \[2, 8, 4\]"),
    ([Q, (HALF, Q[1]), Q], r"k is FLOAT16 \[2, 8, 4\], and q is FLOAT "),
]


@pytest.mark.parametrize("inputs, words", ATTENTION_INPUTS, ids=[words for _, words in ATTENTION_INPUTS])
def test_attention_refuses_an_input_by_its_name_and_shape(
    host_library: Library, inputs: List[Input], words: str
) -> None:
    with pytest.raises(HostOperatorError, match=f"FusedAttention: .*{words}"):
        attention(host_library, inputs)


# ----------------------------------------------------------------------------------------------------------- embedding

EMBEDDING: Attributes = {"splits": 2, "padding_idx": -1, "available_memory": 0.5}
TABLE, INDICES, POSITION = (SINGLE, (6, 4)), (WHOLE, (2, 3)), (SINGLE, (3, 4))


def embedding(library: Library, inputs: Optional[List[Input]] = None, **changes: Any) -> HostOperator:
    attributes = {key: value for key, value in {**EMBEDDING, **changes}.items() if value is not None}
    return operator(library, "FusedEmbedding", [TABLE, INDICES] if inputs is None else inputs, attributes)


def test_only_table_and_position_have_gradients(host_library: Library) -> None:
    assert embedding(host_library).has_gradient == [True, False]
    assert embedding(host_library, [TABLE, INDICES, POSITION]).has_gradient == [True, False, True]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"splits": 0}, "splits=0"),
        ({"splits": 4}, "splits=4 does not divide a table of 6 rows"),
        ({"splits": -1}, "splits=-1 is out of range"),
        ({"padding_idx": 6}, "padding_idx=6 is no row of a table of 6; take 0 to 5, or -1 for none"),
        ({"padding_idx": -2}, "padding_idx=-2 is out of range"),
        ({"available_memory": 0.0}, "available_memory=0"),
        ({"available_memory": 1.01}, "available_memory=1.01"),
    ],
    ids=str,
)
def test_the_embedding_refuses_an_attribute_by_its_name_and_value(
    host_library: Library, changes: Attributes, words: str
) -> None:
    with pytest.raises(HostOperatorError, match=f"FusedEmbedding: {words}"):
        embedding(host_library, **changes)


EMBEDDING_INPUTS: List[Tuple[List[Input], str]] = [
    ([TABLE], "it has 1 inputs; give it 2 or 3"),
    ([TABLE, INDICES, POSITION, POSITION], "it has 4 inputs"),
    ([(WHOLE, TABLE[1]), INDICES], "table is of type INT32"),
    ([(SINGLE, (6, 4, 1)), INDICES], r"table has the shape \[6, 4, 1\]; give it 2 dimensions"),
    ([(SINGLE, (6, 0)), INDICES], r"table has the shape \[6, 0\]"),
    ([TABLE, (SINGLE, INDICES[1])], "indices is of type FLOAT; make it INT32"),
    ([TABLE, (WHOLE, (6,))], r"indices has the shape \[6\]; give it 2 dimensions"),
    ([TABLE, (WHOLE, (0, 3))], r"indices has the shape \[0, 3\]"),
    ([TABLE, INDICES, (SINGLE, (2, 4))], r"position is FLOAT \[2, 4\].* take FLOAT \[3, 4\]"),
    ([TABLE, INDICES, (HALF, POSITION[1])], r"position is FLOAT16 \[3, 4\].* take FLOAT \[3, 4\]"),
]


@pytest.mark.parametrize("inputs, words", EMBEDDING_INPUTS, ids=[words for _, words in EMBEDDING_INPUTS])
def test_the_embedding_refuses_an_input_by_its_name_and_shape(
    host_library: Library, inputs: List[Input], words: str
) -> None:
    with pytest.raises(HostOperatorError, match=f"FusedEmbedding: {words}"):
        embedding(host_library, inputs)


# ---------------------------------------------------------------------------------------------------------------- both

Make = Callable[..., HostOperator]
MADE: Dict[str, Tuple[Make, Attributes]] = {
    "full": (attention, ATTENTION),
    "conv_like": (lambda library, **changes: attention(library, base=CONVOLUTION, **changes), CONVOLUTION),
    "sparse": (lambda library, **changes: attention(library, base=SPARSE, **changes), SPARSE),
    "embedding": (embedding, EMBEDDING),
}
EACH_ATTRIBUTE = [(made, key) for made, (_, attributes) in MADE.items() for key in attributes]

OTHER_VALUES: Attributes = {
    "pattern": "axial_row",
    "text_len": 6,
    "rows": 3,
    "columns": 3,
    "scale": 0.5 + 2**-24,  # no difference in six digits
    "chunks": 4,
    "available_memory": 0.5 + 2**-24,
    "partials_type": "half",
    "kernel_size": 5,
    "dilation": 2,
    "window": "centered",
    "block_size": 4,
    "drawn_blocks": (1, 1, 0, 1),
    "splits": 3,
    "padding_idx": 0,
}
NEEDED_BY_OTHERS = {"kernel_size": None, "dilation": None, "window": None, "block_size": None, "drawn_blocks": None}


@pytest.mark.parametrize("made, key", EACH_ATTRIBUTE)
def test_a_missing_attribute_is_named(host_library: Library, made: str, key: str) -> None:
    with pytest.raises(HostOperatorError, match=f"attribute {key} is missing"):
        MADE[made][0](host_library, **{key: None})


@pytest.mark.parametrize("made, key", EACH_ATTRIBUTE)
def test_an_attribute_of_another_type_is_named(host_library: Library, made: str, key: str) -> None:
    make, attributes = MADE[made]
    other = 1 if isinstance(attributes[key], (str, float)) else "1"
    with pytest.raises(HostOperatorError, match=f"attribute {key} is not of type"):
        make(host_library, **{key: other})


@pytest.mark.parametrize("made", MADE)
def test_an_attribute_that_the_operator_does_not_know_is_named(host_library: Library, made: str) -> None:
    with pytest.raises(HostOperatorError, match="never reads the attribute chunk;"):
        MADE[made][0](host_library, chunk=2)


def test_an_attribute_of_another_pattern_is_named(host_library: Library) -> None:
    with pytest.raises(HostOperatorError, match="never reads the attribute kernel_size"):
        attention(host_library, kernel_size=3)


@pytest.mark.parametrize("made, key", EACH_ATTRIBUTE)
def test_operators_that_differ_in_one_attribute_are_not_outlined_together(
    host_library: Library, made: str, key: str
) -> None:
    make, _ = MADE[made]
    others = NEEDED_BY_OTHERS if key == "pattern" else {}
    one, same, other = make(host_library), make(host_library), make(host_library, **{**others, key: OTHER_VALUES[key]})
    assert outline(host_library, one) == outline(host_library, same)
    assert outline(host_library, one) != outline(host_library, other)


def test_an_outline_needs_room(host_library: Library) -> None:
    made = embedding(host_library)
    size = len(outline(host_library, made))
    text = ctypes.create_string_buffer(size)
    assert host_library.host_operator_outline(made._handle, text, size)
    assert re.search(f"{size} bytes and its end do not fit".encode(), host_library.host_last_error())
