"""Networks of the kinds that run on devices, with fixed random weights, written node by node.

They have the shapes of the published ones; the weights are such that values keep their size from layer to layer.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from tests.compiler.onnx_models import ModelWriter

IMAGE = (1, 3, 224, 224)


class ImageWriter(ModelWriter):
    """A writer of networks for images."""

    def conv(
        self,
        x: str,
        before: int,
        after: int,
        size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: str = "",
        pads: Sequence[int] = (),
    ) -> str:
        """Add a convolution, its bias and an activation."""
        gain = 2.4 if activation == "Silu" else 2  # so that values keep their size
        weights = self.weights(after, before // groups, size, size, scale=(gain * groups / before) ** 0.5 / size)
        y = self.node(
            "Conv",
            x,
            weights,
            self.weights(after, scale=0.1),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=list(pads) or [size // 2] * 4,
            group=groups,
        )
        return self.activate(y, activation)

    def activate(self, x: str, activation: str) -> str:
        """Add an activation by its name."""
        match activation:
            case "":
                return x
            case "Relu6":
                return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))
            case "Silu":
                return self.node("Mul", x, self.node("Sigmoid", x))
        return self.node(activation, x)

    def classifier(self, x: str, widths: Sequence[int], activation: str = "") -> str:
        """Add the mean over an image and dense layers."""
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        for layer, (before, after) in enumerate(itertools.pairwise(widths)):
            x = self.node("Gemm", x, self.weights(after, before), self.weights(after, scale=0.1), transB=1)
            if layer < len(widths) - 2:
                x = self.activate(x, activation)
        return x


def mobilenet_v2() -> bytes:
    """Return MobileNetV2, width 1.0, for 224 x 224 pixels (Sandler et al., 2018)."""
    w = ImageWriter()
    x = w.conv(w.input("image", IMAGE), 3, 32, 3, 2, activation="Relu6")
    c = 32
    for expand, out, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            step, wide = (stride if block == 0 else 1), c * expand
            y = w.conv(x, c, wide, 1, activation="Relu6") if expand > 1 else x
            y = w.conv(y, wide, wide, 3, step, groups=wide, activation="Relu6")
            y = w.conv(y, wide, out, 1)
            x = w.node("Add", x, y) if step == 1 and c == out else y
            c = out
    return w.model(w.classifier(w.conv(x, 320, 1280, 1, activation="Relu6"), (1280, 1000)))


def mobilenet_v3_small() -> bytes:
    """Return MobileNetV3-small for 224 x 224 pixels (Howard et al., 2019)."""
    w = ImageWriter()
    x = w.conv(w.input("image", IMAGE), 3, 16, 3, 2, activation="HardSwish")
    c = 16
    for size, wide, out, squeezed, activation, stride in (
        (3, 16, 16, 8, "Relu", 2),
        (3, 72, 24, 0, "Relu", 2),
        (3, 88, 24, 0, "Relu", 1),
        (5, 96, 40, 24, "HardSwish", 2),
        (5, 240, 40, 64, "HardSwish", 1),
        (5, 240, 40, 64, "HardSwish", 1),
        (5, 120, 48, 32, "HardSwish", 1),
        (5, 144, 48, 40, "HardSwish", 1),
        (5, 288, 96, 72, "HardSwish", 2),
        (5, 576, 96, 144, "HardSwish", 1),
        (5, 576, 96, 144, "HardSwish", 1),
    ):
        y = w.conv(x, c, wide, 1, activation=activation) if wide != c else x
        y = w.conv(y, wide, wide, size, stride, groups=wide, activation=activation)
        if squeezed:
            s = w.conv(w.node("GlobalAveragePool", y), wide, squeezed, 1, activation="Relu")
            s = w.node("HardSigmoid", w.conv(s, squeezed, wide, 1), alpha=1 / 6)
            y = w.node("Mul", y, s)
        y = w.conv(y, wide, out, 1)
        x = w.node("Add", x, y) if stride == 1 and c == out else y
        c = out
    x = w.conv(x, 96, 576, 1, activation="HardSwish")
    return w.model(w.classifier(x, (576, 1024, 1000), "HardSwish"))


def efficientnet_lite0() -> bytes:
    """Return EfficientNet-Lite0 for 224 x 224 pixels, with the one-sided padding that TensorFlow gives it."""
    w = ImageWriter()
    x = w.conv(w.input("image", IMAGE), 3, 32, 3, 2, activation="Relu6", pads=(0, 0, 1, 1))
    c = 32
    for expand, size, out, count, stride in (
        (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ):  # fmt: skip
        for block in range(count):
            step, wide = (stride if block == 0 else 1), c * expand
            small, large = (size - step) // 2, (size - step + 1) // 2
            y = w.conv(x, c, wide, 1, activation="Relu6") if expand > 1 else x
            y = w.conv(y, wide, wide, size, step, groups=wide, activation="Relu6", pads=(small, small, large, large))
            y = w.conv(y, wide, out, 1)
            x = w.node("Add", x, y) if step == 1 and c == out else y
            c = out
    return w.model(w.classifier(w.conv(x, 320, 1280, 1, activation="Relu6"), (1280, 1000)))


def resnet18() -> bytes:
    """Return ResNet-18 for 224 x 224 pixels (He et al., 2015), batch normalisation folded."""
    w = ImageWriter()
    x = w.conv(w.input("image", IMAGE), 3, 64, 7, 2, activation="Relu")
    x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    c = 64
    for out, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = w.conv(w.conv(x, c, out, 3, stride, activation="Relu"), out, out, 3)
        x = x if stride == 1 and c == out else w.conv(x, c, out, 1, stride, pads=(0, 0, 0, 0))
        x = w.node("Relu", w.node("Add", y, x))
        c = out
    return w.model(w.classifier(x, (512, 1000)))


class _Detector(ImageWriter):
    """A writer of the blocks of a one-stage detector."""

    def block(self, x: str, c: int) -> str:
        """Add a block that passes half of the channels by a residual pair."""
        y = self.conv(x, c, c, 1, activation="Silu")
        left, right = (
            self.node("Slice", y, *(self.constant(np.array([n])) for n in (start, start + c // 2, 1)))
            for start in (0, c // 2)
        )
        z = self.conv(right, c // 2, c // 2, 3, activation="Silu")
        z = self.node("Add", right, self.conv(z, c // 2, c // 2, 3, activation="Silu"))
        return self.conv(self.node("Concat", left, right, z, axis=1), c // 2 * 3, c, 1, activation="Silu")

    def head(self, x: str, c: int, side: int) -> tuple[str, str]:
        """Add the boxes (1, 4, side squared), in pixels, and the scores of classes of one scale."""
        distances = self.node("Relu", self.conv(self.conv(x, c, c, 3, activation="Silu"), c, 4, 1))
        scores = self.conv(self.conv(x, c, c, 3, activation="Silu"), c, self.classes, 1)
        flat = self.constant(np.array([1, -1, side * side]))
        before, after = (
            self.node("Slice", self.node("Reshape", distances, flat), *(self.constant(np.array([n])) for n in cut))
            for cut in ((0, 2, 1), (2, 4, 1))
        )
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side))).reshape(1, 2, -1) + 0.5
        centres = self.constant(grid.astype(np.float32))
        corners = self.node("Sub", centres, before), self.node("Add", centres, after)
        scale = self.constant(np.float32(416 / side))
        boxes = self.node("Mul", self.node("Concat", *corners, axis=1), scale)
        return boxes, self.node("Sigmoid", self.node("Reshape", scores, flat))

    classes = 80


def detector() -> bytes:
    """Return a detector in the style of YOLO for 416 x 416 pixels: boxes, scores and labels at three scales."""
    w = _Detector()
    x = w.conv(w.input("image", (1, 3, 416, 416)), 3, 16, 3, 2, activation="Silu")
    x = w.block(w.conv(x, 16, 32, 3, 2, activation="Silu"), 32)
    fine = w.block(w.conv(x, 32, 64, 3, 2, activation="Silu"), 64)
    middle = w.block(w.conv(fine, 64, 128, 3, 2, activation="Silu"), 128)
    x = w.conv(w.conv(middle, 128, 256, 3, 2, activation="Silu"), 256, 128, 1, activation="Silu")
    pools = [x]
    for _ in range(3):
        pools.append(w.node("MaxPool", pools[-1], kernel_shape=[5, 5], pads=[2, 2, 2, 2]))
    coarse = w.conv(w.node("Concat", *pools, axis=1), 512, 128, 1, activation="Silu")
    scales = w.constant(np.array([1, 1, 2, 2], np.float32))
    x = w.node("Concat", w.node("Resize", coarse, "", scales, mode="nearest"), middle, axis=1)
    middle = w.block(w.conv(x, 256, 64, 1, activation="Silu"), 64)
    x = w.node("Concat", w.node("Resize", middle, "", scales, mode="nearest"), fine, axis=1)
    fine = w.block(w.conv(x, 128, 64, 1, activation="Silu"), 64)
    heads = [w.head(fine, 64, 52), w.head(middle, 64, 26), w.head(coarse, 128, 13)]
    boxes = w.node("Transpose", w.node("Concat", *(b for b, _ in heads), axis=2), perm=[0, 2, 1])
    classes = w.node("Transpose", w.node("Concat", *(s for _, s in heads), axis=2), perm=[0, 2, 1])
    scores = w.node("ReduceMax", classes, axes=[2], keepdims=0)
    return w.model(boxes, scores, w.node("ArgMax", classes, axis=2, keepdims=0))


class _TextWriter(ModelWriter):
    """A writer of transformers over `length` places of `width` numbers, in `heads` heads."""

    length, width, heads = 128, 384, 12

    def dense(self, x: str, rows: int, columns: int) -> str:
        """Add a dense layer."""
        product = self.node("MatMul", x, self.weights(rows, columns, scale=rows**-0.5))
        return self.node("Add", product, self.weights(columns, scale=0.1))

    def normalized(self, x: str) -> str:
        """Add a layer normalisation with scale and shift."""
        scale, shift = self.constant(np.ones(self.width, np.float32)), self.weights(self.width, scale=0.1)
        return self.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)

    def attention(self, x: str, mask: str = "") -> str:
        """Add attention over all heads, as exporters write it."""
        size = self.width // self.heads
        split = self.constant(np.array([1, self.length, self.heads, size]))
        q, k, v = (self.node("Reshape", self.dense(x, self.width, self.width), split) for _ in range(3))
        q, v = (self.node("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
        k = self.node("Transpose", k, perm=[0, 2, 3, 1])
        scores = self.node("Mul", self.node("MatMul", q, k), self.constant(np.float32(size**-0.5)))
        if mask:
            scores = self.node("Add", scores, mask)
        mixed = self.node("MatMul", self.node("Softmax", scores, axis=-1), v)
        mixed = self.node("Transpose", mixed, perm=[0, 2, 1, 3])
        joined = self.node("Reshape", mixed, self.constant(np.array([1, self.length, self.width])))
        return self.dense(joined, self.width, self.width)

    def feed_forward(self, x: str) -> str:
        """Add two dense layers with a Gelu between them, written out."""
        hidden = self.dense(x, self.width, 4 * self.width)
        gate = self.node("Erf", self.node("Div", hidden, self.constant(np.float32(2**0.5))))
        gate = self.node("Mul", hidden, self.node("Add", gate, self.constant(np.float32(1))))
        return self.dense(self.node("Mul", gate, self.constant(np.float32(0.5))), 4 * self.width, self.width)


def text_encoder() -> bytes:
    """Return an encoder of the shape of MiniLM-L6 (Wang et al., 2020) for 128 tokens that are embedded already."""
    w = _TextWriter()
    x = w.input("embeddings", (1, w.length, w.width))
    for _ in range(6):
        x = w.normalized(w.node("Add", w.attention(x), x))
        x = w.normalized(w.node("Add", w.feed_forward(x), x))
    return w.model(x)


class _DecoderWriter(_TextWriter):
    length, width, heads = 64, 128, 4


def decoder() -> bytes:
    """Return a small decoder of 256 different tokens: the scores of the next token at each of 64 places."""
    w, vocabulary = _DecoderWriter(), 256
    tokens = w.input("tokens", (1, w.length), TensorProto.INT64)
    x = w.node("Gather", w.weights(vocabulary, w.width, scale=1.0), tokens, axis=0)
    x = w.node("Add", x, w.weights(1, w.length, w.width, scale=0.1))
    hidden = np.triu(np.full((w.length, w.length), -1e9, np.float32), 1)
    mask = w.constant(hidden[None, None])
    for _ in range(2):
        x = w.node("Add", x, w.attention(w.normalized(x), mask))
        x = w.node("Add", x, w.feed_forward(w.normalized(x)))
    return w.model(w.dense(w.normalized(x), w.width, vocabulary))


def lstm() -> bytes:
    """Return two LSTM layers of 128 units over 100 steps of 64 numbers."""
    w = ModelWriter()
    x, before, hidden = w.input("steps", (100, 1, 64)), 64, 128
    for _ in range(2):
        x = w.node(
            "LSTM",
            x,
            w.weights(1, 4 * hidden, before, scale=before**-0.5),
            w.weights(1, 4 * hidden, hidden, scale=hidden**-0.5),
            w.weights(1, 8 * hidden, scale=0.1),
            outputs=3,
            hidden_size=hidden,
        )
        x, before = w.node("Squeeze", x, w.constant(np.array([1]))), hidden
    return w.model(x)
