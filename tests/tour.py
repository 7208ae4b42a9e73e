"""The tours of the documents: their commands are run as they stand there, and print what the documents show.

`python -m tests.tour [FILE...]` runs them and writes what the commands print into the documents. A `console` block
under `<!-- tour -->` belongs to the tour of its document. That of the README sets up a fleet; those of the examples
begin with one that is up, with one device. Three things are said on top, so that they can run anywhere: free ports,
`--wait` (the default on a terminal) and the invite that was really printed.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import free_ports

HOUSE = Path(__file__).parent.parent
README = HOUSE / "README.md"
EXAMPLES = [path for path in sorted(HOUSE.glob("examples/*/README.md")) if "<!-- tour -->" in path.read_text()]
A_FLEET = (
    "fleetctl init",
    "fleetctl up",
    "fleetctl devices invite cam-1",
    "fleet-agent enroll wf1.… --state cam-1",
    "fleet-agent run --state cam-1",
)
"""What the tours of the examples find done."""
USUAL_PORTS = {"api": 8470, "enroll": 8471, "mqtt": 1883}

_BLOCK = re.compile(r"(?P<head><!-- tour -->\n```console\n)(?P<body>.*?)(?P<tail>```)", re.DOTALL)
_INVITE = re.compile(r"wf1\.[\w-]+")
# On a terminal these lines are a table that is gone in the end.
_PROGRESS = re.compile(r"(✓ rollout .*\n)(?:.+\n)*(?=\ndevice )")
_VARYING = (
    (re.compile(r"\b(r|device)-[0-9a-f]{6,}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "DIGEST"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "WHEN"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"\bjust now\b|\b[\d.]+ (?:µs|ms|s|min|h)\b(?: ago)?"), "TIME"),
    (re.compile(r"(?:(?:download|verify|compile|self test|swap) TIME(?:, )?)+| after TIME"), ""),
    (re.compile(r"\d[\d,.]*(?:e-\d+)?"), "N"),
    (re.compile(r"\((?:mosquitto|embedded)"), "(BROKER"),
)


def normal(output: str) -> str:
    """Return what stays the same from run to run: times, ids, counts and line breaks do not."""
    for pattern, name in _VARYING:
        output = pattern.sub(name, output)
    return output.strip()


def blocks(text: str) -> list[list[tuple[str, str]]]:
    """Return the (command, output) pairs of each block of the tour."""
    return [_pairs(match["body"]) for match in _BLOCK.finditer(text)]


def _pairs(body: str) -> list[tuple[str, str]]:
    parts = re.split(r"^\$ (.+)\n", body, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


class Tour:
    """A folder with the examples, in which the commands of a document's tour run one after the other."""

    def __init__(self, folder: Path, document: Path = README) -> None:
        self._folder = folder
        self._invite = ""
        self._ports: dict[str, int] = {}
        self._background: list[subprocess.Popen[str]] = []
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET")}
        self._env = kept | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
        self._begins_with = () if document == README else A_FLEET
        ignored = shutil.ignore_patterns("build", "__pycache__")
        shutil.copytree(HOUSE / "examples", folder / "examples", ignore=ignored)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.push(self)
            for command in self._begins_with:
                self.run(command)
            stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in reversed(self._background):
            process.send_signal(signal.SIGINT)
        for process in self._background:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, command: str) -> str:
        """Run one command to its end, or until it is ready if it is one that stays; return what it printed."""
        words = shlex.split(command.replace("wf1.…", self._invite))
        if words[:2] == ["fleetctl", "init"]:
            self._ports = dict(zip(map(str, free_ports(len(USUAL_PORTS))), USUAL_PORTS.values(), strict=True))
            words += [f"--{kind}-port={port}" for kind, port in zip(USUAL_PORTS, self._ports, strict=True)]
        elif words[:2] == ["fleetctl", "push"]:
            words.append("--wait")
        elif words[:2] == ["fleetctl", "up"]:
            return self._stay(words, lambda said: "Ctrl-C stops it." in said)
        elif words[:2] == ["fleet-agent", "run"]:
            return self._stay(words, lambda _: self._is_connected(words[2:]))
        done = subprocess.run(
            words, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=120, check=False
        )
        self._invite = next(iter(_INVITE.findall(done.stdout)), self._invite)
        return self._shown(_PROGRESS.sub(r"\1", done.stdout) + done.stderr)

    def _shown(self, said: str) -> str:
        for port, usual in self._ports.items():
            said = said.replace(f":{port}", f":{usual}")
        said = _INVITE.sub("wf1.…", said.replace(str(self._folder), "."))
        return "\n".join(line.rstrip() for line in said.strip().splitlines())

    def _stay(self, words: list[str], is_ready: Callable[[str], bool]) -> str:
        log = self._folder / f"{len(self._background)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                words, cwd=self._folder, env=self._env, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        self._background.append(process)
        deadline = time.monotonic() + 60
        while not is_ready(log.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{shlex.join(words)} did not come up:\n{log.read_text()}")
            time.sleep(0.1)
        return self._shown(log.read_text()) if words[0] == "fleetctl" else ""

    def _is_connected(self, options: list[str]) -> bool:
        command = ["fleet-agent", "status", *options]
        done = subprocess.run(
            command, cwd=self._folder, env=self._env, capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode == 0 and "not connected" not in done.stdout


def _write(document: Path) -> None:
    """Put what the commands print into a document."""
    with tempfile.TemporaryDirectory() as folder, Tour(Path(folder), document) as tour:

        def rewritten(match: re.Match[str]) -> str:
            said = [f"$ {command}\n{tour.run(command)}".rstrip() for command, _ in _pairs(match["body"])]
            return match["head"] + "\n\n".join(said) + "\n" + match["tail"]

        document.write_text(_BLOCK.sub(rewritten, document.read_text()))


if __name__ == "__main__":
    for named in sys.argv[1:] or (README, *EXAMPLES):
        _write(Path(named).resolve())
