"""Faults of models: counted by layer, logged once, captured if the owner allows, and reproduced from the capture."""

import contextlib
import hashlib
import logging
import os
import stat
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.captures import CaptureError, Captures, capture_files, read_capture, read_head
from agent.cli import main
from agent.diagnostics import MAX_LOGGED, Diagnostics
from agent.host import ModelHost
from agent.replay import Replay, find_module, replay
from agent.runtime import Caps, assemble, load_model
from agent.runtime.errors import DeadlineError, FaultError, ProcessDiedError, TrapError
from agent.telemetry import Telemetry
from agent.usage import MAX_LAYERS, TrapCounter, UsageMeter
from protocol.limits import MAX_LAYER_CHARS, MAX_TRAPS_PER_USAGE
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.messages import TrapCount
from protocol.tensors import TensorSpec

X = TensorSpec(name="x", datatype="INT32", shape=(1,))
CAPS = Caps(memory_bytes=65_536, deadline_ms=50)
WAT = """(module (memory (export "memory") 1 1) (global $calls (mut i32) (i32.const 0))
  (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
  (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
  (func $divide (result i32) (i32.div_s (i32.const 12) (i32.load (i32.const 0))))
  (func $conv1 (if (i32.lt_s (i32.load (i32.const 0)) (i32.const -10)) (then unreachable)))
  (func $spin (if (i32.eq (i32.load (i32.const 0)) (i32.const 99)) (then (loop $l (br $l)))))
  (func $hidden (if (i32.and (i32.eq (i32.load (i32.const 0)) (i32.const 7)) (global.get $calls)) (then unreachable)))
  (func (export "fleet_reset") (global.set $calls (i32.const 0)))
  (func (export "fleet_infer") (result i32)
    (call $conv1) (call $spin) (call $hidden)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (i32.store (i32.const 64) (call $divide)) (i32.const 0)))"""
MODULE = assemble(WAT)
MANIFEST = Manifest(
    model="digits",
    version="1.0.0",
    release_counter=1,
    inputs=(X,),
    outputs=(X,),
    variants=(Variant(file=FileRef.of(MODULE), contract=Contract(memory_bytes=65_536)),),
    self_test=SelfTest(file=FileRef.of(bytes(8)), count=1),
    provenance=Provenance(source=FileRef.of(MODULE), source_name="model.wat", tool="test"),
    stateful=True,
)


def number(value: int) -> bytes:
    return struct.pack("<i", value)


class Device:
    """A host with one model, and the folder of its captures."""

    def __init__(self, folder: Path, max_count: int = 5, max_bytes: int = 1 << 20) -> None:
        self.folder = folder
        self.meter = UsageMeter()
        self.captures = Captures(folder)
        self.captures.allow(max_count, max_bytes)
        diagnostics = Diagnostics(self.meter, self.captures, lambda: 1_768_478_400_000)
        self.host = ModelHost(self.meter, lambda *_: None, diagnostics)
        self.host.activate(MANIFEST, load_model(MODULE, (X,), (X,), CAPS, stateful=True), is_committed=True)

    def fail(self, value: int) -> FaultError:
        with pytest.raises(FaultError) as caught:
            self.host.infer("digits", [number(value)])
        return caught.value

    def kept(self) -> list[Path]:
        return capture_files(self.folder)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path / "captures")


def test_error_says_where_in_which_release_and_on_what(device: Device) -> None:
    """Kind, layer, offset, release, the input's digest and the capture's name are fields, not prose."""
    error = device.fail(0)
    assert isinstance(error, TrapError)
    assert ("integer_division_by_zero", "divide", "digits 1.0.0") == (error.kind, error.function, error.release)
    assert error.offset > 0
    assert hashlib.sha256(number(0)).hexdigest() == error.input_digest
    assert [error.capture] == [path.name for path in device.kept()]
    late = device.fail(99)
    assert isinstance(late, DeadlineError)
    assert ("deadline_exceeded", "spin") == (late.kind, late.function)


def test_faults_are_counted_by_kind_and_layer(device: Device) -> None:
    """What telemetry tells is where, how and how often; errors are counted by their code besides."""
    for value in (0, 0, -11, 99):
        device.fail(value)
    device.host.infer("digits", [number(3)])
    (usage,) = device.meter.take()
    assert {
        ("integer_division_by_zero", "divide"): 2,
        ("unreachable", "conv1"): 1,
        ("deadline_exceeded", "spin"): 1,
    } == {(trap.kind, trap.layer): trap.count for trap in usage.traps}
    assert ({"trap": 3, "deadline_exceeded": 1}, 1) == (usage.errors, usage.inferences)


