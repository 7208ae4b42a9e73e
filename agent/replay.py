"""Run a captured input again on the same release, and say whether the same thing happens."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from agent.captures import Capture, CaptureError
from agent.runtime import Caps, LoadedModel, ModelError, Zygote, load_model
from agent.runtime.errors import FaultError, printable
from protocol.manifest import Manifest

Outcome = Literal["reproduced", "another_fault", "no_fault"]


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What happened this time. `happened` is empty when the model answered."""

    outcome: Outcome
    release: str
    expected: str
    happened: str
    hint: str = ""

    def __str__(self) -> str:
        said = {
            "reproduced": "reproduced",
            "another_fault": "not reproduced: it went wrong in another way",
            "no_fault": "not reproduced: the model answered",
        }
        lines = [f"{self.release}: {said[self.outcome]}", f"  then: {self.expected}"]
        lines += [f"  now:  {self.happened}"] if self.happened else []
        return "\n".join([*lines, f"  hint: {self.hint}"] if self.hint else lines)


def replay(capture: Capture, module: bytes) -> Replay:
    """Run `capture` on `module`; raises CaptureError unless it is the module of that release."""
    head = capture.head
    digest = hashlib.sha256(module).hexdigest()
    if all(variant.file.digest != digest for variant in head.manifest.variants):
        raise CaptureError(
            f"expected the module of {head.manifest.model} {head.manifest.version}, got one with SHA-256 {digest[:12]}…"
        )
    happened = _run(capture, module)
    if isinstance(happened, FaultError):
        place = printable(happened.kind)[:63], printable(happened.function or ""), happened.offset
        same = place == (head.fault.kind, head.fault.layer, head.fault.offset) or (
            # Where a deadline or a kill strikes is chance.
            happened.code == head.fault.code and happened.code in ("deadline_exceeded", "process_died")
        )
    else:
        same = False
    outcome: Outcome = "reproduced" if same else "another_fault" if happened else "no_fault"
    hint = "the model is stateful: what it was given before that call is not captured" if head.manifest.stateful else ""
    return Replay(
        outcome=outcome,
        release=f"{head.manifest.model} {head.manifest.version}",
        expected=head.fault.message,
        happened=str(happened or ""),
        hint="" if same else hint,
    )


def find_module(files: Path, manifest: Manifest) -> bytes:
    """Return the module of a release from the folder of files; raises CaptureError when it is not there."""
    for variant in manifest.variants:
        path = files / variant.file.digest
        if path.exists():
            return path.read_bytes()
    raise CaptureError(
        f"the module of {manifest.model} {manifest.version} is not in {files} any more: name a file with --module"
    )


def _run(capture: Capture, module: bytes) -> ModelError | None:
    try:
        with _loaded(capture.head.manifest, capture.head.caps, capture.head.isolation, module) as model:
            model.infer(capture.inputs)
    except ModelError as error:
        return error
    return None


@contextmanager
def _loaded(manifest: Manifest, caps: Caps, isolation: str, module: bytes) -> Iterator[LoadedModel]:
    zygote = Zygote() if isolation == "process" else None
    try:
        model = load_model(module, manifest.inputs, manifest.outputs, caps, stateful=manifest.stateful, zygote=zygote)
        try:
            yield model
        finally:
            model.close()
    finally:
        if zygote:
            zygote.close()
