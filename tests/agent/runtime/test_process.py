"""The isolation level `process`: what only a process of its own can do."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from agent.runtime import Caps, LoadedModel, ModelError, ModuleCache, Zygote, assemble, load_model
from agent.runtime import errors as error_module
from agent.runtime.compiled import Compiled
from agent.runtime.errors import (
    DeadlineError,
    FaultError,
    ProcessDiedError,
    ProcessGoneError,
    ProcessStartError,
    StackOverflowError,
    StatusError,
    TrapError,
)
from agent.runtime.sandbox import Terms
from agent.runtime.wire import (
    INFER,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_CHARS,
    Done,
    Failed,
    decode_reply,
    decode_terms,
    describe,
    encode,
    layout,
    restore,
)
from protocol.limits import MAX_RANK, MAX_TENSORS
from protocol.tensors import TensorSpec
from tests.agent.processes import children, cpu_ticks, kill

Text = Callable[..., str]
Open = Callable[..., LoadedModel]
X = TensorSpec(name="x", datatype="FP32", shape=(2,))
IN, OUT = [struct.pack("<2f", 1, 2)], [struct.pack("<2f", 2, 4)]
QUICK = Caps(memory_bytes=64 << 20, deadline_ms=30)
PATIENT = Caps(memory_bytes=64 << 20, deadline_ms=30_000)


@pytest.fixture
def own_zygote() -> Iterator[Zygote]:
    """A zygote that a test may treat badly."""
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def open_model(zygote: Zygote) -> Iterator[Open]:
    """Load a model into a process; it is closed when the test ends."""
    loaded = []

    def make(wat: str, cache: ModuleCache | None = None, by: Zygote = zygote, caps: Caps = QUICK) -> LoadedModel:
        loaded.append(load_model(assemble(wat), (X,), (X,), caps, zygote=by, cache=cache))
        return loaded[-1]

    yield make
    for model in loaded:
        model.close()


def process_of(model: LoadedModel) -> int:
    """Return the process in which the model is now."""
    return pid_of(model._sandbox._pidfd)


def pid_of(handle: int) -> int:
    """Return the process that a pidfd stands for."""
    info = Path(f"/proc/self/fdinfo/{handle}").read_text()
    return int(next(line for line in info.splitlines() if line.startswith("Pid:")).split()[1])


def wait_for_end(pid: int) -> None:
    limit = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < limit, f"process {pid} should have ended"
        time.sleep(0.01)


def test_model_runs_in_a_process_of_its_own(open_model: Open, text: Text) -> None:
    """Each model has a process, and closing it ends that."""
    first, second = open_model(text()), open_model(text())
    pids = {process_of(first), process_of(second), os.getpid()}
    assert 3 == len(pids)
    assert (OUT, OUT) == (first.infer(IN), second.infer(IN))
    pid = process_of(first)
    first.close()
    wait_for_end(pid)
    assert OUT == second.infer(IN)


def test_process_that_does_not_answer_is_killed(open_model: Open, text: Text) -> None:
    """When the engine's own clock does not stop a call, the process is killed, and the next call has another."""
    model = open_model(text())
    pid = process_of(model)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DeadlineError, match="killed: expected an answer within 30 ms"):
        model.infer(IN)
    wait_for_end(pid)
    assert OUT == model.infer(IN)


def kill_and_wait(pid: int) -> None:
    kill(pid)
    wait_for_end(pid)


def test_process_that_dies_between_calls_costs_no_call(open_model: Open, text: Text) -> None:
    """The kernel takes an idle process first when memory is short: the next call has another one."""
    model = open_model(text())
    for _ in range(3):
        kill_and_wait(process_of(model))
        assert OUT == model.infer(IN)


COUNT = """(f32.store (i32.const 64) (f32.add (f32.const 1) (f32.load (i32.const 64)))) (i32.const 0)"""
RESET = '(func (export "fleet_reset") (f32.store (i32.const 64) (f32.const 0)))'


def test_stateful_model_that_dies_between_calls_says_that_it_forgot(zygote: Zygote, text: Text) -> None:
    """What it remembered is gone, and only the caller knows what that means; a reset is what was asked for."""
    wasm = assemble(text(COUNT, more=RESET))
    model = load_model(wasm, (X,), (X,), QUICK, stateful=True, zygote=zygote)
    with closing(model):
        first, second = model.infer(IN), model.infer(IN)
        assert first != second
        state = model.state
        kill_and_wait(process_of(model))
        with pytest.raises(ProcessGoneError) as caught:
            model.infer(IN)
        assert "process_gone" == caught.value.code
        assert state is not model.state
        assert first == model.infer(IN)
        kill_and_wait(process_of(model))
        model.reset()
        assert first == model.infer(IN)


