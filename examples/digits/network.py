"""A small dense network as one WebAssembly module: layers of weights, ReLU between them, softmax at the end.

Everything is laid out when the module is written: constants at fixed addresses, two buffers for activations, a memory
that never grows. Four outputs are computed at a time; layers are padded to whole vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compiler.kernels.elementary import exp_nonpositive
from compiler.kernels.target import Target
from compiler.section import with_model_section
from compiler.wasm import PAGE_BYTES, V128, Function, I32Local, Module, V128Local, ValueType, f32x4, i8x16, i32, v128
from protocol.tensors import ModelSpec

Array = NDArray[np.float64]
Combine = Callable[[V128, V128], V128]
TARGET = Target.SIMD128  # the same file runs on every device and in every browser, with the same bits
LANES = 4
FLOAT_BYTES = 4
VECTOR_BYTES = LANES * FLOAT_BYTES
MAX_VECTORS = 8  # of one layer's outputs; each stays in a register


@dataclass(frozen=True)
class Layer:
    """One dense layer: `outputs = inputs @ weights + bias`."""

    weights: Array  # (inputs, outputs)
    bias: Array  # (outputs,)

    def padded(self) -> "Layer":
        """Return the layer with whole vectors of outputs; the added ones never win the softmax."""
        missing = -len(self.bias) % LANES
        return Layer(
            np.pad(self.weights, ((0, 0), (0, missing))), np.pad(self.bias, (0, missing), constant_values=-np.inf)
        )


@dataclass(frozen=True)
class Place:
    """Where the numbers of one layer lie in the memory: bias and weights, its inputs, its outputs."""

    constants: int
    inputs: int
    outputs: int


def predict(layers: list[Layer], images: Array) -> Array:
    """Return the probabilities of each class for each image, in numpy: what the module has to give."""
    x = images
    for layer in layers[:-1]:
        x = np.maximum(x @ layer.weights + layer.bias, 0)
    scores = x @ layers[-1].weights + layers[-1].bias
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def emit(layers: list[Layer], spec: ModelSpec) -> bytes:
    """Return the module that computes `predict` for one image."""
    padded = [layer.padded() for layer in layers]
    places, constants, output, end = _lay_out(padded)
    module = Module()
    pages = -(-end // PAGE_BYTES)
    module.memory(pages, pages, export="memory")  # a memory that cannot grow: what it takes is known beforehand
    for name, address in (("fleet_input", places[0].inputs), ("fleet_output", output)):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(address))
    infer = module.function("fleet_infer", [ValueType.I32], export="fleet_infer")
    for number, (layer, place) in enumerate(zip(padded, places, strict=True)):
        step = module.function(f"dense{number}")
        _dense(step, layer, place, is_last=number == len(padded) - 1)
        infer.do(step())
    infer.leave(i32.const(0))
    module.data(0, constants)
    return with_model_section(module.encode(), spec)


def _lay_out(layers: list[Layer]) -> tuple[list[Place], bytes, int, int]:
    """Return where each layer's numbers lie, all constants, the address of the last result, and the end of it all."""
    constants = [np.concatenate([layer.bias[None], layer.weights]).astype("<f4").tobytes() for layer in layers]
    places, weights, values = [], 0, sum(map(len, constants))
    for layer, raw in zip(layers, constants, strict=True):
        behind = values + -(-len(layer.weights) // LANES) * VECTOR_BYTES
        places.append(Place(weights, values, behind))
        weights, values = weights + len(raw), behind
    return places, b"".join(constants), values, values + len(layers[-1].bias) * FLOAT_BYTES


def _dense(f: Function, layer: Layer, place: Place, *, is_last: bool) -> None:
    """Write one layer: all its sums in registers, one input after the other."""
    vectors = len(layer.bias) // LANES
    if vectors > MAX_VECTORS:
        raise ValueError(f"expected at most {MAX_VECTORS * LANES} outputs in a layer, got {len(layer.bias)}")
    x, w, n = f.i32(), f.i32(), f.i32()
    value, sums = f.v128(), f.v128s(vectors)
    x.set(i32.const(place.inputs))
    w.set(i32.const(place.constants))
    for j, total in enumerate(sums):
        total.set(v128.load(w, VECTOR_BYTES * j))
    w.advance(VECTOR_BYTES * vectors)
    with f.repeat(n, len(layer.weights)):
        value.set(v128.load32_splat(x))
        for j, total in enumerate(sums):
            total.set(TARGET.madd(value, v128.load(w, VECTOR_BYTES * j), total))
        x.advance(FLOAT_BYTES)
        w.advance(VECTOR_BYTES * vectors)
    x.set(i32.const(place.outputs))
    if is_last:
        _softmax(f, x, sums)
    else:
        for j, total in enumerate(sums):
            f.do(v128.store(x, f32x4.pmax(total, f32x4.const(0.0)), VECTOR_BYTES * j))


def _softmax(f: Function, target: I32Local, scores: list[V128Local]) -> None:
    """Write e**(score - highest) / sum; the highest score is taken off so that no power is too large."""
    highest, total = f.v128(), f.v128()
    highest.set(_across(f, f32x4.pmax, scores))
    for score in scores:
        score.set(exp_nonpositive(f, TARGET, f32x4.sub(score, highest)))
    total.set(_across(f, f32x4.add, scores))
    for j, score in enumerate(scores):
        f.do(v128.store(target, f32x4.div(score, total), VECTOR_BYTES * j))


def _across(f: Function, combine: Combine, vectors: list[V128Local]) -> V128:
    """Return one number in all four lanes: all lanes of all vectors combined."""
    result = f.v128()
    result.set(vectors[0])
    for vector in vectors[1:]:
        result.set(combine(result, vector))
    result.set(combine(result, i8x16.shuffle_words(result, result, (2, 3, 0, 1))))
    return combine(result, i8x16.shuffle_words(result, result, (1, 0, 3, 2)))
