"""The benchmark of stored weights runs; only sizes, which do not depend on the machine, are judged."""

import json
import subprocess
import sys


def test_a_row_for_each_kind() -> None:
    """A quantised model is a third of its raw form; as it travels it is smaller too."""
    command = [sys.executable, "-m", "benchmarks.weights", "--model", "mlp", "--kind", "qdq", "--rounds", "1", "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    [row] = report["rows"]
    assert ("mlp", "qdq") == (row["model"], row["kind"])
    assert row["module_mb"]["small"] < row["module_mb"]["raw"] / 3
    assert row["travelling_mb"]["small"] < row["travelling_mb"]["raw"]
    assert min(row["ready_ms"]["small"], row["answer_ms"]["raw"], row["call_ms"]["small"]) > 0
