"""Measurements of the real agent process: memory, start, and latency while a release is installed."""

import array
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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


class Answer(NamedTuple):
    """Of one call: when it was asked, how long it took, whether it was right, and who waited for a processor (s)."""

    at_s: float
    took_s: float
    is_right: float
    caller_waited_s: float
    agent_waited_s: float


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
        output, pid = device.state_dir.parent / "latencies", device.process.pid
        argv = [sys.executable, str(CALLER), str(device.state_dir / "agent.sock"), str(output), str(pid)]
        caller = subprocess.Popen(argv)
        _stand_back(os.getpid())
        _stand_back(device.broker_pid)
        if is_placed:
            os.sched_setaffinity(caller.pid, {max(os.sched_getaffinity(0))})
        time.sleep(1)
        before = _thread_times_s(pid)
        spans = [_install(backend, bundle) for bundle in device.bundles[1:]]
        after = _thread_times_s(pid)
        caller.send_signal(signal.SIGTERM)
        caller.wait()
        calls = _read(output)
    if wrong := sum(1 for call in calls if not call.is_right):
        raise SystemExit(f"{wrong} calls of {len(calls)} were not answered")
    quiet = [[c for c in calls if begin <= c.at_s < middle] for begin, middle, _ in spans]
    busy = [[c for c in calls if middle <= c.at_s < end] for _, middle, end in spans]
    ratios = [_percentile(b, 99) / _percentile(q, 99) for q, b in zip(quiet, busy, strict=True)]
    all_quiet, all_busy = list(itertools.chain(*quiet)), list(itertools.chain(*busy))
    notes = [
        f"{name}: p50 {_percentile(found, 50) * 1e6:.0f} µs, p99 {_percentile(found, 99) * 1e6:.0f} µs, "
        f"longest {max(c.took_s for c in found) * 1e3:.1f} ms, {len(found)} calls"
        for name, found in (("quiet", all_quiet), ("installing", all_busy))
    ]
    notes.append(_slow_calls(all_busy, _percentile(all_quiet, 50), 1.5 * _percentile(all_quiet, 99), rounds))
    spent_ms = sorted((after[tid] - before.get(tid, 0.0)) / rounds * 1000 for tid in after)
    notes.append(
        "processor time of the agent's threads for each install and the second before it: "
        + ", ".join(f"{each:.0f}" for each in reversed(spent_ms) if each >= 1)
        + " ms (the first answers requests)"
    )
    return ratios, notes


def _slow_calls(calls: Sequence[Answer], usual_s: float, limit_s: float, rounds: int) -> str:
    """Tell what calls beyond a limit spent their time with."""
    slow = [call for call in calls if call.took_s > limit_s]
    count = len(slow) / rounds
    each_us = 1e6 / max(len(slow), 1)
    lost = sum(call.took_s - usual_s for call in slow) * each_us
    caller = sum(call.caller_waited_s for call in slow) * each_us
    agent = sum(call.agent_waited_s for call in slow) * each_us
    return (
        f"{count:.0f} of {len(calls) / rounds:.0f} calls of an install took more than 1.5 times the quiet p99: "
        f"{lost:.0f} µs more than is usual, of which the caller waited {caller:.0f} µs for a processor, "
        f"and the thread that answers {agent:.0f} µs"
    )


def _thread_times_s(pid: int) -> dict[str, float]:
    """Return how long each thread has run, by its id."""
    times = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = (thread / "stat").read_text().rpartition(")")[2].split()
            times[thread.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return times


def _install(backend: Backend, bundle: object) -> tuple[float, float, float]:
    begin = time.monotonic()
    time.sleep(1)
    middle = time.monotonic()
    backend.assign(bundle)
    backend.wait_end(bundle)
    end = time.monotonic()
    time.sleep(0.3)
    return begin, middle, end


def _stand_back(pid: int) -> None:
    """Let a process that is not on a device run only where a processor is idle."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def _read(path: Path) -> list[Answer]:
    flat = array.array("d", path.read_bytes())
    return [Answer(*flat[n : n + len(Answer._fields)]) for n in range(0, len(flat), len(Answer._fields))]


def _percentile(calls: Sequence[Answer], percent: int) -> float:
    return sorted(call.took_s for call in calls)[len(calls) * percent // 100]
