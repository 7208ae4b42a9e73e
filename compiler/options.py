"""What a compilation may be told."""

import enum

import msgspec

from compiler.kernels.target import Target
from protocol.limits import DEFAULT_DEADLINE_MS


class Normalization(msgspec.Struct, frozen=True):
    """What a model makes of bytes: (byte - mean) / std, with one number for all or one for each channel (axis 1)."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Weights(enum.Enum):
    """How a module carries its weights; the results are the same, bit by bit."""

    SMALL = "small"
    """In the fewest bytes from which the same floats come again: the module expands them when it starts."""
    RAW = "raw"
    """As they are in memory: a larger module, which starts at once."""


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to compile a model."""

    input_shapes: dict[str, tuple[int, ...]] = {}
    """The shapes of inputs by name, for models that leave dimensions open."""
    input_values: dict[str, float | int | bool] = {}
    """Numbers for inputs that are settings rather than data, such as a sample rate: they are inputs no more."""
    uint8_inputs: dict[str, Normalization] = {}
    """Float inputs that become inputs of bytes, such as the pixels of a camera; the model normalises them itself."""
    states: dict[str, str] = {}
    """Inputs that are states, each with the output that it is in the next call: the module keeps them, at first 0."""
    labels: dict[str, tuple[str, ...]] = {}
    """What the indices along the last dimension of an output mean."""
    target: Target = Target.RELAXED
    weights: Weights = Weights.SMALL
    name: str | None = None
    """The name of the model; by default that of its graph, if it can be one."""
    version: str | None = None
    deadline_ms: int = DEFAULT_DEADLINE_MS
    """How long a call may take on a device."""
