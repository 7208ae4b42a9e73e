"""A model file: read, bounded and checked before anything looks into it.

Refuses what is no ONNX model, what is damaged, cyclic or inconsistent, data that lies in other files which are missing,
operators of another time, and models over 2 GiB.
"""

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]  # protobuf has no types
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    checker,
    defs,
    external_data_helper,
    inliner,
)

from compiler.errors import ModelFileError, TooLargeError
from compiler.importer.reading import bodies

MAX_MODEL_BYTES: Final = 2 * 1024 * 1024 * 1024
MAX_NODES: Final = 50_000
"""With those of bodies and of functions, each as often as it is called: a node takes a millisecond or so."""
OLDEST_OPSET: Final = 7
NEWEST_OPSET: Final = defs.onnx_opset_version()
_ONNX_DOMAINS: Final = ("", "ai.onnx")
_OTHER_FORMATS: Final = {
    b"\x1f\x8b": "it is compressed with gzip: unpack it first",
    b"PK\3\4": "it is a ZIP archive, as PyTorch writes them: unpack or export it first",
    b"\0asm": "it is a WebAssembly module, and compiled already",
    b"version https://git-lfs": "it stands for a file that Git LFS has not fetched: run `git lfs pull`",
    b"{": "it looks like JSON: save the model in the binary form",
    b"<": "it looks like text: save the model in the binary form",
    b"ir_version": "it looks like text: save the model in the binary form",
}
"""By their first bytes."""


def read_model(source: bytes | str | PathLike[str]) -> ModelProto:
    """Return the model in a file, or in the bytes of one; raises ModelFileError or TooLargeError."""
    if isinstance(source, bytes):
        return check_model(_parse(source))
    path = Path(source)
    try:
        raw = path.read_bytes() if _has_size(path) else b""
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    model = _parse(raw)
    try:
        with warnings.catch_warnings(action="ignore"):  # of keys that nobody knows
            _load_data(model, path, len(raw))
    except (OSError, ValueError, checker.ValidationError) as error:
        raise ModelFileError(f"{path.name}: the data that lies in another file cannot be read: {error}") from error
    return check_model(model)


def check_model(model: ModelProto) -> ModelProto:
    """Return a sound model, its own functions expanded; raises ModelFileError or TooLargeError."""
    for tensor in _outside(model):
        raise ModelFileError(f"the data of {tensor.name!r} lies in another file: give the path of the model file")
    _check_opset(model)
    if bad := [name for name in _names(model) if isinstance(name, bytes)]:
        raise ModelFileError(f"not a valid ONNX model: expected names in UTF-8, got {bad}")
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()  # exporters leave it out, and nobody here reads it
    try:
        checker.check_model(model)
        _check_nodes(model)
        return inliner.inline_local_functions(model) if model.functions else model
    except (checker.ValidationError, ValueError, RuntimeError, TypeError, IndexError) as error:
        raise ModelFileError(f"not a valid ONNX model: {_first_lines(str(error))}") from error
    except EncodeError as error:  # protobuf's own bound
        raise TooLargeError(f"expected at most {MAX_MODEL_BYTES:,} bytes of model, got more") from error


def opsets(model: ModelProto) -> dict[str, int]:
    """Return the version of each set of operators that a model uses, by domain; that of ONNX is the empty one."""
    return {"" if o.domain in _ONNX_DOMAINS else o.domain: o.version for o in model.opset_import}


def node_count(model: ModelProto) -> int:
    """Return how many nodes the graph of a model has, without those inside of branches and loops."""
    return len(model.graph.node)


def _has_size(source: Path) -> bool:
    size_bytes = source.stat().st_size
    if size_bytes > MAX_MODEL_BYTES:
        raise TooLargeError(f"{source.name}: expected at most {MAX_MODEL_BYTES:,} bytes, got {size_bytes:,}")
    return size_bytes > 0


def _load_data(model: ModelProto, path: Path, size_bytes: int) -> None:
    """Read what lies in other files, unless the whole is too large with it; raises TooLargeError and others."""
    for tensor in _outside(model):
        where = external_data_helper.ExternalDataInfo(tensor)
        length = where.length
        size_bytes += (path.parent / where.location).stat().st_size if length is None else length
        if size_bytes > MAX_MODEL_BYTES:
            raise TooLargeError(f"{path.name}: expected at most {MAX_MODEL_BYTES:,} bytes with its data, got more")
        external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))


def _outside(model: ModelProto) -> Iterator[TensorProto]:
    """Yield the constants whose data lie in another file."""
    for graph in (model.graph, *model.functions):
        yield from filter(external_data_helper.uses_external_data, _constants(graph))


def _constants(graph: GraphProto | FunctionProto) -> Iterator[TensorProto]:
    """Yield the constants of a graph, and those inside of its nodes."""
    if isinstance(graph, GraphProto):
        yield from graph.initializer
    for attribute in chain.from_iterable(node.attribute for node in graph.node):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _constants(inner)


def _parse(raw: bytes) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError as error:
        reason = "it cannot be parsed, it is cut off, or its branches and loops are nested too deep"
        raise ModelFileError(f"not an ONNX model: {_other_format(raw) or reason}") from error
    if not model.HasField("graph"):
        raise ModelFileError(f"not an ONNX model: {_other_format(raw) or 'it has no graph'}")
    return model


def _check_nodes(model: ModelProto) -> None:
    """Refuse more nodes than can be compiled in a reasonable time; no function calls itself here."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[NodeProto]) -> int:
        return sum(one(node) for node in nodes)

    def one(node: NodeProto) -> int:
        key = node.domain, node.op_type
        if key in functions and key not in counts:
            counts[key] = count(functions[key].node)
        return counts.get(key, 1) + sum(count(body.node) for body in bodies(node))

    if (total := count(model.graph.node)) > MAX_NODES:
        raise TooLargeError(f"expected at most {MAX_NODES:,} nodes, with those of functions and bodies, got {total:,}")


def _names(model: ModelProto) -> Iterator[str | bytes]:
    for value in (*model.graph.input, *model.graph.output):
        yield value.name  # bytes where they are no text


def _other_format(raw: bytes) -> str | None:
    return next((what for start, what in _OTHER_FORMATS.items() if raw.startswith(start)), None)


def _check_opset(model: ModelProto) -> None:
    versions: dict[str, set[int]] = {}
    for o in model.opset_import:
        versions.setdefault("" if o.domain in _ONNX_DOMAINS else o.domain, set()).add(o.version)
    if double := {domain or "ai.onnx": sorted(found) for domain, found in versions.items() if len(found) > 1}:
        raise ModelFileError(f"not a valid ONNX model: it has operators of several versions at once: {double}")
    version = opsets(model).get("")
    if version is not None and not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise ModelFileError(
            f"expected operators of ONNX opset {OLDEST_OPSET} to {NEWEST_OPSET}, got {version}: "
            "export the model again for one of them"
        )


def _first_lines(text: str) -> str:
    return " ".join(text.split())[:300]
