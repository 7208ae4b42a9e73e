"""The benchmark and the soak of the device runtime run; times are not judged here, on a busy machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
def test_soak_finds_nothing_in_a_few_swaps() -> None:
    """Both isolation levels: no call is lost, nothing is left open or behind; trends need a thousand swaps."""
    argv = [sys.executable, "benchmarks/soak.py", "--swaps", "12", "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert ["thread", "process"] == [each["isolation"] for each in seen], done.stderr
    for each in seen:
        problems = [problem for problem in each["problems"] if " grow" not in problem]
        assert (0, []) == (each["lost"], problems)
        assert each["inferences"] > 0
