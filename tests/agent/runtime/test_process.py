"""The isolation level `process`: what only a process of its own can do."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from agent.runtime import Caps, LoadedModel, ModelError, ModuleCache, Zygote, assemble, load_model
from agent.runtime import errors as error_module
from agent.runtime.errors import (
    DeadlineError,
    ProcessDiedError,
    ProcessStartError,
    StackOverflowError,
    StatusError,
    TrapError,
)
from agent.runtime.sandbox import Terms
from agent.runtime.wire import (
    MAX_MESSAGE_BYTES,
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

Text = Callable[..., str]
Open = Callable[..., LoadedModel]
X = TensorSpec(name="x", datatype="FP32", shape=(2,))
IN, OUT = [struct.pack("<2f", 1, 2)], [struct.pack("<2f", 2, 4)]
QUICK = Caps(memory_bytes=64 << 20, deadline_ms=30)


@pytest.fixture
def own_zygote() -> Iterator[Zygote]:
    """A zygote that a test may treat badly."""
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def open_model(zygote: Zygote) -> Iterator[Open]:
    """Load a model into a process; it is closed when the test ends."""
    loaded = []

    def make(wat: str, cache: ModuleCache | None = None, by: Zygote = zygote) -> LoadedModel:
        loaded.append(load_model(assemble(wat), (X,), (X,), QUICK, zygote=by, cache=cache))
        return loaded[-1]

    yield make
    for model in loaded:
        model.close()


def process_of(model: LoadedModel) -> int:
    """Return the process in which the model is now."""
    info = Path(f"/proc/self/fdinfo/{model._sandbox._pidfd}").read_text()
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


def test_process_that_dies_is_replaced(open_model: Open, text: Text) -> None:
    """Whatever killed it, the call says so and the next one runs."""
    model = open_model(text())
    for _ in range(2):
        pid = process_of(model)
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        with pytest.raises(ProcessDiedError) as caught:
            model.infer(IN)
        assert "process_died" == caught.value.code
        assert OUT == model.infer(IN)


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
        if isinstance(kind, type) and issubclass(kind, ModelError) and kind.__init__ is ModelError.__init__
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
