"""Ask the agent on this device what kind of content files have.

    python examples/file_types/classify.py FILE... [--state DIRECTORY]

A folder stands for its files. The model sees the first and the last kilobyte of a file, as numbers from 0 to 255,
without the white space around them; 256 stands where a file is too short.
"""

import argparse
from array import array
from collections.abc import Iterator
from pathlib import Path

from agent.cli import default_state_dir
from agent.client import ClientError, LocalClient

MODEL = "file-types"
PART = 1024
READ_BYTES = 4096
NOTHING = 256
FEWEST_BYTES = 8
LEAST_PROBABILITY = 0.5


def features(path: Path) -> bytes | None:
    """Return the input of the model, int32 [1, 2048], or None for a file that is too short to tell."""
    with path.open("rb") as file:
        first = file.read(READ_BYTES).lstrip()
        file.seek(max(0, path.stat().st_size - READ_BYTES))
        last = file.read(READ_BYTES).rstrip()
    if len(first) < FEWEST_BYTES:
        return None
    missing_behind, missing_before = max(0, PART - len(first)), max(0, PART - len(last))
    numbers = [*first[:PART], *[NOTHING] * missing_behind, *[NOTHING] * missing_before, *last[-PART:]]
    return array("i", numbers).tobytes()


def files(paths: list[Path]) -> list[Path]:
    """Return the paths, with the files of folders in place of the folders."""
    return [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


def classify(client: LocalClient, paths: list[Path]) -> Iterator[tuple[Path, str, float]]:
    """Yield each file with its type and how sure the model is."""
    for path in paths:
        numbers = features(path)
        if numbers is None:
            yield path, "too short to tell", 1.0
            continue
        answer = client.infer(MODEL, {"bytes": numbers}).outputs["target_label"]
        probability = max(answer.values)
        yield path, answer.labels[0] if probability >= LEAST_PROBABILITY else "unknown", probability


def main() -> None:
    """Print a line for each file."""
    arguments = argparse.ArgumentParser(description="Tell the types of files by their content.")
    arguments.add_argument("files", type=Path, nargs="+", metavar="FILE")
    arguments.add_argument("--state", type=Path, default=default_state_dir(), help="the agent's (default: %(default)s)")
    given = arguments.parse_args()
    try:
        with LocalClient(given.state / "agent.sock") as client:
            for path, kind, probability in classify(client, files(given.files)):
                print(f"{path.name:12} {kind:18} {probability:6.1%}")
    except (ClientError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
