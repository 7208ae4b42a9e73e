"""A thousand swaps while inference runs: `python benchmarks/soak.py [--swaps N] [--json]`, on both isolation levels.

The parts are the daemon's own: host, module cache, zygote, self-test. Callers ask without a pause while releases are
loaded, tested, activated, and committed or rolled back. It fails when a call is lost or answered wrongly, when
memory, descriptors, threads or processes grow with the number of swaps, or when a file is left behind.
"""

import argparse
import contextlib
import json
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

# The root of the tree and not this folder: scripts here may bear the names of packages.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from agent.host import ModelHost
from agent.runtime import Caps, ModuleCache, Zygote, load_model, run_self_test
from agent.usage import UsageMeter
from tests.agent.signing import Bundle, X, Y, bundle

SWAPS = 1000
CALLERS = 2
RELEASES = 8
MAX_GROWTH_KB_PER_SWAP = 2.0
"""Above the noise of a heap that settles, below the smallest thing that a swap could forget: a page table entry."""
MAX_GROWTH = 3.0
"""By how many descriptors, threads or processes the trend may rise in all: they come and go with each call."""
SETTLING = 0.3
"""The share of the swaps at the beginning that is not judged: caches fill, the heap finds its size."""


class Sample(NamedTuple):
    """What the process holds."""

    rss_kb: int
    descriptors: int
    threads: int
    children: int


class Callers:
    """Threads that ask without a pause and count what is lost."""

    def __init__(self, host: ModelHost, factors: dict[str, float]) -> None:
        self.answers = 0
        self.lost: list[str] = []
        self._host = host
        self._factors = factors
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(n + 1.0,)) for n in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let every caller end its call."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, value: float) -> None:
        while not self._is_over.is_set():
            try:
                result = self._host.infer("scale", [struct.pack("<f", value)])
                (got,) = struct.unpack("<f", result.outputs[0])
                problem = (
                    "" if got == value * self._factors[result.version] else f"{result.version}: {value} gave {got}"
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, the call is lost
                problem = f"{type(error).__name__}: {error}"
            with self._lock:
                self.answers += 1
                if problem:
                    self.lost.append(problem)


def soak(isolation: str, swaps: int) -> dict[str, object]:
    """Swap and return what was seen; `problems` names everything that is not as it should be."""
    bundles = [bundle(f"1.{n}.0", n + 1, factor=float(n + 2)) for n in range(RELEASES)]
    factors = {each.manifest.version: float(n + 2) for n, each in enumerate(bundles)}
    before = sample()
    with tempfile.TemporaryDirectory() as folder:
        cache = ModuleCache(Path(folder), bytes(32))
        zygote = Zygote() if isolation == "process" else None
        host = ModelHost(UsageMeter(), lambda *_: None)
        _swap(host, bundles[0], cache, zygote)
        callers = Callers(host, factors)
        samples = []
        start = time.monotonic()
        for number in range(swaps):
            _swap(host, bundles[number % RELEASES], cache, zygote, is_rolled_back=number % 5 == 4)
            samples.append(sample())
        seconds = time.monotonic() - start
        callers.stop()
        files = sorted(path.name for path in Path(folder).iterdir())
        host.close()
        if zygote:
            zygote.close()
    after = sample()
    growth = {name: _growth([getattr(each, name) for each in samples]) for name in Sample._fields}
    problems = [f"lost: {each}" for each in callers.lost[:5]]
    if growth["rss_kb"] > MAX_GROWTH_KB_PER_SWAP:
        problems.append(f"memory grows by {growth['rss_kb']:.2f} KB a swap")
    problems += [f"{name} grow with the swaps" for name in Sample._fields[1:] if growth[name] * swaps > MAX_GROWTH]
    if after.descriptors > before.descriptors or after.children > before.children:
        problems.append(f"left open: {after.descriptors - before.descriptors} descriptors, {after.children} processes")
    if len(files) != 2 * RELEASES:
        problems.append(f"expected {2 * RELEASES} files of compiled modules, got {files}")
    return {
        "isolation": isolation,
        "swaps": swaps,
        "inferences": callers.answers,
        "lost": len(callers.lost),
        "rss_kb_per_swap": round(growth["rss_kb"], 3),
        "rss_mb": round(median(each.rss_kb for each in samples) / 1024, 1),
        "descriptors": max(each.descriptors for each in samples),
        "threads": max(each.threads for each in samples),
        "children": max(each.children for each in samples),
        "seconds": round(seconds, 1),
        "problems": problems,
    }


def _swap(
    host: ModelHost, one: Bundle, cache: ModuleCache, zygote: Zygote | None, *, is_rolled_back: bool = False
) -> None:
    manifest, (wasm, vectors) = one.manifest, one.files
    caps = Caps(memory_bytes=manifest.variants[0].contract.memory_bytes)
    model = load_model(wasm, (X,), (Y,), caps, cache=cache, zygote=zygote)
    run_self_test(model, manifest.self_test, vectors)
    host.activate(manifest, model, is_committed=False)
    if is_rolled_back:
        host.rollback("scale")
    else:
        host.commit("scale", manifest.version)


def sample() -> Sample:
    """Return what this process holds now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return Sample(int(status["VmRSS"].split()[0]), descriptors, int(status["Threads"]), _descendants("self"))


def _descendants(pid: str) -> int:
    """Return how many processes a process has started, they themselves, and so on: zygote and models."""
    count = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends while we look
        for thread in Path(f"/proc/{pid}/task").iterdir():
            count += sum(1 + _descendants(child) for child in (thread / "children").read_text().split())
    return count


def _growth(values: list[int]) -> float:
    """Return the slope for each swap, by the least squares, without the beginning."""
    settled = values[int(len(values) * SETTLING) :]
    return linear_regression(range(len(settled)), settled).slope


def main() -> int:
    """Soak both isolation levels; return 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=SWAPS, help="for each isolation level (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each isolation level")
    arguments = parser.parse_args()
    status = 0
    for isolation in ("thread", "process"):
        seen = soak(isolation, arguments.swaps)
        print(json.dumps(seen) if arguments.json else "\n".join(f"{k}: {v}" for k, v in seen.items()), flush=True)
        status = 1 if seen["problems"] else status
    return status


if __name__ == "__main__":
    sys.exit(main())
