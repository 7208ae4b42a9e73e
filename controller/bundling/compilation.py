"""ONNX in, a model source out: the compiler's work, phase by phase, and its refusals in words for people.

Refuses options that do not fit the model. Runs nothing. What needs the ONNX package is loaded when there is a model.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import compiler
from compiler.errors import CompilerError
from compiler.inspect import required_features
from compiler.kernels.target import Target
from compiler.options import CompileOptions
from controller.bundling.errors import CompilationError, refused_by_compiler
from controller.bundling.naming import plain_name
from controller.bundling.source import ModelSource, size_of
from protocol.errors import UnknownIdentifierError
from protocol.manifest import FileRef
from protocol.tensors import SECTION_NAME

SUFFIX = ".onnx"
DEVICES_FIRST = (Target.RELAXED, Target.SIMD128)
"""The variants of a release: the fast one for devices, and one for browsers and every other engine."""

Say = Callable[[str, str], None]
"""Told the name of each phase, and how it ended."""


class Compilation(msgspec.Struct, frozen=True, kw_only=True):
    """A model file, and the modules that it became: one for each target, in the order asked for."""

    file_name: str
    file: FileRef
    models: "tuple[compiler.CompiledModel, ...]"
    profiled: "tuple[compiler.CompiledModel, ...]" = ()
    """The same for profiling, when it was asked for."""

    def source(self) -> ModelSource:
        """Return the source of a release: the first module, and the others for engines that lack what it needs."""
        first, *others = self.models
        return ModelSource(
            file_name=self.file_name,
            file=self.file,
            wasm=first.wasm,
            spec=first.spec,
            spec_origin=SECTION_NAME,
            tool=first.spec.producer or "unknown",
            fallbacks=tuple(other.wasm for other in others),
        )


def is_onnx(path: Path) -> bool:
    """Whether a file is to be compiled first."""
    return path.suffix.lower() == SUFFIX


def compile_file(
    path: Path, options: CompileOptions, targets: Sequence[Target], say: Say, *, is_profiled: bool = False
) -> Compilation:
    """Return the modules of the ONNX model at `path`; raises CompilationError with everything that is wrong."""
    try:
        return _compile(path, options, targets, say, is_profiled=is_profiled)
    except CompilerError as error:
        raise refused_by_compiler(path.name, error) from error
    except OSError as error:
        raise CompilationError(f"cannot read {path}: {error.strerror}", hint="give the path of a model file") from error


def _compile(
    path: Path, options: CompileOptions, targets: Sequence[Target], say: Say, *, is_profiled: bool
) -> Compilation:
    size_of(path)
    with path.open("rb"):  # a file that is not there is no damaged model
        pass
    model = compiler.read_model(path)
    say("read", f"{path.name}: {compiler.node_count(model):,} nodes")
    imported = compiler.import_model(model, options)
    say("import", f"{len(imported.graph.nodes):,} operations, every one supported")
    optimised = compiler.optimise(imported)
    say("optimise", f"{len(optimised.graph.nodes):,} operations left")
    models, profiled = [], []
    for target in targets:
        started = time.monotonic()
        chosen = msgspec.structs.replace(options, target=target)
        compiled = compiler.generate(optimised, chosen, options.name or _stem(path))
        models.append(compiled)
        if is_profiled:
            profiled.append(compiler.generate(optimised, chosen, options.name, is_profiled=True))
        needs = ", ".join(required_features(compiled.wasm)) or "no feature"
        took_s = time.monotonic() - started
        say("compile", f"{len(compiled.layers):,} layers, {len(compiled.wasm):,} bytes; needs {needs}; {took_s:.1f} s")
    return Compilation(
        file_name=path.name, file=FileRef.of(path.read_bytes()), models=tuple(models), profiled=tuple(profiled)
    )


def _stem(path: Path) -> str | None:
    """Return the name of the file as that of the model, if it can be one."""
    try:
        return plain_name(path.name)
    except UnknownIdentifierError:
        return None
