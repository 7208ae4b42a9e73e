"""Walks the nodes of a graph and adds what each means to a builder.

Everything that cannot be converted is collected and reported together, before any other work is done. An operator
without a converter that ONNX defines by other operators is replaced by those.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from onnx import (
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    checker,
    defs,
    helper,
    numpy_helper,
    shape_inference,
)

from compiler.dtypes import DType
from compiler.errors import InternalError
from compiler.formula.scalar import unsupported
from compiler.importer.context import Body, NodeContext, NotConvertibleError
from compiler.importer.functions import expand, is_defined
from compiler.importer.reading import bodies, needed_nodes
from compiler.importer.registry import CONVERTERS, REFUSALS
from compiler.importer.scope import UNKNOWN, Scope
from compiler.importer.types import HALVES, ONNX_TYPES
from compiler.importer.weights import array_of, dense_array
from compiler.ir import GraphBuilder, Node, TensorType
from compiler.ir import operations as ops
from compiler.ir.builder import MAX_ELEMENTS

_MAX_EXPANSIONS: Final = 8
"""How deep operators may be defined by operators."""
_MISFITS: Final = (
    InternalError,
    ValueError,
    ArithmeticError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    checker.ValidationError,
)
"""What a converter raises for a node whose attributes do not fit its inputs, as no check of the file finds out."""
_NOT_IMPLEMENTED: Final = "the operator is not implemented; leave it out of the exported model"
_ELEMENT_TYPES: Final = {dtype: number for number, dtype in ONNX_TYPES.items() if number not in HALVES}


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


def _type_text(dtype: DType) -> str:
    """Return what a definition of an operator calls a tensor of a type."""
    return f"tensor({ {DType.F32: 'float', DType.F64: 'double'}.get(dtype, dtype.value) })"


def _domain(node: NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _bind_unknown(node: NodeProto, scope: Scope) -> None:
    for name in node.output:
        scope.bind(name, UNKNOWN)


class _Bodies:
    """Converts the bodies of one node: what its context offers to converters."""

    def __init__(self, walker: "Walker", scope: Scope) -> None:
        self._walker = walker
        self._scope = scope

    def convert(self, graph: GraphProto, formals: Sequence[TensorType]) -> Body:
        """Return a body as a graph of its own."""
        return self._walker.convert_body(graph, self._scope, formals)

    def inline(self, graph: GraphProto) -> list[str]:
        """Convert a body where it stands; return the values of its outputs."""
        return self._walker.inline(graph, self._scope)

    def empty(self) -> GraphBuilder:
        """Return a body to be written by the converter."""
        body = GraphBuilder()
        body.layer = self._scope.builder.layer
        return body


class Walker:
    """Converts the nodes of one graph into one builder, and the bodies of its branches and loops into others."""

    def __init__(
        self,
        builder: GraphBuilder,
        versions: dict[str, int],
        problems: list[str],
        layers: dict[str, int] | None = None,
    ) -> None:
        self._builder = builder
        self._versions = versions
        self._problems = problems
        self._layers: dict[str, int] = {} if layers is None else layers

    def walk(self, graph: GraphProto, scope: Scope) -> None:
        """Convert all nodes of a graph."""
        for tensor in graph.initializer:
            scope.bind(tensor.name, self._constant(tensor))
        for sparse in graph.sparse_initializer:
            scope.bind(sparse.values.name, self._sparse_constant(sparse))
        for node in needed_nodes(graph):
            self._builder.layer = self._layer(node)
            self._convert(node, scope, self._versions, depth=0)

    def convert_body(self, graph: GraphProto, scope: Scope, formals: Sequence[TensorType]) -> Body:
        """Return the body of a branch or a loop, whose inputs are of the given types, as a graph of its own."""
        if any(kind.elements == 0 for kind in formals):
            raise NotConvertibleError("a value without elements goes from round to round")
        builder = GraphBuilder()
        inner = Scope(builder, scope)
        names = [builder.input(kind) for kind in formals]
        for value, name in zip(graph.input, names, strict=True):
            inner.bind(value.name, name)
        Walker(builder, self._versions, self._problems, self._layers).walk(graph, inner)
        outputs = [inner.lookup(value.name) for value in graph.output]
        if None in outputs or UNKNOWN in outputs:
            raise NotConvertibleError("its body cannot be converted")
        return Body(builder, names, [name for name in outputs if name], inner.captured)

    def inline(self, graph: GraphProto, scope: Scope) -> list[str]:
        """Convert a body as if it stood in this graph; return the values of its outputs."""
        inner = Scope(self._builder, scope)
        layer = self._builder.layer
        self.walk(graph, inner)
        self._builder.layer = layer
        outputs = [inner.lookup(value.name) for value in graph.output]
        if None in outputs or UNKNOWN in outputs:
            raise NotConvertibleError("its body cannot be converted")
        return [name for name in outputs if name]

    def _constant(self, tensor: TensorProto) -> str:
        try:
            return self._builder.constant(array_of(tensor))
        except ValueError as error:
            self._problems.append(f"constant {tensor.name!r}: {error}")
            return UNKNOWN

    def _sparse_constant(self, tensor: SparseTensorProto) -> str:
        try:
            return self._builder.constant(dense_array(tensor))
        except (ValueError, IndexError) as error:
            self._problems.append(f"sparse constant {tensor.values.name!r}: {error}")
            return UNKNOWN

    def _layer(self, node: NodeProto) -> str:
        """Return a name for the layer that no other has."""
        name = node.name or f"{node.op_type}:{next((o for o in node.output if o), '')}"
        self._layers[name] = self._layers.get(name, 0) + 1
        return name if self._layers[name] == 1 else f"{name}#{self._layers[name]}"

    def _unimplemented(self, node: NodeProto, layer: str, versions: Mapping[str, int]) -> Iterator[str]:
        """Yield a line for a node that cannot be converted whatever its inputs are, and for those inside of it."""
        domain, operator = _domain(node), node.op_type
        version = versions.get(domain, 1)
        if (domain, operator) not in CONVERTERS and not is_defined(operator, domain, version):
            yield f"{operator} ({layer}, opset {version}): {REFUSALS.get((domain, operator), _NOT_IMPLEMENTED)}"
        for body in bodies(node):
            for inner in needed_nodes(body):
                yield from self._unimplemented(inner, self._layer(inner), versions)

    def _convert(self, node: NodeProto, scope: Scope, versions: dict[str, int], depth: int) -> None:
        inputs = [scope.lookup(name) if name else None for name in node.input]
        if UNKNOWN in inputs:
            self._problems += self._unimplemented(node, self._builder.layer, versions)
            _bind_unknown(node, scope)
            return
        domain = _domain(node)
        version = versions.get(domain, 1)
        before = self._builder.node_count
        try:
            self._check_types(node, domain, version, inputs)
            if (domain, node.op_type) in CONVERTERS:
                context = NodeContext(node, version, inputs, self._builder, _Bodies(self, scope))
                CONVERTERS[domain, node.op_type](context)
                for position, name in enumerate(node.output):
                    if name:
                        scope.bind(name, context.results[position])
            else:
                self._expand(node, scope, versions, depth)
            _check_formulas(self._builder.nodes_from(before))
        except (NotConvertibleError, *_MISFITS) as error:
            reason = str(error) if isinstance(error, NotConvertibleError) else f"its inputs do not fit it: {error}"
            self._problems.append(f"{node.op_type} ({self._builder.layer}, opset {version}): {reason}")
            self._guess_results(node, domain, version, scope)

    def _check_types(self, node: NodeProto, domain: str, version: int, inputs: Sequence[str | None]) -> None:
        """Refuse elements for which an operator is not defined: no check of the file finds them."""
        try:
            formal = defs.get_schema(node.op_type, version, domain).inputs
        except defs.SchemaError:
            return
        for position, value in enumerate(inputs if formal else ()):
            allowed = formal[min(position, len(formal) - 1)].types
            if value is not None and _type_text(self._builder.type(value).dtype) not in allowed:
                raise NotConvertibleError(
                    f"input {position} is {self._builder.type(value).dtype.value}, for which it is not defined"
                )

    def _expand(self, node: NodeProto, scope: Scope, versions: dict[str, int], depth: int) -> None:
        """Convert the operators by which ONNX defines an operator."""
        domain = _domain(node)
        inputs = [scope.lookup(name) if name else None for name in node.input]
        types = [self._type_proto(value) for value in inputs]
        body = expand(node, domain, versions.get(domain, 1), types) if depth < _MAX_EXPANSIONS else None
        if body is None:
            raise NotConvertibleError(REFUSALS.get((domain, node.op_type), _NOT_IMPLEMENTED))
        inner = Scope(self._builder)
        for position, name in enumerate(body.inputs):
            inner.bind(name, inputs[position] if position < len(inputs) else None)
        for step in body.nodes:
            self._convert(step, inner, body.versions, depth + 1)
        for name, result in zip(node.output, body.outputs, strict=False):
            if name:
                scope.bind(name, inner.lookup(result))

    def _guess_results(self, node: NodeProto, domain: str, version: int, scope: Scope) -> None:
        """Let the results of a node that cannot be converted have types, so that later problems are found too."""
        _bind_unknown(node, scope)
        names = [name for name in node.input if name]
        try:
            inferred = shape_inference.infer_node_outputs(
                defs.get_schema(node.op_type, version, domain),
                node,
                {name: self._type_proto(scope.lookup(name)) for name in names},
                {
                    name: numpy_helper.from_array(array, name)
                    for name in names
                    if (array := self._builder.value_of(scope.lookup(name) or "")) is not None
                },
                opset_imports=[helper.make_opsetid(domain, version)],
            )
        except (
            defs.SchemaError,
            shape_inference.InferenceError,
            checker.ValidationError,
            ValueError,
            RuntimeError,
        ):
            return
        for name, kind in inferred.items():
            shape = [d.dim_value for d in kind.tensor_type.shape.dim]
            if kind.tensor_type.elem_type in ONNX_TYPES and kind.tensor_type.HasField("shape") and all(shape):
                placeholder = TensorType(ONNX_TYPES[kind.tensor_type.elem_type], tuple(shape))
                if placeholder.elements <= MAX_ELEMENTS:
                    scope.bind(name, self._builder.placeholder(placeholder))

    def _type_proto(self, value: str | None) -> TypeProto:
        if value is None:
            return TypeProto()
        kind = self._builder.type(value)
        return helper.make_tensor_type_proto(_ELEMENT_TYPES[kind.dtype], kind.shape)
