"""Transformers: an encoder of sentences with the shape of MiniLM-L6, and a small decoder that writes token by token.

Both are written as exporters write them: shapes computed by nodes, normalisation and GELU in pieces.
"""

import numpy as np

from tests.compiler.onnx_models import ModelWriter

LENGTH, VOCABULARY = 128, 30_522
WIDTH, HEADS, INNER, LAYERS = 384, 12, 1_536, 6

DECODER_VOCABULARY = 256
DECODER_LAYERS, DECODER_HEADS, CONTEXT, HEAD_WIDTH = 2, 4, 64, 16
DECODER_WIDTH = DECODER_HEADS * HEAD_WIDTH
CACHE = (DECODER_LAYERS, DECODER_HEADS, CONTEXT, HEAD_WIDTH)


class _Transformer(ModelWriter):
    """Layers of transformers."""

    def number(self, value: float) -> str:
        """Add a constant number."""
        return self.constant(np.float32(value))

    def dense(self, x: str, before: int, after: int) -> str:
        """Add a dense layer over the last axis."""
        product = self.node("MatMul", x, self.weights(before, after, scale=before**-0.5))
        return self.node("Add", self.weights(after, scale=0.1), product)

    def normalised(self, x: str, width: int) -> str:
        """Add a layer normalisation in pieces, as exporters write it before opset 17."""
        centred = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1]))
        variance = self.node("ReduceMean", self.node("Pow", centred, self.number(2)), axes=[-1])
        deviation = self.node("Sqrt", self.node("Add", variance, self.number(1e-12)))
        scale = self.constant(self.rng.uniform(0.8, 1.2, width).astype(np.float32))
        scaled = self.node("Mul", self.node("Div", centred, deviation), scale)
        return self.node("Add", scaled, self.weights(width, scale=0.1))

    def gelu(self, x: str) -> str:
        """Add a GELU in pieces."""
        gate = self.node("Add", self.node("Erf", self.node("Div", x, self.number(2**0.5))), self.number(1))
        return self.node("Mul", self.node("Mul", x, gate), self.number(0.5))

    def shaped(self, x: str, like: str, *rest: int) -> str:
        """Add a reshape to the first two dimensions of `like` and `rest`, by nodes that compute the shape."""
        parts = []
        for axis in (0, 1):
            dimension = self.node("Gather", self.node("Shape", like), self.constant(np.array(axis)), axis=0)
            parts.append(self.node("Unsqueeze", dimension, self.constant(np.array([0]))))
        return self.node(
            "Reshape", x, self.node("Concat", *parts, *(self.constant(np.array([n])) for n in rest), axis=0)
        )


def minilm() -> bytes:
    """Return the encoder of sentences: six layers, 384 wide, with its mask, and the mean over the tokens."""
    w = _Transformer()
    ids, mask, kinds = (w.input(name, [1, LENGTH], 7) for name in ("input_ids", "attention_mask", "token_type_ids"))
    words = w.node("Gather", w.weights(VOCABULARY, WIDTH, scale=0.5), ids)
    words = w.node("Add", words, w.node("Gather", w.weights(2, WIDTH, scale=0.5), kinds))
    x = w.normalised(w.node("Add", words, w.weights(1, LENGTH, WIDTH, scale=0.5)), WIDTH)
    outside = w.node("Cast", w.node("Unsqueeze", mask, w.constant(np.array([1, 2]))), to=1)
    outside = w.node("Mul", w.node("Sub", w.number(1), outside), w.number(np.finfo(np.float32).min))
    for _ in range(LAYERS):
        x = w.normalised(w.node("Add", _attention(w, x, outside), x), WIDTH)
        hidden = w.gelu(w.dense(x, WIDTH, INNER))
        x = w.normalised(w.node("Add", w.dense(hidden, INNER, WIDTH), x), WIDTH)
    weight = w.node("Cast", w.node("Unsqueeze", mask, w.constant(np.array([-1]))), to=1)
    axes = w.constant(np.array([1]))
    total = w.node("ReduceSum", w.node("Mul", x, weight), axes, keepdims=0)
    count = w.node("Clip", w.node("ReduceSum", weight, axes, keepdims=0), w.number(1e-9))
    return w.model(x, w.node("Div", total, count))


