"""Classifiers of pictures of 224 by 224: the layers, strides and widths of the papers, as exporters write them."""

import numpy as np

from tests.compiler.onnx_models import ModelWriter

CLASSES = 1000


class _Network(ModelWriter):
    """Layers of convolutional networks."""

    def convolution(
        self, x: str, shape: tuple[int, int, int], *, stride: int = 1, group: int = 1, same: str = "middle"
    ) -> str:
        """Add a convolution without bias and a batch normalisation; `shape` is inputs, outputs, side of the kernel."""
        before, after, side = shape
        pads = _pads(side, stride, same)
        attributes = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": pads, "group": group}
        x = self.node("Conv", x, self.weights(after, before // group, side, side), **attributes)
        scale, mean, variance = self.rng.uniform(0.8, 1.2, after), self.rng.normal(0, 0.1, after), np.ones(after)
        bias = self.rng.normal(0, 0.1, after)
        statistics = [self.constant(values.astype(np.float32)) for values in (scale, bias, mean, variance)]
        return self.node("BatchNormalization", x, *statistics, epsilon=1e-3)

    def clip6(self, x: str) -> str:
        """Add what mobile networks have between their layers."""
        return self.node("Clip", x, self.constant(np.float32(0)), self.constant(np.float32(6)))

    def squeeze(self, x: str, width: int, narrow: int) -> str:
        """Add a weight for each channel, computed from the means of all."""
        s = self.node("GlobalAveragePool", x)
        s = self.node("Relu", self.node("Conv", s, self.weights(narrow, width, 1, 1), self.weights(narrow)))
        s = self.node("Conv", s, self.weights(width, narrow, 1, 1), self.weights(width))
        return self.node("Mul", x, self.node("HardSigmoid", s, alpha=1 / 6, beta=0.5))

    def dense(self, x: str, before: int, after: int) -> str:
        """Add a dense layer."""
        return self.node("Gemm", x, self.weights(after, before, scale=before**-0.5), self.weights(after), transB=1)

    def classifier(self, x: str, width: int) -> bytes:
        """End with means over the picture and a dense layer."""
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.model(self.dense(x, width, CLASSES))


def _pads(side: int, stride: int, same: str) -> list[int]:
    """Return the padding: as much on each side, or, where TensorFlow trained it, less before than behind."""
    whole = side - stride if same == "late" and stride > 1 else side - 1
    before = whole // 2
    return [before, before, whole - before, whole - before]


def mobilenet_v2() -> bytes:
    """Return MobileNetV2 1.0: inverted residuals with linear bottlenecks (Sandler et al., 2018)."""
    w = _Network()
    x = w.clip6(w.convolution(w.input("image", [1, 3, 224, 224]), (3, 32, 3), stride=2))
    width = 32
    for expand, after, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for stride in (first, *[1] * (count - 1)):
            x = _inverted(w, x, (width, expand * width, after, 3), stride)
            width = after
    return w.classifier(w.clip6(w.convolution(x, (320, 1280, 1))), 1280)


def efficientnet_lite0() -> bytes:
    """Return EfficientNet-Lite0: no squeeze, clipped at 6, padded as TensorFlow does (Tan and Le, 2019)."""
    w = _Network()
    x = w.clip6(w.convolution(w.input("image", [1, 3, 224, 224]), (3, 32, 3), stride=2, same="late"))
    width = 32
    for expand, after, count, first, side in (
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ):  # fmt: skip
        for stride in (first, *[1] * (count - 1)):
            x = _inverted(w, x, (width, expand * width, after, side), stride, same="late")
            width = after
    return w.classifier(w.clip6(w.convolution(x, (320, 1280, 1))), 1280)


def _inverted(w: _Network, x: str, widths: tuple[int, int, int, int], stride: int, *, same: str = "middle") -> str:
    """Add an inverted residual; `widths` is inputs, inner channels, outputs, side of the kernel."""
    before, inner, after, side = widths
    y = w.clip6(w.convolution(x, (before, inner, 1))) if inner != before else x
    y = w.clip6(w.convolution(y, (inner, inner, side), stride=stride, group=inner, same=same))
    y = w.convolution(y, (inner, after, 1))
    return w.node("Add", x, y) if stride == 1 and before == after else y


def mobilenet_v3_small() -> bytes:
    """Return MobileNetV3-small: kernels of 5, squeezes, hard swish (Howard et al., 2019)."""
    w = _Network()
    x = w.node("HardSwish", w.convolution(w.input("image", [1, 3, 224, 224]), (3, 16, 3), stride=2))
    before = 16
    for side, inner, after, squeeze, activation, stride in (
        (3, 16, 16, 8, "Relu", 2), (3, 72, 24, 0, "Relu", 2), (3, 88, 24, 0, "Relu", 1),
        (5, 96, 40, 24, "HardSwish", 2), (5, 240, 40, 64, "HardSwish", 1), (5, 240, 40, 64, "HardSwish", 1),
        (5, 120, 48, 32, "HardSwish", 1), (5, 144, 48, 40, "HardSwish", 1), (5, 288, 96, 72, "HardSwish", 2),
        (5, 576, 96, 144, "HardSwish", 1), (5, 576, 96, 144, "HardSwish", 1),
    ):  # fmt: skip
        y = w.node(activation, w.convolution(x, (before, inner, 1))) if inner != before else x
        y = w.node(activation, w.convolution(y, (inner, inner, side), stride=stride, group=inner))
        y = w.convolution(w.squeeze(y, inner, squeeze) if squeeze else y, (inner, after, 1))
        x = w.node("Add", x, y) if stride == 1 and before == after else y
        before = after
    x = w.node("HardSwish", w.convolution(x, (96, 576, 1)))
    x = w.node("HardSwish", w.dense(w.node("Flatten", w.node("GlobalAveragePool", x)), 576, 1024))
    return w.model(w.dense(x, 1024, CLASSES))


def resnet_18() -> bytes:
    """Return ResNet-18: pairs of 3 by 3 convolutions around a shortcut (He et al., 2015)."""
    w = _Network()
    x = w.node("Relu", w.convolution(w.input("image", [1, 3, 224, 224]), (3, 64, 7), stride=2))
    x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    before = 64
    for after, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        y = w.node("Relu", w.convolution(x, (before, after, 3), stride=stride))
        y = w.convolution(y, (after, after, 3))
        shortcut = w.convolution(x, (before, after, 1), stride=stride) if before != after else x
        x = w.node("Relu", w.node("Add", y, shortcut))
        before = after
    return w.classifier(x, 512)
