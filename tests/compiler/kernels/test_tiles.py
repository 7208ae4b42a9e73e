"""Matrix products and convolutions through the tile kernel, against numpy; every way of covering an edge."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.runtime.instance import Caps, load_model
from compiler.kernels.target import Target
from compiler.kernels.tiles import TileKernel, Window, pack_panels, write_tiles
from compiler.kernels.walk import Walk
from compiler.lowering.tiling import choose_tiling
from compiler.wasm import PAGE_BYTES, Module, ValueType, f32x4, i32
from protocol.tensors import TensorSpec

Floats = NDArray[np.float32]


def run(kernel: TileKernel, a: Floats, b: Floats, bias: Floats, extra: Floats, target: Target) -> Floats:
    """Return what the kernel makes of A, with an epilogue that adds `extra` and clips at -2."""
    packed = pack_panels(kernel, b, bias)
    places, end = [], 64
    scratch = np.zeros(kernel.scratch_bytes // 4, np.float32)
    for array in (packed, extra, a, scratch):
        places.append(end)
        end += -(-array.nbytes // 64) * 64 + 64
    size_bytes = kernel.rows * kernel.c.row_bytes + kernel.pixels * kernel.c.pixel_bytes
    module = Module()
    pages = -(-(end + size_bytes + 64) // PAGE_BYTES)
    module.memory(pages, pages, export="memory")
    module.data(places[0], packed.tobytes())
    module.data(places[1], extra.tobytes())
    for name, address in (("fleet_input", places[2]), ("fleet_output", end)):
        locate = module.function(name, [ValueType.I32], export=name)
        locate.param_i32()
        locate.leave(i32.const(address))
    f = module.function("tiles")
    extras = [kernel.c, Walk(0, 0, 4)]
    write_tiles(
        f,
        kernel,
        target,
        extras,
        lambda v, load: f32x4.pmax(f32x4.add(f32x4.add(v, load(0)), load(1)), f32x4.const(-2.0)),
    )
    infer = module.function("infer", [ValueType.I32], export="fleet_infer")
    infer.do(f(places[2], places[0], end, places[3], places[1], places[1] + 4 * 7))
    infer.leave(i32.const(0))
    specs = [TensorSpec(name="t", datatype="FP32", shape=(n,)) for n in (a.size, size_bytes // 4)]
    model = load_model(module.encode(), (specs[0],), (specs[1],), Caps(deadline_ms=10_000))
    try:
        [raw] = model.infer([a.tobytes()])
    finally:
        model.close()
    return np.frombuffer(raw, np.float32)


def values(rng: np.random.Generator, *shape: int) -> Floats:
    """Return random floats."""
    return rng.standard_normal(shape, dtype=np.float32)


def product(
    target: Target,
    rows: int,
    depth: int,
    columns: int,
    tile: tuple[int, int],
    *,
    is_panel_outside: bool = False,
    is_finished_apart: bool = False,
) -> None:
    """Compare one matrix product with numpy; 1e-4 is the rounding of sums of products of numbers around 1."""
    rng = np.random.default_rng(rows)
    a, b, bias = values(rng, rows, depth), values(rng, depth, columns), values(rng, columns)
    extra = values(rng, rows, columns)
    kernel = TileKernel(
        rows=1,
        pixels=rows,
        channels=columns,
        window=Window(depth),
        a=Walk(4 * depth, 0),
        c=Walk(4 * columns, 0),
        tile_pixels=tile[0],
        panel_vectors=tile[1],
        is_panel_outside=is_panel_outside,
        is_finished_apart=is_finished_apart,
    )
    extra_row = np.concatenate([extra.ravel(), np.zeros(64, np.float32)])[7 : 7 + columns]
    want = np.maximum(a @ b + bias + extra + extra_row, -2)
    got = run(kernel, a, b, bias, extra, target)[: rows * columns].reshape(rows, columns)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("is_panel_outside", [False, True])
@pytest.mark.parametrize("is_finished_apart", [False, True])
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "tile", "vectors"),
    [
        (1, 1, 4, 1, 1),
        (8, 4, 8, 8, 2),
        (17, 13, 20, 8, 2),
        (9, 7, 10, 7, 2),
        (30, 64, 12, 6, 3),
        (10, 5, 31, 10, 1),
        (5, 9, 3, 4, 1),
        (3, 8, 10, 3, 3),
        (1, 33, 70, 1, 8),
        (9, 203, 33, 4, 8),
        (4, 96, 24, 4, 6),
    ],
)
def test_matrix_product(
    target: Target,
    is_panel_outside: bool,
    is_finished_apart: bool,
    rows: int,
    depth: int,
    columns: int,
    tile: int,
    vectors: int,
) -> None:
    """Tiles that do not fit are covered by overlapping ones; the depth may be anything."""
    product(
        target,
        rows,
        depth,
        columns,
        (tile, vectors),
        is_panel_outside=is_panel_outside,
        is_finished_apart=is_finished_apart,
    )


@pytest.mark.property
@given(st.sampled_from(Target), st.integers(1, 40), st.integers(1, 80), st.integers(1, 90), st.booleans())
def test_any_matrix_product(target: Target, rows: int, depth: int, columns: int, is_panel_outside: bool) -> None:
    """With the tile that is chosen for its shape."""
    tiling = choose_tiling(rows, depth, columns)
    tile = tiling.tile_pixels, tiling.panel_vectors
    product(target, rows, depth, columns, tile, is_panel_outside=is_panel_outside)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("channels", "kernel_rows", "kernel_columns"), [(3, 3, 3), (1, 5, 2), (4, 1, 3), (6, 2, 1), (30, 3, 3)]
)
@pytest.mark.parametrize("is_finished_apart", [False, True])
def test_convolution(
    stride: int, channels: int, kernel_rows: int, kernel_columns: int, is_finished_apart: bool
) -> None:
    """The window is a run of pixels for each of its rows; the result goes into an image with a border."""
    rng = np.random.default_rng(channels)
    height, width, out_channels = 9, 11, 12
    image = values(rng, height, width, channels)
    weights, bias = values(rng, kernel_rows, kernel_columns, channels, out_channels), values(rng, out_channels)
    rows, pixels = (height - kernel_rows) // stride + 1, (width - kernel_columns) // stride + 1
    walk_c = Walk(4 * out_channels, 4 * out_channels * (pixels + 2))
    kernel = TileKernel(
        rows=rows,
        pixels=pixels,
        channels=out_channels,
        window=Window(kernel_columns * channels, ((kernel_rows, 4 * width * channels),)),
        a=Walk(4 * stride * channels, 4 * stride * width * channels),
        c=walk_c,
        tile_pixels=min(4, pixels),
        panel_vectors=2,
        is_finished_apart=is_finished_apart,
    )
    extra = np.zeros((rows, pixels + 2, out_channels), np.float32)
    got = run(kernel, image, weights.reshape(-1, out_channels), bias, extra, Target.RELAXED)
    got = got[: rows * (pixels + 2) * out_channels - 2 * out_channels]
    want = np.zeros((rows, pixels + 2, out_channels), np.float32)
    for y in range(rows):
        for x in range(pixels):
            window = image[y * stride : y * stride + kernel_rows, x * stride : x * stride + kernel_columns]
            want[y, x] = np.maximum(np.tensordot(window, weights, 3) + bias, -2)
    np.testing.assert_allclose(got, want.ravel()[: got.size], rtol=1e-5, atol=1e-4)
