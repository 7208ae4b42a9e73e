"""The operations of the graph.

What ONNX has two hundred operators for is said with these. Three of them do most of the work: `Map` for whatever
is elementwise, `Reduce` for whatever sums up, and views for whatever only moves data. `compiler.ir.typing` says what
types they give, `compiler.ir.reference` what they mean.
"""

from compiler.formula import Formula
from compiler.formula.formula import Number
from compiler.ir.graph import Graph, Operation


class Map(Operation, frozen=True):
    """Compute `formula` for each element of the inputs, which are broadcast against each other."""

    formula: Formula


class Reduce(Operation, frozen=True):
    """Combine over `axes`, which vanish, what `element` makes of the inputs, and `finish` the result.

    The first inputs are those of `element`, broadcast against each other; the others are further operands of `finish`
    and broadcast to the shape of the output.
    """

    axes: tuple[int, ...]
    element: Formula
    combine: str
    finish: Formula


class View(Operation, frozen=True):
    """Another way to look at the same elements."""


class Reshape(View, frozen=True):
    """The same elements in row-major order under another shape."""

    shape: tuple[int, ...]


class Transpose(View, frozen=True):
    """Dimension n of the result is dimension `order[n]` of the input."""

    order: tuple[int, ...]


class Broadcast(View, frozen=True):
    """Repeat dimensions of 1, and add dimensions in front."""

    shape: tuple[int, ...]


class Slice(View, frozen=True):
    """Take `counts` elements along each dimension, from `starts`, each `steps` (not 0) behind the one before."""

    starts: tuple[int, ...]
    steps: tuple[int, ...]
    counts: tuple[int, ...]


class Unfold(View, frozen=True):
    """Replace a dimension by two: which window, and which element in the window."""

    axis: int
    windows: int
    step: int
    """From one window to the next."""
    size: int
    dilation: int
    """From one element of a window to the next."""


class Concat(Operation, frozen=True):
    """Put the inputs one behind the other."""

    axis: int


class Pad(Operation, frozen=True):
    """Add elements of one value around the input."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: Number


class Lookup(Operation, frozen=True):
    """Take elements that the other inputs name: result[o] = data[o, index_1[o], …].

    The last dimensions of the first input are those that indices name, each by one of the other inputs; the dimensions
    before them and the indices broadcast to the shape of the result. Negative indices count from the end.
    """


class Scatter(Operation, frozen=True):
    """Put elements where indices name: a copy of the first input with data[u, index_1[u], …] = updates[u].

    The second input has the updates. The last dimensions of the first are those that indices name; the dimensions
    before them are as long as those of the updates, or 1.
    """

    combine: Formula | None
    """Of what is there and what comes, or None to replace it."""


class Running(Operation, frozen=True):
    """Running totals along the last dimension."""

    combine: str
    is_exclusive: bool


class Extreme(Operation, frozen=True):
    """The place of the greatest or least element along the last dimension, which vanishes."""

    is_greatest: bool
    is_last: bool
    """Whether the last of equal ones is meant."""


class Top(Operation, frozen=True):
    """The greatest or least few elements along the last dimension, in order, and their places."""

    count: int
    is_greatest: bool


class MatMul(Operation, frozen=True):
    """Multiply matrices of 32-bit floats: (…, M, K) by (…, K, N), plus a bias (N), then `epilogue`.

    Its first operand is the product, the others are the inputs behind the bias, broadcast to the shape of the output.
    """

    epilogue: Formula


class Conv(Operation, frozen=True):
    """Convolve an image (N, C, H, W) of 32-bit floats with (O, C / groups, h, w), plus a bias (O), then `epilogue`."""

    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Zeros above, left, below and right."""
    groups: int
    epilogue: Formula
    is_exact: bool = False
    """Its operands are whole numbers whose plain sums are below 2**24: no scheme that rounds may take their place."""


class Softmax(Operation, frozen=True):
    """Along the last axis: e**x / sum, or its logarithm."""

    is_log: bool


class Attention(Operation, frozen=True):
    """Weigh values by how well their keys fit queries: `epilogue` of softmax(`scores` of Q K + bias) V + bias.

    Inputs: Q (…, M, K), K (…, K, L), its bias (L), V (…, L, N), its bias (N), further operands of `scores`, broadcast
    to (…, M, L), and of `epilogue`, broadcast to the shape of the output (…, M, N). The softmax is along L.
    """

    scores: Formula
    epilogue: Formula

    @property
    def masks(self) -> int:
        """How many further operands the scores have."""
        return len(self.scores.args) - 1


class LayerNorm(Operation, frozen=True):
    """Mean 0 and variance 1 along the last axes, (x - mean) / sqrt(variance + epsilon), then `epilogue`.

    Its first operand is that, the others are the inputs behind the first, broadcast to its shape.
    """

    epsilon: float
    epilogue: Formula
    axes: int = 1
    """How many axes that are."""


class If(Operation, frozen=True):
    """Compute one of two graphs, by the truth that is the first input; both take the other inputs."""

    then: Graph
    otherwise: Graph


class Scan(Operation, frozen=True):
    """Compute a graph again and again, with states that each round hands to the next.

    Inputs: the states to begin with; values of which each round gets one entry along the first dimension; values that
    every round sees. The graph takes the same and gives the next states and an entry for each stacked result. Results:
    the last states, and the stacked values.
    """

    body: Graph
    count: int
    states: int
    reversed_inputs: tuple[bool, ...]
    """For each value that is taken apart, whether its last entry comes first."""
    reversed_outputs: tuple[bool, ...]


class While(Operation, frozen=True):
    """Compute a graph while a truth holds, and at most a given number of times.

    Inputs: the number (64 bits), the truth, the states to begin with, values that every round sees. The graph takes the
    number of the round in place of the first, and gives the next truth and the next states. Results: the last states.
    """

    body: Graph
    states: int
