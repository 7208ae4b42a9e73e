"""Convolutions: depthwise ones by their own kernel, many of 3 x 3 by Winograd's, others as products under a window."""

import math
from collections.abc import Callable, Sequence

import msgspec

from compiler.errors import InternalError
from compiler.ir import Node, TensorType
from compiler.ir import operations as ops
from compiler.kernels.depthwise import DepthwiseKernel, pack_filters, write_depthwise
from compiler.kernels.tiles import TileKernel, Window, pack_panels, write_tiles
from compiler.kernels.walk import FLOAT_BYTES, LANES, Floats, Walk
from compiler.lowering.epilogue import EpilogueKernel, finish_with, is_long, spread_extras, walk
from compiler.lowering.layout import Layout, channels_last
from compiler.lowering.lowering import Lowering
from compiler.lowering.placement import Placement, no_border
from compiler.lowering.step import Emitter, each_image
from compiler.lowering.tiling import choose_tiling, depthwise_pixels
from compiler.lowering.winograd import Convolution, add_winograd, best_step
from compiler.wasm import I32, I32Local

_CHANNEL, _ROW, _PIXEL = 1, 2, 3


def lower_conv(low: Lowering, node: Node, operation: ops.Conv) -> None:
    """Add the steps of a convolution."""
    weights, bias = (low.value_of(name) for name in node.inputs[1:3])
    if weights is None or bias is None:
        raise InternalError(f"{node.name}: a convolution with computed weights")
    image = _bordered(low, low.placement(node.inputs[0]), operation.pads)
    result = low.result(node.outputs[0])
    output = result if _has_channels_together(result) else low.place(_kind(result), _image_layout())
    extras = spread_extras(low, [low.placement(name) for name in node.inputs[3:]], output.shape, _CHANNEL)
    parts = _Parts(low, operation, image, output, extras)
    if operation.groups == image.shape[_CHANNEL] == weights.shape[0] and operation.groups > 1:
        parts.add_depthwise(weights, bias)
    elif step := best_step(operation, weights, output):
        add_winograd(low, Convolution(operation, image, output, tuple(extras)), step, weights, bias)
    else:
        parts.add_tiles(weights, bias)
    low.move(output, result)


def _bordered(low: Lowering, image: Placement, pads: tuple[int, int, int, int]) -> Placement:
    """Return a place of an image with its channels together and zeros around it, as wide as the padding."""
    top, left, bottom, right = pads
    need = ((0, 0), (0, 0), (top, bottom), (left, right))
    is_wide = all(have[0] >= want[0] and have[1] >= want[1] for have, want in zip(image.border, need, strict=True))
    if is_wide and _has_channels_together(image):
        return image
    return low.copy(image, Layout(channels_last(len(image.shape)), need))


def _has_channels_together(placement: Placement) -> bool:
    return placement.is_forward and (placement.strides[_CHANNEL] == 1 or placement.shape[_CHANNEL] == 1)


def _kind(placement: Placement) -> TensorType:
    return TensorType(placement.dtype, placement.shape)


def _image_layout() -> Layout:
    return Layout(channels_last(4), no_border(4))


