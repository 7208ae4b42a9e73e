"""A model file as its author made it: wasm or WAT, and the spec of its tensors from inside or beside it.

Refuses what is no core wasm module and what nobody described. Runs nothing.
"""

import stat
import tomllib
from pathlib import Path

import msgspec

from agent.runtime.capacity import runtime_name
from agent.runtime.errors import ModelError
from agent.runtime.module import assemble, check_abi, inspect
from controller import reading
from controller.bundling.errors import ModelFileError, ModelSpecError, refused_by_runtime
from protocol import limits
from protocol.errors import LimitExceededError, ProtocolError
from protocol.manifest import FileRef
from protocol.tensors import SECTION_NAME, ModelSpec, TensorSpec
from protocol.wasm import MAGIC, custom_section

SIDECAR = "model.toml"
_OTHER_FORMATS = {
    ".onnx": "compile it first with `fleetctl build FILE`; `fleetctl push FILE` does so by itself",
    ".toml": "give the module that this file describes",
}
MINIMAL_SIDECAR = """\
[[inputs]]
name = "x"
datatype = "FP32"
shape = [1, 4]

[[outputs]]
name = "y"
datatype = "FP32"
shape = [1, 1]
"""


class ModelSource(msgspec.Struct, frozen=True, kw_only=True):
    """One model file, read and understood."""

    file_name: str
    file: FileRef
    """The file as it was given: for WAT, the text."""
    wasm: bytes
    spec: ModelSpec
    spec_origin: str
    """Where the spec comes from: `fleet.model`, or the name of a TOML file."""
    tool: str
    fallbacks: tuple[bytes, ...] = ()
    """Modules of the same model for engines that lack what `wasm` needs, the best one first."""


def read_source(path: Path) -> ModelSource:
    """Return the model in the file at `path`; raises BundleError."""
    raw = read_file(path)
    beside = path.with_suffix(".toml")
    sidecar = beside if beside.is_file() else path.with_name(SIDECAR)
    return parse_source(
        path.name,
        raw,
        sidecar.name,
        read_file(sidecar).decode(errors="replace") if sidecar.is_file() else None,
    )


def parse_source(file_name: str, raw: bytes, sidecar_name: str = SIDECAR, sidecar: str | None = None) -> ModelSource:
    """Return the model in `raw`, described by its own section or else by `sidecar`; raises BundleError."""
    wasm, tool = assemble_module(file_name, raw)
    spec, origin = find_spec(file_name, wasm), SECTION_NAME
    if spec is None and sidecar is not None:
        spec, origin = parse_sidecar(sidecar_name, sidecar), sidecar_name
    if spec is None:
        _check_can_be_model(file_name, wasm)
        raise ModelSpecError(
            f"{file_name}: nothing says which tensors the model takes: "
            f"expected a {SECTION_NAME} section in it or a {SIDECAR} beside it",
            hint=f"write {SIDECAR} with the real names, types and shapes, for example:\n\n{MINIMAL_SIDECAR}",
        )
    return ModelSource(
        file_name=file_name,
        file=FileRef.of(raw),
        wasm=wasm,
        spec=spec,
        spec_origin=origin,
        tool=spec.producer or tool,
    )


def find_spec(file_name: str, wasm: bytes) -> ModelSpec | None:
    """Return the spec that the module carries, or None; raises ModelSpecError."""
    try:
        section = custom_section(wasm, SECTION_NAME)
        return None if section is None else ModelSpec.from_bytes(section)
    except ProtocolError as error:
        hint = f"build the module again; docs/PROTOCOL.md has the format of {SECTION_NAME}"
        raise ModelSpecError(f"{file_name}: {error}", hint=hint) from error


def parse_sidecar(name: str, text: str) -> ModelSpec:
    """Return the spec that a `model.toml` spells; raises ModelSpecError, also for a key that does not exist."""
    try:
        document = tomllib.loads(text)
        _refuse_unknown(document, ModelSpec, name)
        for tensor in [*document.get("inputs", ()), *document.get("outputs", ())]:
            _refuse_unknown(tensor, TensorSpec, f"{name}: a tensor")
        return msgspec.convert(document, ModelSpec)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ProtocolError, TypeError) as error:
        raise ModelSpecError(
            f"{name}: {error}", hint=f"a minimal {SIDECAR} looks like this:\n\n{MINIMAL_SIDECAR}"
        ) from error


def assemble_module(file_name: str, raw: bytes) -> tuple[bytes, str]:
    """Return the wasm that `raw` is or assembles to, and the tool that made it; raises ModelFileError."""
    if raw.startswith(MAGIC):
        return raw, "unknown"
    if file_name.endswith(".wat") or raw.lstrip().startswith(b"(module"):
        try:
            return assemble(raw.decode()), runtime_name()
        except (ModelError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{file_name}: {error}", hint="mend the text, then push it again") from error
    raise ModelFileError(
        f"{file_name}: not a wasm file: expected it to start with \\0asm, got {raw[:8]!r}",
        hint=_OTHER_FORMATS.get(
            Path(file_name).suffix.lower(), "give a .wasm module, or WebAssembly text in a .wat file"
        ),
    )


def _check_can_be_model(file_name: str, wasm: bytes) -> None:
    """Raise PreflightError when a spec would not help: what the module lacks is said first."""
    try:
        check_abi(inspect(wasm))
    except ModelError as error:
        raise refused_by_runtime(file_name, error) from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a model file; raises ModelFileError."""
    try:
        size_of(path)
        raw = reading.read_file(path, limits.MAX_FILE_BYTES)
    except (OSError, LimitExceededError) as error:
        raise ModelFileError(reading.why_unread(str(path), error), hint="give the path of a model file") from error
    if not raw:
        raise ModelFileError(f"{path} is empty", hint="give the path of a model file")
    return raw


def size_of(path: Path) -> int:
    """Return how many bytes a file has; raises ModelFileError for what is no plain file, or OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise ModelFileError(f"cannot read {path}: it is {what}", hint="give the path of a model file")
    return found.st_size


def _refuse_unknown(table: dict[str, object], kind: type[msgspec.Struct], what: str) -> None:
    known = kind.__struct_fields__
    if unknown := sorted(set(table) - set(known)):
        raise ModelSpecError(f"{what} has unknown keys {unknown}", hint=f"the keys are {', '.join(known)}")
