"""The models that tests and benchmarks run: networks as they are deployed, and where they come from.

Those from packages have their trained weights, which are never part of this tree; the others are built here, with the
same random weights every time.
"""

from tests.compiler.models.catalogue import BUILT, PACKAGED, Inputs, Model

__all__ = ["BUILT", "PACKAGED", "Inputs", "Model"]
