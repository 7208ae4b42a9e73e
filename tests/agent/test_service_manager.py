"""The unit under a real systemd, with all of its hardening: what the agent needs is still allowed."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.systemd import unit
from controller.broker import BrokerProcess
from tests.agent.machine import PROGRAM, Machine, booted
from tests.agent.rig import Agent, Backend, wait_for
from tests.agent.signing import bundle

pytestmark = [pytest.mark.slow, pytest.mark.needs("mosquitto", "systemd", "namespaces")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: sockets have short paths."""
    with tempfile.TemporaryDirectory(prefix="wf-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_agent_lives_under_systemd(isolation: str, folder: Path, broker: BrokerProcess, backend: Backend) -> None:
    """Ready, reloaded, hung and restarted, stopped; a release is compiled, tested and answers on both levels."""
    enrolled = folder / "lib" / "fleet-agent"
    backend.signing.enroll(enrolled, broker.url.replace("127.0.0.1", "localhost"), prefix=backend.topics.prefix)
    (enrolled / "policy.toml").write_text(f'isolation = "{isolation}"\nhttp_address = "127.0.0.1:0"\n')
    first, second = bundle(), bundle("1.1.0", 2, factor=3.0)
    backend.release(first, second)
    with booted(folder, unit(PROGRAM)) as machine:
        agent = Agent(machine.state_dir, folder)
        machine.systemctl("start", "fleet-agent")
        assert ("active", "models active: 0, start 1") == (machine.show("ActiveState"), machine.show("StatusText"))
        backend.assign(first)
        backend.wait_end(first)
        assert ("1.0.0", 2.0) == agent.infer()
        _assert_hardened(machine)
        assert "scale" in machine.fleet_agent("status")

        (machine.state_dir / "policy.toml").write_text(f'isolation = "{isolation}"\nmax_captures = 3\n')
        machine.systemctl("reload", "fleet-agent")
        wait_for("the policy is read", lambda: "policy read again" in _log(machine), lambda: _log(machine))
        wait_for("ready again", lambda: "models active: 1, start 1" == machine.show("StatusText"))

        machine.systemctl("kill", "--kill-whom=main", "--signal=STOP", "fleet-agent")
        wait_for("it is started again", lambda: "1" == machine.show("NRestarts"))
        wait_for("it is ready", lambda: "models active: 1, start 2" == machine.show("StatusText"))
        assert ("1.0.0", 2.0) == agent.infer()
        backend.assign(second)
        backend.wait_end(second)
        assert ("1.1.0", 3.0) == agent.infer()

        machine.systemctl("stop", "fleet-agent")
        ended = [machine.show(name) for name in ("ActiveState", "Result", "ExecMainStatus")]
        assert ["inactive", "success", "0"] == ended
        assert '"stopping"' in _log(machine).splitlines()[-1]


def _assert_hardened(machine: Machine) -> None:
    """The agent has a user of its own, no rights, and filters on what it may ask of the kernel."""
    status = machine.run("cat", f"/proc/{machine.show('MainPID')}/status")
    found = dict(line.split(":", 1) for line in status.splitlines())
    folder = machine.state_dir.stat()
    assert (str(folder.st_uid), 0o700) == (found["Uid"].split()[0], folder.st_mode & 0o777)
    assert "5" == machine.show("LimitNICE")
    assert 60_000 < folder.st_uid < 66_000  # systemd's range of dynamic users
    wanted = {"CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
    assert wanted == {name: found[name].strip() for name in wanted}


def _log(machine: Machine) -> str:
    return (machine.state_dir / "agent.log").read_text()
