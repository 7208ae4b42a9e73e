"""What every test shares: which system tools it needs, which tests are slow, how random property tests are.

`@pytest.mark.needs("mosquitto")` skips a test on a machine without the tool, and fails it where the variable
FLEET_REQUIRE is `all` or names the tool (as CI does), so that a gap never looks like a pass. `all` is what can be
installed: a kernel that keeps namespaces to itself is no failure unless they are named.
"""

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile

import pytest
from hypothesis import settings

TOOLS: dict[str, tuple[str, ...]] = {
    "mosquitto": ("mosquitto",),
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "node": ("node", "nodejs"),
    "qemu": ("qemu-aarch64-static", "qemu-aarch64"),
    "tmpfs": ("mount",),
    "systemd": ("systemd-analyze",),
    "namespaces": ("unshare",),
}
"""The tools that a test may need, and the programs of which one is enough."""

_MISSING = re.compile(r"needs (\w+), which is not installed")

# Property tests run the same examples every time: a test that fails, fails for everybody. `make fuzz` looks further.
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("fuzz", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("FLEET_PROPERTIES", "fixed"))

# A shell without job control starts what goes on in the background deaf to Ctrl-C, and programs pass that on.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def find_tool(name: str) -> str | None:
    """Return the path of a system tool, or None; daemons live in /usr/sbin, which not every PATH has."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    found = next((found for program in TOOLS[name] if (found := shutil.which(program, path=path))), None)
    probe = _PROBES.get(name)
    return found if probe is None or probe() else None


@functools.cache
def _may_mount() -> bool:
    """Return whether this user may mount a file system of its own: in CI it is root."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@functools.cache
def _may_part() -> bool:
    """Return whether this user may make namespaces, with a hierarchy of control groups to work in."""
    with tempfile.TemporaryDirectory() as folder:
        script = f"mount -t cgroup2 cgroup2 {folder} && mkdir {folder}/probe && rmdir {folder}/probe"
        command = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "sh", "-c", script]
        return not subprocess.run(command, capture_output=True, check=False).returncode


_PROBES = {"tmpfs": _may_mount, "namespaces": _may_part}
"""Programs alone are not enough for these."""


def required_tools() -> set[str]:
    """Return the tools whose absence is a failure: those that FLEET_REQUIRE names, parted by commas."""
    wanted = set(os.environ.get("FLEET_REQUIRE", "").replace(",", " ").split())
    return wanted | (set(TOOLS) - {"namespaces"}) if "all" in wanted else wanted


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure() -> None:
    if unknown := required_tools() - {"all", *TOOLS}:
        raise pytest.UsageError(f"FLEET_REQUIRE: expected `all` or some of {sorted(TOOLS)}, got {sorted(unknown)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("needs"):
            if unknown := set(marker.args) - set(TOOLS):
                raise pytest.UsageError(f"{item.nodeid}: unknown tools {sorted(unknown)}; known: {sorted(TOOLS)}")
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = required_tools()
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            if find_tool(tool):
                continue
            reason = f"needs {tool}, which is not installed"
            if tool in required:
                pytest.fail(f"{reason}, and FLEET_REQUIRE asks for it", pytrace=False)
            pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        if match := _MISSING.search(str(report.longrepr)):
            counts[match[1]] = counts.get(match[1], 0) + 1
    if counts:
        terminalreporter.section("missing tools")
        for tool, count in sorted(counts.items()):
            what = "be root" if tool in _PROBES else f"install {' or '.join(TOOLS[tool])}"
            terminalreporter.line(f"{tool}: {count} tests skipped; {what} to run them")
