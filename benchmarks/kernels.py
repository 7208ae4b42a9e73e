"""How near the kernels come to the peak: matrix products, as in pointwise convolutions, and depthwise convolutions.

    python -m benchmarks.kernels

Each kernel runs alone in the device runtime, on operands that stay where they are; figures are of the best of rounds
that take turns with the measurement of the peak.
"""

import math
from collections.abc import Callable

import msgspec
import numpy as np

from compiler.dtypes import DType
from compiler.ir import TensorType
from compiler.kernels.depthwise import DepthwiseKernel, write_depthwise
from compiler.kernels.peak import Load, multiply_add_load
from compiler.kernels.target import Target
from compiler.kernels.tiles import TileKernel, Window, write_tiles
from compiler.kernels.walk import FLOAT_BYTES, Walk
from compiler.lowering.layout import Layout, channels_last
from compiler.lowering.tiling import choose_tiling, depthwise_pixels
from compiler.wasm import PAGE_BYTES, Function, Module, ValueType, i32
from controller.benching.engines import Run, interleaved, working

FLOPS_PER_CALL = 1e8
PRODUCTS = ((12544, 16, 96), (3136, 144, 24), (784, 192, 32), (196, 96, 576), (196, 576, 96), (49, 960, 160))
"""Rows, depth and columns: pointwise convolutions of MobileNetV2."""
LARGE_PRODUCTS = ((128, 384, 1536), (128, 1536, 384), (512, 512, 512))
SINGLE_ROWS = ((1, 64, 256), (1, 128, 200), (1, 128, 512), (1, 512, 512), (1, 1280, 1000))
"""Of recurrent networks, decoders and last layers."""
DEPTHWISE = (
    (112, 32, 1),
    (112, 96, 2),
    (56, 144, 1),
    (28, 192, 1),
    (28, 256, 2),
    (14, 384, 1),
    (14, 512, 1),
    (14, 576, 2),
    (7, 960, 1),
    (7, 1024, 1),
)
"""Side, channels and step of 3 x 3."""
LARGE_DEPTHWISE = (
    (28, 120, 1, (5, 5)),
    (14, 240, 2, (5, 5)),
    (14, 384, 1, (7, 7)),
    (28, 192, 1, (12, 1)),
    (28, 64, 1, (31, 31)),
)
"""Side, channels, step and taps of larger ones."""


def product(rows: int, depth: int, columns: int) -> Load:
    """Return a matrix product as it is compiled."""
    tiling = choose_tiling(rows, depth, columns)
    kernel = TileKernel(
        rows=1,
        pixels=rows,
        channels=columns,
        window=Window(depth),
        a=Walk(FLOAT_BYTES * depth, 0),
        c=Walk(FLOAT_BYTES * columns, 0),
        tile_pixels=tiling.tile_pixels,
        panel_vectors=tiling.panel_vectors,
        is_panel_outside=tiling.is_panel_outside,
    )
    sizes = (rows * depth * 4, kernel.panels * kernel.panel_bytes, rows * columns * 4, kernel.scratch_bytes)
    return _repeated(
        lambda f: write_tiles(f, kernel, Target.RELAXED, (), lambda v, _: v), sizes, 2 * rows * depth * columns
    )


def depthwise(side: int, channels: int, step: int, taps: tuple[int, int] = (3, 3)) -> Load:
    """Return a depthwise convolution as it is compiled, of an image that has its border."""
    out, (rows, columns) = side // step, taps
    border = ((0, 0), (0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2))
    layout, kind = Layout(channels_last(4), border), TensorType(DType.F32, (1, channels, side, side))
    row, pixel = (layout.placement(0, kind).byte_stride(axis) for axis in (2, 3))
    kernel = DepthwiseKernel(
        rows=out,
        pixels=out,
        channels=channels,
        taps=taps,
        tap_bytes=(row, pixel),
        tap_stride=step,
        a=Walk(step * pixel, step * row),
        c=Walk(pixel, out * pixel),
        tile_pixels=depthwise_pixels(out, step, rows * columns),
    )
    sizes = (
        math.prod(layout.extents(kind)) * FLOAT_BYTES,
        channels * FLOAT_BYTES * (1 + rows * columns),
        out * out * pixel,
    )
    flops = 2 * rows * columns * out * out * channels
    return _repeated(lambda f: write_depthwise(f, kernel, Target.RELAXED, (), lambda v, _: v), sizes, flops)


def _repeated(write: Callable[[Function], None], sizes: tuple[int, ...], flops: int) -> Load:
    """Return a module that calls a kernel again and again on operands of these sizes."""
    addresses, end = [], PAGE_BYTES
    for size in sizes:
        addresses.append(end)
        end += -(-size // 64) * 64 + 1024
    module = Module()
    module.memory(end // PAGE_BYTES + 1, end // PAGE_BYTES + 1, export="memory")
    noise = np.random.default_rng(0).standard_normal((addresses[2] - PAGE_BYTES) // 4, np.float32)
    module.data(PAGE_BYTES, noise.tobytes())
    for number, name in enumerate(("fleet_input", "fleet_output")):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(64 * number))
    kernel = module.function("kernel")
    write(kernel)
    infer = module.function("fleet_infer", [ValueType.I32], export="fleet_infer")
    times = max(1, int(FLOPS_PER_CALL / flops))
    with infer.repeat(infer.i32(), times):
        infer.do(kernel(*addresses))
    infer.leave(i32.const(0))
    return Load(wasm=module.encode(), units=times * flops)


class Line(msgspec.Struct, frozen=True):
    """One kernel."""

    name: str
    gflops: float
    share: float
    """Of the peak."""


def measure() -> list[Line]:
    """Measure all kernels, each in turns with the peak."""
    work = {f"product {r} x {d} x {c}": product(r, d, c) for r, d, c in (*PRODUCTS, *LARGE_PRODUCTS, *SINGLE_ROWS)}
    work |= {f"depthwise {s} x {s} x {c}, step {t}": depthwise(s, c, t) for s, c, t in DEPTHWISE}
    work |= {
        f"depthwise {s} x {s} x {c}, {a} x {b}, step {t}": depthwise(s, c, t, (a, b))
        for s, c, t, (a, b) in LARGE_DEPTHWISE
    }
    work["peak"] = multiply_add_load()
    runs: dict[str, Run] = {name: working(w) for name, w in work.items()}
    best = {name: min(map(min, times)) for name, times in interleaved(runs, 5, 15.0).items()}
    rates = {name: work[name].units / best[name] * 1e-6 for name in work}
    return [Line(name, rate, rate / rates["peak"]) for name, rate in rates.items()]


if __name__ == "__main__":
    for line in measure():
        print(f"{line.name:40}{line.gflops:8.1f} GFLOP/s{line.share:8.0%}")
