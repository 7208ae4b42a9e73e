"""Attention becomes one node whose scores take a small piece of memory, and gives the same answers."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from compiler import CompileOptions, Target, compile_model
from compiler.importer import import_model, read_model
from compiler.ir import Graph
from compiler.ir import operations as ops
from compiler.ir.check import check
from compiler.ir.reference import run
from compiler.passes.attention import fuse_attention
from compiler.passes.fusion import fuse_elementwise
from compiler.passes.numbers import put_numbers_into_formulas
from compiler.pipeline import optimise
from tests.compiler.execution import assert_close, run_compiled
from tests.compiler.onnx_models import ModelWriter, run_onnxruntime

ROWS, LENGTH, WIDTH = 301, 120, 12


class Heads(ModelWriter):
    """Attention in the pieces that exporters write."""

    def qkv(self, stack: Sequence[int] = (2,), rows: int = ROWS, length: int = LENGTH) -> tuple[str, str, str]:
        """Add queries, turned keys, and values, as inputs."""
        return (
            self.input("q", (*stack, rows, WIDTH)),
            self.input("k", (*stack, WIDTH, length)),
            self.input("v", (*stack, length, 7)),
        )

    def scaled(self, q: str, k: str) -> str:
        """Add scores."""
        return self.node("Mul", self.node("MatMul", q, k), self.constant(np.float32(0.25)))

    def mixed(self, scores: str, v: str) -> str:
        """Add the weighted sum of values."""
        return self.node("MatMul", self.node("Softmax", scores, axis=-1), v)


def graph_of(model: bytes) -> Graph:
    """Return a model as the pass gets it."""
    graph = import_model(read_model(model), CompileOptions()).graph
    return fuse_elementwise(put_numbers_into_formulas(graph))


def operations(graph: Graph) -> list[str]:
    """Return what is no view."""
    return [type(n.operation).__name__ for n in graph.nodes if not isinstance(n.operation, ops.View)]


def _plain(w: Heads) -> str:
    q, k, v = w.qkv()
    return w.mixed(w.scaled(q, k), v)


def _one_head(w: Heads) -> str:
    q, k, v = w.qkv((), length=130)
    return w.mixed(w.scaled(q, k), v)


def _mask_of_keys(w: Heads) -> str:
    q, k, v = w.qkv((1, 2))
    return w.mixed(w.node("Add", w.scaled(q, k), w.input("mask", (1, 1, 1, LENGTH))), v)


def _causal(w: Heads) -> str:
    q, k, v = w.qkv((2, 2))
    mask = w.constant(np.triu(np.full((ROWS, LENGTH), -1e9, np.float32), 1))
    return w.mixed(w.node("Add", w.scaled(q, k), mask), v)


def _shared_keys(w: Heads) -> str:
    q = w.input("q", (3, ROWS, WIDTH))
    k, v = w.weights(1, WIDTH, LENGTH, scale=1.0), w.weights(1, LENGTH, 7, scale=1.0)
    return w.mixed(w.scaled(q, k), v)


def _work_behind(w: Heads) -> str:
    q, k, v = w.qkv()
    return w.node("Relu", w.node("Add", w.mixed(w.scaled(q, k), v), w.input("x", (2, ROWS, 7))))


def _heads_side_by_side(w: Heads) -> str:
    x, heads = w.input("x", (1, 110, 36)), (1, 110, 3, WIDTH)
    q, k, v = (w.node("Reshape", w.node("MatMul", x, w.weights(36, 36)), w.constant(np.array(heads))) for _ in range(3))
    q, v = (w.node("Transpose", y, perm=[0, 2, 1, 3]) for y in (q, v))
    mixed = w.node("Transpose", w.mixed(w.scaled(q, w.node("Transpose", k, perm=[0, 2, 3, 1])), v), perm=[0, 2, 1, 3])
    return w.node("MatMul", w.node("Reshape", mixed, w.constant(np.array([1, 110, 36]))), w.weights(36, 5))


FORMS = [_plain, _one_head, _mask_of_keys, _causal, _shared_keys, _work_behind, _heads_side_by_side]


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize("build", FORMS)
def test_every_form_becomes_one_node(build: Callable[[Heads], str], target: Target) -> None:
    """Masks, shared keys, rows that fill no block: scores in small pieces, and the answer is that of onnxruntime."""
    w = Heads()
    model = w.model(build(w))
    graph = optimise(import_model(read_model(model), CompileOptions())).graph
    assert 1 == operations(graph).count("Attention")
    assert 0 == operations(graph).count("Softmax")
    compiled = compile_model(model, CompileOptions(target=target))
    inputs = {t.name: w.rng.standard_normal(t.shape).astype(np.float32) for t in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))


@pytest.mark.parametrize("build", FORMS)
def test_the_node_means_the_same_to_the_bit(build: Callable[[Heads], str]) -> None:
    """By the definition of its pieces."""
    w = Heads()
    graph = graph_of(w.model(build(w)))
    fused = fuse_attention(graph)
    check(fused, "fuse_attention")
    inputs = [w.rng.standard_normal(graph.types[name].shape).astype(np.float32) for name in graph.inputs]
    for want, got in zip(run(graph, inputs), run(fused, inputs), strict=True):
        np.testing.assert_array_equal(got, want, strict=True)


def _scores_read_elsewhere(w: Heads) -> tuple[str, ...]:
    q, k, v = w.qkv()
    scores = w.scaled(q, k)
    return w.mixed(scores, v), scores


def _shares_read_elsewhere(w: Heads) -> tuple[str, ...]:
    q, k, v = w.qkv()
    shares = w.node("Softmax", w.scaled(q, k), axis=-1)
    return w.node("MatMul", shares, v), w.node("Relu", shares)


def _over_queries(w: Heads) -> tuple[str, ...]:
    q, k, v = w.qkv()
    return (w.node("MatMul", w.node("Softmax", w.scaled(q, k), axis=1), v),)


def _logarithms(w: Heads) -> tuple[str, ...]:
    q, k, v = w.qkv()
    return (w.node("MatMul", w.node("LogSoftmax", w.scaled(q, k), axis=-1), v),)


def _shares_of_themselves(w: Heads) -> tuple[str, ...]:
    q, k, _ = w.qkv((2,), 150, 150)
    shares = w.node("Softmax", w.scaled(q, k), axis=-1)
    return (w.node("MatMul", shares, shares),)


def _more_values_than_scores(w: Heads) -> tuple[str, ...]:
    q, k = w.input("q", (400, WIDTH)), w.input("k", (WIDTH, LENGTH))
    return (w.mixed(w.scaled(q, k), w.input("v", (3, LENGTH, 7))),)


def _small(w: Heads) -> tuple[str, ...]:
    q, k, v = w.qkv((4,), 64, 64)
    return (w.mixed(w.scaled(q, k), v),)


@pytest.mark.parametrize(
    "build",
    [
        _scores_read_elsewhere,
        _shares_read_elsewhere,
        _over_queries,
        _logarithms,
        _shares_of_themselves,
        _more_values_than_scores,
        _small,
    ],
)
def test_what_is_no_attention_or_gains_nothing_stays(build: Callable[[Heads], tuple[str, ...]]) -> None:
    """And is computed as it stands."""
    w = Heads()
    model = w.model(*build(w))
    assert 0 == operations(fuse_attention(graph_of(model))).count("Attention")
    compiled = compile_model(model)
    inputs = {t.name: w.rng.standard_normal(t.shape).astype(np.float32) for t in compiled.spec.inputs}
    assert_close(run_compiled(compiled, inputs), run_onnxruntime(model, inputs))


def test_memory_does_not_grow_with_the_square_of_the_length() -> None:
    """12 heads of 512 tokens have 12 MiB of scores; the arena is queries, keys, values and a block of scores."""
    w = ModelWriter()
    q, k, v = (
        w.input(name, shape) for name, shape in zip("qkv", ((12, 512, 32), (12, 32, 512), (12, 512, 32)), strict=True)
    )
    compiled = compile_model(w.model(w.node("MatMul", w.node("Softmax", w.node("MatMul", q, k), axis=-1), v)))
    assert compiled.arena_bytes < 7 * 12 * 512 * 32 * 4
    assert compiled.arena_bytes <= 1.25 * compiled.arena_bound_bytes
