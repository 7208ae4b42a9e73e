"""The node tests of the ONNX project, run through compiler and device runtime.

What is eligible is computed, never listed: a case counts when its inputs and outputs are tensors of types that modules
have, and the compiler accepts its model, either as it is or with inputs that fix shapes bound as constants.
"""

import enum
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from compiler import CompileOptions, compile_model
from compiler.dtypes import DType
from compiler.errors import CompilerError, ModelFileError, OptionError, UnboundShapeError, UnsupportedError
from compiler.pipeline import CompiledModel
from tests.compiler.execution import run_compiled

Array = NDArray[Any]
RELATIVE, ABSOLUTE = 1e-3, 1e-5
NOTHING = "nothing"
"""The input of a module whose inputs are all constant."""
_TYPES = {dtype.value for dtype in DType}


class Verdict(enum.Enum):
    """What became of a case."""

    PASSED = "passed"
    NOT_ELIGIBLE = "not eligible"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """One case, and what became of it."""

    name: str
    operator: str
    verdict: Verdict
    reason: str = ""


@cache
def cases() -> list[TestCase]:
    """Return all cases, in the order of their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {case.name: case for case in collect_testcases(None)}
    return [found[name] for name in sorted(found)]


def operator_of(case: TestCase) -> str:
    """Return the operator that a case is about; expanded definitions count for the operator that they define."""
    nodes = case.model.graph.node
    return str(nodes[0].op_type) if len(nodes) == 1 else str(case.name.removeprefix("test_").split("_")[0])


def run_case(case: TestCase) -> Outcome:
    """Compile a case, run it, and compare with what it expects."""
    operator = operator_of(case)
    inputs, wants = case.data_sets[0]
    if not all(_is_tensor(value) for value in (*inputs, *wants)):
        return Outcome(case.name, operator, Verdict.NOT_ELIGIBLE, "a value is no tensor of a type that modules have")
    compiled, reason = _compiled(case.model, inputs)
    if compiled is None:
        return Outcome(case.name, operator, Verdict.NOT_ELIGIBLE, reason)
    named = dict(zip((i.name for i in case.model.graph.input), inputs, strict=True))
    named[NOTHING] = np.zeros(1, np.float32)
    try:
        for got, want in zip(run_compiled(compiled, named), wants, strict=False):
            _compare(got, np.asarray(want), case)
    except (AssertionError, CompilerError) as error:
        return Outcome(case.name, operator, Verdict.FAILED, " ".join(str(error).split())[:300])
    return Outcome(case.name, operator, Verdict.PASSED)


def _is_tensor(value: object) -> bool:
    if isinstance(value, np.generic):
        value = np.asarray(value)
    return isinstance(value, np.ndarray) and value.dtype.name in _TYPES and value.size > 0


def _compiled(model: onnx.ModelProto, inputs: list[Array]) -> tuple[CompiledModel | None, str]:
    """Return the compiled model with as few inputs bound as constants as the compiler demands, or why there is none."""
    reason = ""
    for bound in _bindings(model, inputs):
        shapes = {i.name: np.shape(v) for i, v in zip(model.graph.input, inputs, strict=True) if i.name not in bound}
        try:
            options = CompileOptions(input_shapes={name: shape for name, shape in shapes.items() if shape})
            return compile_model(_with_constants(model, inputs, bound), options), ""
        except (UnsupportedError, OptionError, UnboundShapeError, ModelFileError) as error:
            reason = " ".join(str(error).split())[:200]
    return None, reason


def _bindings(model: onnx.ModelProto, inputs: list[Array]) -> Iterator[set[str]]:
    """Yield sets of inputs to bind: none; whole numbers; whatever is small; all but the first; all."""
    everything = [(i.name, np.asarray(v)) for i, v in zip(model.graph.input, inputs, strict=True)]
    named = everything[1:]
    tried: list[set[str]] = []
    for choice in (
        set(),
        {name for name, v in named if v.dtype.kind in "iub"},
        {name for name, v in named if v.dtype.kind in "iub" or v.ndim <= 1},
        {name for name, _ in named},
        {name for name, _ in everything},
    ):
        if choice not in tried:
            tried.append(choice)
            yield choice


def _with_constants(model: onnx.ModelProto, inputs: list[Array], bound: set[str]) -> bytes:
    """Return the model with inputs bound; when none is left, with one more that is passed on as a last output."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    values = {i.name: v for i, v in zip(graph.input, inputs, strict=True)}
    for value in [i for i in graph.input if i.name in bound]:
        if changed.ir_version >= 4:  # before, what is given was an input too
            graph.input.remove(value)
        graph.initializer.append(numpy_helper.from_array(np.asarray(values[value.name]), value.name))
    if len(bound) == len(inputs):
        graph.input.append(onnx.helper.make_tensor_value_info(NOTHING, onnx.TensorProto.FLOAT, [1]))
        graph.output.append(onnx.helper.make_tensor_value_info("passed on", onnx.TensorProto.FLOAT, [1]))
        graph.node.append(onnx.helper.make_node("Identity", [NOTHING], ["passed on"]))
        if not any(o.domain == "" for o in changed.opset_import):
            changed.opset_import.append(onnx.helper.make_opsetid("", 17))
    return bytes(changed.SerializeToString())


def _compare(got: Array, want: Array, case: TestCase) -> None:
    assert (want.shape, want.dtype) == (got.shape, got.dtype), (
        f"expected {want.dtype}{want.shape}, got {got.dtype}{got.shape}"
    )
    if want.dtype.kind != "f":
        np.testing.assert_array_equal(got, want)
        return
    relative, absolute = max(case.rtol, RELATIVE), max(case.atol, ABSOLUTE)
    np.testing.assert_allclose(got, want, rtol=relative, atol=absolute)
