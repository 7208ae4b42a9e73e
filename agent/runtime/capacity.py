"""What the engine on this machine offers to a model."""

from importlib.metadata import version

from agent.runtime.engine import FEATURES


def engine_features() -> tuple[str, ...]:
    """Return the features that a variant may require here, such as `simd128`."""
    return FEATURES


def runtime_name() -> str:
    """Return the engine and its version, such as `wasmtime/50.0.1`."""
    return f"wasmtime/{version('wasmtime')}"
