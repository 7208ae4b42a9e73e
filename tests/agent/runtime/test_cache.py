"""Compiled modules on the disk: kept, found again, and never believed when anything about them is wrong."""

import contextlib
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from agent.runtime import Caps, ModuleCache, assemble, cpu_features, load_model
from agent.runtime.engine import settings
from agent.runtime.errors import (
    AbiError,
    CompileError,
    DeviceMemoryError,
    MemoryCapError,
    ProcessStartError,
    TrapError,
)
from protocol.tensors import TensorSpec
from tests.agent.conftest import Syncs
from tests.agent.processes import COMPILER, children, killing

Text = Callable[..., str]
KEY = bytes(range(32))
X = (TensorSpec(name="x", datatype="FP32", shape=(2,)),)
MANY_FUNCTIONS = "".join(f"(func $f{n} (result i32) (i32.const {n}))" for n in range(4_000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


@pytest.fixture
def cache(folder: Path) -> ModuleCache:
    return ModuleCache(folder, KEY)


def run(wasm: bytes, cache: ModuleCache, *, stack_kib: int = 64) -> list[bytes]:
    model = load_model(wasm, X, X, Caps(memory_bytes=1 << 20, stack_kib=stack_kib), cache=cache)
    try:
        return model.infer([struct.pack("<2f", 1, 2)])
    finally:
        model.close()


DOUBLED = [struct.pack("<2f", 2, 4)]


def has(cache: ModuleCache, wasm: bytes) -> bool:
    """Return whether there is a sound entry."""
    compiled = cache.find(wasm, 64)
    if compiled is None:
        return False
    compiled.close()
    return True


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return name, inode and time of each file: what was compiled again differs."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_second_load_takes_what_the_first_compiled(cache: ModuleCache, folder: Path, text: Text) -> None:
    """One entry, two files, made once, for the owner alone."""
    wasm = assemble(text())
    assert DOUBLED == run(wasm, cache)
    first = files(folder)
    assert {".cwasm", ".mac"} == {Path(name).suffix for name in first}
    assert all(name.startswith(sha256(wasm).hexdigest()) for name in first)
    assert DOUBLED == run(wasm, ModuleCache(folder, KEY))
    assert first == files(folder)
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_mapped_module_still_names_the_layer_of_a_trap(cache: ModuleCache, text: Text) -> None:
    """Names and offsets survive on the disk."""
    wasm = assemble(text("unreachable"))
    for _ in range(2):
        with pytest.raises(TrapError, match="layer 'run': unreachable") as caught:
            run(wasm, cache)
        assert caught.value.offset > 0


def test_checks_are_the_same_with_and_without_an_entry(cache: ModuleCache, text: Text) -> None:
    """What is compiled is still held against its contract each time."""
    wasm = assemble(text(memory="3"))
    run(wasm, cache)
    with pytest.raises(MemoryCapError):
        load_model(wasm, X, X, Caps(memory_bytes=65536), cache=cache)
    with pytest.raises(AbiError, match="fleet_reset"):
        load_model(wasm, X, X, Caps(), stateful=True, cache=cache)


def test_stack_classes_have_entries_of_their_own(cache: ModuleCache, folder: Path, text: Text) -> None:
    """The engine would load one in place of the other, with the wrong bound."""
    wasm = assemble(text())
    run(wasm, cache, stack_kib=64)
    run(wasm, cache, stack_kib=256)
    assert 4 == len(files(folder))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A module and a folder in which it is compiled; not to be changed."""
    folder = tmp_path_factory.mktemp("compiled")
    wasm = assemble('(module (memory (export "memory") 1) (data (i32.const 0) "weights"))')
    compiled = ModuleCache(folder, KEY).add(wasm, 64)
    assert compiled is not None
    compiled.close()
    return wasm, folder


@pytest.mark.parametrize("suffix", [".cwasm", ".mac"])
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "cut", "extend", "empty", "remove"])
def test_damaged_entry_is_not_believed(compiled: tuple[bytes, Path], folder: Path, suffix: str, damage: str) -> None:
    """No byte of an entry can be wrong without being noticed."""
    wasm, sound = compiled
    shutil.copytree(sound, folder)
    cache = ModuleCache(folder, KEY)
    assert has(cache, wasm)
    (path,) = folder.glob(f"*{suffix}")
    data = bytearray(path.read_bytes())
    if damage.startswith("flip"):
        data[{"first": 0, "middle": len(data) // 2, "last": -1}[damage.split()[1]]] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-1], "extend": data + b"\0", "empty": b""}.get(damage, data))
    assert not has(cache, wasm)


def test_damaged_entry_is_compiled_again(cache: ModuleCache, folder: Path, text: Text) -> None:
    """The next load replaces it, and the one after that finds it sound."""
    wasm = assemble(text())
    run(wasm, cache)
    (path,) = folder.glob("*.cwasm")
    path.write_bytes(path.read_bytes()[:-1])
    before = files(folder)
    assert DOUBLED == run(wasm, cache)
    after = files(folder)
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in after)
    assert DOUBLED == run(wasm, cache)
    assert after == files(folder)


def test_entry_of_another_key_is_not_believed(compiled: tuple[bytes, Path]) -> None:
    """Who does not know the device's key cannot make it run machine code."""
    wasm, folder = compiled
    assert not has(ModuleCache(folder, b"x" * 32), wasm)


def test_entry_under_the_name_of_another_is_not_believed(cache: ModuleCache, folder: Path, text: Text) -> None:
    """An entry is good for its own module alone, genuine or not."""
    good, other = assemble(text()), assemble(text("unreachable"))
    run(good, cache)
    with pytest.raises(TrapError):
        run(other, cache)
    names = {digest: sha256(digest).hexdigest() for digest in (good, other)}
    for path in sorted(folder.glob(f"{names[other]}*")):
        path.rename(folder / path.name.replace(names[other], names[good]))
    assert DOUBLED == run(good, cache)


def test_stale_entry_with_a_right_mac_is_compiled_again(cache: ModuleCache, folder: Path, text: Text) -> None:
    """What the engine itself refuses is replaced too."""
    wasm = assemble(text())
    run(wasm, cache)
    (path,) = folder.glob("*.cwasm")
    path.write_bytes(b"\x7fELF of another engine")
    with path.open("rb") as file:
        path.with_suffix(".mac").write_bytes(cache._mac(path.name, file))
    assert DOUBLED == run(wasm, cache)
    assert path.stat().st_size > 1000


def test_module_that_does_not_compile_says_why(cache: ModuleCache, folder: Path, text: Text) -> None:
    """The reason comes from the process that tried, and leaves nothing behind."""
    wasm = assemble(text())
    with pytest.raises(CompileError, match=r"does not compile: .*end-of-file"):
        cache.add(wasm[:-3], 64)
    assert {} == files(folder)


def test_compiler_has_a_memory_limit(folder: Path, text: Text) -> None:
    """A module made to exhaust the compiler ends the compiler, not the agent."""
    small = ModuleCache(folder, KEY, compile_memory_bytes=16 << 20)
    functions = "".join(f"(func $f{n} (result i32) (i32.const {n}))" for n in range(20_000))
    with pytest.raises(CompileError, match="within 16,777,216 bytes of memory"):
        run(assemble(text(more=functions)), small)
    assert {} == files(folder)


def test_compiler_has_a_time_limit(folder: Path, text: Text) -> None:
    """A module made to keep the compiler busy is given up."""
    hasty = ModuleCache(folder, KEY, compile_timeout_s=0.01)
    with pytest.raises(CompileError, match=r"within 0\.01 s"):
        run(assemble(text()), hasty)
    assert {} == files(folder)


def test_compiler_that_the_kernel_kills_is_the_devices_fault(folder: Path, text: Text) -> None:
    """The error says that memory is short, not that the module is bad, and no file is left."""
    cache = ModuleCache(folder, KEY)
    with (
        killing(os.getpid(), COMPILER) as killed,
        pytest.raises(DeviceMemoryError, match=r"killed \(signal 9\)\. Free some memory") as caught,
    ):
        run(assemble(text(more=MANY_FUNCTIONS)), cache)
    assert "out_of_memory" == caught.value.code
    assert 1 == len(killed)
    assert {} == files(folder)


def test_compiler_is_polite(folder: Path, text: Text) -> None:
    """Compiling takes what others leave: idle processors, low priority, first to die when memory is short."""
    wasm = assemble(text(more=MANY_FUNCTIONS))
    thread = threading.Thread(target=lambda: run(wasm, ModuleCache(folder, KEY)))
    thread.start()
    seen = set()
    while thread.is_alive():
        seen |= {manners(pid) for pid in children(os.getpid())}
        time.sleep(0.005)
    thread.join()
    assert (least_priority(), 1000, os.SCHED_IDLE) in seen


def least_priority() -> int:
    """Return the niceness of a compiler, which adds to that of the process that starts it; 19 is the most."""
    return min(os.nice(0) + 10, 19)


def manners_in_the_end(before: str = "") -> str:
    """Return the class and the niceness of a compiler whose patience is over, with something done before."""
    code = f"""if True:
        import os, threading
        from agent.runtime import compiler_process
        compiler_process._PATIENCE_S = 0.0
        {before}
        compiler_process._give_way()
        for thread in threading.enumerate()[1:]:
            thread.join()
        print(os.sched_getscheduler(0), os.nice(0))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_compiler_insists_after_a_while() -> None:
    """On a device that is never idle the compiler is an ordinary, nice process in the end."""
    assert f"{os.SCHED_OTHER} {least_priority()}" == manners_in_the_end()


def test_thread_that_will_insist_is_not_idle_itself() -> None:
    """It could wait for seconds for its turn; every thread that is idle by then is moved, also a later one."""
    code = """if True:
        import os, threading
        from agent.runtime import compiler_process
        def classes():
            return [os.sched_getscheduler(int(tid)) for tid in sorted(os.listdir("/proc/self/task"), key=int)]
        compiler_process._PATIENCE_S = 3600.0
        compiler_process._give_way()
        print(*classes())
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        print(*classes())
        compiler_process._insist()
        print(*classes())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ["5 0", "5 0 5", "0 0 0"] == done.stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="drops the rights of root")
def test_compiler_of_a_user_without_rights_does_not_starve() -> None:
    """Such a user cannot leave the idle class again: the compiler stays an ordinary, nice process from the start."""
    assert f"{os.SCHED_OTHER} {least_priority()}" == manners_in_the_end("os.setresuid(65534, 65534, 65534)")


def manners(pid: int) -> tuple[int, int, int] | None:
    try:
        nice = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])
        return nice, int(Path(f"/proc/{pid}/oom_score_adj").read_text()), os.sched_getscheduler(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None


@pytest.mark.parametrize("is_disk_writable", [True, False])
def test_compiler_ends_with_the_agent(folder: Path, text: Text, is_disk_writable: bool) -> None:
    """Nobody waits for it any more, however the agent ended: also when it has no time to say so."""
    module = folder.with_suffix(".wasm")
    module.write_bytes(assemble(text(more=MANY_FUNCTIONS)))
    code = f"""if True:
        from pathlib import Path
        from agent.runtime import ModuleCache
        cache = ModuleCache(Path({str(folder)!r}), {KEY!r})
        if not {is_disk_writable}:
            Path({str(folder)!r}).rmdir()
        cache.add(Path({str(module)!r}).read_bytes(), 64)"""
    agent = subprocess.Popen([sys.executable, "-c", code])
    try:
        while (compiler := next(iter(children(agent.pid)), None)) is None or not is_begun(compiler):
            assert agent.poll() is None
        handle = os.pidfd_open(compiler)
        os.kill(compiler, signal.SIGSTOP)
    finally:
        agent.kill()
        agent.wait()
    try:
        assert [handle] == select.select([handle], [], [], 20)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def is_begun(pid: int) -> bool:
    seen = manners(pid)
    return seen is not None and seen[1] == 1000


def test_compiler_says_that_the_disk_is_full(cache: ModuleCache, text: Text) -> None:
    """It is not the module that is bad."""
    with pytest.raises(OSError, match="No space left"):
        cache._compile(assemble(text()), 64, Path("/dev/full"))


def test_disk_that_takes_nothing_costs_only_time(cache: ModuleCache, folder: Path, text: Text) -> None:
    """A device runs what it has all the same; the module is not compiled in the agent, which it could bring down."""
    folder.rmdir()
    wasm = assemble(text(more=MANY_FUNCTIONS))
    assert DOUBLED == run(wasm, cache)
    small = ModuleCache(folder, KEY, compile_memory_bytes=16 << 20)
    folder.rmdir()
    functions = "".join(f"(func $f{n} (result i32) (i32.const {n}))" for n in range(20_000))
    with pytest.raises(CompileError, match="within 16,777,216 bytes of memory"):
        run(assemble(text(more=functions)), small)


def test_compiler_that_cannot_be_started_is_a_model_error(
    cache: ModuleCache, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that cannot start processes refuses the module, with the reason."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ProcessStartError, match=r"cannot start the compiler: .*No such file"):
        run(assemble(text()), cache)


def test_pruning_keeps_what_is_in_use(cache: ModuleCache, folder: Path, text: Text) -> None:
    """Entries of removed modules, of other engines and of broken attempts go."""
    kept, dropped = assemble(text()), assemble(text("(i32.const 0)"))
    run(kept, cache)
    before = files(folder)
    run(dropped, cache)
    digest = sha256(kept).hexdigest()
    (folder / f"{digest}-{'0' * 32}.cwasm").write_bytes(b"of an engine before this one")
    (folder / f"{next(iter(before)).split('.')[0]}.draft").write_bytes(b"half")
    cache.prune({digest})
    assert before == files(folder)


def test_many_threads_may_compile_the_same_module(folder: Path, text: Text) -> None:
    """Whoever is last wins, and everybody runs."""
    wasm = assemble(text())
    results: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: results.append(run(wasm, ModuleCache(folder, KEY)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [DOUBLED] * 3 == results
    assert 2 == len(files(folder))


def test_killed_while_compiling_leaves_nothing_that_is_believed(folder: Path, text: Text) -> None:
    """Power may go at any moment: the next start compiles again, and pruning removes the rest."""
    wasm_path = folder.parent / "model.wasm"
    wasm_path.write_bytes(assemble(text(more=MANY_FUNCTIONS)))
    code = f"""if True:
        from pathlib import Path
        from agent.runtime import ModuleCache
        ModuleCache(Path({str(folder)!r}), bytes(range(32))).add(Path({str(wasm_path)!r}).read_bytes(), 64)"""
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as process:
        while not (folder.exists() and list(folder.iterdir())):
            time.sleep(0.002)
        os.killpg(process.pid, 9)
    cache = ModuleCache(folder, KEY)
    assert not has(cache, wasm_path.read_bytes())
    assert DOUBLED == run(wasm_path.read_bytes(), cache)
    cache.prune({sha256(wasm_path.read_bytes()).hexdigest()})
    assert {".cwasm", ".mac"} == {path.suffix for path in folder.iterdir()}


def test_short_key_is_refused(folder: Path) -> None:
    """A key that can be guessed authenticates nothing."""
    with pytest.raises(ValueError, match="at least 16 bytes"):
        ModuleCache(folder, b"short")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("runtime_name", lambda: "wasmtime/0.0.1"),
        ("cpu_features", lambda: cpu_features()[1:]),
        ("settings", lambda stack_kib: settings(stack_kib) | {"cranelift_opt_level": "none"}),
        ("platform.machine", lambda: "another"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_entry_for_another_engine_or_processor_is_never_looked_up(
    cache: ModuleCache, folder: Path, text: Text, monkeypatch: pytest.MonkeyPatch, name: str, value: Callable[..., Any]
) -> None:
    """It is compiled anew under a name of its own, and the old entry goes when entries are pruned."""
    wasm = assemble(text())
    run(wasm, cache)
    before = files(folder)
    monkeypatch.setattr(f"agent.runtime.cache.{name}", value)
    assert not has(cache, wasm)
    assert DOUBLED == run(wasm, cache)
    assert before.items() < files(folder).items()
    cache.prune({sha256(wasm).hexdigest()})
    assert 2 == len(files(folder))
    assert not before.keys() & files(folder).keys()


def test_entry_is_durable_before_it_has_a_name_and_its_name_before_it_is_used(
    cache: ModuleCache, folder: Path, text: Text, syncs: Syncs
) -> None:
    """A loss of power leaves no MAC beside code that is not all there; that the compiler syncs is tested below."""
    compiled = cache.add(assemble(text()), 64)
    compiled.close()
    code, mac = sorted(folder.iterdir())
    written, _, named = syncs
    assert (mac.read_bytes(), code.read_bytes()) == (written.data, written.beside[code.name])
    assert mac.name not in written.beside
    assert folder == named.path
    assert {code.name: code.read_bytes(), mac.name: mac.read_bytes()} == named.beside


def test_compiler_says_that_it_is_done_when_its_code_is_durable(tmp_path: Path, text: Text) -> None:
    """What the cache then gives a name is on the disk."""
    output = tmp_path / "code"
    program = f"""if True:
        import os, sys
        from pathlib import Path
        real = os.fsync
        def fsync(descriptor):
            real(descriptor)
            print(Path(f"/proc/self/fd/{{descriptor}}").readlink(), os.fstat(descriptor).st_size)
        os.fsync = fsync
        from agent.runtime.compiler_process import main
        sys.exit(main(64, 1 << 30, Path({str(output)!r})))"""
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, input=assemble(text()), capture_output=True, timeout=60, check=True)
    assert f"{output} {output.stat().st_size}" == done.stdout.decode().strip()
