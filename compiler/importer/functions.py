"""Operators that ONNX defines by other operators, replaced by those."""

from collections.abc import Sequence

import msgspec
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, defs


class Body(msgspec.Struct, frozen=True):
    """What stands for a node: other nodes, with names of their own."""

    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]
    versions: dict[str, int]


def is_defined(operator: str, domain: str, version: int) -> bool:
    """Whether ONNX defines an operator by others, for some types at least."""
    try:
        schema = defs.get_schema(operator, version, domain)
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]  # see below


def expand(node: NodeProto, domain: str, version: int, types: Sequence[TypeProto]) -> Body | None:
    """Return the definition of an operator for inputs of these types, or None when it has none."""
    try:
        schema = defs.get_schema(node.op_type, version, domain)
    except defs.SchemaError:
        return None
    if schema.has_function:  # type: ignore[attr-defined]  # missing in the type stubs
        function = schema.function_body
    elif schema.has_context_dependent_function:  # type: ignore[attr-defined]  # missing in the type stubs
        function = FunctionProto()
        serialized = [kind.SerializeToString() for kind in types]
        raw = schema.get_context_dependent_function(node.SerializeToString(), serialized)  # type: ignore[attr-defined]
        function.ParseFromString(raw)
    else:
        return None
    given = {attribute.name: attribute for attribute in node.attribute}
    for default in function.attribute_proto:
        given.setdefault(default.name, default)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            given.setdefault(name, attribute.default_value)
    return Body(
        [_bound(step, given) for step in function.node],
        list(function.input),
        list(function.output),
        {o.domain: o.version for o in function.opset_import},
    )


def _bound(node: NodeProto, given: dict[str, AttributeProto]) -> NodeProto:
    """Return a node of a definition with the attributes of the operator that it defines."""
    bound = NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy = bound.attribute.add()
            copy.CopyFrom(attribute)
            if attribute.HasField("g"):
                steps = [_bound(step, given) for step in attribute.g.node]
                del copy.g.node[:]
                copy.g.node.extend(steps)
        elif attribute.ref_attr_name in given:
            copy = bound.attribute.add()
            copy.CopyFrom(given[attribute.ref_attr_name])
            copy.name = attribute.name
    return bound
