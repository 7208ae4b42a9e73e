"""What a compilation may be told."""

import msgspec

from compiler.kernels.target import Target


class CompileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to compile a model."""

    input_shapes: dict[str, tuple[int, ...]] = {}
    """The shapes of inputs by name, for models that leave dimensions open."""
    input_values: dict[str, float | int | bool] = {}
    """Numbers for inputs that are settings rather than data, such as a sample rate: they are inputs no more."""
    target: Target = Target.RELAXED
    name: str | None = None
    """The name of the model; by default that of its graph, if it can be one."""
    version: str | None = None
