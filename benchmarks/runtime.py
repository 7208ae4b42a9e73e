"""What the device runtime costs: `python benchmarks/runtime.py [--json] [--only NAME]`. Takes about a minute.

Each figure is the median of interleaved runs on the real parts; the spread is printed beside it. Figures of time hold
for a machine with two cores and nothing else to do. How each is measured: docs/PERFORMANCE.md.
"""

import argparse
import functools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

# The root of the tree and not this folder: scripts here may bear the names of packages.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.host import ModelHost
from agent.runtime import LoadedModel, ModuleCache, assemble, load_model, run_self_test
from agent.usage import UsageMeter
from benchmarks import plain_api
from benchmarks.device import CAPS, SAMPLE, X, Y, classifier, release
from benchmarks.process import measure_memory, measure_start, measure_swap

ROUNDS = 7
CALLS = 20_000
NOTHING = """(module (memory (export "memory") 1 1)
  (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
  (func (export "fleet_output") (param i32) (result i32) (i32.const 15360))
  (func (export "fleet_infer") (result i32) (i32.const 0)))"""
"""A model that does nothing: what a call of it takes is the host's."""


class Figure(NamedTuple):
    """One measurement: its name in the JSON object, its values (one for each round), its target, what else was seen."""

    name: str
    values: list[float]
    target: str
    notes: list[str]

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        head = f"{self.name:22} {median(self.values):9.3f}   {low:9.3f} … {high:9.3f}   target {self.target}"
        return "\n".join([head, *(f"    {note}" for note in self.notes)])