def test_the_same_fault_is_logged_once_and_without_its_input(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """A storm of traps does not fill the log, and no tensor appears in it."""
    caplog.set_level(logging.INFO, "agent")
    for value in (0, 0, 0, -11, -12):
        device.fail(value)
    lines = [record.getMessage() for record in caplog.records]
    assert 2 == len(lines)
    assert "digits 1.0.0: trap in layer 'divide': integer divide by zero" in lines[0]
    assert "captured in digits-1.0.0-" in lines[0]
    assert hashlib.sha256(number(-11)).hexdigest() in lines[1]


def test_a_capture_is_for_the_owner_alone_and_one_of_each_fault(device: Device) -> None:
    """Mode 0600 in a folder of mode 0700; the first input of each fault stays."""
    for value in (0, -11, -12):
        device.fail(value)
    assert 2 == len(device.kept())
    assert 0o700 == stat.S_IMODE(device.folder.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in device.kept()}
    assert {(number(0),), (number(-11),)} == {tuple(read_capture(path).inputs) for path in device.kept()}


def test_nothing_is_captured_unless_the_owner_wants_it(tmp_path: Path) -> None:
    """Inputs may be pictures of people: by default there is no file at all."""
    device = Device(tmp_path / "captures", max_count=0)
    assert "" == device.fail(0).capture
    assert not device.folder.exists()


def test_captures_are_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    """The oldest goes; one that is larger than all may be is not written."""
    device = Device(tmp_path / "captures", max_count=2)
    for moment, value in enumerate((0, -11, 99)):
        os.utime(device.folder / device.fail(value).capture, (moment, moment))
    assert {"conv1", "spin"} == {read_head(path).fault.layer for path in device.kept()}
    device.captures.allow(2, 100)
    assert "" == device.fail(0).capture
    assert 2 == len(device.kept())


def test_faults_in_ever_other_layers_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A module may have any number of layers to trap in: so many places of a release are told, of another one too."""
    caplog.set_level(logging.INFO, "agent")
    diagnostics = Diagnostics(UsageMeter())
    for n in (*range(300), *range(300)):
        diagnostics.note(MANIFEST, CAPS, [number(0)], TrapError("trap", kind="unreachable", function=f"layer{n}"))
    assert MAX_LOGGED == len(caplog.records)
    other = msgspec.structs.replace(MANIFEST, model="letters")
    diagnostics.note(other, CAPS, [number(0)], TrapError("trap", kind="unreachable", function="layer0"))
    assert MAX_LOGGED + 1 == len(caplog.records)


def test_a_full_disk_does_not_hide_the_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The caller hears of the trap; that there is no capture is in the log."""
    folder = tmp_path / "captures"
    folder.write_text("not a folder")
    error = Device(folder).fail(0)
    assert ("trap", "") == (error.code, error.capture)
    assert "an input could not be captured" in caplog.text


@pytest.mark.parametrize("value", [0, -11, 99])
def test_a_capture_reproduces_the_fault(device: Device, value: int) -> None:
    """The same release on the same input goes wrong in the same place."""
    name = device.fail(value).capture
    result = replay(read_capture(device.folder / name), MODULE)
    assert "reproduced" == result.outcome
    assert str(result).startswith("digits 1.0.0: reproduced\n  then: ")


def test_a_capture_of_a_process_is_replayed_in_one(tmp_path: Path) -> None:
    """The isolation level is that of the device."""
    captures = Captures(tmp_path, isolation="process")
    captures.allow(1, 1 << 20)
    Diagnostics(UsageMeter(), captures).note(MANIFEST, CAPS, [number(0)], ProcessDiedError("the process ended"))
    (path,) = capture_files(tmp_path)
    capture = read_capture(path)
    assert "process" == capture.head.isolation
    result = replay(capture, MODULE)
    assert ("another_fault", True) == (result.outcome, "integer divide by zero" in result.happened)


def test_a_fault_that_needs_earlier_calls_is_not_reproduced_and_says_why(device: Device) -> None:
    """Of a stateful model only the last input is captured."""
    device.host.infer("digits", [number(3)])
    result = replay(read_capture(device.folder / device.fail(7).capture), MODULE)
    assert (
        Replay(
            outcome="no_fault",
            release="digits 1.0.0",
            expected=result.expected,
            happened="",
            hint="the model is stateful: what it was given before that call is not captured",
        )
        == result
    )
    assert "not reproduced: the model answered" in str(result)


def test_another_module_is_not_replayed(device: Device, tmp_path: Path) -> None:
    """The answer would be about another release."""
    capture = read_capture(device.folder / device.fail(0).capture)
    with pytest.raises(CaptureError, match=r"expected the module of digits 1\.0\.0, got one with SHA-256"):
        replay(capture, b"\0asm")
    with pytest.raises(CaptureError, match="name a file with --module"):
        find_module(tmp_path, MANIFEST)
    (tmp_path / FileRef.of(MODULE).digest).write_bytes(MODULE)
    assert MODULE == find_module(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"x",
        lambda raw: raw[:-1] + b"x",
        lambda raw: raw.replace(b'"schema":1', b'"schema":2'),
        lambda raw: raw[:40],
        lambda raw: b"",
        lambda raw: b"{" * 1_000_000,
        lambda raw: raw.replace(b'"digits"', b'"../../x"'),
        lambda raw: raw.replace(b"\n", b" "),
        lambda raw: raw.replace(b'"at_ms":1768478400000', b'"at_ms":9007199254740991'),
    ],
)
def test_a_damaged_capture_is_refused(device: Device, damage: object) -> None:
    """Whatever is in the file, the message says that it is no capture, or which part is not whole."""
    path = device.folder / device.fail(0).capture
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CaptureError):
        read_capture(path)


