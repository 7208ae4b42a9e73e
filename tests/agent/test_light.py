"""What the daemon's process must not carry."""

import subprocess
import sys

_UNNEEDED = {
    *("asyncio", "brotli", "concurrent.futures.process", "multiprocessing", "numpy", "pydoc", "requests", "unittest"),
    *("httpx", "litestar", "onnx", "pydantic", "rich", "sqlalchemy", "typer", "urllib3", "uvicorn"),
    *("compiler", "controller"),
}


def _loaded_by(program: str) -> set[str]:
    """Return the modules that a fresh interpreter has after `program`."""
    program = f"import sys\n{program}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_daemon_loads_nothing_that_it_does_not_use() -> None:
    """Each would be memory that the device pays for as long as the agent runs."""
    loaded = _loaded_by("import agent.cli, agent.daemon")
    assert "tuf.ngclient.updater" in loaded
    assert set() == _UNNEEDED & loaded


def test_update_framework_is_the_librarys_own() -> None:
    """Only the default fetcher is left out: no client is made without one, and the module is still there."""
    loaded = _loaded_by("""
import tempfile
import tuf
from agent.image_repository import _Updater
from tuf.ngclient import Updater, Urllib3Fetcher
assert _Updater.__mro__[1] is Updater and Updater.__module__ == "tuf.ngclient.updater"
try:
    Updater(tempfile.mkdtemp(), "https://localhost/", bootstrap=b"{}")
except TypeError as error:
    assert "fetcher of the agent's own" in str(error), error
else:
    raise SystemExit("a client without a fetcher was made")
assert "urllib3" not in sys.modules
from tuf.ngclient.urllib3_fetcher import Urllib3Fetcher as real
assert real is not Urllib3Fetcher
""")
    assert "urllib3" in loaded


def test_client_that_another_has_loaded_stays_as_it_is() -> None:
    """In a process that already uses python-tuf the agent changes nothing."""
    _loaded_by("""
import tuf.ngclient
import agent.image_repository
assert tuf.ngclient.Urllib3Fetcher.__module__ == "tuf.ngclient.urllib3_fetcher"
assert agent.image_repository.Updater is tuf.ngclient.Updater
""")
