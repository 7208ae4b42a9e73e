"""How long each layer takes: a profiling module runs them one by one, each often enough to be measured.

A layer that is run alone finds its operands in the cache, so the sum is a little less than a whole call.
"""

import re
import statistics
import struct
from collections.abc import Sequence
from contextlib import closing
from typing import Final

import msgspec

import compiler
from agent.runtime.instance import LoadedModel
from controller.benching.engines import load_module, timed

_ALL: Final = struct.pack("<2i", -1, 1)
_ENOUGH_MS: Final = 1.0
_MOST: Final = 256
"""A layer that writes over what it reads is not repeated for ever: its numbers would leave the range of floats."""


class LayerTime(msgspec.Struct, frozen=True, kw_only=True):
    """One layer; `gflops` counts a multiply-add as two operations."""

    name: str
    microseconds: float
    multiply_adds: int
    gflops: float


def measure_layers(
    profiled: "compiler.CompiledModel", inputs: Sequence[bytes], rounds: int = 5
) -> tuple[LayerTime, ...]:
    """Return the median time of each layer, in the order in which they run."""
    layers = [layer for layer in profiled.layers if not layer.is_inner]
    work = _whole_work(profiled.layers)
    with closing(load_module(profiled.wasm, profiled.spec)) as model:
        probe = _Probe(model, inputs)
        measured = [
            statistics.median(probe.microseconds(number) for _ in range(rounds)) for number in range(len(layers))
        ]
    return tuple(
        LayerTime(
            name=layer.name,
            microseconds=round(us, 3),
            multiply_adds=work[layer.name],
            gflops=round(2 * work[layer.name] / us * 1e-3, 3) if us > 0 else 0.0,
        )
        for layer, us in zip(layers, measured, strict=True)
    )


def folded_stacks(model: str, layers: Sequence[LayerTime]) -> str:
    """Return a flame graph's input: a line for each layer, its path and its nanoseconds.

    flamegraph.pl, inferno and speedscope read it. Names of layers that are paths become levels.
    """
    lines = []
    for layer in layers:
        path = [re.sub(r"[;\s]+", "_", part) for part in (model, *layer.name.split("/")) if part]
        lines.append(f"{';'.join(path)} {round(layer.microseconds * 1e3)}\n")
    return "".join(lines)


def _whole_work(layers: Sequence["compiler.Layer"]) -> dict[str, int]:
    """Return the work of each outer layer with that of one round of the layers inside it, which follow it."""
    work: dict[str, int] = {}
    outer = ""
    for layer in layers:
        outer = outer if layer.is_inner else layer.name
        work[outer] = work.get(outer, 0) + layer.multiply_adds
    return work


class _Probe:
    """Times single layers of a profiling module."""

    def __init__(self, model: LoadedModel, inputs: Sequence[bytes]) -> None:
        self._model = model
        self._inputs = inputs

    def microseconds(self, number: int) -> float:
        """Return the time of one layer, less what a call takes that runs none."""
        self._model.infer([*self._inputs, _ALL])
        once = self._call_us(number, 1)
        count = max(1, min(_MOST, int(_ENOUGH_MS * 1e3 / max(once, 0.5))))
        self._model.infer([*self._inputs, _ALL])
        return max(self._call_us(number, count) - self._call_us(number, 0), 0.0) / count

    def _call_us(self, number: int, count: int) -> float:
        inputs = [*self._inputs, struct.pack("<2i", number, count)]
        [ms] = timed(lambda: self._model.infer(inputs))(1)
        return ms * 1e3
