"""What it saves to store weights small, and what it costs to expand them when a module starts.

    python -m benchmarks.weights [--model NAME ...] [--kind KIND ...] [--rounds 5] [--json]

A row for each model and each way to quantise it: the ONNX file; the module with raw and with small weights, as it is
and as it travels (compressed); the milliseconds until a new instance is ready and until its first answer, and those of
a call, medians of rounds in turns. Fails unless both modules give the same bytes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from agent.runtime.compiled import Compiled
from agent.runtime.instance import Caps
from agent.runtime.sandbox import Terms, ThreadSandbox
from compiler import CompiledModel, CompileOptions, compile_model
from compiler.options import Weights
from controller.benching.engines import interleaved, ours
from protocol.compression import compress
from tests.compiler.models import BUILT, Model
from tests.compiler.models.quantised import KINDS, quantised

NAMES: Final = ("mlp", "small-cnn", "decoder", "mobilenet-v2", "resnet-18", "text-encoder")
FLOAT: Final = "float"
_STACK_KIB: Final = 1024
_CAPS: Final = Caps(memory_bytes=1 << 30, stack_kib=_STACK_KIB, deadline_ms=60_000)
_FORMS: Final = (Weights.RAW, Weights.SMALL)


class Pair(msgspec.Struct, frozen=True):
    """A figure of both forms."""

    raw: float
    small: float

    def __str__(self) -> str:
        return f"{self.raw:.4g} -> {self.small:.4g}"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model in one kind."""

    model: str
    kind: str
    onnx_mb: float
    module_mb: Pair
    travelling_mb: Pair
    """As a blob: compressed."""
    build_s: Pair
    ready_ms: Pair
    """From a compiled module to an instance."""
    answer_ms: Pair
    """To its first answer."""
    call_ms: Pair


class Form:
    """A module with its weights in one form."""

    def __init__(self, source: bytes, options: CompileOptions, weights: Weights, inputs: Sequence[bytes]) -> None:
        start = time.perf_counter()
        self.model: CompiledModel = compile_model(source, msgspec.structs.replace(options, weights=weights))
        self.build_s = time.perf_counter() - start
        self.travelling_bytes = len(compress(self.model.wasm))
        self._inputs = inputs
        self._compiled = Compiled.compile(self.model.wasm, _STACK_KIB)

    def start(self) -> tuple[float, float, list[bytes]]:
        """Return the milliseconds until a new instance is ready and until it has answered, and the answer."""
        spec, start = self.model.spec, time.perf_counter()
        sandbox = ThreadSandbox(self._compiled.module, Terms(inputs=spec.inputs, outputs=spec.outputs, caps=_CAPS))
        ready = time.perf_counter()
        try:
            answer = sandbox.infer(self._inputs)
        finally:
            sandbox.close()
        return (ready - start) * 1e3, (time.perf_counter() - start) * 1e3, answer


def measure(model: Model, kind: str, rounds: int) -> Row:
    """Measure one model; raises SystemExit when the forms do not give the same."""
    source = model.read() if kind == FLOAT else quantised(model, kind)
    given = model.inputs(1)
    inputs = [given[t.name].tobytes() for t in compile_model(source, model.options).spec.inputs]
    raw, small = forms = [Form(source, model.options, form, inputs) for form in _FORMS]
    starts = [[form.start() for form in forms] for _ in range(rounds)]
    if any(a[2] != b[2] for a, b in starts):
        raise SystemExit(f"{model.name} {kind}: the forms give different results")
    engines = {f.value: ours(m.model.wasm, m.model.spec, inputs) for f, m in zip(_FORMS, forms, strict=True)}
    calls = {
        name: statistics.median(map(statistics.median, times)) for name, times in interleaved(engines, rounds).items()
    }
    ready, answer = (Pair(*(statistics.median(r[n][at] for r in starts) for n in range(2))) for at in range(2))
    return Row(
        model=model.name,
        kind=kind,
        onnx_mb=len(source) / 1e6,
        module_mb=Pair(len(raw.model.wasm) / 1e6, len(small.model.wasm) / 1e6),
        travelling_mb=Pair(raw.travelling_bytes / 1e6, small.travelling_bytes / 1e6),
        build_s=Pair(raw.build_s, small.build_s),
        ready_ms=ready,
        answer_ms=answer,
        call_ms=Pair(*calls.values()),
    )


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=[model.name for model in BUILT], help="may be repeated")
    parser.add_argument("--kind", action="append", choices=[FLOAT, *KINDS], help="may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    rows = []
    for model in BUILT:
        for kind in options.kind or (FLOAT, *KINDS) if model.name in (options.model or NAMES) else ():
            row = measure(model, kind, options.rounds)
            rows.append(msgspec.to_builtins(row))
            if not options.json:
                figures = [f"{name} {value}" for name, value in msgspec.structs.asdict(row).items()][2:]
                print(f"{row.model} {row.kind}: {', '.join(figures)}", flush=True)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
