"""The benchmark of compiled models runs; what it measures is not judged here."""

import json
import subprocess
import sys


def test_a_row_for_each_model() -> None:
    """The document has what the page of figures is made of; peers that are not set up are null."""
    command = [sys.executable, "-m", "benchmarks.inference", "--model", "mlp", "--rounds", "1", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    [row] = report["rows"]
    assert "mlp" == row["model"]
    assert {"ours_ms", "web_ms", "native_ms", "ratio_web", "build_s", "device_compile_s"} < row.keys()
    assert row["module_bytes"] > row["stored_bytes"] > 0
    assert row["arena_ratio"] >= 1
    assert min(row["ours_ms"], row["native_ms"], row["build_s"], row["device_compile_s"]) > 0
    assert min(report["peak_gflops"], report["copy_gb_s"]) > 0
    assert (row["web_ms"] is None) == (report["geometric_mean"] is None)
