"""The engines and their clock."""

import subprocess
import sys

import pytest

from agent.runtime import engine_features, runtime_name
from agent.runtime.deadline import PERIOD_MS, ticks_for
from agent.runtime.engine import engine_for
from protocol.limits import STACK_CLASSES_KIB


def test_every_configuration_is_accepted_by_the_engine() -> None:
    """A bad one would abort the process, so a process of its own tries them."""
    code = f"from agent.runtime.engine import engine_for\nfor k in {STACK_CLASSES_KIB}: engine_for(k)"
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode


def test_each_stack_class_has_one_engine() -> None:
    """Modules of one class share an engine, and there are no other classes."""
    assert engine_for(64) is engine_for(64)
    assert engine_for(64) is not engine_for(256)
    with pytest.raises(ValueError, match="expected stack_kib in"):
        engine_for(65)


@pytest.mark.parametrize("deadline_ms", [1, PERIOD_MS, PERIOD_MS + 1, 1000, 600_000])
def test_deadline_in_ticks_is_never_early(deadline_ms: int) -> None:
    """The first tick may come at once, so one more than fit is allowed, and not many more."""
    ticks = ticks_for(deadline_ms)
    assert deadline_ms <= (ticks - 1) * PERIOD_MS < deadline_ms + PERIOD_MS


def test_capacity_is_named() -> None:
    """What a device reports, so that releases can be matched with it."""
    assert ("simd128", "relaxed_simd") == engine_features()
    assert runtime_name().startswith("wasmtime/")
