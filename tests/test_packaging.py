"""The wheel has what it must and nothing else, and its base is enough for a device."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
PACKAGES = {"protocol", "compiler", "agent", "controller"}
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built as for a release."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, HOUSE]
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return next(folder.glob("*.whl"))


def test_top_level_names(wheel: Path) -> None:
    """The wheel adds four packages to an environment, and no name by accident."""
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert PACKAGES == {name for name in top if not name.endswith(".dist-info")}


def test_migrations_are_shipped(wheel: Path) -> None:
    """Every Alembic revision of the checkout is in the wheel, inside of the controller."""
    wanted = {f"controller/{path.relative_to(HOUSE).as_posix()}" for path in (HOUSE / "migrations").rglob("*.py")}
    assert "controller/migrations/env.py" in wanted
    with zipfile.ZipFile(wheel) as archive:
        assert set() == wanted - set(archive.namelist())


def test_every_file_is_shipped(wheel: Path) -> None:
    """What is in the packages' folders is in the wheel, with the markers that they are typed."""
    wanted = {
        path.relative_to(HOUSE).as_posix()
        for package in PACKAGES
        for path in (HOUSE / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert set() == wanted - names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_metadata(wheel: Path) -> None:
    """Licence, both commands and the extras are in the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = archive.read(f"{folder}/METADATA").decode()
        commands = archive.read(f"{folder}/entry_points.txt").decode()
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert "License-Expression: Apache-2.0" in metadata
    assert {"controller", "embedded", "examples", "dev"} == set(re.findall(r"Provides-Extra: (\S+)", metadata))
    assert "fleet-agent = agent.entry:main" in commands
    assert "fleetctl = controller.entry:main" in commands


def test_constraints_pin_everything() -> None:
    """Each package that any extra brings in has exactly one version in constraints.txt, from no special place."""
    lines = (HOUSE / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [] == [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", pin)]
    pinned = {normalized(pin.split("==")[0]) for pin in pins}
    assert len(pins) == len(pinned)
    wanted = {name for requirement in all_requirements() for name in closure(requirement)}
    assert set() == wanted - pinned - {"wasmfleet"}


@pytest.fixture(scope="session")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its base dependencies alone, as a device has it."""
    folder = tmp_path_factory.mktemp("device")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in {name for requirement in PROJECT["dependencies"] for name in closure(requirement)}:
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


def run_on(device: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the device's packages and no others."""
    start = f"import sys; sys.path[:0] = [{str(device)!r}]\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_agent_needs_only_the_base(device: Path) -> None:
    """Every module of the agent and the protocol imports on a device."""
    modules = [
        ".".join(path.relative_to(device).with_suffix("").parts).removesuffix(".__init__")
        for package in ("agent", "protocol")
        for path in sorted((device / package).rglob("*.py"))
    ]
    done = run_on(device, "".join(f"import {module}\n" for module in modules))
    assert ("", 0) == (done.stderr, done.returncode)


def test_fleet_agent_runs_on_the_base(device: Path) -> None:
    """The agent's command answers on a device."""
    done = run_on(device, "sys.argv = ['fleet-agent', '--help']\nfrom agent.entry import main\nmain()")
    assert ("", 0) == (done.stderr, done.returncode)
    assert "enroll" in done.stdout


def test_fleetctl_without_its_extra_says_what_to_install(device: Path) -> None:
    """On a device `fleetctl` names the extra that it needs, instead of a traceback."""
    done = run_on(device, "sys.argv = ['fleetctl', 'devices']\nfrom controller.entry import main\nsys.exit(main())")
    assert 0 != done.returncode
    assert "wasmfleet[controller]" in done.stderr
    assert "Traceback" not in done.stderr


def all_requirements() -> Iterator[str]:
    """Yield every requirement of the project and its extras."""
    yield from PROJECT["dependencies"]
    for extra in PROJECT["optional-dependencies"].values():
        yield from extra


def closure(requirement: str) -> set[str]:
    """Return the names of a requirement and of all that it needs, among what is installed here."""
    found: set[str] = set()
    todo = [requirement]
    while todo:
        text = todo.pop()
        name = normalized(re.split(r"[^A-Za-z0-9._-]", text, maxsplit=1)[0])
        if name in found or "extra ==" in text:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        todo += needs
    return found


def normalized(name: str) -> str:
    """Return the one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()
