"""`fleetctl build`: an ONNX model becomes one WebAssembly module. Runs nothing, and needs no fleet."""

import shlex
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

import compiler
from agent import durable
from compiler.inspect import module_text
from compiler.kernels.target import Target
from controller.bundling.compilation import compile_file
from controller.bundling.errors import ModelFileError
from controller.cli import compiling, options, wording
from controller.cli.screen import Screen, facts
from protocol.codec import sha256
from protocol.identifiers import Digest
from protocol.limits import DEFAULT_DEADLINE_MS, MAX_DEADLINE_MS
from protocol.tensors import ModelSpec, TensorSpec

_TEXT_SUFFIX: Final = ".wat"


class Simd(StrEnum):
    """The names of the targets on the command line."""

    RELAXED = "relaxed"
    SIMD128 = "simd128"

    @property
    def target(self) -> Target:
        """The same for the compiler."""
        return Target.RELAXED if self is Simd.RELAXED else Target.SIMD128


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `fleetctl build --json`: digest and size are those of the binary module, also when only its text
    was written; `layers` is empty without --report."""

    file: str
    text_file: str | None
    """The module as text, if that was asked for."""
    digest: Digest
    size_bytes: int
    simd: Simd
    spec: ModelSpec
    memory_bytes: int
    constant_bytes: int
    """What weights and other constants take in memory."""
    stored_bytes: int
    """What they take in the module."""
    arena_bytes: int
    arena_bound_bytes: int
    multiply_adds: int
    layers: "tuple[compiler.Layer, ...]" = ()


def build(  # noqa: PLR0913 - typer reads options from the signature
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file.")],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The module; as text only, if the name ends in .wat. [default: the file's name with .wasm, here]",
        ),
    ] = None,
    is_text: Annotated[
        bool, typer.Option("--wat", help="Write the module as WebAssembly text too, beside it with .wat.")
    ] = False,
    input_shape: compiling.InputShapes = None,
    input_value: compiling.InputValues = None,
    uint8_input: compiling.Uint8Inputs = None,
    normalize: compiling.Normalize = None,
    state: compiling.States = None,
    labels: compiling.Labels = None,
    weights: compiling.WeightsForm = None,
    simd: Annotated[
        Simd, typer.Option("--simd", help="relaxed is what devices run; simd128 runs in every browser and engine.")
    ] = Simd.RELAXED,
    name: options.BuiltName = None,
    version: options.BuiltVersion = None,
    deadline_ms: Annotated[
        int,
        typer.Option("--deadline-ms", metavar="MS", min=1, max=MAX_DEADLINE_MS, help="The most that a call may take."),
    ] = DEFAULT_DEADLINE_MS,
    is_report: Annotated[bool, typer.Option("--report", help="Show every layer with its work.")] = False,
    is_json: options.Json = False,
) -> None:
    """Compile an ONNX model to one WebAssembly module.

    The module needs nothing but an engine with SIMD: no import, no runtime, memory of a fixed size. The same model and
    options make the same bytes. A model that cannot be compiled is refused with everything that is in the way.
    """
    screen = Screen(is_json=is_json)
    flags = compiling.CompileFlags(
        input_shapes=input_shape,
        input_values=input_value,
        uint8_inputs=uint8_input,
        normalize=normalize,
        states=state,
        labels=labels,
        weights=weights,
    )
    chosen = msgspec.structs.replace(
        flags.options(),
        name=name,
        version=version,
        deadline_ms=deadline_ms,
    )
    path = output or Path(f"{file.stem}.wasm")
    text_path = path.with_suffix(_TEXT_SUFFIX) if is_text or path.suffix == _TEXT_SUFFIX else None
    if file in {path, text_path} or (path.exists() and file.exists() and path.samefile(file)):
        raise typer.BadParameter(f"{path} is the model itself, which would be lost", param_hint="-o")
    compilation = compile_file(file, chosen, [simd.target], screen.step)
    [model] = compilation.models
    if text_path is not None:
        _write(text_path, _text(model.wasm))
    if path != text_path:
        _write(path, model.wasm)
    screen.document(_result(path, text_path, model, simd, is_report=is_report))
    screen.say(facts(str(path), _rows(model, text_path)))
    if is_report:
        screen.say()
        _show_layers(screen, model)
    screen.say(f"\nnext: fleetctl run {shlex.quote(str(path))}")


def _text(wasm: bytes) -> bytes:
    return b"".join(line.encode() + b"\n" for line in module_text(wasm))


def _write(path: Path, data: bytes) -> None:
    try:
        if path.exists() and not path.is_file():  # a device such as /dev/null, or a pipe: it stays what it is
            path.write_bytes(data)
            return
        durable.replace(path, data)
        path.chmod(0o644)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror}", hint="name another file with -o") from error


def _result(
    path: Path, text_path: Path | None, model: "compiler.CompiledModel", simd: Simd, *, is_report: bool
) -> BuildResult:
    return BuildResult(
        file=str(path),
        text_file=None if text_path is None else str(text_path),
        digest=sha256(model.wasm),
        size_bytes=len(model.wasm),
        simd=simd,
        spec=model.spec,
        memory_bytes=model.memory_bytes,
        constant_bytes=model.constant_bytes,
        stored_bytes=model.stored_bytes,
        arena_bytes=model.arena_bytes,
        arena_bound_bytes=model.arena_bound_bytes,
        multiply_adds=sum(layer.multiply_adds for layer in model.layers),
        layers=model.layers if is_report else (),
    )


def _rows(model: "compiler.CompiledModel", text_path: Path | None) -> Iterator[tuple[str, str]]:
    if text_path is not None:
        yield "as text", f"{text_path}, {wording.size(text_path.stat().st_size)}"
    weights = f"{wording.size(model.stored_bytes)} are weights"
    if model.stored_bytes < model.constant_bytes:
        weights += f", {wording.size(model.constant_bytes)} in memory"
    yield "module", f"{wording.size(len(model.wasm))}, of which {weights}"
    yield "sha256", sha256(model.wasm)
    yield "model", f"{model.spec.name or '-'} {model.spec.version or '-'}"
    yield "inputs", "\n".join(map(_tensor, model.spec.inputs))
    yield "outputs", "\n".join(map(_tensor, model.spec.outputs))
    arena = f"{wording.size(model.arena_bytes)} for values"
    if model.arena_bound_bytes:
        arena += f" ({model.arena_bytes / model.arena_bound_bytes:.2f} x what lives at the same time)"
    yield "memory", f"{wording.size(model.memory_bytes)}, fixed; {arena}"
    yield "work", f"{wording.count(sum(layer.multiply_adds for layer in model.layers), 'multiply-add')} a call"


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.datatype} {list(tensor.shape)}"


def _show_layers(screen: Screen, model: "compiler.CompiledModel") -> None:
    total = sum(layer.multiply_adds for layer in model.layers) or 1
    rows = (
        (layer.name, f"{layer.multiply_adds:,}", f"{layer.multiply_adds / total:.1%}" if layer.multiply_adds else "")
        for layer in model.layers
    )
    screen.table(("layer", "multiply-adds", "share"), rows, right=("multiply-adds", "share"))