def test_process_that_dies_in_the_middle_of_a_call_is_replaced(open_model: Open, text: Text) -> None:
    """The caller hears of it, since nobody knows how far the call came, and the next one runs."""
    model = open_model(text(SPIN_ON_NEGATIVE), caps=PATIENT)
    for _ in range(3):
        with killed_while_it_runs(model), pytest.raises(ProcessDiedError) as caught:
            model.infer(SPIN)
        assert (ProcessDiedError, "process_died") == (type(caught.value), caught.value.code)
        assert [bytes(8)] == model.infer(IN)


SPIN_ON_NEGATIVE = (
    "(if (f32.lt (f32.load (i32.const 0)) (f32.const 0)) (then (loop $l (br $l)))) (i32.const 0)"  # until it is stopped
)
SPIN = [struct.pack("<2f", -1, 0)]


@contextlib.contextmanager
def killed_while_it_runs(model: LoadedModel) -> Iterator[None]:
    """Kill the process of a model once it has used some of its processor's time in the call."""
    pid = process_of(model)
    before = cpu_ticks(pid)

    def strike() -> None:
        limit = time.monotonic() + 30
        while cpu_ticks(pid) < before + 1 and time.monotonic() < limit:
            time.sleep(0.001)
        kill(pid)

    killer = threading.Thread(target=strike)
    killer.start()
    try:
        yield
    finally:
        killer.join()


class LosesTheFirst(Zygote):
    """A zygote that is killed after it forked, before anybody heard of the new process."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    def fork(self, message: bytes, descriptors: Sequence[int]) -> int:
        handle = super().fork(message, descriptors)
        if self.lost:
            return handle
        self.lost = pid_of(handle)
        os.close(handle)
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.close()
        raise ProcessStartError("lost")


def test_zygote_that_dies_after_forking_leaves_no_second_process_on_the_line(text: Text) -> None:
    """Two processes that hear the same commands would mix up the answers: the lost one ends by itself."""
    with (
        LosesTheFirst() as zygote,
        closing(load_model(assemble(text()), (X,), (X,), QUICK, zygote=zygote)) as model,
    ):
        assert zygote.lost != process_of(model)
        wait_for_end(zygote.lost)
        for n in range(20):
            assert [struct.pack("<2f", 2 * n, 4)] == model.infer([struct.pack("<2f", n, 2)])


def test_hundred_deaths_leave_nothing_behind(own_zygote: Zygote, open_model: Open, text: Text) -> None:
    """Processes and zygotes are killed at every moment: descriptors, children and zombies are as many as before."""

    def taken() -> tuple[int, int, int]:
        assert own_zygote._process is not None
        zygote = own_zygote._process.pid
        return len(list(Path("/proc/self/fd").iterdir())), len(children(os.getpid())), len(children(zygote))

    model = open_model(text(SPIN_ON_NEGATIVE), by=own_zygote, caps=PATIENT)
    before = taken()
    for n in range(100):
        if n % 20 == 19:
            assert own_zygote._process is not None
            own_zygote._process.kill()
        if n % 5 == 4:
            with killed_while_it_runs(model), pytest.raises(ProcessDiedError):
                model.infer(SPIN)
        else:
            kill(process_of(model))
        with contextlib.suppress(ProcessDiedError):  # of a call that came while it was dying
            model.infer(IN)
        assert [bytes(8)] == model.infer(IN)
    limit = time.monotonic() + 30
    while before != taken() and time.monotonic() < limit:
        time.sleep(0.01)
    assert before == taken()


def test_zygote_that_dies_is_replaced(own_zygote: Zygote, open_model: Open, text: Text) -> None:
    """Models that run go on, new ones get a new zygote."""
    running = open_model(text(), by=own_zygote)
    assert own_zygote._process is not None
    own_zygote._process.kill()
    own_zygote._process.wait()
    assert (OUT, OUT) == (running.infer(IN), open_model(text(), by=own_zygote).infer(IN))


def test_closing_the_zygote_ends_every_model(own_zygote: Zygote, open_model: Open, text: Text) -> None:
    """Nothing is left behind when the agent stops."""
    pids = [process_of(open_model(text(), by=own_zygote)) for _ in range(3)]
    own_zygote.close()
    own_zygote.close()
    for pid in pids:
        wait_for_end(pid)


def test_processes_end_when_the_agent_is_killed(tmp_path: Path, text: Text) -> None:
    """Not even SIGKILL of the agent leaves a model running, or its zygote."""
    wasm = tmp_path / "model.wasm"
    wasm.write_bytes(assemble(text()))
    code = f"""if True:
        import time
        from pathlib import Path
        from agent.runtime import Caps, Zygote, load_model
        from protocol.tensors import TensorSpec
        x = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
        zygote = Zygote()
        model = load_model(Path({str(wasm)!r}).read_bytes(), x, x, Caps(), zygote=zygote)
        info = Path(f"/proc/self/fdinfo/{{model._sandbox._pidfd}}").read_text()
        print(zygote._process.pid, info.partition("Pid:")[2].split()[0], flush=True)
        time.sleep(600)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        pids = [int(pid) for pid in agent.stdout.readline().split()]
        agent.kill()
    assert 2 == len(pids)
    for pid in pids:
        wait_for_end(pid)


