"""Walks the nodes of a model and adds what each means to a graph.

Everything that cannot be converted is collected and reported together, before any other work is done. An operator
without a converter that ONNX defines by other operators is replaced by those.
"""

from typing import Final

import msgspec
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference

from compiler.errors import UnsupportedError
from compiler.formula.scalar import unsupported
from compiler.importer import operators
from compiler.importer.binding import bind_inputs
from compiler.importer.context import NodeContext, NotConvertibleError
from compiler.importer.functions import expand
from compiler.importer.registry import CONVERTERS
from compiler.importer.source import opsets
from compiler.importer.types import ONNX_TYPES
from compiler.ir import Graph, GraphBuilder, Node, TensorType
from compiler.ir import operations as ops
from compiler.options import CompileOptions

_FAMILIES: Final = operators.__all__
"""The converters register themselves when they are imported."""
_MAX_EXPANSIONS: Final = 8
"""How deep operators may be defined by operators."""
_UNKNOWN: Final = "?"
_ELEMENT_TYPES: Final = {dtype: number for number, dtype in ONNX_TYPES.items()}

Scope = dict[str, str | None]


class ImportedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as a graph, with the names that its inputs and outputs have in the file."""

    graph: Graph
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def import_model(model: ModelProto, options: CompileOptions) -> ImportedModel:
    """Return a checked model as a graph; raises UnsupportedError, UnboundShapeError or OptionError."""
    types = bind_inputs(model.graph, options.input_shapes)
    builder = GraphBuilder()
    scope: Scope = {name: builder.input(kind) for name, kind in types.items()}
    walker = _Walker(builder, opsets(model))
    walker.walk(model.graph, scope)
    outputs = [value.name for value in model.graph.output]
    if walker.problems:
        raise UnsupportedError(walker.problems)
    graph = builder.graph([value for name in outputs if (value := scope[name]) is not None])
    return ImportedModel(graph=graph, input_names=tuple(types), output_names=tuple(outputs))


def _check_formulas(nodes: list[Node]) -> None:
    """Refuse what no code can be written for."""
    for node in nodes:
        match node.operation:
            case ops.Map(formula):
                formulas = [formula]
            case ops.Reduce():
                formulas = [node.operation.element, node.operation.finish]
            case _:
                formulas = []
        if missing := sorted({text for formula in formulas for text in unsupported(formula)}):
            raise NotConvertibleError(f"it is implemented for float32; there is no {', '.join(missing)}")


class _Walker:
    """Converts the nodes of one graph after the other into one builder.

    A scope maps names of the file to values: None for an input that was left out, _UNKNOWN behind a problem.
    """

    def __init__(self, builder: GraphBuilder, versions: dict[str, int]) -> None:
        self._builder = builder
        self._versions = versions
        self._layers: dict[str, int] = {}
        self.problems: list[str] = []

    def walk(self, graph: GraphProto, scope: Scope) -> None:
        """Convert all nodes of a graph."""
        for tensor in graph.initializer:
            scope[tensor.name] = self._constant(tensor)
        for node in graph.node:
            self._builder.layer = self._layer(node)
            self._convert(node, scope, self._versions, depth=0)

    def _constant(self, tensor: TensorProto) -> str:
        if tensor.data_type not in ONNX_TYPES:
            self.problems.append(
                f"constant {tensor.name!r}: elements of type {tensor.data_type} do not occur in modules"
            )
            return _UNKNOWN
        return self._builder.constant(numpy_helper.to_array(tensor))

    def _layer(self, node: NodeProto) -> str:
        """Return a name for the layer that no other has."""
        name = node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}"
        self._layers[name] = self._layers.get(name, 0) + 1
        return name if self._layers[name] == 1 else f"{name}#{self._layers[name]}"

    def _convert(self, node: NodeProto, scope: Scope, versions: dict[str, int], depth: int) -> None:
        inputs = [scope.get(name, _UNKNOWN) if name else None for name in node.input]
        if _UNKNOWN in inputs:
            scope.update(dict.fromkeys(node.output, _UNKNOWN))
            return
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = versions.get(domain, 1)
        before = self._builder.node_count
        try:
            if (domain, node.op_type) in CONVERTERS:
                context = NodeContext(node, version, inputs, self._builder)
                CONVERTERS[domain, node.op_type](context)
                scope.update({name: context.results[n] for n, name in enumerate(node.output) if name})
            else:
                self._expand(node, scope, versions, depth)
            _check_formulas(self._builder.nodes_from(before))
        except NotConvertibleError as error:
            self.problems.append(f"{node.op_type} ({self._builder.layer}, opset {version}): {error}")
            self._guess_results(node, domain, version, scope)

    def _expand(self, node: NodeProto, scope: Scope, versions: dict[str, int], depth: int) -> None:
        """Convert the operators by which ONNX defines an operator."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        inputs = [scope[name] if name else None for name in node.input]
        types = [self._type_proto(value) for value in inputs]
        body = expand(node, domain, versions.get(domain, 1), types) if depth < _MAX_EXPANSIONS else None
        if body is None:
            raise NotConvertibleError("the operator is not implemented; leave it out of the exported model")
        inner: Scope = dict.fromkeys(body.inputs) | dict(zip(body.inputs, inputs, strict=False))
        for step in body.nodes:
            self._convert(step, inner, body.versions, depth + 1)
        for name, result in zip(node.output, body.outputs, strict=False):
            if name:
                scope[name] = inner.get(result, _UNKNOWN)

    def _guess_results(self, node: NodeProto, domain: str, version: int, scope: Scope) -> None:
        """Let the results of a node that cannot be converted have types, so that later problems are found too."""
        scope.update(dict.fromkeys(node.output, _UNKNOWN))
        names = [name for name in node.input if name]
        try:
            inferred = shape_inference.infer_node_outputs(
                defs.get_schema(node.op_type, version, domain),
                node,
                {name: self._type_proto(scope[name]) for name in names},
                {
                    name: numpy_helper.from_array(array, name)
                    for name in names
                    if (array := self._builder.value_of(scope[name] or "")) is not None
                },
                opset_imports=[helper.make_opsetid(domain, version)],
            )
        except (defs.SchemaError, shape_inference.InferenceError, ValueError, RuntimeError):
            return
        for name, kind in inferred.items():
            shape = [d.dim_value for d in kind.tensor_type.shape.dim]
            if kind.tensor_type.elem_type in ONNX_TYPES and kind.tensor_type.HasField("shape") and all(shape):
                scope[name] = self._builder.placeholder(
                    TensorType(ONNX_TYPES[kind.tensor_type.elem_type], tuple(shape))
                )

    def _type_proto(self, value: str | None) -> TypeProto:
        if value is None:
            return TypeProto()
        kind = self._builder.type(value)
        return helper.make_tensor_type_proto(_ELEMENT_TYPES[kind.dtype], kind.shape)
