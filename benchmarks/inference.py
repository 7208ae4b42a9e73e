"""How fast compiled models run, beside onnxruntime-web (WebAssembly, SIMD) and onnxruntime; one thread each.

    python -m benchmarks.inference [--model NAME ...] [--rounds 5] [--json]

A row for each model: medians of interleaved rounds, and ours divided by that of onnxruntime-web in the same run (less
than 1 is faster). `make peers` sets the peers up; what is missing is left out of the table and said.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np

from agent.runtime.cache import MIN_KEY_BYTES, ModuleCache
from compiler import CompiledModel, compile_model
from controller.benching.engines import PeerError, Run, Web, interleaved, measure_limits, native, ours
from tests.compiler.models import BUILT, PACKAGED, Inputs, Model

PEERS = Path(__file__).parent / "peers"
SAME_NETWORK = {"silero-vad-8k", "silero-vad-op15", "silero-vad-half"}
"""Other files of a network that is measured."""
MODELS = tuple(model for model in (*BUILT, *PACKAGED) if model.name not in SAME_NETWORK)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    model: str
    ours_ms: float
    web_ms: float | None
    native_ms: float
    ratio_web: float | None
    spread: float
    """The slowest of our rounds divided by the fastest."""
    gflops: float
    """Multiplications and additions of ours, in 1e9 each second."""
    build_s: float
    device_compile_s: float
    """Of the device's own way: a polite process of its own, its start included, and the machine code on the disk."""
    module_bytes: int
    stored_bytes: int
    """What weights take in the module."""
    arena_ratio: float
    """The arena divided by what lives at the same time."""


def compile_on_device(compiled: CompiledModel) -> float:
    """Return the seconds that a device takes from the bytes of a module to machine code that it can map."""
    with tempfile.TemporaryDirectory() as folder:
        cache = ModuleCache(Path(folder), bytes(MIN_KEY_BYTES))
        start = time.perf_counter()
        with closing(cache.add(compiled.wasm, compiled.spec.stack_kib)):
            return time.perf_counter() - start


def measure(model: Model, web: Web | None, rounds: int) -> Row:
    """Measure one model."""
    source, inputs = model.read(), model.inputs(1)
    start = time.perf_counter()
    compiled = compile_model(source, model.options)
    build_s = time.perf_counter() - start
    settings: Inputs = {name: np.array(value) for name, value in model.options.input_values.items()}
    raw = [inputs[tensor.name].tobytes() for tensor in compiled.spec.inputs]
    engines: dict[str, Run] = {
        "ours": ours(compiled.wasm, compiled.spec, raw),
        "native": native(source, {**inputs, **settings}),
    }
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(source)
        file.flush()
        if web is not None:
            engines["web"] = web.run(model.name, Path(file.name), {**inputs, **settings})
    times = interleaved(engines, rounds)
    medians = {name: list(map(statistics.median, of_rounds)) for name, of_rounds in times.items()}
    middle = {name: statistics.median(values) for name, values in medians.items()}
    work = 2 * sum(layer.multiply_adds for layer in compiled.layers)
    web_ms = middle.get("web")
    return Row(
        model=model.name,
        ours_ms=middle["ours"],
        web_ms=web_ms,
        native_ms=middle["native"],
        ratio_web=None if web_ms is None else middle["ours"] / web_ms,
        spread=max(medians["ours"]) / min(medians["ours"]),
        gflops=work / middle["ours"] * 1e-6,
        build_s=build_s,
        device_compile_s=compile_on_device(compiled),
        module_bytes=len(compiled.wasm),
        stored_bytes=compiled.stored_bytes,
        arena_ratio=compiled.arena_bytes / max(compiled.arena_bound_bytes, 1),
    )


def geometric_mean(rows: list[Row]) -> float | None:
    """Return the mean ratio to onnxruntime-web."""
    ratios = [row.ratio_web for row in rows if row.ratio_web is not None]
    return math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None


def _chosen(names: list[str]) -> list[Model]:
    known = {model.name for model in MODELS}
    if unknown := sorted(set(names) - known):
        raise SystemExit(f"no such model: {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
    return [model for model in MODELS if not names or model.name in names]


def _text(row: Row) -> str:
    web = "" if row.web_ms is None else f"{row.web_ms:10.3f}"
    code_kib = (row.module_bytes - row.stored_bytes) / 1024
    ratio = "" if row.ratio_web is None else f"{row.ratio_web:6.2f}"
    return (
        f"{row.model:20}{row.ours_ms:10.3f}{web:>10}{row.native_ms:10.3f}{ratio:>8}{row.spread:8.2f}"
        f"{row.gflops:9.1f}{row.build_s:8.2f}{row.device_compile_s:10.2f}{code_kib:9.0f}{row.arena_ratio:7.2f}"
    )


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    chosen = _chosen(options.model)
    try:
        web = Web(PEERS)
    except PeerError as error:
        print(f"{error}: run `make peers`", file=sys.stderr)
        web = None
    limits = measure_limits()
    if not options.json:
        print(f"peak {limits.peak_gflops:.1f} GFLOP/s, copy {limits.copy_gb_s:.1f} GB/s")
        print(
            f"{'model':20}{'ours ms':>10}{'web ms':>10}{'native ms':>10}{'/ web':>8}{'spread':>8}"
            f"{'GFLOP/s':>9}{'build s':>8}{'compile s':>10}{'code KiB':>9}{'arena':>7}"
        )
    rows = []
    try:
        for model in chosen:
            rows.append(measure(model, web, options.rounds))
            if not options.json:
                print(_text(rows[-1]), flush=True)
    finally:
        if web is not None:
            web.close()
    mean = geometric_mean(rows)
    if options.json:
        print(
            json.dumps(
                {**msgspec.to_builtins(limits), "rows": msgspec.to_builtins(rows), "geometric_mean": mean}, indent=2
            )
        )
    elif mean is not None:
        print(f"geometric mean / web: {mean:.3f}")


if __name__ == "__main__":
    main()