def test_agent_that_dies_while_a_process_is_forked_leaves_neither_it_nor_the_zygote(text: Text) -> None:
    """The fork has nobody to be told to: it is killed, although it hears from nobody that the agent is gone."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("tensors")
    os.truncate(memory, 16)
    compiled = Compiled.compile(assemble(text()), 64)
    argv = [sys.executable, "-P", "-m", "agent.runtime.zygote_process", str(theirs.fileno())]
    with control, channel, closing(compiled):
        socket.send_fds(
            control,
            [encode(Terms(inputs=(X,), outputs=(X,), caps=QUICK))],
            [inside.fileno(), memory, compiled.code_fd()],
        )
        control.shutdown(socket.SHUT_RD)  # what is sent back is refused, as by an agent that died just now
        inside.close()
        os.close(memory)
        done = subprocess.run(argv, pass_fds=[theirs.fileno()], capture_output=True, timeout=60, check=False)
        theirs.close()
        assert (0, b"") == (done.returncode, done.stderr)
        channel.settimeout(30)
        with contextlib.suppress(ConnectionError):
            while channel.recv(MAX_MESSAGE_BYTES):  # it may have become ready before it was killed
                pass


@contextlib.contextmanager
def bare_process(zygote: Zygote, terms: bytes, wat: str, memory_bytes: int) -> Iterator[socket.socket]:
    """Fork a process for a model with terms and a memory that no agent would give; yield the channel to it."""
    channel, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.settimeout(30)
    with channel, inside, closing(Compiled.compile(assemble(wat), 64)) as compiled:
        memory = os.memfd_create("tensors")
        os.truncate(memory, memory_bytes)
        handle = zygote.fork(terms, (inside.fileno(), memory, compiled.code_fd()))
        os.close(memory)
        inside.close()
        yield channel
        wait_for_end(pid_of(handle))
        os.close(handle)


def test_defect_of_the_process_names_its_place_and_quotes_nothing(own_zygote: Zygote, text: Text) -> None:
    """An exception that is no ModelError is told as the end of the process; its words may quote what came."""
    with bare_process(own_zygote, b"\xa6secret", text(), 16) as channel:
        failed = decode_reply(channel.recv(MAX_MESSAGE_BYTES))
        assert isinstance(failed, Failed)
        error = restore(failed)
        assert isinstance(error, ProcessDiedError)
        assert "the model's process ended by a defect: ValidationError in " in str(error)
        assert "decode_terms (wire.py:" in str(error)
        assert "secret" not in str(error)
        assert not channel.recv(MAX_MESSAGE_BYTES)


def test_defect_of_the_process_in_a_call_names_its_place(own_zygote: Zygote, text: Text) -> None:
    """As at its start: the caller hears where it was, on one short line, and it is the last thing that it says."""
    terms = encode(Terms(inputs=(X,), outputs=(X,), caps=QUICK))
    with bare_process(own_zygote, terms, text(), 8) as channel:  # no room for an output
        assert not isinstance(decode_reply(channel.recv(MAX_MESSAGE_BYTES)), Failed)
        channel.send(INFER)
        failed = decode_reply(channel.recv(MAX_MESSAGE_BYTES))
        assert isinstance(failed, Failed)
        assert "process_died" == failed.code
        assert "ValueError in " in failed.message
        assert "_serve (model_process.py:" in failed.message
        assert "\n" not in failed.message
        assert len(failed.message) < 500
        assert not channel.recv(MAX_MESSAGE_BYTES)


def test_what_a_process_says_is_bounded_and_stays_on_its_line() -> None:
    """A process that was taken over cannot fill the log with one message, nor forge lines of it."""
    said = "x\n2026-01-15 error forged\x1b[2J" + "y" * 100_000
    for code in ("process_died", "abi", "model_status", "unheard-of"):
        error = restore(Failed(code=code, message=said, kind=said, function=said))
        names = (error.kind, error.function or "") if isinstance(error, FaultError) else ()
        for told in (str(error), *names):
            assert told.isprintable()
            assert len(told) <= MAX_TEXT_CHARS + 1


def test_kernel_limits_the_process(open_model: Open, text: Text) -> None:
    """Memory, files and core dumps are bounded, and it dies before the agent does when memory is short."""
    pid = process_of(open_model(text()))
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[1] for line in lines[1:]}
    assert "0" == limits["Max file size"]
    assert "0" == limits["Max core file size"]
    assert "32" == limits["Max open files"]
    assert (64 << 20) < int(limits["Max data size"]) < (512 << 20)
    assert "500" == Path(f"/proc/{pid}/oom_score_adj").read_text().strip()


def test_process_inherits_nothing_of_the_agents(open_model: Open, text: Text, tmp_path: Path) -> None:
    """Open files of the agent, such as keys and connections, are not there; nor are those of other models."""
    with (tmp_path / "secret").open("wb") as secret:
        os.set_inheritable(secret.fileno(), True)
        first = process_of(open_model(text()))
        second = process_of(open_model(text()))
    errors = str(Path("/proc/self/fd/2").readlink())
    for pid in (first, second):
        targets = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert 1 == len([target for target in targets if target.startswith("socket:")])
        assert {"/dev/null", "/memfd", errors, "socket"} >= {t if t == errors else t.partition(":")[0] for t in targets}


def test_cached_code_is_mapped_by_the_process(open_model: Open, text: Text, tmp_path: Path) -> None:
    """The process maps the authenticated file; nobody compiles."""
    cache = ModuleCache(tmp_path / "cache", bytes(32))
    for _ in range(2):
        model = open_model(text(), cache=cache)
        assert OUT == model.infer(IN)
        maps = Path(f"/proc/{process_of(model)}/maps").read_text()
        assert sha256(assemble(text())).hexdigest() in maps
        model.close()


def test_interpreter_that_cannot_start_is_a_model_error(
    text: Text, monkeypatch: pytest.MonkeyPatch, own_zygote: Zygote
) -> None:
    """A machine that cannot start processes refuses the model, with the reason."""
    own_zygote.close()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ProcessStartError, match="No such file"):
        load_model(assemble(text()), (X,), (X,), QUICK, zygote=own_zygote)


def test_every_error_survives_the_way_to_the_agent() -> None:
    """Type, message and attributes are the same on both sides."""
    plain = [
        kind(f"because {kind.code}")
        for kind in vars(error_module).values()
        if isinstance(kind, type)
        and issubclass(kind, ModelError)
        and kind.__init__ is ModelError.__init__
        and kind not in (ProcessGoneError, ProcessStartError)  # not for the process to say
    ]
    assert len(plain) > 5
    faults = [
        TrapError("t", kind="unreachable", function="conv1", offset=7),
        StackOverflowError("s", function="conv1", offset=8),
        DeadlineError("d", function="conv1", offset=9),
        ProcessDiedError("p"),
    ]
    errors = [*plain, *faults, StatusError("s", status=3)]
    for error in errors:
        failed = decode_reply(encode(describe(error, 5)))
        assert isinstance(failed, Failed)
        restored = restore(failed)
        assert (type(error), str(error), vars(error)) == (type(restored), str(restored), vars(restored))


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"\x80", encode(Done(memory_bytes=1))[:-1], encode(Done(memory_bytes=-1))]
)
def test_nonsense_from_a_process_is_an_error(raw: bytes) -> None:
    """A process that was taken over cannot harm the agent by what it says."""
    with pytest.raises(ProcessDiedError, match="nonsense"):
        decode_reply(raw)


def test_largest_terms_fit_in_one_message() -> None:
    """Every model that the protocol allows can be sent to a process."""
    tensors = tuple(
        TensorSpec(name="\N{GRINNING FACE}" * 199 + chr(0x10000 + n), datatype="UINT16", shape=(2,) * MAX_RANK)
        for n in range(MAX_TENSORS)
    )
    terms = Terms(inputs=tensors, outputs=tensors, caps=Caps())
    raw = encode(terms)
    assert len(raw) < MAX_MESSAGE_BYTES
    assert terms == decode_terms(raw)
    inputs, outputs = layout(terms)
    ends = [part.stop for part in (*inputs, *outputs)]
    assert [0, *ends[:-1]] == [part.start for part in (*inputs, *outputs)]
    assert 2 * MAX_TENSORS * 512 == ends[-1]
