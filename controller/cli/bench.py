"""`fleetctl bench`: how fast a model runs on this machine, as a device would run it. Needs no fleet."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray

from agent.runtime.errors import ModelError
from compiler.section import read_plan_section
from controller.benching.engines import (
    Limits,
    PeerError,
    Run,
    Web,
    interleaved,
    load_module,
    measure_limits,
    native,
    ours,
)
from controller.benching.layers import LayerTime, folded_stacks, measure_layers
from controller.bundling.compilation import DEVICES_FIRST, compile_file, is_onnx
from controller.bundling.errors import ModelFileError, refused_by_runtime
from controller.bundling.preflight import sample_inputs
from controller.bundling.source import ModelSource, read_source
from controller.bundling.testdata import Vector, read_vector
from controller.cli import compiling, options, wording
from controller.cli.screen import Screen, facts
from protocol.tensors import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]

_QUANTILES = 100


class EngineTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The milliseconds of one call; `spread` is the slowest round divided by the fastest."""

    engine: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    fastest_ms: float
    spread: float


class BenchResult(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `fleetctl bench --json`; figures that need the work of the model are null for other modules."""

    file: str
    limits: Limits
    engines: tuple[EngineTimes, ...]
    multiply_adds: int | None
    gflops: float | None
    share_of_peak: float | None
    layers: tuple[LayerTime, ...] = ()


def bench(  # noqa: PLR0913 - typer reads options from the signature
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An .onnx file, or a .wasm or .wat module.")],
    *,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, max=100, help="Rounds of about 60 ms.")] = 5,
    is_by_layer: Annotated[bool, typer.Option("--layers", help="Measure each layer of an .onnx file too.")] = False,
    has_peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Beside it, in turns: onnxruntime, and onnxruntime-web where `npm install` put it into this folder.",
        ),
    ] = False,
    flame: Annotated[
        Path | None,
        typer.Option("--flame", metavar="FILE", help="Write the layers as folded stacks for a flame graph."),
    ] = None,
    input_file: options.InputFile = None,
    input_shape: compiling.InputShapes = None,
    input_value: compiling.InputValues = None,
    is_json: options.Json = False,
) -> None:
    """Measure how fast a model runs on this machine.

    It runs on one thread as on a device: with a deadline, inputs copied in and outputs copied out. The peak is what
    multiply-adds of 128 bits reach here when they never wait for memory, measured in the same run.
    """
    screen = Screen(is_json=is_json)
    flags = compiling.CompileFlags(input_shapes=input_shape, input_values=input_value)
    compilation = None
    if is_onnx(file):
        compilation = compile_file(file, flags.options(), DEVICES_FIRST[:1], screen.step, is_profiled=True)
        source = compilation.source()
    elif is_by_layer or flame or has_peers or flags.are_given:
        raise typer.BadParameter(f"{file.name} is compiled: layers and peers need the .onnx file")
    else:
        source = read_source(file)
    inputs = _inputs(source, input_file)
    limits = measure_limits(rounds)
    engines = {"wasmfleet": ours(source.wasm, source.spec, inputs)}
    with ExitStack() as stack:
        if has_peers:
            engines |= _peers(stack, screen, file, _feeds(source, inputs, flags))
        times = interleaved(engines, rounds)
    layers: tuple[LayerTime, ...] = ()
    if compilation is not None and (is_by_layer or flame):
        layers = measure_layers(compilation.profiled[0], inputs, rounds)
    result = _result(file, source, limits, times, layers)
    if flame is not None:
        _write(flame, folded_stacks(file.stem, layers))
    screen.document(result)
    _show(screen, result, is_by_layer=is_by_layer)
    if flame is not None:
        screen.say(f"\nthe flame graph's stacks are in {flame}")


def _inputs(source: ModelSource, input_file: str | None) -> Vector:
    """Return the inputs of every call, on which the model ran once; raises TestDataError or PreflightError."""
    try:
        with closing(load_module(source.wasm, source.spec)) as model:
            if input_file is None:
                return sample_inputs(source, model)
            inputs = read_vector(input_file, source.spec.inputs)
            model.infer(inputs)
            return inputs
    except ModelError as error:
        raise refused_by_runtime(source.file_name, error) from error


def _peers(stack: ExitStack, screen: Screen, file: Path, feeds: "Feeds") -> dict[str, Run]:
    """Return the other engines that are here; one that is not is said and left out."""
    prepare: dict[str, Callable[[], Run]] = {
        "onnxruntime": lambda: native(file.read_bytes(), feeds),
        "onnxruntime-web": lambda: stack.enter_context(Web(Path())).run("model", file.resolve(), feeds),
    }
    engines = {}
    for name, load in prepare.items():
        try:
            engines[name] = load()
        except PeerError as error:
            screen.say(f"- {name} is left out: {error}" + (f" ({error.hint})" if error.hint else ""))
    return engines


def _feeds(source: ModelSource, inputs: Sequence[bytes], flags: compiling.CompileFlags) -> "Feeds":
    """Return the inputs for engines that run the file itself: the same, and what was compiled in."""
    feeds: dict[str, NDArray[Any]] = {
        t.name: np.frombuffer(raw, _dtype(t)).reshape(t.shape)
        for t, raw in zip(source.spec.inputs, inputs, strict=True)
    }
    chosen = flags.options()
    feeds |= {name: np.array(value) for name, value in chosen.input_values.items()}
    return feeds


def _dtype(tensor: TensorSpec) -> np.dtype[Any]:
    names = {"BOOL": "bool", "FP32": "float32", "FP64": "float64"}
    return np.dtype(names.get(tensor.datatype, tensor.datatype.lower()))


def _result(
    file: Path,
    source: ModelSource,
    limits: Limits,
    times: Mapping[str, list[list[float]]],
    layers: tuple[LayerTime, ...],
) -> BenchResult:
    engines = tuple(_engine(name, of_rounds) for name, of_rounds in times.items())
    plan = read_plan_section(source.wasm)
    work = None if plan is None else sum(multiply_adds for _, multiply_adds in plan.layers)
    gflops = None if work is None else 2 * work / engines[0].median_ms * 1e-6
    return BenchResult(
        file=str(file),
        limits=limits,
        engines=engines,
        multiply_adds=work,
        gflops=gflops,
        share_of_peak=None if gflops is None else gflops / limits.peak_gflops,
        layers=layers,
    )


def _engine(name: str, of_rounds: list[list[float]]) -> EngineTimes:
    every = [ms for times in of_rounds for ms in times]
    cuts = statistics.quantiles(every, n=_QUANTILES, method="inclusive") if len(every) > 1 else every * _QUANTILES
    medians = list(map(statistics.median, of_rounds))
    return EngineTimes(
        engine=name,
        median_ms=statistics.median(medians),
        p90_ms=cuts[89],
        p99_ms=cuts[98],
        fastest_ms=min(every),
        spread=max(medians) / min(medians),
    )


def _show(screen: Screen, result: BenchResult, *, is_by_layer: bool) -> None:
    first = result.engines[0]
    rows = (_engine_row(engine, first) for engine in result.engines)
    columns = ("engine", "median", "p90", "p99", "fastest", "spread", "ours / it")
    screen.table(columns, rows, right=columns[1:])
    screen.say()
    screen.say(facts("", _rates(result)))
    if is_by_layer:
        screen.say()
        total = sum(layer.microseconds for layer in result.layers) or 1.0
        screen.table(
            ("layer", "time", "share", "multiply-adds", "GFLOP/s", "of peak"),
            (_layer_row(layer, total, result.limits) for layer in result.layers),
            right=("time", "share", "multiply-adds", "GFLOP/s", "of peak"),
        )


def _engine_row(engine: EngineTimes, first: EngineTimes) -> tuple[str, ...]:
    times = (engine.median_ms, engine.p90_ms, engine.p99_ms, engine.fastest_ms)
    ratio = f"{first.median_ms / engine.median_ms:.2f}"
    return engine.engine, *(wording.duration_us(ms * 1e3) for ms in times), f"{engine.spread:.2f}", ratio


def _rates(result: BenchResult) -> Iterator[tuple[str, str]]:
    if result.gflops is not None and result.share_of_peak is not None:
        yield "rate", f"{result.gflops:.1f} GFLOP/s, {result.share_of_peak:.0%} of the peak"
    yield "peak", f"{result.limits.peak_gflops:.1f} GFLOP/s of 128-bit multiply-adds, one thread"
    yield "copy", f"{result.limits.copy_gb_s:.1f} GB/s"


def _layer_row(layer: LayerTime, total: float, limits: Limits) -> tuple[str, ...]:
    is_work = layer.multiply_adds > 0 and layer.gflops > 0
    return (
        layer.name,
        wording.duration_us(layer.microseconds),
        f"{layer.microseconds / total:.1%}",
        f"{layer.multiply_adds:,}",
        f"{layer.gflops:.1f}" if is_work else "",
        f"{layer.gflops / limits.peak_gflops:.0%}" if is_work else "",
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror}", hint="name another file") from error
