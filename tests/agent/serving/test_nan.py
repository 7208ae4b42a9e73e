"""A model that answers with NaN, on both isolation levels: it is given, and told and counted where it is flagged."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import main
from agent.client import LocalClient
from agent.host import ModelHost
from agent.runtime import Zygote
from agent.serving.service import LocalService
from agent.usage import UsageMeter
from protocol.messages import TrapCount
from tests.agent.serving.callers import DOUBLE, Raw, activate, request_body

INFER = "/v2/models/digits/infer"
NAN_AT_9 = "(if (f32.eq (f32.load (i32.const 0)) (f32.const 9)) (then (f32.store (i32.const 0) (f32.const nan))))"


@pytest.fixture
def meter() -> UsageMeter:
    return UsageMeter()


@pytest.fixture
def host(meter: UsageMeter, isolation: Zygote | None) -> Iterator[ModelHost]:
    host = ModelHost(meter, lambda *_: None)
    activate(host, infer=NAN_AT_9 + DOUBLE, isolation=isolation)
    yield host
    host.close()


def traps(meter: UsageMeter) -> list[TrapCount]:
    return [trap for usage in meter.take() for trap in usage.traps]


def test_by_default_it_is_a_number_as_any_other(raw: Raw, host: ModelHost, meter: UsageMeter) -> None:
    """Nobody is told: JSON has null where it stands."""
    assert not host.flags_nan
    y = raw.ask("POST", INFER, request_body(9, 1))[2]["outputs"][0]
    assert {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [None, 2.0]} == y
    assert [] == traps(meter)


def test_flagged_answer_says_so_and_is_counted(
    raw: Raw, client: LocalClient, host: ModelHost, meter: UsageMeter, caplog: pytest.LogCaptureFixture
) -> None:
    """In JSON, with binary outputs and in a batch; an answer without it is as ever; nothing counts as an error."""
    host.flags_nan = True
    assert "parameters" not in raw.ask("POST", INFER, request_body(1, 1))[2]["outputs"][0]
    y = raw.ask("POST", INFER, request_body(9, 1))[2]["outputs"][0]
    assert ({"has_nan": True}, [None, 2.0]) == (y["parameters"], y["data"])
    batch = raw.ask("POST", INFER, request_body(1, 1, 9, 1, 9, 1, items=3))[2]["outputs"][0]
    assert ({"has_nan": True}, [2.0, 2.0, None, 2.0, None, 2.0]) == (batch["parameters"], batch["data"])
    fine, flagged = (client.infer("digits", {"x": [value, 1.0]}).outputs["y"] for value in (1.0, 9.0))
    assert (False, [2.0, 2.0]) == (fine.has_nan, fine.values)
    assert (True, True, 2.0) == (flagged.has_nan, math.isnan(flagged.values[0]), flagged.values[1])
    (usage,) = meter.take()
    assert ((TrapCount(kind="nan_output", layer="y", count=4),), {}, 7) == (
        usage.traps,
        usage.errors,
        usage.inferences,
    )
    assert ["digits 1.0.0: NaN in output 'y'; input sha256"] == [m.rpartition(" ")[0] for m in caplog.messages]


def test_policy_may_change_while_models_run(client: LocalClient, host: ModelHost) -> None:
    """What is resident follows at once, there and back."""
    for flags in (True, False):
        host.flags_nan = flags
        assert flags == client.infer("digits", {"x": struct.pack("<2f", 9, 1)}).outputs["y"].has_nan


def test_command_shows_it(
    service: LocalService, host: ModelHost, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fleet-agent infer` marks the output, for people and as JSON."""
    assert service.addresses
    host.flags_nan = True
    given = path.parent / "x.json"
    given.write_text("[9, 1]")
    command = ["infer", "digits", "--state", str(path.parent), "--input", str(given)]
    assert 0 == main(command)
    assert "nan, 2" in (shown := capsys.readouterr().out)
    assert shown.endswith("(has NaN)\n")
    assert 0 == main([*command, "--json"])
    assert '"has_nan":true' in capsys.readouterr().out
