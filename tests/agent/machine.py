"""A second systemd on this machine: the real one, first process of namespaces of its own, with one unit to run.

It sees the files of this machine, but `/etc` read-only, `/run`, `/tmp` and `/opt` empty, and a folder of the test as
`/var/lib`. The interpreter, the packages and the source lie under `/opt/fleet`, where a user without rights can read
them. The network is this machine's. Needs root, a kernel with the unified hierarchy of control groups, and systemd.
"""

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
PROGRAM = Path("/opt/fleet/bin/fleet-agent")
_LIBRARIES = "LD_LIBRARY_PATH=/opt/fleet/python/lib"
"""For an interpreter that has a library of its own."""
UNIT = "fleet-agent.service"
BOOT_TIMEOUT_S = 30.0
_ROOT = Path(__file__).parents[2]
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

_ENTER_GROUP = """
mount -t cgroup2 cgroup2 "$folder/groups"
mkdir "$folder/groups$group"
echo $$ > "$folder/groups$group/cgroup.procs"
umount "$folder/groups"
exec unshare --pid --fork --kill-child --mount --uts --ipc --cgroup sh -euc "$boot"
"""
_BOOT = """
mount -t proc proc /proc
mount --bind /etc /etc
mount -o remount,bind,ro /etc
mount --bind "$folder/lib" /var/lib
mount -t tmpfs tmpfs /opt
mkdir -p /opt/fleet/python /opt/fleet/packages /opt/fleet/source
mount --bind "$python" /opt/fleet/python
mount --bind "$packages" /opt/fleet/packages
mount --bind "$source" /opt/fleet/source
cp -r "$folder/installed/." /opt/fleet
mount -t tmpfs tmpfs /run
mkdir /run/units
cp -PR /lib/systemd/system/*.target /lib/systemd/system/*.slice "$folder"/units/* /run/units
umount -R /sys/fs/cgroup || true
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /var/tmp
mount -t tmpfs tmpfs /tmp
cd /
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH=/run/units "$systemd" \\
  --system --log-target=null --unit=test.target systemd.machine_id="$machine"
"""
_LEAVE_GROUP = """
mount -t cgroup2 cgroup2 "$folder/groups"
for pause in 0.1 0.2 0.5 1 2 5; do
  find "$folder/groups$group" -depth -type d -exec rmdir {} + 2>/dev/null && exit
  sleep $pause
done
exit 1
"""


class Machine:
    """A systemd that runs, and what `systemctl` says there."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.state_dir = folder / "lib" / "private" / "fleet-agent"
        """The agent's folder, once systemd has made it its own."""
        self._pid = pid

    def run(self, *argv: str) -> str:
        """Run a command there and return what it printed."""
        enter = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup"]
        done = subprocess.run([*enter, *argv], capture_output=True, text=True, timeout=60, check=False)
        assert 0 == done.returncode, (argv, done.stdout, done.stderr)
        return done.stdout

    def systemctl(self, *arguments: str) -> str:
        """Run `systemctl` there and return what it printed."""
        return self.run("systemctl", *arguments)

    def fleet_agent(self, *arguments: str) -> str:
        """Run a command of the agent there, as root, and return what it printed."""
        return self.run("env", _LIBRARIES, str(PROGRAM), *arguments)

    def show(self, name: str) -> str:
        """Return a property of the unit."""
        return self.systemctl("show", "--property", name, "--value", UNIT).strip()


@contextmanager
def booted(folder: Path, unit: str) -> Iterator[Machine]:
    """Start systemd with that unit; `folder`/lib is its `/var/lib`. Everything in it ends with the context."""
    for name in ("lib", "groups", "units"):
        (folder / name).mkdir(exist_ok=True)
    _write_units(folder / "units", unit)
    _install(folder / "installed")
    variables = {
        **os.environ,
        "folder": str(folder),
        "group": f"{_own_group()}/wasmfleet-test-{os.getpid()}",
        "boot": _BOOT,
        "python": sys.base_prefix,
        "packages": sysconfig.get_path("purelib"),
        "source": str(_ROOT),
        "systemd": str(SYSTEMD),
        "machine": os.urandom(16).hex(),
    }
    with (folder / "boot.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-euc", _ENTER_GROUP], env=variables, stdout=log, stderr=log
        )
    try:
        yield Machine(folder, _wait_booted(process, folder))
    finally:
        process.kill()  # and with it, its child: when the first process of a namespace ends, all others do
        process.wait()
        subprocess.run(["unshare", "--mount", "sh", "-euc", _LEAVE_GROUP], env=variables, check=True)


def _own_group() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::").rstrip("/")
    raise AssertionError("this kernel has no unified hierarchy of control groups")


def _write_units(folder: Path, unit: str) -> None:
    (folder / "test.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (folder / UNIT).write_text(unit)
    changes = folder / f"{UNIT}.d"
    changes.mkdir()
    # A watchdog that a test can wait for.
    (changes / "test.conf").write_text(f"[Service]\nWatchdogSec=10\nEnvironment={_LIBRARIES}\n")


def _install(folder: Path) -> None:
    """Write what makes an environment of the folders that are mounted under `/opt/fleet`."""
    packages = folder / "lib" / _VERSION / "site-packages"
    packages.mkdir(parents=True)
    (packages / "fleet.pth").write_text("/opt/fleet/packages\n/opt/fleet/source\n")
    (folder / "pyvenv.cfg").write_text("home = /opt/fleet/python/bin\ninclude-system-site-packages = false\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(f"/opt/fleet/python/bin/{_VERSION}")
    program = folder / "bin" / PROGRAM.name
    program.write_text("#!/opt/fleet/bin/python\nfrom agent.entry import main\nmain()\n")
    program.chmod(0o755)


def _wait_booted(process: "subprocess.Popen[bytes]", folder: Path) -> int:
    """Return the process of systemd once it takes requests."""
    end = time.monotonic() + BOOT_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/root/run/systemd/private").exists():
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError(f"systemd did not start: {(folder / 'boot.log').read_text()[-1000:]}")
