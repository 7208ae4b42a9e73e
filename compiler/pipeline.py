"""The whole way: model file → graph → passes → steps → module."""

import re
from collections.abc import Mapping
from os import PathLike

import msgspec
from onnx import ModelProto

from compiler.emission import Layer, emit
from compiler.errors import OptionError, TooLargeError, UnsupportedError
from compiler.importer import ImportedModel, import_model, read_model
from compiler.ir import Graph
from compiler.ir.check import check
from compiler.lowering.nodes import lower
from compiler.options import CompileOptions
from compiler.passes import PASSES, everywhere
from compiler.section import Plan, with_model_section, with_plan_section
from protocol.errors import LimitExceededError, MalformedError, ProtocolError, UnknownIdentifierError
from protocol.identifiers import Version, parse_model_name
from protocol.limits import MAX_DEADLINE_MS, MAX_TENSORS
from protocol.tensors import ModelSpec, TensorSpec

PRODUCER = "wasmfleet"
PROFILE_INPUT = "fleet.profile"
"""The last input of a profiling module."""


class CompiledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A standalone module, and what is known of it."""

    wasm: bytes
    spec: ModelSpec
    memory_bytes: int
    """Exactly what the module takes, from its start to its end."""
    constant_bytes: int
    """What constants take in memory."""
    stored_bytes: int
    """What they take in the module, which expands them when it starts."""
    arena_bytes: int
    arena_bound_bytes: int
    """What lives at the same time, at its greatest: no plan could do with less."""
    layers: tuple[Layer, ...]


def compile_model(source: bytes | str | PathLike[str], options: CompileOptions | None = None) -> CompiledModel:
    """Compile an ONNX model, given as bytes or as the path of its file; raises CompilerError."""
    chosen = options or CompileOptions()
    model = read_model(source)
    return compile_imported(import_model(model, chosen), chosen, _name(model, chosen))


def compile_imported(imported: ImportedModel, options: CompileOptions, name: str | None) -> CompiledModel:
    """Compile a model that is a graph already."""
    return generate(optimise(imported), options, name)


def optimise(imported: ImportedModel) -> ImportedModel:
    """Return the model after every pass; what they do is the same for all targets."""
    graph = imported.graph
    check(graph, "the import")
    for one_pass in PASSES:
        graph = everywhere(one_pass, graph)
        check(graph, one_pass.__name__)
    return msgspec.structs.replace(imported, graph=graph)


def generate(
    optimised: ImportedModel, options: CompileOptions, name: str | None, *, is_profiled: bool = False
) -> CompiledModel:
    """Return the module of a model, for the target of the options; raises TooLargeError or UnsupportedError.

    A profiling module has one more input: two 32-bit numbers, which layer to run (of those that are not inner) and how
    often, or -1 for all of them once.
    """
    spec = _spec(optimised, options, name)
    if is_profiled:
        profile = TensorSpec(name=PROFILE_INPUT, datatype="INT32", shape=(2,))
        spec = msgspec.structs.replace(spec, inputs=(*spec.inputs, profile))
    lowered = lower(optimised.graph, options, optimised.state_count)
    emitted = emit(lowered, options.target, is_profiled=is_profiled)
    plan = Plan(
        constant_bytes=emitted.constant_bytes,
        stored_bytes=emitted.stored_bytes,
        arena_bytes=emitted.arena.size_bytes,
        arena_bound_bytes=emitted.arena.bound_bytes,
        layers=tuple((layer.function, layer.multiply_adds) for layer in emitted.layers),
    )
    return CompiledModel(
        wasm=with_model_section(with_plan_section(emitted.wasm, plan), spec),
        spec=spec,
        memory_bytes=emitted.memory_bytes,
        constant_bytes=emitted.constant_bytes,
        stored_bytes=emitted.stored_bytes,
        arena_bytes=emitted.arena.size_bytes,
        arena_bound_bytes=emitted.arena.bound_bytes,
        layers=emitted.layers,
    )


def _spec(imported: ImportedModel, options: CompileOptions, name: str | None) -> ModelSpec:
    for kind, names in (("input", imported.input_names), ("output", imported.output_names)):
        if not 1 <= len(names) <= MAX_TENSORS:
            raise UnsupportedError([f"expected 1 to {MAX_TENSORS} {kind}s, got {len(names)}"])
    _check_labels(imported, options.labels)
    _check_words(name, options)
    try:
        return _model_spec(imported, options, name)
    except LimitExceededError as error:
        raise TooLargeError(str(error)) from error
    except MalformedError as error:
        raise UnsupportedError([str(error)]) from error


def _model_spec(imported: ImportedModel, options: CompileOptions, name: str | None) -> ModelSpec:
    graph = imported.graph
    return ModelSpec(
        inputs=_tensors(graph, imported.input_names, graph.inputs),
        outputs=_tensors(graph, imported.output_names, graph.outputs),
        stateful=imported.state_count > 0,
        labels={**imported.labels, **options.labels},
        name=name,
        version=options.version,
        producer=PRODUCER,
        deadline_ms=options.deadline_ms,
    )


def _tensors(graph: Graph, names: tuple[str, ...], values: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    tensors = []
    for name, value in zip(names, values, strict=False):  # behind them are states
        kind = graph.types[value]
        tensors.append(TensorSpec(name=name, datatype=kind.dtype.datatype, shape=kind.shape))
    return tuple(tensors)


def _check_words(name: str | None, options: CompileOptions) -> None:
    """Raise OptionError for what no device would take."""
    try:
        if name is not None:
            parse_model_name(name)
        if options.version is not None:
            Version.parse(options.version)
    except ProtocolError as error:
        raise OptionError(str(error)) from error
    if not 1 <= options.deadline_ms <= MAX_DEADLINE_MS:
        raise OptionError(f"expected deadline_ms from 1 to {MAX_DEADLINE_MS:,}, got {options.deadline_ms:,}")


def _check_labels(imported: ImportedModel, labels: Mapping[str, tuple[str, ...]]) -> None:
    """Raise OptionError for labels that do not fit the outputs of the module."""
    graph = imported.graph
    shapes = {n: graph.types[v].shape for n, v in zip(imported.output_names, graph.outputs, strict=False)}
    for name, texts in labels.items():
        if name not in shapes:
            raise OptionError(f"the model has no output {name!r}; it has {list(shapes)}")
        if len(texts) != (shapes[name] or (1,))[-1]:
            raise OptionError(
                f"output {name!r} is {list(shapes[name])}: expected a label for each index of its last dimension, "
                f"got {len(texts)}"
            )


def _name(model: ModelProto, options: CompileOptions) -> str | None:
    """Return the name of the model: the one asked for, else that of its graph as far as it can be one."""
    if options.name is not None:
        return options.name
    name = model.graph.name
    if not isinstance(name, str):  # protobuf hands over what is no UTF-8 as bytes
        return None
    try:
        return parse_model_name(re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:63])
    except UnknownIdentifierError:
        return None
