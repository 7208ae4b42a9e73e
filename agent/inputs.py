"""What `fleet-agent infer` is given: one file, the lines of one, or the files of a folder; one after another."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import AgentError

Inputs = dict[str, bytes | list[Any]]


class InputFileError(AgentError):
    """What was given cannot be read as inputs of the model."""

    code = "bad_input_file"


def is_series(source: str) -> bool:
    """Return whether `source` may hold more than one set of inputs."""
    return source.endswith(".jsonl") or (source != "-" and Path(source).is_dir())


def read_series(source: str, names: list[str]) -> Iterator[tuple[str, Inputs | InputFileError]]:
    """Yield where each set of inputs stands, and the set, or why it is none; raises OSError."""
    path = Path(source)
    if path.is_dir():
        for each in sorted(p for p in path.iterdir() if p.suffix in (".json", ".bin", ".jsonl")):
            yield from read_series(str(each), names)
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{source}:{number}", _attempt(line, names, f"{source}:{number}")
    else:
        yield source, _attempt(path.read_bytes(), names, source)


def read_one(source: str, names: list[str]) -> Inputs:
    """Return the one set of inputs in `source`, or on standard input for `-`; raises InputFileError or OSError."""
    raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    return _parse(raw, names, source)


def _attempt(raw: bytes, names: list[str], where: str) -> Inputs | InputFileError:
    try:
        return _parse(raw, names, where)
    except InputFileError as error:
        return error


def _parse(raw: bytes, names: list[str], where: str) -> Inputs:
    if where.endswith(".bin"):
        return {_only(names): raw}
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputFileError(f"{where}: expected JSON, {error}; name a file of raw bytes *.bin") from error
    return data if isinstance(data, dict) else {_only(names): data}


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise InputFileError(f'the model has the inputs {", ".join(names)}: name each, as in {{"{names[0]}": …}}')
    return names[0]
