"""Measurements of the real agent process: memory, start, and latency while a release is installed."""

import array
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from agent.client import ClientError
from benchmarks.device import Device, classifier, enrolled_device, release
from tests.agent.rig import Backend, wait_for

CALLER = Path(__file__).with_name("caller.py")
STAGES = (
    ("the interpreter", ""),
    ("msgspec", "msgspec"),
    ("sqlite, logging, threads", "sqlite3, logging.handlers, threading"),
    ("paho-mqtt with ssl", "ssl, paho.mqtt.client"),
    ("cryptography", "cryptography.hazmat.primitives.asymmetric.ed25519"),
    ("wasmtime and an engine", "agent.runtime.engine as e; e.engine_for(64)"),
    ("The Update Framework", "agent.tuf_client"),
    ("the rest of the agent", "agent.daemon"),
)
"""What the agent imports, in this order."""


_EVERYBODYS = {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


class Sizes(NamedTuple):
    """Kilobytes of one process."""

    pss: int
    rss: int
    anonymous: int
    alone: int
    """The proportional set size of a device that runs nothing like it: every file counts in full but the C library."""


class Times(NamedTuple):
    """Of one thread: how long it ran, and how long it was ready to run and had no processor."""

    run_s: float = 0.0
    wait_s: float = 0.0


class Install(NamedTuple):
    """A release that was installed between `middle` and `end`, after a quiet time that lasted from `begin`.

    The waits are those of the caller and of the thread that answers it, for a processor.
    """

    begin: float
    middle: float
    end: float
    quiet_wait_s: float
    busy_wait_s: float


@contextlib.contextmanager
def running_device(functions: int = 0, releases: int = 1) -> Iterator[tuple[Device, Backend]]:
    """Give a device that runs release 1.0.0; further releases wait to be assigned."""
    with tempfile.TemporaryDirectory(prefix="wf-") as folder, enrolled_device(Path(folder)) as (device, backend):
        bundles = [release(f"1.{n}.0", n + 1, classifier(n, functions=functions)) for n in range(releases)]
        backend.chunk_bytes = 65_536
        backend.release(*bundles)
        backend.assign(bundles[0])
        device.start()
        backend.wait_end(bundles[0])
        device.bundles = bundles
        yield device, backend


def measure_start(rounds: int) -> list[float]:
    """Return seconds from the start of the process to its first answer, once for each round."""
    with running_device() as (device, _):
        return [_restart_s(device) for _ in range(rounds)]


def _restart_s(device: Device) -> float:
    device.stop()
    start = time.perf_counter()
    device.start()
    while True:
        try:
            device.classify()
        except ClientError:
            time.sleep(0.002)
        else:
            return time.perf_counter() - start


def measure_memory(rounds: int) -> tuple[list[float], list[str]]:
    """Return the size in MB, once for each start of a device that is connected and answers, and what it is made of."""
    found = []
    with running_device() as (device, _):
        for _ in range(rounds):
            _restart_s(device)
            wait_for("the device is connected", lambda: device.status()["is_connected"])
            for _ in range(100):
                device.classify()
            time.sleep(1.5)  # the documents that the broker keeps are judged, a telemetry interval passes
            found.append(sizes_of(device.process.pid))
        stages = import_stages(device)
    last = found[-1]
    notes = [
        f"Pss as the kernel counts it now: {last.pss / 1024:.1f} MB; "
        f"Rss {last.rss / 1024:.1f} MB, of it not backed by a file {last.anonymous / 1024:.1f}",
        *stages,
    ]
    return [sizes.alone / 1024 for sizes in found], notes


def sizes_of(pid: int) -> Sizes:
    """Return the sizes of a process."""
    pss = rss = anonymous = alone = 0
    is_shared = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_shared = line.rpartition("/")[2] in _EVERYBODYS
        elif line.startswith("Rss:"):
            size = int(line.split()[1])
            rss += size
            alone += 0 if is_shared else size
        elif line.startswith("Pss:"):
            pss += int(line.split()[1])
            alone += int(line.split()[1]) if is_shared else 0
        elif line.startswith("Anonymous:"):
            anonymous += int(line.split()[1])
    return Sizes(pss, rss, anonymous, alone)


def import_stages(device: Device) -> list[str]:
    """Return how much each part of the device's agent adds by being imported, in a process of its own."""
    program = "import os\n" + "".join(
        f"{f'import {names}' if names else ''}\n"
        f"print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))\n"
        for _, names in STAGES
    )
    argv = [device.program.with_name("python"), "-c", program]
    done = subprocess.run(argv, env=device.environment, capture_output=True, text=True, check=True)
    totals = [int(line) / (1 << 20) for line in done.stdout.split()]
    steps = [after - before for before, after in zip([0.0, *totals], totals, strict=False)]
    return [
        f"{step:5.1f} MB {name} ({total:.1f})" for step, total, (name, _) in zip(steps, totals, STAGES, strict=True)
    ]


def measure_swap(rounds: int, *, is_placed: bool = False) -> tuple[list[float], list[str]]:
    """Return p99 while a release is installed over p99 in the second before, once for each release.

    With `is_placed` the caller stays on the processor that an update leaves to requests, and never waits because the
    kernel puts it behind the agent's other threads.
    """
    with running_device(functions=200, releases=rounds + 1) as (device, backend):
        output = device.state_dir.parent / "latencies"
        caller = subprocess.Popen([sys.executable, str(CALLER), str(device.state_dir / "agent.sock"), str(output)])
        _stand_back(os.getpid())
        _stand_back(device.broker_pid)
        if is_placed:
            os.sched_setaffinity(caller.pid, {max(os.sched_getaffinity(0))})
        time.sleep(1)
        pids = (device.process.pid, caller.pid)
        before = _thread_times(device.process.pid)
        installs = [_install(backend, bundle, pids) for bundle in device.bundles[1:]]
        after = _thread_times(device.process.pid)
        caller.send_signal(signal.SIGTERM)
        caller.wait()
        calls = _read(output)
    if wrong := sum(1 for *_, is_right in calls if not is_right):
        raise SystemExit(f"{wrong} calls of {len(calls)} were not answered")
    quiet = [[s for at, s, _ in calls if i.begin <= at < i.middle] for i in installs]
    busy = [[s for at, s, _ in calls if i.middle <= at < i.end] for i in installs]
    ratios = [_percentile(b, 99) / _percentile(q, 99) for q, b in zip(quiet, busy, strict=True)]
    notes = [
        f"{name}: p50 {_percentile(all_, 50) * 1e6:.0f} µs, p99 {_percentile(all_, 99) * 1e6:.0f} µs, "
        f"longest {max(all_) * 1e3:.1f} ms, {len(all_)} calls"
        for name, all_ in (("quiet", sum(quiet, [])), ("installing", sum(busy, [])))  # noqa: RUF017 - a few lists
    ]
    spent_ms = sorted((after[tid].run_s - before.get(tid, Times()).run_s) / rounds * 1000 for tid in after)
    notes.append(
        "processor time of the agent's threads for each install and the second before it: "
        + ", ".join(f"{each:.0f}" for each in reversed(spent_ms) if each >= 1)
        + " ms (the first answers requests)"
    )
    quiet_ms, busy_ms, install_ms = (
        statistics.fmean(each) * 1000
        for each in zip(*((i.quiet_wait_s, i.busy_wait_s, i.end - i.middle) for i in installs), strict=True)
    )
    notes.append(
        f"the caller and the thread that answers waited for a processor: {quiet_ms:.0f} ms in the second before an "
        f"install, {busy_ms:.0f} ms in its {install_ms:.0f} ms"
    )
    return ratios, notes


def _thread_times(pid: int) -> dict[str, Times]:
    """Return the times of each thread, by its id. Source: Documentation/scheduler/sched-stats.rst of Linux."""
    times = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            run_ns, wait_ns, _ = map(int, (thread / "schedstat").read_text().split())
            times[thread.name] = Times(run_ns / 1e9, wait_ns / 1e9)
    return times


def _waited_s(pids: Iterable[int]) -> float:
    """Return how long the busiest thread of each process has waited for a processor."""
    return sum(max(_thread_times(pid).values()).wait_s for pid in pids)


def _install(backend: Backend, bundle: object, pids: tuple[int, int]) -> Install:
    begin, waited_s = time.monotonic(), [_waited_s(pids)]
    time.sleep(1)
    middle = time.monotonic()
    waited_s.append(_waited_s(pids))
    backend.assign(bundle)
    backend.wait_end(bundle)
    end = time.monotonic()
    waited_s.append(_waited_s(pids))
    time.sleep(0.3)
    return Install(begin, middle, end, waited_s[1] - waited_s[0], waited_s[2] - waited_s[1])


def _stand_back(pid: int) -> None:
    """Let a process that is not on a device run only where a processor is idle."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def _read(path: Path) -> list[tuple[float, float, float]]:
    flat = array.array("d", path.read_bytes())
    return list(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]