def test_a_damaged_capture_hides_no_other(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    """The list goes on behind it, and the exit status says that something is wrong."""
    kept = device.fail(0).capture
    raw = (device.folder / kept).read_bytes()
    (device.folder / "a.capture").write_bytes(b"{")
    (device.folder / "z.capture").write_bytes(raw.replace(b'"message":"', b'"message":"\\u001b[2J'))
    status = main(["captures", "--state", str(device.folder.parent)])
    out, err = capsys.readouterr()
    assert (1, True, True) == (status, out.startswith(f"{kept}  "), "a.capture is not a capture" in err)
    assert "  ?[2Jtrap" in out  # what others wrote does nothing to the terminal


@pytest.mark.property
@given(st.binary(max_size=200), st.integers(0, 2000))
def test_no_bytes_make_reading_a_capture_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    """A capture may come from anywhere: by post from another device, or from a disk that failed."""
    folder = tmp_path_factory.mktemp("captures")
    captures = Captures(folder)
    captures.allow(1, 1 << 20)
    Diagnostics(UsageMeter(), captures).note(MANIFEST, CAPS, [number(0)], TrapError("t"))
    (path,) = capture_files(folder)
    raw = path.read_bytes()
    path.write_bytes(raw[:at] + noise + raw[at + len(noise) :])
    with contextlib.suppress(CaptureError):
        read_capture(path)


def test_names_of_layers_are_bounded_and_printable() -> None:
    """A hostile module, or the process that runs it, names itself as it likes; telemetry stays within the protocol."""
    meter = UsageMeter()
    diagnostics = Diagnostics(meter)
    for n in range(300):
        fault = TrapError("t" * 10_000, kind="k" * 5_000, function=f"{n}\n" + "é" * 500)
        diagnostics.note(MANIFEST, CAPS, [], fault)
    (usage,) = meter.take()
    assert len(usage.traps) <= MAX_TRAPS_PER_USAGE
    assert 300 == sum(trap.count for trap in usage.traps)
    assert all(trap.layer.isprintable() and len(trap.layer) <= MAX_LAYER_CHARS for trap in usage.traps)


places = st.lists(st.tuples(st.sampled_from(["trap", "deadline"]), st.integers(0, 60), st.integers(1, 9)), max_size=120)


@given(places, places)
def test_counts_of_traps_can_be_added(left: list[tuple[str, int, int]], right: list[tuple[str, int, int]]) -> None:
    """Adding loses no trap and stays within the bound, whatever is added to what."""
    counters = []
    for part in (left, right):
        counter = TrapCounter()
        for kind, layer, count in part:
            counter.record(kind, str(layer), count)
        counters.append(counter)
    total = TrapCounter((*counters[0].counts(), *counters[1].counts())).counts()
    assert sum(count for _, _, count in (*left, *right)) == sum(trap.count for trap in total)
    assert len(total) <= MAX_LAYERS + 2
    assert len({(trap.kind, trap.layer) for trap in total}) == len(total)


def test_telemetry_adds_the_traps_of_an_interval() -> None:
    """Asking for the status in between, which takes the counters, loses nothing."""
    meter = UsageMeter()
    telemetry = Telemetry(meter, session=1, now_ms=0)
    for _ in range(3):
        meter.record_trap("digits", "1.0.0", "unreachable", "conv1")
        telemetry.answered()
    (record,) = telemetry.take(1_000)
    assert (TrapCount(kind="unreachable", layer="conv1", count=3),) == record.models[0].traps


def test_head_of_a_capture_is_readable_by_other_programs(device: Device) -> None:
    """One line of JSON, with the schema first to look at."""
    line = (device.folder / device.fail(0).capture).read_bytes().split(b"\n")[0]
    head = msgspec.json.decode(line)
    assert (1, "divide", "digits") == (head["schema"], head["fault"]["layer"], head["manifest"]["model"])