class _Parts:
    """One convolution, cut into the images of a batch and the groups of its channels."""

    def __init__(
        self,
        low: Lowering,
        operation: ops.Conv,
        image: Placement,
        output: Placement,
        extras: Sequence[Placement],
    ) -> None:
        self._low, self._operation = low, operation
        self._image, self._output, self._extras = image, output, extras
        self._values = (image, output, *extras)
        _, self._channels, self._rows, self._pixels = output.shape
        top, left, _, _ = operation.pads
        self._start = -(top * image.byte_stride(_ROW) + left * image.byte_stride(_PIXEL))
        """From the first pixel of the image to the first one under the window."""
        self._a = Walk(operation.strides[1] * image.byte_stride(_PIXEL), operation.strides[0] * image.byte_stride(_ROW))
        self._tap_bytes = (
            operation.dilations[0] * image.byte_stride(_ROW),
            operation.dilations[1] * image.byte_stride(_PIXEL),
        )
        self._c = walk(output, _ROW, _PIXEL, _CHANNEL)
        self._walks = tuple(walk(extra, _ROW, _PIXEL, _CHANNEL) for extra in extras)
        if self._pixels == 1:  # rows of one pixel follow each other like pixels
            walks = (self._a, self._c, *self._walks)
            self._a, self._c, *more = (msgspec.structs.replace(w, pixel_bytes=w.row_bytes) for w in walks)
            self._walks = tuple(more)

    def add_depthwise(self, weights: Floats, bias: Floats) -> None:
        """Add the steps of a depthwise convolution."""
        taps = weights.shape[2], weights.shape[3]
        step, dilation = self._operation.strides[1], self._operation.dilations[1]
        kernel = DepthwiseKernel(
            rows=self._rows,
            pixels=self._pixels,
            channels=self._channels,
            taps=taps,
            tap_bytes=self._tap_bytes,
            tap_stride=step // dilation if step % dilation == 0 and step // dilation < taps[1] else 0,
            a=self._a,
            c=self._c,
            tile_pixels=depthwise_pixels(self._pixels, step, math.prod(taps)),
        )
        packed = pack_filters(kernel, weights, bias).reshape(-1, 1 + math.prod(taps), LANES)
        filters = self._low.constant(packed, heads=1)
        epilogue, target = self._operation.epilogue, self._low.target
        spec = EpilogueKernel(kernel, epilogue, self._walks)

        def emit(e: Emitter) -> None:
            function = e.kernel(
                spec, lambda f: write_depthwise(f, kernel, target, self._walks, finish_with(f, target, epilogue))
            )

            def write(images: Sequence[I32Local]) -> None:
                a, c, *extras = self._addresses(images, 0, 0)
                e.do(function(a, e.buffer_address(filters), c, *extras))

            each_image(e, self._values, write)

        self._add(emit, filters, work=math.prod(taps))

    def add_tiles(self, weights: Floats, bias: Floats) -> None:
        """Add the steps of a convolution as a matrix product, one for each group."""
        groups = self._operation.groups
        channels, depth = self._channels // groups, weights.shape[1]
        kernel = self._tile_kernel(channels, depth, (weights.shape[2], weights.shape[3]))
        matrices = weights.reshape(groups, channels, *weights.shape[1:]).transpose(0, 3, 4, 2, 1)
        biases = bias.reshape(groups, channels)
        panels = [
            self._low.constant(pack_panels(kernel, matrix.reshape(-1, channels), b), heads=1)
            for matrix, b in zip(matrices, biases, strict=True)
        ]
        epilogue, target = self._operation.epilogue, self._low.target
        spec = EpilogueKernel(kernel, epilogue, self._walks)
        scratch = self._low.scratch(kernel.scratch_bytes)

        def emit(e: Emitter) -> None:
            function = e.kernel(
                spec, lambda f: write_tiles(f, kernel, target, self._walks, finish_with(f, target, epilogue))
            )

            def write(images: Sequence[I32Local]) -> None:
                for group, b in enumerate(panels):
                    a, c, *extras = self._addresses(images, group * depth, group * channels)
                    e.do(function(a, e.buffer_address(b), c, e.buffer_address(scratch), *extras))

            each_image(e, self._values, write)

        self._add(emit, *panels, work=kernel.window.depth, scratch=scratch)

    def _tile_kernel(self, channels: int, depth: int, taps: tuple[int, int]) -> TileKernel:
        pixel_bytes = self._image.byte_stride(_PIXEL)
        if taps[1] == 1 or (self._tap_bytes[1] == pixel_bytes == depth * FLOAT_BYTES):
            window = Window(taps[1] * depth, ((taps[0], self._tap_bytes[0]),))
        else:
            window = Window(depth, ((taps[0], self._tap_bytes[0]), (taps[1], self._tap_bytes[1])))
        rows, pixels, a, c = self._rows, self._pixels, self._a, self._c
        if all(w.row_bytes == pixels * w.pixel_bytes for w in (a, c, *self._walks)):
            rows, pixels = 1, rows * pixels  # rows follow each other like pixels
        tiling = choose_tiling(pixels, window.depth, channels)
        return TileKernel(
            rows=rows,
            pixels=pixels,
            channels=channels,
            window=window,
            a=a,
            c=c,
            tile_pixels=tiling.tile_pixels,
            panel_vectors=tiling.panel_vectors,
            is_panel_outside=tiling.is_panel_outside,
            is_finished_apart=is_long(self._operation.epilogue),
        )

    def _addresses(self, images: Sequence[I32Local], channel_in: int, channel_out: int) -> list[I32]:
        """Return where an image, its result and its extras start, from some channel on."""
        image, *others = images
        return [
            image + (self._start + channel_in * FLOAT_BYTES),
            *(p + channel_out * v.byte_stride(_CHANNEL) for p, v in zip(others, self._values[1:], strict=True)),
        ]

    def _add(self, emit: Callable[[Emitter], None], *constants: int, work: int, scratch: int | None = None) -> None:
        self._low.step(
            [self._image, *self._extras, *constants],
            [self._output] if scratch is None else [self._output, scratch],
            emit,
            multiply_adds=math.prod(self._output.shape) * work,
        )
