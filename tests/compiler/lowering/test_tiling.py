"""How matrix products are cut: by the sizes at which the cache stops to keep an operand."""

import pytest

from compiler.kernels.walk import VECTOR_BYTES
from compiler.lowering.tiling import choose_tiling


@pytest.mark.parametrize(
    ("pixels", "depth", "channels", "is_outside"),
    [(512, 512, 512, True), (3136, 512, 512, True), (16, 512, 512, True), (3136, 64, 256, False), (64, 64, 64, False)],
)
def test_a_large_second_matrix_is_read_once(pixels: int, depth: int, channels: int, is_outside: bool) -> None:
    """Its size decides; the one of the first matrix does not."""
    assert is_outside == choose_tiling(pixels, depth, channels).is_panel_outside


def test_a_panel_that_is_read_again_stays_in_the_cache() -> None:
    """Where 64 columns are too deep for it, tiles get narrower and higher."""
    assert (2, 16) == _tile(128, 512, 384)
    assert (4, 8) == _tile(128, 1536, 384)
    assert 1536 * 8 * VECTOR_BYTES < 256 * 1024 < 1536 * 16 * VECTOR_BYTES


@pytest.mark.parametrize(
    ("depth", "channels", "expected"),
    [(32, 64, 16), (128, 512, 16), (128, 200, 10), (512, 512, 8), (784, 128, 8), (1280, 1000, 10)],
)
def test_a_single_row_is_cut_narrower_where_its_matrix_is_large(depth: int, channels: int, expected: int) -> None:
    """Up to 256 KiB 16 vectors of columns are fastest, above it 8; or 10, where that leaves no column over."""
    assert (1, expected) == _tile(1, depth, channels)


def _tile(pixels: int, depth: int, channels: int) -> tuple[int, int]:
    tiling = choose_tiling(pixels, depth, channels)
    return tiling.tile_pixels, tiling.panel_vectors
