"""docs/CLI.md: the help of every command, as `fleetctl` prints it.

python -m controller.cli.reference > docs/CLI.md
"""

import sys
from collections.abc import Iterator

import typer
from typer.testing import CliRunner

from controller.bundling.source import MINIMAL_SIDECAR
from controller.cli.app import app

_COLUMNS = "90"
_PREAMBLE = """\
# The command line

Everything that an operator does goes through `fleetctl`. This page is made from its own help.

- **Which fleet.** `--home` (or `FLEET_HOME`) names the folder that `fleetctl init` made, `./fleet` by default. The
  address of the service is that of `--api-url` (or `FLEET_API_URL`), else where the service on this machine says it
  runs, else that of `operator/config.toml`. The token is that of `--token-file` (or `FLEET_TOKEN_FILE`), else that of
  the operator's folder. These options stand before the command.
- **For programs.** Every command has `--json`: stdout then carries one JSON document and nothing else; times are
  RFC 3339 in UTC, sizes bytes. `rollouts watch --json` writes one document for each change, a line each. When the
  command fails, or was not understood, the document is `{{"error": {{"code": …, "message": …, "hint": …}}}}`; `code` is
  stable.
- **Errors** go to stderr as `error: …`, with a `hint: …` that says what to do.
- **Exit codes.** 0: done. 1: an error. 2: the command was not understood. 3: a rollout was followed, and some device
  did not end well, or not in time. 130: stopped by Ctrl-C; a rollout goes on without the terminal. 141: whoever read
  the output had seen enough, as in `fleetctl devices | head -1`.
- **Terminals.** Colours are for terminals alone, and for none where `NO_COLOR` is set. `--install-completion` teaches
  your shell to complete commands and options.

## Files that commands take

**A model** is a `.wasm` module, or WebAssembly text in a `.wat` file, that keeps the
[tensor ABI](PROTOCOL.md). It describes its tensors in a section named `fleet.model`; where it has none, a TOML file
beside it does: `NAME.toml` for `NAME.wasm`, else `model.toml`. `build` makes such a module of an `.onnx` file, and
`push` does so by itself.

```toml
{sidecar}```

Its other keys, all optional: `name`, `version`, `stateful`, `stack_kib` (64, 256 or 1024), `deadline_ms`, `producer`,
and a table `labels` with one list of texts for each output that has some.

**Test data** (`push --test-data`) are the vectors of the self-test, which every device runs before it activates the
release. The first 64 are taken, or as many as fit 16 MiB.

```json
{{"inputs": [{{"x": [[1.0, 2.0, 4.0, 0.5]]}}],
 "outputs": [{{"y": [[2.0]]}}],
 "atol": "1e-5", "rtol": "1e-4"}}
```

There is one object for each vector, with one key for each tensor; values are nested by the tensor's shape or flat, and
a model with one input may have the bare value in place of the object. Without `outputs` those of the module itself are
recorded. An output passes when it is off by no more than `atol + rtol * |expected|`.

**An input** (`run --input`) is one such object, or the bare value for the only input; a file that ends in `.bin` is
taken as the raw little-endian bytes of the only input, and `-` reads JSON from stdin.
"""


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and group that is not hidden, in the order of the help."""
    yield ()
    yield from _below(typer.main.get_command(app), ())


def help_of(words: tuple[str, ...]) -> str:
    """Return what `fleetctl WORDS --help` prints."""
    environment = {"COLUMNS": _COLUMNS, "FLEET_HOME": None, "FLEET_API_URL": None, "FLEET_TOKEN_FILE": None}
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="fleetctl", env=environment)
    return result.stdout


def reference() -> str:
    """Return the whole page."""
    preamble = _PREAMBLE.format(sidecar=MINIMAL_SIDECAR)
    parts = [f"## {' '.join(('fleetctl', *words))}\n\n```text\n{help_of(words).strip()}\n```\n" for words in commands()]
    return "\n".join([preamble, *parts])


def _below(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield (*words, name)
            yield from _below(child, (*words, name))


if __name__ == "__main__":
    sys.stdout.write(reference())
