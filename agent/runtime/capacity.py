"""What the engine and the processor of this machine offer to a model."""

import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

from agent.runtime.engine import FEATURES

_CPU_INFO = Path("/proc/cpuinfo")
_CPU_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


def engine_features() -> tuple[str, ...]:
    """Return the features that a variant may require here, such as `simd128`."""
    return FEATURES


@cache
def runtime_name() -> str:
    """Return the engine and its version, such as `wasmtime/50.0.1`."""
    return f"wasmtime/{version('wasmtime')}"


@cache
def cpu_features() -> tuple[str, ...]:
    """Return the processor's features as the kernel names them, such as `avx2` or `asimd`; empty if it does not."""
    try:
        text = _CPU_INFO.read_text()
    except OSError:
        return ()
    return tuple(sorted({flag for line in _CPU_FLAGS.findall(text) for flag in line.split()}))
