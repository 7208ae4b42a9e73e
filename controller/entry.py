"""The `fleetctl` command as installed: starts the command line, or says what to install.

The base installation is a device's and has none of the controller's packages; this file needs only Python.
"""

import sys

EXTRA_PACKAGES = frozenset({"alembic", "httpx", "litestar", "rich", "sqlalchemy", "typer", "uvicorn"})
"""The top-level packages that come with `wasmfleet[controller]`."""


def main() -> None:
    """Run `fleetctl` and exit."""
    try:
        from controller.cli.app import run  # noqa: PLC0415 - the packages that it needs may be missing
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA_PACKAGES:
            raise
        sys.stderr.write(
            f"error: fleetctl needs the package {missing!r}, which a device does without\n"
            "hint: pip install 'wasmfleet[controller]'\n"
        )
        sys.exit(1)
    run()
