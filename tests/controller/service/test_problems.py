"""What a device says at its birth that it cannot do: kept in bounds, and shown to the operator."""

import json

import pytest

from controller.api import schema
from controller.queries.query import Queries
from controller.reads.devices import get_device
from controller.reads.explain import explain_device
from protocol import dsse, limits
from protocol.messages import LIVENESS_TYPE, Reason
from tests.controller.cli.fleets import call
from tests.controller.service.fleet import HAPPY, FleetCore, ScriptedDevice, bundle, slot
from tests.controller.service.serving import serving

UNSERVED = Reason.of("policy_exceeded", "needs 2 MiB of memory, the device allows 1 MiB")
FULL = Reason.of("disk_full", "the disk takes nothing")


def shown(fleet: FleetCore, device: ScriptedDevice) -> schema.Device:
    """Return what the service says of a device."""
    with fleet.core.store.read() as session:
        return get_device(session, device.id)


def born(fleet: FleetCore, device: ScriptedDevice, problems: dict[str, Reason]) -> None:
    """Have a device say what it runs and what it cannot do."""
    birth = device.liveness(slots=(slot("double", "1.0.0"),), problems=problems)
    fleet.say(device, "liveness", birth)


@pytest.fixture
def device(fleet: FleetCore) -> ScriptedDevice:
    """A device that runs double 1.0.0."""
    release = fleet.release(bundle())
    device = fleet.enroll("press-1")
    rollout = fleet.roll_out("double", "1.0.0")
    fleet.say(device, "receipts", device.report(rollout.deployments[0].id, release, HAPPY))
    return device


def test_the_last_birth_says_what_a_device_cannot_do(fleet: FleetCore, device: ScriptedDevice) -> None:
    """Its death keeps that, its next birth replaces it, and a new key begins with nothing."""
    problems = {"memory": FULL, "model/double": UNSERVED}
    born(fleet, device, problems)
    assert problems == shown(fleet, device).problems
    fleet.say(device, "liveness", device.liveness(online=False))
    assert problems == shown(fleet, device).problems
    born(fleet, device, {"memory": FULL})
    assert {"memory": FULL} == shown(fleet, device).problems
    fleet.enroll(device.id, is_born=False)
    assert {} == shown(fleet, device).problems


def test_problems_are_shown_where_an_operator_looks(fleet: FleetCore, device: ScriptedDevice) -> None:
    """In the list, on the page of the device, in its explanation and in a named query."""
    born(fleet, device, {"memory": FULL, "model/double": UNSERVED})
    with serving(fleet) as served:
        home = ("--home", str(fleet.workspace.path), "--api-url", served.api_url)
        listed = call(*home, "devices", "list").stdout
        page = call(*home, "devices", "show", device.id).stdout
        queried = json.loads(call(*home, "query", "device-problems", "--json").stdout)
    assert "in sync, 2 problems" in listed
    assert [
        ["memory", "the disk takes nothing", "disk_full"],
        ["model/double", UNSERVED.message, "policy_exceeded"],
    ] == [
        [part.strip() for part in line.split("  ") if part.strip()]
        for line in page.splitlines()
        if line.startswith(("memory", "model/"))
    ]
    assert [
        [device.id, "memory", FULL.code, FULL.message, "online"],
        [device.id, "model/double", UNSERVED.code, UNSERVED.message, "online"],
    ] == queried["rows"]
    with fleet.core.store.read() as session:
        explained = explain_device(session, fleet.core.files, device.id, None)
    assert explained.summary.endswith("it runs double 1.0.0; memory: the disk takes nothing")
    assert f"but the device said that it cannot serve it: {UNSERVED.message} (policy_exceeded)" in (
        explained.models[0].because
    )
    assert "see `fleet-agent status` on the device" == explained.next_step


def test_a_problem_cannot_paint_on_a_terminal(fleet: FleetCore, device: ScriptedDevice) -> None:
    """Names, codes and messages come from the device."""
    born(fleet, device, {"\x1b[2J": Reason.of("\x1b]0;x\x07", "\x1b[31mred\r\n")})
    with serving(fleet) as served:
        page = call("--home", str(fleet.workspace.path), "--api-url", served.api_url, "devices", "show", device.id)
    assert "\N{REPLACEMENT CHARACTER}[2J" in page.stdout
    assert not set("\x1b\x07\r") & set(page.stdout)


def raw_birth(device: ScriptedDevice, problems: object) -> bytes:
    """Return a birth with anything in place of its problems, signed by the device."""
    fields = {"device_id": device.id, "session": 7, "online": True, "at_ms": 1, "problems": problems}
    return dsse.seal(json.dumps(fields).encode(), LIVENESS_TYPE, device.key)


@pytest.mark.parametrize(
    "problems",
    [
        None,
        [],
        "full",
        {"memory": None},
        {"memory": "full"},
        {"memory": {"code": "x"}},
        {"memory": {"code": "", "message": "empty"}},
        {"memory": {"code": "c" * 64, "message": ""}},
        {"memory": {"code": 7, "message": "number"}},
        {"memory": {"code": "x", "message": ["list"]}},
        {"memory": {"code": "x", "message": "m" * (limits.MAX_REASON_CHARS + 1)}},
        {"n" * 81: {"code": "x", "message": ""}},
        {f"model/{n}": {"code": "x", "message": ""} for n in range(2 * limits.MAX_MODELS_PER_DEVICE + 1)},
        {f"model/{n}": {"code": "x", "message": "\U0001f4a5" * 500} for n in range(2 * limits.MAX_MODELS_PER_DEVICE)},
    ],
)
def test_problems_out_of_bounds_are_refused_with_their_birth(
    fleet: FleetCore, device: ScriptedDevice, problems: object
) -> None:
    """Wrong types, too many, too long: nothing of it is stored, and the refusal is counted."""
    born(fleet, device, {"memory": FULL})
    before, counted = shown(fleet, device), sum(fleet.core.counters.all().values())
    fleet.say(device, "liveness", raw_birth(device, problems))
    assert before == shown(fleet, device)
    assert counted < sum(fleet.core.counters.all().values())


def test_as_many_problems_as_the_protocol_allows_are_kept(fleet: FleetCore, device: ScriptedDevice) -> None:
    """The longest of each kind."""
    long = Reason.of("c" * 63, "m" * limits.MAX_REASON_CHARS)
    problems = {f"model/{n:074}": long for n in range(2 * limits.MAX_MODELS_PER_DEVICE)}
    born(fleet, device, problems)
    assert problems == shown(fleet, device).problems
    result = Queries(fleet.core.store.path).run(schema.QueryRequest(name="device-problems"))
    assert len(problems) == len(result.rows)


def test_a_device_of_an_older_agent_says_nothing_of_problems(fleet: FleetCore, device: ScriptedDevice) -> None:
    """Its birth has no such field."""
    born(fleet, device, {"memory": FULL})
    fields = {"device_id": device.id, "session": 7, "online": True, "at_ms": 1}
    fleet.say(device, "liveness", dsse.seal(json.dumps(fields).encode(), LIVENESS_TYPE, device.key))
    assert {} == shown(fleet, device).problems
