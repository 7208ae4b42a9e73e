"""What is kept of a call that went wrong inside a module: where, on which input, and, if the owner allows, the input.

The counts go into the telemetry, one line of each kind and place into the log. Inputs stay on the device: their
SHA-256 alone is told, and a capture is a file that only the agent's user reads.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agent.captures import Captures, FaultFacts
from agent.logs import named
from agent.runtime.errors import FaultError, printable
from agent.runtime.sandbox import Caps
from agent.usage import UsageMeter
from protocol.limits import MAX_REASON_CHARS
from protocol.manifest import Manifest

LOG_INTERVAL_S: Final = 60.0
"""How often the same fault of the same release is logged at most; every one is counted."""
MAX_LOGGED: Final = 32
"""How many places of one release are logged within that time: a module has any number of layers to trap in."""
NAN_OUTPUT: Final = "nan_output"
"""Counted like a kind of trap, with the output's name for a layer."""

_log = logging.getLogger(__name__)


class Diagnostics:
    """Notes faults from many threads. Never raises: a fault of a model is told to its caller, whatever happens here."""

    def __init__(
        self, meter: UsageMeter, captures: Captures | None = None, wall_ms: Callable[[], int] = lambda: 0
    ) -> None:
        self._meter = meter
        self._captures = captures
        self._wall_ms = wall_ms
        self._lock = threading.Lock()
        self._logged: dict[tuple[str, str, str, str], float] = {}

    def note(self, manifest: Manifest, caps: Caps, inputs: Sequence[bytes], fault: FaultError) -> None:
        """Count, log and keep one fault, and tell its error of which release and which input it is."""
        fault.release = f"{manifest.model} {manifest.version}"
        fault.input_digest = _digest(inputs)
        facts = FaultFacts(
            code=fault.code,
            kind=printable(fault.kind)[:63],
            layer=printable(fault.function or ""),
            offset=fault.offset,
            message=str(fault)[:MAX_REASON_CHARS],
            input_digest=fault.input_digest,
            at_ms=self._wall_ms(),
        )
        self._meter.record_trap(manifest.model, manifest.version, facts.kind, facts.layer)
        if self._captures is not None:
            try:
                fault.capture = self._captures.add(manifest, caps, inputs, facts) or ""
            except OSError as error:
                _log.warning("an input could not be captured: %s", error)
        if self._is_news((manifest.model, manifest.version, facts.kind, facts.layer)):
            kept = f", captured in {fault.capture}" if fault.capture else ""
            _log.error(
                "%s %s: %s; input sha256 %s%s",
                manifest.model,
                manifest.version,
                fault,
                facts.input_digest,
                kept,
                extra=named(
                    "fault",
                    model=manifest.model,
                    version=manifest.version,
                    capture=fault.capture,
                    **msgspec.to_builtins(facts),
                ),
            )

    def note_nan(self, manifest: Manifest, inputs: Sequence[bytes], outputs: Sequence[str]) -> None:
        """Count and log the outputs of an answer in which NaN stands."""
        model, version = manifest.model, manifest.version
        for output in map(printable, outputs):
            self._meter.record_trap(model, version, NAN_OUTPUT, output)
            if self._is_news((model, version, NAN_OUTPUT, output)):
                told = named(NAN_OUTPUT, model=model, version=version, output=output)
                digest = _digest(inputs)
                _log.warning("%s %s: NaN in output %r; input sha256 %s", model, version, output, digest, extra=told)

    def _is_news(self, key: tuple[str, str, str, str]) -> bool:
        now_s = time.monotonic()
        with self._lock:
            if now_s - self._logged.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
                return False
            self._logged = {k: at_s for k, at_s in self._logged.items() if now_s - at_s < LOG_INTERVAL_S}
            if sum(k[:2] == key[:2] for k in self._logged) >= MAX_LOGGED:
                return False
            self._logged[key] = now_s
            return True


def _digest(inputs: Sequence[bytes]) -> str:
    """Return the SHA-256 of the raw tensors, one behind the other in the order of the model's inputs."""
    sha = hashlib.sha256()
    for data in inputs:
        sha.update(data)
    return sha.hexdigest()
