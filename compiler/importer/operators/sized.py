"""Operators whose results have a size that depends on the data: they are computed here, of constants alone."""

from typing import Final

import numpy as np

from compiler.importer.context import NodeContext
from compiler.importer.registry import REFUSALS, operator

_OF_DATA: Final = (
    "the size of its result depends on the data, the shapes of a module are fixed: "
    "end the model before it, and let the host do this"
)
REFUSALS.update({("", name): _OF_DATA for name in ("NonMaxSuppression", "Unique")})


@operator("NonZero")
def non_zero(n: NodeContext) -> None:
    """The places of what is not zero."""
    if not n.is_constant(0):
        raise n.refuse(_OF_DATA)
    n.set(n.graph.constant(np.array(np.nonzero(n.constant(0)), np.int64)))


@operator("Compress")
def compress(n: NodeContext) -> None:
    """What a truth says of the entries along an axis, or of all elements."""
    if not n.is_constant(1):
        raise n.refuse(_OF_DATA)
    axis = n.attribute("axis")
    value = n[0] if axis is not None else n.graph.reshape(n[0], (n.type().elements,))
    places = np.flatnonzero(n.constant(1)).astype(np.int64)
    n.set(n.graph.take(value, n.graph.constant(places), n.axis(axis or 0, len(n.graph.shape(value)))))
