"""Who may import what, read from the syntax tree: the table of rooms, and where each foreign library lives."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
ROOMS = ("protocol", "compiler", "agent", "controller")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "protocol": ("protocol",),
    "compiler": ("compiler", "protocol"),
    "agent/runtime": ("agent.runtime", "agent.durable", "protocol"),
    "agent": ("agent", "protocol"),
    "controller": ("controller", "protocol", "compiler", "agent.runtime", "agent.engine", "agent.durable"),
    "migrations": ("controller",),
}
"""Of our own packages; the longest matching folder decides."""

ONLY_IN: dict[str, tuple[str, ...]] = {
    "wasmtime": ("agent/runtime/",),
    "paho": ("agent/mqtt.py", "controller/delivery/mqtt.py"),
    "iotcore": ("controller/broker.py", "controller/broker/"),
    "sqlalchemy": ("controller/", "migrations/"),
    "alembic": ("controller/", "migrations/"),
    "litestar": ("controller/",),
    "uvicorn": ("controller/",),
    "httpx": ("controller/",),
    "typer": ("controller/",),
    "rich": ("controller/",),
    "sklearn": ("examples/",),
    "PIL": ("examples/",),
    "numpy": ("compiler/", "controller/", "examples/"),
    "onnx": ("compiler/", "examples/"),
    "scipy": ("examples/",),
}
"""Foreign libraries that have a home."""

IMPURE = frozenset(
    {
        "asyncio", "fcntl", "glob", "http", "io", "logging", "multiprocessing", "os", "pathlib",
        "random", "secrets", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
        "threading", "time", "urllib", "uuid", "warnings",
    }
)  # fmt: skip
"""What a room of bytes and values has no use for."""

PURE = ("protocol", "agent/engine")


def python_files(folder: str) -> list[Path]:
    """Return the Python files of a room."""
    return sorted(path for path in (HOUSE / folder).rglob("*.py") if "build" not in path.relative_to(HOUSE).parts)


def imports(file: str) -> list[str]:
    """Return the full name of everything that a file imports, wherever in the file it does so."""
    return list(imports_of((HOUSE / file).read_text(), Path(file).parts[:-1]))


def imports_of(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Yield what `source`, a module of `package`, imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parents, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    """Return whether `name` is one of `packages` or inside of one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


FILES = [
    path.relative_to(HOUSE).as_posix() for room in (*ROOMS, "migrations", "examples") for path in python_files(room)
]


@pytest.mark.parametrize("file", [f for f in FILES if not f.startswith("examples/")])
def test_rooms_import_only_what_they_may(file: str) -> None:
    """Every import of our own packages is in the row of the table that the file belongs to."""
    room = max((room for room in MAY_IMPORT if file.startswith(f"{room}/")), key=len)
    own = [name for name in imports(file) if is_within(name, (*ROOMS, "migrations", "examples", "tests"))]
    assert [] == [name for name in own if not is_within(name, MAY_IMPORT[room])]


def test_imports_never_go_in_circles() -> None:
    """Every module can be read after those that it imports, those for type checkers alone included."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}
    needed: dict[str, set[str]] = {module: set() for module in modules}
    for module, file in modules.items():
        for name in imports(file):
            found = name
            while found and found not in modules:  # a name in a module, or a library
                found = found.rpartition(".")[0]
            needed[module].update({found} - {"", module})
    assert set(modules) == set(TopologicalSorter(needed).static_order())


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_at_home(library: str) -> None:
    """A foreign library is imported only by the files that adapt it."""
    users = {file for file in FILES if any(is_within(name, (library,)) for name in imports(file))}
    assert set() == {user for user in users if not user.startswith(ONLY_IN[library])}


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith(PURE)])
def test_pure_rooms_do_no_io(file: str) -> None:
    """The protocol and the agent's engine read no clock, touch no file or socket, and log nothing."""
    assert [] == [name for name in imports(file) if is_within(name, tuple(IMPURE))]
    calls = [
        ast.unparse(node.func) for node in ast.walk(ast.parse((HOUSE / file).read_text())) if isinstance(node, ast.Call)
    ]
    assert [] == [call for call in calls if call in ("open", "print", "input", "datetime.now", "datetime.utcnow")]


def test_the_agent_is_light() -> None:
    """Beside the standard library the agent and the protocol import only the base dependencies."""
    allowed = {
        "agent",
        "protocol",
        "backports",
        "cryptography",
        "msgspec",
        "paho",
        "securesystemslib",
        "tuf",
        "wasmtime",
    }
    standard = set(sys.stdlib_module_names)
    found = {name.split(".")[0] for file in FILES if file.startswith(("agent/", "protocol/")) for name in imports(file)}
    assert set() == found - allowed - standard - {"compression"}


def test_relative_imports_are_resolved() -> None:
    """The reader of imports sees through `from . import x` and imports inside of functions."""
    source = "def f():\n    from ..mqtt import Link\n    from . import module\n    import wasmtime.loader\n"
    expected = ["agent.mqtt.Link", "agent.runtime.module", "wasmtime.loader"]
    assert expected == list(imports_of(source, ("agent", "runtime")))
