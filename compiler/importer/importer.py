"""A whole model as a graph."""

from typing import Final

import msgspec
from onnx import GraphProto, ModelProto

from compiler.errors import ModelFileError, OptionError, UnsupportedError
from compiler.importer import operators
from compiler.importer.binding import bind_inputs, bind_states, bind_values
from compiler.importer.pixels import bytes_input
from compiler.importer.registry import CONVERTERS
from compiler.importer.scope import Scope
from compiler.importer.source import opsets
from compiler.importer.types import ONNX_TYPES, type_name
from compiler.importer.walker import Walker
from compiler.ir import Graph, GraphBuilder
from compiler.options import CompileOptions

__all__ = ["CONVERTERS", "ImportedModel", "import_model"]

_FAMILIES: Final = operators.__all__
"""The converters register themselves when they are imported."""


class ImportedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a graph, with the names that its inputs and outputs have in the file.

    Behind those inputs and outputs the graph has one of each for every state.
    """

    graph: Graph
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    state_count: int = 0
    labels: dict[str, tuple[str, ...]] = {}
    """What the indices of the last dimension of an output mean."""


def import_model(model: ModelProto, options: CompileOptions) -> ImportedModel:
    """Return a checked model as a graph; raises UnsupportedError, UnboundShapeError or OptionError."""
    problems: list[str] = []
    types = bind_inputs(model.graph, options.input_shapes, options.input_values, problems)
    builder = GraphBuilder()
    scope = Scope(builder)
    bind_states(model.graph, types, options.states)
    if unknown := sorted(set(options.uint8_inputs) - (set(types) - set(options.states))):
        raise OptionError(f"the model has no inputs {unknown} that could be bytes; it has {list(types)}")
    input_names = [name for name in types if name not in options.states]
    for name in (*input_names, *options.states):
        normalization = options.uint8_inputs.get(name)
        kind = types[name]
        scope.bind(name, builder.input(kind) if normalization is None else bytes_input(builder, kind, normalization))
    for name, numbers in bind_values(model.graph, options.input_values).items():
        scope.bind(name, builder.constant(numbers))
    Walker(builder, opsets(model), problems).walk(model.graph, scope)
    if problems:
        raise UnsupportedError(problems)
    output_names = [v.name for v in model.graph.output if v.name not in options.states.values()]
    graph = builder.graph([scope.value(name) for name in (*output_names, *options.states.values())])
    _check_declared(model.graph, graph, output_names)
    for name, output in zip(options.states, graph.outputs[len(output_names) :], strict=True):
        if graph.types[output] != types[name]:
            raise OptionError(f"state {name!r} is {types[name]}, the output that it becomes is {graph.types[output]}")
    return ImportedModel(
        graph=graph,
        input_names=tuple(input_names),
        output_names=tuple(output_names),
        state_count=len(options.states),
        labels=_labels(builder, graph, output_names),
    )


def _check_declared(file: GraphProto, graph: Graph, names: list[str]) -> None:
    """Raise ModelFileError for outputs whose elements are not of the type that the file says."""
    declared = {value.name: value.type.tensor_type.elem_type for value in file.output}
    for name, value in zip(names, graph.outputs, strict=False):
        dtype = graph.types[value].dtype
        if ONNX_TYPES.get(declared[name], dtype) is not dtype:
            raise ModelFileError(
                f"not a valid ONNX model: output {name!r} is said to be {type_name(declared[name])}, "
                f"what is computed is {dtype.value}"
            )


def _labels(builder: GraphBuilder, graph: Graph, names: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the meaning of the indices of outputs, where classifiers said it."""
    found = {}
    for name, value in zip(names, graph.outputs, strict=False):
        texts, shape = builder.labels.get(value, ()), graph.types[value].shape
        if texts and shape and shape[-1] == len(texts):
            found[name] = texts
    return found
