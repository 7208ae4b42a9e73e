"""A whole model as a graph."""

from typing import Final

import msgspec
from onnx import ModelProto

from compiler.errors import OptionError, UnsupportedError
from compiler.importer import operators
from compiler.importer.binding import bind_inputs, bind_values
from compiler.importer.pixels import bytes_input
from compiler.importer.scope import Scope
from compiler.importer.source import opsets
from compiler.importer.walker import Walker
from compiler.ir import Graph, GraphBuilder
from compiler.options import CompileOptions

_FAMILIES: Final = operators.__all__
"""The converters register themselves when they are imported."""


class ImportedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a graph, with the names that its inputs and outputs have in the file."""

    graph: Graph
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def import_model(model: ModelProto, options: CompileOptions) -> ImportedModel:
    """Return a checked model as a graph; raises UnsupportedError, UnboundShapeError or OptionError."""
    types = bind_inputs(model.graph, options.input_shapes, options.input_values)
    builder = GraphBuilder()
    scope = Scope(builder)
    if unknown := sorted(set(options.uint8_inputs) - set(types)):
        raise OptionError(f"the model has no inputs {unknown}; it has {list(types)}")
    for name, kind in types.items():
        normalization = options.uint8_inputs.get(name)
        scope.bind(name, builder.input(kind) if normalization is None else bytes_input(builder, kind, normalization))
    for name, numbers in bind_values(model.graph, options.input_values).items():
        scope.bind(name, builder.constant(numbers))
    problems: list[str] = []
    Walker(builder, opsets(model), problems).walk(model.graph, scope)
    names = tuple(value.name for value in model.graph.output)
    if problems:
        raise UnsupportedError(problems)
    graph = builder.graph([scope.value(name) for name in names])
    return ImportedModel(graph=graph, input_names=tuple(types), output_names=names)
