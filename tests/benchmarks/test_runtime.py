"""The benchmark of the device runtime runs; what it measures is not judged here, on a busy machine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_benchmark_prints_one_object_of_medians() -> None:
    """Two quick figures, once: the object has their names and plausible numbers."""
    options = ("--json", "--rounds", "1", "--only", "host_overhead_us", "--only", "rollback_ms")
    argv = [sys.executable, "benchmarks/runtime.py", *options]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert 0 == done.returncode, done.stderr
    figures = json.loads(done.stdout)
    assert {"host_overhead_us", "rollback_ms"} == set(figures)
    assert all(value > 0 for value in figures.values())
    assert "plain wasmtime-py" in done.stderr
