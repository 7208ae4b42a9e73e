"""Random graphs of supported operators, against onnxruntime: what passes and layouts make of neighbours is never seen
by tests of single operators.

Every value stays of moderate size, so that one tolerance fits all; what nobody reads is an output. From what size on
work is cut into blocks and bands is drawn, too: so small graphs are cut as large ones are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler import CompileOptions, Target, compile_model
from compiler.lowering import attention as blocks
from compiler.lowering import layout
from compiler.lowering import winograd as bands
from compiler.passes import attention as scores
from tests.compiler.execution import Runner, assert_close
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

Shape = tuple[int, ...]
MOST_ELEMENTS = 6_000


class Network(ModelWriter):
    """A graph that grows by random nodes; each method adds one, or says that nothing fits."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__()
        self.data = data
        self.shapes: dict[str, Shape] = {}
        self.read: set[str] = set()
        for number in range(self.pick(range(1, 3))):
            sides = (self.pick((1, 2, 3, 4, 5, 8, 12)) for _ in range(self.pick((1, 2, 3, 3, 3))))
            shape = (self.pick((1, 1, 2)), *sides)
            self.shapes[self.input(f"x{number}", shape)] = shape

    def pick(self, choices: Sequence[Any]) -> Any:
        """Draw one of some choices."""
        return self.data.draw(st.sampled_from(list(choices)))

    def value(self, ranks: Sequence[int] = (1, 2, 3, 4, 5)) -> str | None:
        """Draw a value with one of some numbers of dimensions, if there is any; late ones are likelier."""
        fitting = [name for name, shape in self.shapes.items() if len(shape) in ranks]
        return self.pick([*fitting, *fitting[-3:]]) if fitting else None

    def add(self, shape: Sequence[int], operator: str, *inputs: str, **attributes: Any) -> None:
        """Add a node whose result has a shape, unless that is large or empty."""
        if 0 < np.prod(shape) <= MOST_ELEMENTS:
            self.shapes[self.node(operator, *inputs, **attributes)] = tuple(int(n) for n in shape)
            self.read.update(inputs)

    def numbers(self, *shape: int, scale: float = 1.0) -> str:
        return self.weights(*shape, scale=scale) if shape else self.constant(np.float32(self.rng.uniform(-1, 1)))

    def indices(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def unary(self) -> None:
        names = (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Neg",
            "Abs",
            "HardSwish",
            "HardSigmoid",
            "LeakyRelu",
            "Elu",
            "Erf",
            "Identity",
        )
        if x := self.value():
            self.add(self.shapes[x], self.pick(names), x)

    def clip(self) -> None:
        if x := self.value():
            self.add(self.shapes[x], "Clip", x, self.constant(np.float32(-0.5)), self.constant(np.float32(0.75)))

    def binary(self) -> None:
        x = self.value()
        others = [n for n, shape in self.shapes.items() if x and self.broadcasts(shape, self.shapes[x])]
        if x and others:
            y = self.pick(others)
            pair = (x, y) if self.pick((True, False)) else (y, x)
            shape = np.broadcast_shapes(self.shapes[x], self.shapes[y])
            self.add(shape, self.pick(("Add", "Sub", "Mul", "Max", "Min")), *pair)

    @staticmethod
    def broadcasts(a: Shape, b: Shape) -> bool:
        return all(n == m or 1 in (n, m) for n, m in zip(reversed(a), reversed(b), strict=False))

    def with_constant(self) -> None:
        if x := self.value():
            shape = self.shapes[x]
            kept = self.pick(range(len(shape) + 1))
            other = [n if self.pick((True, False)) else 1 for n in shape[len(shape) - kept :]]
            pair = (x, self.numbers(*other))
            self.add(
                shape, self.pick(("Add", "Sub", "Mul", "Max")), *(pair if self.pick((True, False)) else pair[::-1])
            )

    def convolution(self) -> None:
        if not (x := self.value((3, 4))):
            return
        batch, channels, *sides = self.shapes[x]
        groups = self.pick([g for g in (1, channels, 2) if channels % g == 0])
        outputs = groups * self.pick((1, 2, 3, 8))
        kernel = [self.pick((1, 1, 2, 3, 5)) for _ in sides]
        strides, dilations = ([self.pick(s) for _ in sides] for s in ((1, 1, 2, 3), (1, 1, 1, 2)))
        before, behind = ([self.pick((0, 1, 2)) for _ in sides] for _ in range(2))
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        results = [
            (n + b + a - r) // s + 1 if n + b + a >= r else 0
            for n, b, a, r, s in zip(sides, before, behind, reach, strides, strict=True)
        ]
        scale = (channels // groups * np.prod(kernel)) ** -0.5
        inputs = [x, self.numbers(outputs, channels // groups, *kernel, scale=scale)]
        inputs += [self.numbers(outputs)] if self.pick((True, False)) else []
        attributes = {"strides": strides, "dilations": dilations, "group": groups, "pads": [*before, *behind]}
        self.add((batch, outputs, *results), "Conv", *inputs, kernel_shape=kernel, **attributes)

    def image_convolution(self) -> None:
        """As in residual networks, where Winograd's scheme may pay."""
        if x := self.value((4,)):
            batch, channels, *sides = self.shapes[x]
            out, pads = self.pick((channels, 8, 16)), [self.pick((0, 1, 1, 2)) for _ in range(4)]
            results = [n + before + after - 2 for n, before, after in zip(sides, pads[:2], pads[2:], strict=True)]
            filters = self.numbers(out, channels, 3, 3, scale=(channels * 9) ** -0.5)
            self.add((batch, out, *results), "Conv", x, filters, pads=pads)

    def transposed_convolution(self) -> None:
        if x := self.value((4,)):
            batch, channels, *sides = self.shapes[x]
            groups, out = self.pick((1, channels)), self.pick((1, 3, 4))
            taps, strides = ([self.pick((1, 2, 3)) for _ in sides] for _ in range(2))
            results = [(n - 1) * s + k for n, s, k in zip(sides, strides, taps, strict=True)]
            filters = self.numbers(channels, out, *taps, scale=(channels // groups) ** -0.5)
            self.add((batch, groups * out, *results), "ConvTranspose", x, filters, strides=strides, group=groups)

    def attention(self) -> None:
        """Queries of a value, keys and values of another one, maybe the same; with a mask, or none."""
        x, y = self.value((3, 4)), self.value((3, 4))
        if not x or not y or self.shapes[x][:-2] != self.shapes[y][:-2]:
            return
        *stack, rows, width = self.shapes[x]
        length, other = self.shapes[y][-2:]
        q = self.node("MatMul", x, self.numbers(width, 4, scale=width**-0.5))
        k, v = (self.node("MatMul", y, self.numbers(other, n, scale=other**-0.5)) for n in (4, 6))
        turned = self.node("Transpose", k, perm=[*range(len(stack)), len(stack) + 1, len(stack)])
        scores = self.node("Mul", self.node("MatMul", q, turned), self.constant(np.float32(0.5)))
        if self.pick((True, False)):
            scores = self.node("Add", scores, self.numbers(self.pick((1, rows)), length))
        self.read.update((x, y))
        self.add((*stack, rows, 6), "MatMul", self.node("Softmax", scores, axis=-1), v)

    def pool(self) -> None:
        if not (x := self.value((3, 4))):
            return
        shape = self.shapes[x]
        kernel, strides = ([self.pick((1, 2, 3)) for _ in shape[2:]] for _ in range(2))
        pads = [self.pick((0, 1)) if k > 1 else 0 for k in kernel] * 2
        results = [
            (n + 2 * p - k) // s + 1 if n + 2 * p >= k else 0
            for n, p, k, s in zip(shape[2:], pads, kernel, strides, strict=False)
        ]
        operator = self.pick(("MaxPool", "AveragePool"))
        self.add((*shape[:2], *results), operator, x, kernel_shape=kernel, strides=strides, pads=pads)

    def global_pool(self) -> None:
        if x := self.value((3, 4)):
            shape = self.shapes[x]
            result = (*shape[:2], *(1 for _ in shape[2:]))
            self.add(result, self.pick(("GlobalAveragePool", "GlobalMaxPool")), x)

    def normalisation(self) -> None:
        if x := self.value((3, 4)):
            parts = [self.constant(self.rng.uniform(0.5, 1.5, self.shapes[x][1]).astype(np.float32)) for _ in range(4)]
            self.add(self.shapes[x], "BatchNormalization", x, *parts)

    def layer_normalisation(self) -> None:
        if (x := self.value((2, 3))) and self.shapes[x][-1] > 2:
            # Of values that are all alike it would make noise: so they are made different first.
            spread = self.node("Add", x, self.numbers(self.shapes[x][-1]))
            self.read.add(x)
            last = self.shapes[x][-1]
            self.add(self.shapes[x], "LayerNormalization", spread, self.numbers(last), self.numbers(last), epsilon=0.01)

    def product(self) -> None:
        if x := self.value((2, 3, 4)):
            shape, columns = self.shapes[x], self.pick((1, 2, 3, 7, 8, 16))
            self.add((*shape[:-1], columns), "MatMul", x, self.numbers(shape[-1], columns, scale=shape[-1] ** -0.5))

    def product_of_two(self) -> None:
        x, y = self.value((2, 3, 4)), self.value((2, 3, 4))
        if x and y and self.shapes[x][:-2] == self.shapes[y][:-2] and self.shapes[x][-1] == self.shapes[y][-2]:
            self.add((*self.shapes[x][:-1], self.shapes[y][-1]), "MatMul", x, y)

    def gram(self) -> None:
        if x := self.value((2, 3, 4)):
            shape = self.shapes[x]
            turned = self.node("Transpose", x, perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
            scaled = self.node("Mul", x, self.constant(np.float32(1 / shape[-1])))
            self.read.add(x)
            self.add((*shape[:-1], shape[-2]), "MatMul", scaled, turned)

    def dense(self) -> None:
        if x := self.value((2,)):
            rows, columns = self.shapes[x][1], self.pick((1, 3, 4, 10))
            weights = self.numbers(columns, rows, scale=rows**-0.5)
            self.add((self.shapes[x][0], columns), "Gemm", x, weights, self.numbers(columns), transB=1)

    def softmax(self) -> None:
        if x := self.value():
            self.add(self.shapes[x], "Softmax", x, axis=self.pick(range(len(self.shapes[x]))))

    def reduction(self) -> None:
        if x := self.value():
            shape, keep = self.shapes[x], self.pick((0, 1))
            axes = sorted({self.pick(range(len(shape))) for _ in range(self.pick((1, 2)))})
            result = [1 if n in axes else length for n, length in enumerate(shape) if keep or n not in axes]
            operator = self.pick(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"))
            if result:
                self.add(result, operator, x, axes=axes, keepdims=keep)

    def transposition(self) -> None:
        if x := self.value((2, 3, 4, 5)):
            order = self.data.draw(st.permutations(range(len(self.shapes[x]))))
            self.add([self.shapes[x][n] for n in order], "Transpose", x, perm=order)

    def reshaping(self) -> None:
        if x := self.value():
            shape = list(self.shapes[x])
            match self.pick(("flatten", "join", "split", "one")):
                case "flatten":
                    shape = [1, int(np.prod(shape))]
                case "join" if len(shape) > 2:
                    at = self.pick(range(len(shape) - 1))
                    shape[at : at + 2] = [shape[at] * shape[at + 1]]
                case "split" if len(shape) < 5:
                    at = self.pick(range(len(shape)))
                    part = self.pick([d for d in range(1, shape[at] + 1) if shape[at] % d == 0])
                    shape[at : at + 1] = [part, shape[at] // part]
                case "one" if len(shape) < 5:
                    shape.insert(self.pick(range(len(shape) + 1)), 1)
            self.add(shape, "Reshape", x, self.indices(*shape))

    def cut(self) -> None:
        if x := self.value():
            shape = list(self.shapes[x])
            axis = self.pick(range(len(shape)))
            start = self.pick(range(shape[axis]))
            end, step = self.pick(range(start + 1, shape[axis] + 1)), self.pick((1, 1, 2))
            shape[axis] = len(range(start, end, step))
            self.add(shape, "Slice", x, *map(self.indices, (start, end, axis, step)))

    def backwards(self) -> None:
        if x := self.value():
            axis = self.pick(range(len(self.shapes[x])))
            self.add(self.shapes[x], "Slice", x, *map(self.indices, (-1, -100, axis, -1)))

    def splitting(self) -> None:
        if (x := self.value()) and (axes := [n for n, length in enumerate(self.shapes[x]) if length > 1]):
            shape, axis = list(self.shapes[x]), self.pick(axes)
            first = self.pick(range(1, shape[axis]))
            parts = first, shape[axis] - first
            name = self.node("Split", x, self.indices(*parts), outputs=2, axis=axis)
            self.read.add(x)
            for part, length in zip((name, f"{name}_1"), parts, strict=True):
                self.shapes[part] = (*shape[:axis], length, *shape[axis + 1 :])

    def joining(self) -> None:
        if x := self.value():
            shape = list(self.shapes[x])
            axis = self.pick(range(len(shape)))
            rest = [*shape[:axis], *shape[axis + 1 :]]
            fitting = [
                n for n, s in self.shapes.items() if len(s) == len(shape) and [*s[:axis], *s[axis + 1 :]] == rest
            ]
            chosen = [x, *(self.pick(fitting) for _ in range(self.pick((1, 2))))]
            shape[axis] = sum(self.shapes[name][axis] for name in chosen)
            self.add(shape, "Concat", *chosen, axis=axis)

    def padding(self) -> None:
        if x := self.value():
            shape = self.shapes[x]
            mode = self.pick(("constant", "edge", "reflect"))
            widths = [[self.pick((0, 0, 1, 2)) if n > 2 or mode != "reflect" else 0 for n in shape] for _ in range(2)]
            result = [n + b + a for n, b, a in zip(shape, *widths, strict=True)]
            self.add(result, "Pad", x, self.indices(*widths[0], *widths[1]), mode=mode)

    def enlarging(self) -> None:
        if x := self.value((4,)):
            shape = self.shapes[x]
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            mode = self.pick(("nearest", "linear"))
            self.add((*shape[:2], 2 * shape[2], 2 * shape[3]), "Resize", x, "", scales, mode=mode)

    def taking(self) -> None:
        if x := self.value():
            shape = list(self.shapes[x])
            axis = self.pick(range(len(shape)))
            places = [self.pick(range(-shape[axis], shape[axis])) for _ in range(self.pick((1, 2, 5)))]
            shape[axis] = len(places)
            self.add(shape, "Gather", x, self.indices(*places), axis=axis)

    def selecting(self) -> None:
        if x := self.value():
            positive = self.node("Greater", x, self.constant(np.float32(0)))
            self.read.add(x)
            self.add(self.shapes[x], "Where", positive, x, self.numbers(self.shapes[x][-1]))

    def grow(self) -> None:
        """Add a random node."""
        self.pick((
            self.unary, self.clip, self.binary, self.with_constant, self.convolution, self.image_convolution,
            self.transposed_convolution, self.pool, self.global_pool, self.normalisation, self.layer_normalisation,
            self.product, self.product_of_two, self.gram, self.attention, self.dense, self.softmax, self.reduction,
            self.transposition, self.reshaping, self.cut, self.backwards, self.splitting, self.joining, self.padding,
            self.enlarging, self.taking, self.selecting,
        ))()  # fmt: skip

    def finished(self) -> bytes:
        """Return the model: what nobody reads is an output, and a few values that are read, too."""
        made = [name for name in self.shapes if not name.startswith("x")]
        leaves = [name for name in made if name not in self.read]
        also = [name for name in made if name in self.read and self.pick((False, False, False, True))]
        outputs = [*leaves, *also][:60]
        return self.model(*(self.named("Identity", name, f"y{n}") for n, name in enumerate(outputs or ["x0"])))


def sizes(network: Network, patch: pytest.MonkeyPatch) -> None:
    """Draw from what size on attention is one node, how large blocks and bands are, and which pixels lie apart."""
    patch.setattr(layout, "_CROWDED_BYTES", network.pick((1024, 4, 16)))
    if network.pick((True, False)):
        patch.setattr(scores, "MIN_SCORES_BYTES", 0)
        patch.setattr(blocks, "_BLOCK_BYTES", network.pick((1, 256)))
        patch.setattr(bands, "_BAND_BYTES", network.pick((1, 20_000)))


@pytest.mark.property
@settings(max_examples=max(60, settings().max_examples // 4), suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs_agree_with_onnxruntime(data: st.DataObject) -> None:
    """Every output, within the tolerance that holds for every model; and no call leaves anything to the next one."""
    network = Network(data)
    for _ in range(network.pick(range(1, 16))):
        network.grow()
    model = network.finished()
    target = network.pick(list(Target))
    with pytest.MonkeyPatch.context() as patch:
        sizes(network, patch)
        compiled = compile_model(model, CompileOptions(target=target))
    rng = np.random.default_rng(0)
    inputs = {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in compiled.spec.inputs}
    with Runner(compiled) as runner:
        got = runner.run(inputs)
        runner.run({name: np.full_like(array, np.nan) for name, array in inputs.items()})
        again = runner.run(inputs)
    assert [a.tobytes() for a in got] == [a.tobytes() for a in again]
    assert_close(got, run_onnxruntime(model, inputs))
