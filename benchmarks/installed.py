"""The agent as a device has it: with the distributions that it requires, compiled, and nothing of ours that tests need.

A development environment is not like that: what is optional to a library (brotli, typing_extensions) is loaded there
because something else brought it. Everything is linked, nothing downloaded.
"""

import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[1]
NAME: Final = "wasmfleet"
_PROGRAM: Final = "from agent.entry import main\nmain()\n"


def install_agent(folder: Path) -> Path:
    """Make an environment in `folder` and return the program that is `fleet-agent` there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for each in required(NAME).values():
        for path in _top_level(each):
            (packages / path.name).symlink_to(path)
    for room in ("agent", "protocol"):
        (packages / room).symlink_to(ROOT / room)
    program = folder / "bin" / "fleet-agent"
    program.write_text(f"#!{folder}/bin/python\n{_PROGRAM}")
    program.chmod(0o755)
    return program


def environment(folder: Path) -> dict[str, str]:
    """Return what an installed agent finds in its environment: modules are compiled once, and kept."""
    return {"PATH": "/usr/bin:/bin", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}


def required(name: str) -> dict[str, Distribution]:
    """Return a distribution and all that it requires without extras, by their names."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        each = distribution(waiting.pop())
        if found.setdefault(_normal(each.name), each) is not each:
            continue
        needs = [Requirement(text) for text in each.requires or ()]
        waiting += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _top_level(each: Distribution) -> set[Path]:
    """Return the files and folders of a distribution; of an editable one without those of the source tree."""
    root = Path(str(each.locate_file("")))
    names = {path.parts[0] for path in each.files or ()} - {"..", "__pycache__"}
    return {root / name for name in names if not name.endswith(".pth") and not (ROOT / name).exists()}