def host_overhead(rounds: int) -> Figure:
    """Time a call of a model that does nothing: 12 KB in, 40 B out, deadline set, memory capped."""
    wasm = assemble(NOTHING)
    model = load_model(wasm, (X,), (Y,), CAPS)
    host, flagging = (ModelHost(UsageMeter(), lambda *_: None) for _ in range(2))
    for each in (host, flagging):
        each.activate(release("1.0.0", 1, wasm).manifest, load_model(wasm, (X,), (Y,), CAPS), is_committed=True)
    flagging.flags_nan = True
    plain, inputs = plain_api.caller(wasm, SAMPLE), [SAMPLE]
    ways: dict[str, Callable[[], object]] = {
        "runtime": lambda: model.infer(inputs),
        "with the host's metering": lambda: host.infer("digits", inputs),
        "with metering, and NaN in the 10 outputs flagged": lambda: flagging.infer("digits", inputs),
        "plain wasmtime-py": plain,
        "an empty Python call": lambda: None,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            found[name].append(_mean_us(call))
    notes = [f"{name}: {median(values):.2f} µs" for name, values in found.items() if name != "runtime"]
    host.close()
    flagging.close()
    model.close()
    return Figure("host_overhead_us", found["runtime"], "≤ 2", notes)


def _mean_us(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - start) / CALLS * 1e6


def second_start(rounds: int) -> Figure:
    """Load a model with an empty and then with a warm cache, until it gave its first answer."""
    ratios, notes = [], []
    for functions in (0, 1000):
        wasm = classifier(1, functions=functions)
        pairs = [_first_and_second(wasm) for _ in range(rounds)]
        first, second = (median(values) * 1000 for values in zip(*pairs, strict=True))
        notes.append(f"{len(wasm):,} bytes of wasm, {functions} more functions: {first:.0f} ms, then {second:.2f} ms")
        # The smaller gain counts.
        ratios.append([a / b for a, b in pairs])
    return Figure("second_start_speedup", min(ratios, key=median), "≥ 10", notes)


def _first_and_second(wasm: bytes) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        cache = ModuleCache(Path(folder), bytes(32))
        return _load_s(wasm, cache), _load_s(wasm, cache)


def _load_s(wasm: bytes, cache: ModuleCache) -> float:
    start = time.perf_counter()
    model = load_model(wasm, (X,), (Y,), CAPS, cache=cache)
    model.infer([SAMPLE])
    elapsed_s = time.perf_counter() - start
    model.close()
    return elapsed_s


def rollback(rounds: int) -> Figure:
    """Go back from an uncommitted release, until the one before it gave an answer."""
    found = []
    for _ in range(10 * rounds):
        host = ModelHost(UsageMeter(), lambda *_: None)
        host.activate(release("1.0.0", 1, _old()).manifest, _load(_old()), is_committed=True)
        host.activate(release("1.1.0", 2, _new()).manifest, _load(_new()), is_committed=False)
        host.infer("digits", [SAMPLE])
        start = time.perf_counter()
        host.rollback("digits")
        version = host.infer("digits", [SAMPLE]).version
        found.append((time.perf_counter() - start) * 1000)
        if version != "1.0.0":
            raise SystemExit(f"expected 1.0.0 to answer after the rollback, got {version}")
        host.close()
    return Figure("rollback_ms", found, "< 10", [])


@functools.cache
def _old() -> bytes:
    return classifier(1)


@functools.cache
def _new() -> bytes:
    return classifier(2)


def _load(wasm: bytes) -> LoadedModel:
    return load_model(wasm, (X,), (Y,), CAPS)


def swap(rounds: int) -> Figure:
    """Compare the 99th percentile of a caller's latencies while a release is installed with that of quiet times."""
    ratios, notes = measure_swap(rounds)
    placed, _ = measure_swap(rounds, is_placed=True)
    alone = [_swap_in_one_process(n) for n in range(rounds)]
    notes += [
        f"{name}: {median(found):.2f} ({min(found):.2f} … {max(found):.2f})"
        for name, found in (
            ("the caller kept on the processor that the update leaves", placed),
            ("the runtime alone, without broker and service", alone),
        )
    ]
    return Figure("swap_p99_ratio", ratios, "≤ 1.5", notes)


def _swap_in_one_process(seed: int) -> float:
    """Load, test and activate a release while a thread calls the active one; return p99 over that of quiet times."""
    wasm = classifier(100 + seed, passes=10, functions=200)
    bundle = release("1.1.0", 2, wasm)
    host = ModelHost(UsageMeter(), lambda *_: None)
    host.activate(release("1.0.0", 1, wasm).manifest, _load(wasm), is_committed=True)
    calls: list[tuple[float, float]] = []
    is_over = threading.Event()

    def call() -> None:
        while not is_over.is_set():
            start = time.perf_counter()
            host.infer("digits", [SAMPLE])
            calls.append((start, time.perf_counter() - start))

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(0.5)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(wasm, (X,), (Y,), CAPS, cache=ModuleCache(Path(folder), bytes(32)))
        run_self_test(model, bundle.manifest.self_test, bundle.files[1])
        host.activate(bundle.manifest, model, is_committed=False)
        end = time.perf_counter()
    is_over.set()
    caller.join()
    host.close()
    quiet = sorted(s for at, s in calls if at < begin)
    busy = sorted(s for at, s in calls if begin <= at < end)
    return busy[len(busy) * 99 // 100] / quiet[len(quiet) * 99 // 100]


def memory(rounds: int) -> Figure:
    """Take the proportional set size of a running agent apart."""
    sizes, notes = measure_memory(min(rounds, 3))
    return Figure("pss_mb", sizes, "≤ 56 (stretch 46)", notes)


def start(rounds: int) -> Figure:
    """Time from the start of `fleet-agent run` to the first answer, with a warm cache."""
    return Figure("start_s", measure_start(rounds), "≤ 0.5", [])


FIGURES = {
    "host_overhead_us": host_overhead,
    "second_start_speedup": second_start,
    "swap_p99_ratio": swap,
    "rollback_ms": rollback,
    "pss_mb": memory,
    "start_s": start,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object of medians; the rest goes to stderr")
    parser.add_argument("--only", action="append", choices=FIGURES, help="measure this alone; may be repeated")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often to measure each (default: %(default)s)")
    arguments = parser.parse_args()
    medians = {}
    for name in arguments.only or FIGURES:
        figure = FIGURES[name](arguments.rounds)
        print(figure, file=sys.stderr if arguments.json else sys.stdout, flush=True)
        medians[name] = float(f"{median(figure.values):.4g}")
    if arguments.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
