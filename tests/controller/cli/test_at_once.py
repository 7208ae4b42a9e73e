"""Commands at the same time, and one that is stopped in the middle: whatever the order, the end is clear."""

import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.controller.cli.fleets import ENVIRONMENT, TIMEOUT_S, Fleet
from tests.controller.wat_models import DOUBLE, TRIPLE, wasm


def start(fleet: Fleet, *args: str) -> "subprocess.Popen[str]":
    """Start `fleetctl ARGS`."""
    return subprocess.Popen(
        [sys.executable, "-c", "from controller.entry import main; main()", "--home", str(fleet.home), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def all_well(*processes: "subprocess.Popen[str]") -> None:
    """Wait until all have ended with 0."""
    ends = [(process.communicate(timeout=TIMEOUT_S)[1], process.returncode) for process in processes]
    assert [0] * len(ends) == [code for _, code in ends], ends


def write(folder: Path, name: str, infer: str) -> Path:
    path = folder / f"{name}.wasm"
    path.write_bytes(wasm(infer))
    return path


def test_the_same_file_pushed_twice_at_once_is_one_release(fleet: Fleet, tmp_path: Path) -> None:
    """Two rollouts of it; the device that is away waits for the later one alone."""
    fleet.enroll("away-same")
    path = write(tmp_path, "same", DOUBLE)
    all_well(*(start(fleet, "push", str(path), "--model", "at-once", "--to", "away-same") for _ in range(2)))
    assert ["1.0.0"] == [release["version"] for release in fleet.ask("releases", "--model", "at-once")]
    later, earlier = (fleet.ask("rollouts", "show", r["id"]) for r in fleet.ask("rollouts", "--model", "at-once"))
    assert ("running", "queued") == (later["state"], later["deployments"][0]["state"])
    assert ("finished", "superseded") == (earlier["state"], earlier["deployments"][0]["state"])


def test_two_contents_of_one_model_at_once_are_two_releases(fleet: Fleet, tmp_path: Path) -> None:
    """Whoever comes second gets the next number; another model in between disturbs nobody."""
    fleet.enroll("away-two")
    paths = [write(tmp_path, name, infer) for name, infer in (("one", DOUBLE), ("two", TRIPLE))]
    pushes = [start(fleet, "push", str(path), "--model", "both", "--to", "away-two") for path in paths]
    all_well(*pushes, start(fleet, "push", str(paths[0]), "--model", "third", "--to", "away-two"))
    releases = fleet.ask("releases", "--model", "both")
    assert {("1.0.0", 1), ("1.0.1", 2)} == {(r["version"], r["release_counter"]) for r in releases}
    assert 1 == len(fleet.ask("releases", "--model", "third"))
    assert {"running": 1, "finished": 1} == {
        state: sum(1 for r in fleet.ask("rollouts", "--model", "both") if r["state"] == state)
        for state in ("running", "finished")
    }


def test_a_rollout_started_twice_at_once_ends_once(fleet: Fleet, tmp_path: Path) -> None:
    """Both are told of theirs; the later one replaces the other."""
    fleet.enroll("away-twice")
    fleet.ask("push", str(write(tmp_path, "m", DOUBLE)), "--model", "twice", "--to", "away-twice", "--no-wait")
    again = ("rollouts", "start", "twice", "1.0.0", "--to", "away-twice")
    all_well(*(start(fleet, *again) for _ in range(2)))
    assert ["running", "finished", "finished"] == [r["state"] for r in fleet.ask("rollouts", "--model", "twice")]


def test_a_backup_made_during_pushes_is_whole(fleet: Fleet, tmp_path: Path) -> None:
    """Of every release that its database names all files are in it."""
    paths = [write(tmp_path, f"m{n}", f"{DOUBLE} (; {n} ;)") for n in range(3)]
    pushes = [start(fleet, "push", str(path), "--model", f"backed-up-{n}") for n, path in enumerate(paths)]
    for number in range(3):
        target = tmp_path / f"{number}.backup"
        fleet.ask("backup", str(target))
        assert set() == files_missing(target, tmp_path / f"open-{number}")
    for process in pushes:
        process.communicate(timeout=TIMEOUT_S)


def files_missing(backup: Path, folder: Path) -> set[str]:
    """Return the files that releases in the backup name and the backup lacks."""
    with tarfile.open(backup) as archive:
        archive.extractall(folder, filter="data")
    with closing(sqlite3.connect(folder / "server" / "fleet.db")) as database:
        named = {digest for (digest,) in database.execute("SELECT digest FROM release_files")}
    return named - {path.name for path in (folder / "server" / "files").iterdir()}


@contextmanager
def deaf_after(api_url: str, request: bytes) -> Iterator[tuple[str, threading.Event]]:
    """A way to the service that swallows the answer to `request`, and every one after; yield its URL and when it did.

    The service has done what was asked for; the client does not know.
    """
    address = urlsplit(api_url)
    swallowed, is_deaf = threading.Event(), False

    def answers(service: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):  # one of the two was closed
            while data := service.recv(65_536):
                if is_deaf:
                    swallowed.set()
                else:
                    client.sendall(data)

    def serve(client: socket.socket) -> None:
        nonlocal is_deaf
        with client, socket.create_connection((address.hostname, address.port)) as service, suppress(OSError):
            threading.Thread(target=answers, args=(service, client), daemon=True).start()
            while data := client.recv(65_536):
                is_deaf = is_deaf or request in data
                service.sendall(data)
            service.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", swallowed
        listener.shutdown(socket.SHUT_RDWR)


def interrupt(fleet: Fleet, request: bytes, *args: str) -> str:
    """Start `fleetctl ARGS`, press Ctrl-C when `request` was done but not answered; return what it said."""
    with deaf_after(fleet.server.running["api_url"], request) as (url, swallowed):
        process = start(fleet, "--api-url", url, *args)
        assert swallowed.wait(TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=TIMEOUT_S)[1]
    assert 130 == process.returncode, said
    assert "Traceback" not in said
    return " ".join(said.split())


def test_ctrl_c_between_upload_and_rollout_is_made_good_by_the_same_push(fleet: Fleet, tmp_path: Path) -> None:
    """Also when the release was signed, or the rollout started, and the answer did not come any more."""
    fleet.enroll("away-int")
    push = ("push", str(write(tmp_path, "m", DOUBLE)), "--model", "stopped", "--to", "away-int")
    assert "the same push again does what is missing" in interrupt(fleet, b"PUT /v1/files/", *push)
    assert [] == [model for model in fleet.ask("models") if model["name"] == "stopped"]
    assert "the same push again does what is missing" in interrupt(fleet, b"PUT /v1/tuf/targets", *push)
    assert (1, []) == (len(fleet.ask("releases", "--model", "stopped")), fleet.ask("rollouts", "--model", "stopped"))
    assert "the same push again does what is missing" in interrupt(fleet, b'"is_dry_run":false', *push)
    assert ["running"] == [rollout["state"] for rollout in fleet.ask("rollouts", "--model", "stopped")]
    pushed = fleet.ask(*push, "--no-wait")
    assert (False, "1.0.0") == (pushed["is_new"], pushed["version"])
    assert ["running", "queued"] == [pushed["rollout"]["state"], pushed["rollout"]["deployments"][0]["state"]]
    assert ["1.0.0"] == [release["version"] for release in fleet.ask("releases", "--model", "stopped")]
    assert ["running", "finished"] == [rollout["state"] for rollout in fleet.ask("rollouts", "--model", "stopped")]
