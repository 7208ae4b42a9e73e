"""The folder of a demo: gone afterwards, kept for its logs, and taken away by the next demo after a SIGKILL."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from controller.demo.processes import DemoError
from controller.demo.scratch import scratch_folder

_KILLED = """
import os, pathlib, signal, sys
from controller.demo.scratch import scratch_folder
with scratch_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "fleet").mkdir()
    (folder / "fleet" / "key.pem").write_text("secret")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_demo(temporary: Path) -> Path:
    """Leave behind what a killed demo leaves; return its folder."""
    before = set(temporary.iterdir())
    done = subprocess.run([sys.executable, "-c", _KILLED, str(temporary)], check=False)
    assert -signal.SIGKILL == done.returncode
    (folder,) = set(temporary.iterdir()) - before
    return folder


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit])
def test_nothing_is_left(tmp_path: Path, error: type[BaseException] | None) -> None:
    """When all went well, and after Ctrl-C."""
    try:
        with scratch_folder(tmp_path) as folder:
            (folder / "log").touch()
            if error:
                raise error
    except (KeyboardInterrupt, SystemExit):
        assert error is not None
    assert [] == list(tmp_path.iterdir())


def test_a_killed_demo_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    """Its keys and logs with it."""
    left = killed_demo(tmp_path)
    with scratch_folder(tmp_path) as folder:
        assert [folder] == list(tmp_path.iterdir())
    assert left != folder


def test_a_demo_that_runs_is_left_alone(tmp_path: Path) -> None:
    """Two at once do not take each other's folder."""
    with scratch_folder(tmp_path) as one, scratch_folder(tmp_path) as two:
        assert {one, two} == set(tmp_path.iterdir())


def test_the_logs_of_a_demo_that_failed_are_kept(tmp_path: Path) -> None:
    """The error named them: the next demo does not take them away."""
    failed = tmp_path
    try:
        with scratch_folder(tmp_path) as failed:
            (failed / "agent.log").touch()
            raise DemoError("a step went wrong")
    except DemoError:
        pass
    with scratch_folder(tmp_path):
        pass
    assert [failed / "agent.log"] == list(failed.iterdir())


def test_what_only_looks_like_a_demo_is_left_alone(tmp_path: Path) -> None:
    """A folder without the mark, a file, a link to a folder elsewhere, a link that leads nowhere."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "running").mkdir(parents=True)
    (tmp_path / "fleet-demo-other").mkdir()
    (tmp_path / "fleet-demo-file").touch()
    (tmp_path / "fleet-demo-link").symlink_to(elsewhere)
    (tmp_path / "fleet-demo-nowhere").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with scratch_folder(tmp_path):
        pass
    assert before == sorted(tmp_path.rglob("*"))
