"""`fleetctl inspect`: what a model file declares, and why a device would refuse it. Runs nothing."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.text import Text

from agent.runtime.errors import ModelError
from agent.runtime.module import check_abi
from agent.runtime.module import inspect as validate
from compiler.inspect import MemoryReport, ModuleReport, inspect_module
from controller.bundling.errors import BundleError, ModelFileError
from controller.bundling.source import assemble_module, read_file, read_source
from controller.cli import options, wording
from controller.cli.screen import Screen, facts, plain
from protocol.codec import sha256
from protocol.errors import ProtocolError
from protocol.identifiers import Digest
from protocol.limits import DEFAULT_MEMORY_CAP_BYTES
from protocol.tensors import ModelSpec, TensorSpec

_LARGEST = 5


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What `fleetctl inspect` found; `problems` say why a device would refuse the module."""

    file: str
    digest: Digest
    module: ModuleReport
    spec: ModelSpec | None
    spec_origin: str | None
    problems: tuple[str, ...]


def inspect_file(file: options.ModelFile, is_json: options.Json = False) -> None:
    """Show what a model file declares.

    Also says why a device would refuse it, if it would. Runs nothing.
    """
    screen = Screen(is_json=is_json)
    wasm, _ = assemble_module(file.name, read_file(file))
    found = _inspect(file, wasm)
    screen.document(found)
    screen.say(facts(file.name, _rows(found)))
    screen.say()
    _show_functions(screen, found.module)
    screen.say()
    for problem in found.problems:
        screen.say(Text.assemble(("✗ ", "red"), plain(problem)))
    if not found.problems:
        screen.say(Text.assemble(("✓ ", "green"), "a device can load it; `fleetctl run` tries it here"))


def _show_functions(screen: Screen, module: ModuleReport) -> None:
    """Show the layers of a module of our compiler with their work, else the largest functions."""
    if module.layers:
        layers = (
            (f.name or f"function {f.index}", f"{work:,}", wording.size(f.code_bytes)) for f, work in module.layers
        )
        screen.table(("layer", "multiply-adds", "code"), layers, right=("multiply-adds", "code"))
        return
    largest = sorted(module.functions, key=lambda function: function.code_bytes, reverse=True)[:_LARGEST]
    rows = ((f.name or f"function {f.index}", f.signature, wording.size(f.code_bytes)) for f in largest)
    if largest:
        screen.table(("largest functions", "signature", "code"), rows, right=("code",))


def _inspect(file: Path, wasm: bytes) -> Inspection:
    try:
        module = inspect_module(wasm)
    except ProtocolError as error:
        raise ModelFileError(f"{file.name}: {error}", hint="build the module again") from error
    problems, spec, origin = [], None, None
    try:
        check_abi(validate(wasm))
        source = read_source(file)
        spec, origin = source.spec, source.spec_origin
    except (BundleError, ModelError) as error:
        problems.append(str(error).removeprefix(f"{file.name}: "))
    if any(memory.min_bytes > DEFAULT_MEMORY_CAP_BYTES for memory in module.memories):
        cap = wording.size(DEFAULT_MEMORY_CAP_BYTES)
        problems.append(f"it starts with more memory than a device allows by default ({cap})")
    return Inspection(
        file=str(file),
        digest=sha256(wasm),
        module=module,
        spec=spec,
        spec_origin=origin,
        problems=tuple(problems),
    )


def _rows(found: Inspection) -> Iterator[tuple[str, str]]:
    module = found.module
    code, data = wording.size(module.code_bytes), wording.size(module.data_bytes)
    yield "module", f"{wording.size(module.size_bytes)}: {code} of code, {data} of data"
    yield "sha256", found.digest
    if found.spec is not None:
        spec = found.spec
        yield "model", f"{spec.name or '-'} {spec.version or '-'} (from {found.spec_origin})"
        yield "inputs", "\n".join(map(_tensor, spec.inputs))
        labels = {name: f" with {len(texts)} labels" for name, texts in spec.labels.items()}
        yield "outputs", "\n".join(_tensor(t) + labels.get(t.name, "") for t in spec.outputs)
        state = ", keeps state between calls" if spec.stateful else ""
        yield "caps", f"{spec.stack_kib} KiB of stack, {spec.deadline_ms:,} ms for a call{state}"
    yield "memory", "\n".join(map(_memory, module.memories)) or "none"
    if (plan := module.plan) is not None:
        ratio = (
            f" ({plan.arena_bytes / plan.arena_bound_bytes:.2f} x what lives at once)" if plan.arena_bound_bytes else ""
        )
        constants = f"{wording.size(plan.constant_bytes)} of constants"
        if plan.stored_bytes is not None and plan.stored_bytes < plan.constant_bytes:
            constants += f" (stored in {wording.size(plan.stored_bytes)})"
        yield "plan", f"{constants}, {wording.size(plan.arena_bytes)} of values{ratio}"
        yield "work", wording.count(sum(work for _, work in plan.layers), "multiply-add") + " a call"
    yield "requires", ", ".join(module.required_features) or "nothing special"
    yield "exports", ", ".join(export.name for export in module.exports) or "none"
    yield "imports", ", ".join(f"{i.module}.{i.name}" for i in module.imports) or "none"


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name} {tensor.datatype} {list(tensor.shape)}"


def _memory(memory: MemoryReport) -> str:
    starts, ends = wording.size(memory.min_bytes), memory.max_bytes
    if ends == memory.min_bytes:
        return f"{starts}, fixed"
    return f"{starts}, may grow " + ("without bound" if ends is None else f"to {wording.size(ends)}")
