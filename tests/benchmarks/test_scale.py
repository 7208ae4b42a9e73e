"""The benchmark of many devices runs: every step of it ends, and every figure is there."""

import subprocess
import sys

import pytest

from tests.controller.cli.fleets import ENVIRONMENT


@pytest.mark.slow
def test_a_few_devices_go_through_every_step() -> None:
    """What the figures are is not judged here."""
    command = [sys.executable, "-m", "benchmarks.scale", "--devices", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert ["devices", "3", "grew"] == head.split()
    assert 14 == len(rows)