def _attention(w: _Transformer, x: str, outside: str) -> str:
    """Add attention over heads; `outside` is added to the scores."""
    turns = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    query, key, value = (
        w.node("Transpose", w.shaped(w.dense(x, WIDTH, WIDTH), x, HEADS, WIDTH // HEADS), perm=turn) for turn in turns
    )
    scores = w.node("Div", w.node("MatMul", query, key), w.number((WIDTH // HEADS) ** 0.5))
    shares = w.node("Softmax", w.node("Add", scores, outside), axis=-1)
    mixed = w.node("Transpose", w.node("MatMul", shares, value), perm=[0, 2, 1, 3])
    return w.dense(w.shaped(mixed, mixed, WIDTH), WIDTH, WIDTH)


def decoder() -> bytes:
    """Return one step of a decoder: a token and its position in, scores of the next token out.

    What it remembers of the tokens before, `keys` and `values` (layer, head, position, width), goes in and comes out
    with one position more; the host keeps it, and chooses the tokens.
    """
    w = _Transformer()
    token, position = w.input("token", [1], 7), w.input("position", [1], 7)
    past = {name: w.input(name, CACHE) for name in ("keys", "values")}
    embedding = w.weights(DECODER_VOCABULARY, DECODER_WIDTH, scale=1.0)
    x = w.node("Gather", embedding, token)
    x = w.node("Add", x, w.node("Gather", w.weights(CONTEXT, DECODER_WIDTH, scale=0.5), position))
    places = w.constant(np.arange(CONTEXT)[:, None])
    here, later = w.node("Equal", places, position), w.node("Greater", places, position)
    hidden = w.node("Where", w.node("Squeeze", later, w.constant(np.array([1]))), w.number(-1e9), w.number(0))
    present: dict[str, list[str]] = {"keys": [], "values": []}
    for layer in range(DECODER_LAYERS):
        normal = w.normalised(x, DECODER_WIDTH)
        remembered = {}
        for name, outputs in present.items():
            before = w.node("Gather", past[name], w.constant(np.array(layer)), axis=0)
            heads = w.constant(np.array([DECODER_HEADS, 1, HEAD_WIDTH]))
            new = w.node("Reshape", w.dense(normal, DECODER_WIDTH, DECODER_WIDTH), heads)
            remembered[name] = w.node("Where", here, new, before)
            outputs.append(w.node("Unsqueeze", remembered[name], w.constant(np.array([0]))))
        x = w.node("Add", x, _attend(w, normal, remembered, hidden))
        wide = w.gelu(w.dense(w.normalised(x, DECODER_WIDTH), DECODER_WIDTH, 4 * DECODER_WIDTH))
        x = w.node("Add", x, w.dense(wide, 4 * DECODER_WIDTH, DECODER_WIDTH))
    logits = w.node("MatMul", w.normalised(x, DECODER_WIDTH), w.node("Transpose", embedding, perm=[1, 0]))
    logits = w.named("Mul", logits, "logits", w.number(DECODER_WIDTH**-0.5))
    names = [w.named("Concat", parts[0], f"{name}_out", *parts[1:], axis=0) for name, parts in present.items()]
    return w.model(logits, *names)


def _attend(w: _Transformer, x: str, remembered: dict[str, str], hidden: str) -> str:
    """Add the attention of one token over all before it."""
    heads = w.constant(np.array([DECODER_HEADS, 1, HEAD_WIDTH]))
    query = w.node("Reshape", w.dense(x, DECODER_WIDTH, DECODER_WIDTH), heads)
    scores = w.node("MatMul", query, w.node("Transpose", remembered["keys"], perm=[0, 2, 1]))
    scores = w.node("Add", w.node("Mul", scores, w.number(HEAD_WIDTH**-0.5)), hidden)
    mixed = w.node("MatMul", w.node("Softmax", scores, axis=-1), remembered["values"])
    return w.dense(w.node("Reshape", mixed, w.constant(np.array([1, DECODER_WIDTH]))), DECODER_WIDTH, DECODER_WIDTH)
