"""The types of a model's inputs, with every dimension known: from the model, or else from an option."""

import shlex
from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TypeProto, ValueInfoProto

from compiler.errors import OptionError, UnboundShapeError, UnsupportedError
from compiler.importer.types import ONNX_TYPES, type_name
from compiler.ir import TensorType
from protocol.limits import MAX_RANK

_NAMELESS: Final = {"", "?"}
"""Names of dimensions that have nothing to do with each other."""


def bind_inputs(
    graph: GraphProto, shapes: Mapping[str, tuple[int, ...]], values: Container[str], problems: list[str]
) -> dict[str, TensorType]:
    """Return the type of each input but those with values; raises UnboundShapeError or OptionError.

    A dimension with a name is bound for all inputs when it is bound for one. Inputs that no module can have are left
    out, each with a line in `problems`.
    """
    inputs = [value for value in _inputs(graph) if value.name not in values]
    if unknown := sorted(set(shapes) - {value.name for value in inputs}):
        raise OptionError(f"the model has no inputs {unknown}; it has {[value.name for value in inputs]}")
    names = _named_dimensions(inputs, shapes)
    open_inputs = []
    types: dict[str, TensorType] = {}
    for value in inputs:
        try:
            tensor = _tensor(value)
        except UnsupportedError as error:
            problems += error.problems
            continue
        shape = shapes.get(value.name) or _shape(tensor, names)
        if shape is None:
            open_inputs.append(value)
        else:
            types[value.name] = TensorType(ONNX_TYPES[tensor.elem_type], _checked(value.name, shape))
    if open_inputs and not problems:
        raise UnboundShapeError(
            f"the shapes of these inputs are open: {', '.join(map(_open_text, open_inputs))}; "
            f"give them numbers, for example: {' '.join(map(_example_option, open_inputs))}"
        )
    return types


def bind_values(graph: GraphProto, values: Mapping[str, float | int | bool]) -> dict[str, NDArray[Any]]:
    """Return inputs that are given by numbers as constants; raises OptionError."""
    inputs = {value.name: value for value in _inputs(graph)}
    if unknown := sorted(set(values) - set(inputs)):
        raise OptionError(f"the model has no inputs {unknown}; it has {list(inputs)}")
    constants: dict[str, NDArray[Any]] = {}
    for name, number in values.items():
        tensor = _tensor(inputs[name])
        if any(d.dim_value > 1 for d in tensor.shape.dim):
            shape = "x".join(_dimension_texts(tensor))
            raise OptionError(f"input {name!r} is {shape}, not one number: it cannot be given by a value")
        dtype = ONNX_TYPES[tensor.elem_type]
        if not _holds(np.dtype(dtype.numpy), number):
            raise OptionError(f"input {name!r} is {dtype.value}, which cannot be {number}")
        constants[name] = np.full((1,) * len(tensor.shape.dim), number, dtype.numpy)
    return constants


def _holds(dtype: np.dtype[Any], number: float | int | bool) -> bool:
    """Whether elements of a type can be a number, fractions rounded."""
    if dtype.kind == "f":
        return abs(number) <= float(np.finfo(dtype).max)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return number % 1 == 0 and low <= number <= high


def bind_states(graph: GraphProto, inputs: Container[str], states: Mapping[str, str]) -> None:
    """Raise OptionError unless every state is an input and becomes an output of its own."""
    outputs = [value.name for value in graph.output]
    for name, output in states.items():
        if name not in inputs:
            raise OptionError(f"there is no input {name!r} that could be a state; the model has {_names(graph)}")
        if output not in outputs:
            raise OptionError(f"there is no output {output!r} that state {name!r} could become; there are {outputs}")
    if len(set(states.values())) != len(states):
        raise OptionError(f"two states cannot become the same output: {dict(states)}")


def _names(graph: GraphProto) -> list[str]:
    return [value.name for value in _inputs(graph)]


def _inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """Return the inputs that have no numbers in the file."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def _tensor(value: ValueInfoProto) -> TypeProto.Tensor:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError([f"input {value.name!r} is no tensor: {value.type.WhichOneof('value')}"])
    tensor = value.type.tensor_type
    if tensor.elem_type not in ONNX_TYPES:
        raise UnsupportedError(
            [f"input {value.name!r} has elements of type {type_name(tensor.elem_type)}, which modules lack"]
        )
    return tensor


def _named_dimensions(inputs: Iterable[ValueInfoProto], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the dimensions with names that the given shapes fix; raises OptionError when they disagree."""
    names: dict[str, int] = {}
    for value in inputs:
        shape = shapes.get(value.name)
        if shape is None or not value.type.tensor_type.HasField("shape"):
            continue
        dimensions = value.type.tensor_type.shape.dim
        if len(dimensions) != len(shape):
            raise OptionError(f"input {value.name!r} has {len(dimensions)} dimensions, got the shape {list(shape)}")
        for dimension, size in zip(dimensions, shape, strict=True):
            if dimension.dim_value > 0 and dimension.dim_value != size:
                raise OptionError(f"input {_open_text(value)} cannot have the shape {list(shape)}")
            if dimension.dim_param not in _NAMELESS and names.setdefault(dimension.dim_param, size) != size:
                raise OptionError(f"dimension {dimension.dim_param!r} is {names[dimension.dim_param]} and {size}")
    return names


def _shape(tensor: TypeProto.Tensor, names: Mapping[str, int]) -> tuple[int, ...] | None:
    if not tensor.HasField("shape"):
        return None
    sizes = [d.dim_value if d.dim_value > 0 else names.get(d.dim_param, 0) for d in tensor.shape.dim]
    return tuple(sizes) if all(sizes) else None


def _dimension_texts(tensor: TypeProto.Tensor) -> list[str]:
    return [str(d.dim_value) if d.dim_value > 0 else d.dim_param or "?" for d in tensor.shape.dim]


def _open_text(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    return f"{value.name} [{', '.join(_dimension_texts(tensor)) if tensor.HasField('shape') else 'any number of them'}]"


def _example_option(value: ValueInfoProto) -> str:
    """Return the option that binds an input, with 1 for what is open."""
    sizes = [str(max(d.dim_value, 1)) for d in value.type.tensor_type.shape.dim]
    return f"--input-shape {shlex.quote(value.name)}={'x'.join(sizes) or '1x3x224x224'}"


def _checked(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > MAX_RANK or any(size < 1 for size in shape):
        raise OptionError(f"input {name!r}: expected at most {MAX_RANK} dimensions of at least 1, got {list(shape)}")
    return shape
