"""A detector in the manner of YOLO: a picture of 416 by 416 in; boxes, scores and labels out.

Three scales of a pyramid with strides of 8, 16 and 32; each cell says one box by the distances of its four sides from
the middle of the cell, and a score for each class. What overlaps is for the host to drop.
"""

import numpy as np

from tests.compiler.onnx_models import ModelWriter

SIDE = 416
CLASSES = 20
STRIDES = (8, 16, 32)
CELLS = sum((SIDE // stride) ** 2 for stride in STRIDES)
WIDTHS = (24, 48, 96, 192)


class _Pyramid(ModelWriter):
    """Layers of the detector."""

    def convolution(self, x: str, before: int, after: int, side: int = 1, stride: int = 1) -> str:
        """Add a convolution with SiLU, written as exporters write it."""
        bias = self.weights(after, scale=0.1)
        weights = self.weights(after, before, side, side)
        pads = [side // 2] * 4
        x = self.node("Conv", x, weights, bias, kernel_shape=[side, side], strides=[stride, stride], pads=pads)
        return self.node("Mul", x, self.node("Sigmoid", x))

    def stage(self, x: str, width: int) -> str:
        """Add a partial stage: one half of the channels goes through a bottleneck."""
        half = width // 2
        through, around = self.convolution(x, width, half), self.convolution(x, width, half)
        inner = self.convolution(self.convolution(through, half, half), half, half, side=3)
        joined = self.node("Concat", self.node("Add", through, inner), around, axis=1)
        return self.convolution(joined, width, width)

    def pooled(self, x: str, width: int) -> str:
        """Add pyramid pooling: the greatest of ever wider neighbourhoods."""
        levels = [self.convolution(x, width, width // 2)]
        for _ in range(3):
            levels.append(self.node("MaxPool", levels[-1], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
        return self.convolution(self.node("Concat", *levels, axis=1), 2 * width, width)

    def larger(self, x: str) -> str:
        """Add a doubling of both sides."""
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        return self.node("Resize", x, "", scales, mode="nearest", nearest_mode="floor")

    def cells(self, x: str, width: int, channels: int, side: int) -> str:
        """Add a head: `channels` numbers for each cell, cells last."""
        x = self.convolution(x, width, width, side=3)
        x = self.node("Conv", x, self.weights(channels, width, 1, 1, scale=4 * width**-0.5), self.weights(channels))
        return self.node("Reshape", x, self.constant(np.array([1, channels, side * side])))


def detector() -> bytes:
    """Return the network: `boxes` [1, CELLS, 4] as corners in pixels, `scores` [1, CELLS], `labels` [1, CELLS]."""
    w = _Pyramid(seed=1)
    levels = _backbone(w, w.input("images", [1, 3, SIDE, SIDE]))
    levels = _neck(w, levels)
    sides = [SIDE // stride for stride in STRIDES]
    heads = [(level, width, side) for level, width, side in zip(levels, WIDTHS[1:], sides, strict=True)]
    distances = w.node("Concat", *(w.cells(level, width, 4, side) for level, width, side in heads), axis=2)
    classes = w.node("Concat", *(w.cells(level, width, CLASSES, side) for level, width, side in heads), axis=2)
    probabilities = w.node("Sigmoid", classes)
    boxes = w.node("Transpose", _corners(w, distances), perm=[0, 2, 1])
    scores = w.node("ReduceMax", probabilities, axes=[1], keepdims=0)
    labels = w.node("ArgMax", classes, axis=1, keepdims=0)
    named = [
        w.named("Identity", value, name) for value, name in ((boxes, "boxes"), (scores, "scores"), (labels, "labels"))
    ]
    return w.model(*named)


def _backbone(w: _Pyramid, x: str) -> list[str]:
    """Return three levels, the largest first."""
    x = w.convolution(x, 3, 16, side=3, stride=2)
    levels, before = [], 16
    for width in WIDTHS:
        x = w.stage(w.convolution(x, before, width, side=3, stride=2), width)
        levels.append(x)
        before = width
    return [levels[1], levels[2], w.pooled(levels[3], WIDTHS[3])]


def _neck(w: _Pyramid, levels: list[str]) -> list[str]:
    """Return the levels after each has heard of the others: from the smallest up, and down again."""
    high, middle, low = levels
    middle = w.convolution(w.node("Concat", w.larger(low), middle, axis=1), WIDTHS[3] + WIDTHS[2], WIDTHS[2])
    middle = w.stage(middle, WIDTHS[2])
    high = w.convolution(w.node("Concat", w.larger(middle), high, axis=1), WIDTHS[2] + WIDTHS[1], WIDTHS[1])
    high = w.stage(high, WIDTHS[1])
    down = w.convolution(high, WIDTHS[1], WIDTHS[1], side=3, stride=2)
    middle = w.convolution(w.node("Concat", down, middle, axis=1), WIDTHS[1] + WIDTHS[2], WIDTHS[2])
    down = w.convolution(middle, WIDTHS[2], WIDTHS[2], side=3, stride=2)
    low = w.convolution(w.node("Concat", down, low, axis=1), WIDTHS[2] + WIDTHS[3], WIDTHS[3])
    return [high, middle, low]


def _corners(w: _Pyramid, distances: str) -> str:
    """Return boxes as corners: the middle of each cell, less the way to the left and top, plus that to the others."""
    steps = np.concatenate([np.full((SIDE // s) ** 2, s, np.float32) for s in STRIDES])
    middles = []
    for stride in STRIDES:
        line = (np.arange(SIDE // stride, dtype=np.float32) + 0.5) * stride
        middles.append(np.stack([np.tile(line, len(line)), np.repeat(line, len(line))]))
    middle = w.constant(np.concatenate(middles, axis=1)[None])
    ways = w.node("Mul", w.node("Softplus", distances), w.constant(steps[None, None]))
    before = w.node("Slice", ways, *(w.constant(np.array([n])) for n in (0, 2, 1)))
    behind = w.node("Slice", ways, *(w.constant(np.array([n])) for n in (2, 4, 1)))
    return w.node("Concat", w.node("Sub", middle, before), w.node("Add", middle, behind), axis=1)
