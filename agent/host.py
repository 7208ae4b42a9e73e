"""The resident models: which release of each answers, and which one stands behind it.

A model has an active release, and behind it the previous one, kept loaded so that going back takes no download and
no compilation. Both are one immutable slot, replaced as one reference: a call reads the slot once and ends on the
release that it began on.

A new release is active before it is committed. Its first fault suspends it: that call and all later ones are answered
by the previous release, until the engine rolls back: it can no longer be committed. No request is lost by an update.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agent.diagnostics import Diagnostics
from agent.errors import AgentError
from agent.nan_outputs import FindNan, nan_finder
from agent.runtime.errors import FaultError, InputError, ModelClosedError, ModelError, ProcessGoneError
from agent.runtime.instance import LoadedModel
from agent.usage import UsageMeter
from protocol.manifest import Manifest

OnFault = Callable[[str, str, ModelError], None]
"""Told the model, the version and the fault of an uncommitted release, once, from the thread of the call: it must
return at once and must not raise."""


class HostError(AgentError):
    """The host has no release to do this with."""

    code = "host"


class UnknownModelError(HostError):
    """No release of that model is active."""

    code = "unknown_model"


class NoPreviousReleaseError(HostError):
    """There is no release to go back to."""

    code = "no_previous_release"


class CommitError(HostError):
    """The release that was to be committed does not answer."""

    code = "not_serving"


class StateLostError(HostError):
    """The model no longer remembers what this call was to go on from; it did not run."""

    code = "state_lost"


START: Final = object()
"""In place of a state: the model is to forget everything before the call."""


class InferResult(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, and the release that gave it."""

    version: str
    outputs: list[bytes]
    latency_us: int
    manifest: Manifest
    """Of the release that answered."""
    state: object
    """Stands for what a stateful model remembered before the call; as good as none for others."""
    nan_outputs: tuple[str, ...] = ()
    """The outputs in which NaN stands, if the host flags it."""


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A release that is loaded."""

    manifest: Manifest
    model: LoadedModel
    find_nan: FindNan

    @property
    def version(self) -> str:
        """The version of the release."""
        return self.manifest.version


class _Slot(msgspec.Struct, frozen=True, kw_only=True):
    """What answers for one model. A slot is never altered, only replaced."""

    active: Resident
    previous: Resident | None = None
    is_committed: bool = True
    is_suspended: bool = False
    """The uncommitted release had a fault: the previous one answers."""


class ModelHost:
    """The resident models. Safe to use from many threads; calls never wait for a swap, nor a swap for calls."""

    def __init__(self, meter: UsageMeter, on_fault: OnFault, diagnostics: Diagnostics | None = None) -> None:
        self._meter = meter
        self._diagnostics = diagnostics or Diagnostics(meter)
        self._on_fault = on_fault
        self.flags_nan = False
        """Whether answers are searched for NaN: it is told and counted, and the answer given all the same."""
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()  # of those who replace slots; calls do without

    def activate(self, manifest: Manifest, model: LoadedModel, *, is_committed: bool) -> int:
        """Let `model` answer from now on and return how long the swap took, in microseconds.

        The release before it becomes the previous one. If that was not committed itself, the release behind it stays
        the previous one. The host owns `model` from here on.
        """
        resident = Resident(manifest=manifest, model=model, find_nan=nan_finder(manifest.outputs))
        _forget_state(resident)
        start_ns = time.perf_counter_ns()
        with self._lock:
            old = self._slots.get(manifest.model)
            previous, dropped = _succession(old)
            self._slots[manifest.model] = _Slot(active=resident, previous=previous, is_committed=is_committed)
        swap_us = max(1, (time.perf_counter_ns() - start_ns) // 1000)
        if dropped is not None:
            dropped.model.close()
        self._meter.note_memory(manifest.model, manifest.version, model.memory_bytes)
        return swap_us

    def commit(self, model_name: str, version: str) -> None:
        """Trust the active release.

        Raises:
            UnknownModelError: nothing is active.
            CommitError: the active release is not `version`, or a fault suspended it; everything stays as it is.
        """
        with self._lock:
            slot = self._slot(model_name)
            if slot.active.version != version:
                raise CommitError(f"{model_name}: expected {version} to answer, got {slot.active.version}")
            if slot.is_suspended:
                raise CommitError(f"{model_name}: {version} failed while it answered a request")
            self._slots[model_name] = msgspec.structs.replace(slot, is_committed=True)

    def rollback(self, model_name: str) -> str:
        """Let the previous release answer again and return its version.

        A release that was never committed is dropped; one that was is now the previous one.

        Raises:
            UnknownModelError: nothing is active.
            NoPreviousReleaseError: there is nothing to go back to; the active release stays.
        """
        with self._lock:
            slot = self._slot(model_name)
            if slot.previous is None:
                raise NoPreviousReleaseError(
                    f"{model_name}: expected a release before {slot.active.version} to go back to, there is none"
                )
            if not slot.is_suspended:
                _forget_state(slot.previous)
            behind = slot.active if slot.is_committed else None
            self._slots[model_name] = _Slot(active=slot.previous, previous=behind)
        if not slot.is_committed:
            slot.active.model.close()
        return slot.previous.version

    def remove(self, model_name: str) -> None:
        """Drop every release of a model; nothing happens when there is none."""
        with self._lock:
            slot = self._slots.pop(model_name, None)
        if slot is not None:
            _close(slot)

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            _close(slot)

    def manifests(self) -> dict[str, Manifest]:
        """Return the manifest of each active release by the name of its model."""
        return {name: slot.active.manifest for name, slot in self._slots.copy().items()}

    def manifest(self, model_name: str) -> Manifest:
        """Return the manifest of the release that answers now; raises UnknownModelError."""
        return _serving(self._slot(model_name)).manifest

    def infer(self, model_name: str, inputs: Sequence[bytes], state: object | None = None) -> InferResult:
        """Run the active release on one raw tensor for each input.

        `state` is START, or the state that the call is to go on from; without it, whatever the model remembers.

        Raises:
            UnknownModelError: nothing is active.
            StateLostError: the model does not remember `state`: it was swapped, reset or made anew.
            InputError: the tensors do not fit.
            ModelError: the release failed and there is no other to ask.
        """
        start_ns = time.perf_counter_ns()
        while True:
            slot = self._slot(model_name)
            try:
                return self._answer(slot, inputs, start_ns, state)
            except ModelClosedError:
                # Swapped out twice since we read the slot: what answers now is in the new slot.
                if self._slots.get(model_name) is slot:
                    raise

    def _answer(self, slot: _Slot, inputs: Sequence[bytes], start_ns: int, state: object | None) -> InferResult:
        try:
            return self._run(_serving(slot), inputs, start_ns, state)
        except (InputError, ModelClosedError):
            raise
        except ModelError as fault:
            if slot.is_committed or slot.is_suspended or isinstance(fault, ProcessGoneError):
                raise  # the latter says nothing against the release
            self._suspend(slot, fault)
            if slot.previous is None:
                raise
            try:
                return self._run(slot.previous, inputs, start_ns, state)
            except InputError:
                # The releases take other tensors: the caller's were right for the one that failed.
                raise fault from None

    def _run(self, resident: Resident, inputs: Sequence[bytes], start_ns: int, state: object | None) -> InferResult:
        name, version, model = resident.manifest.model, resident.manifest.version, resident.model
        try:
            if state is START:
                model.reset()
            remembered = model.state  # before the call: what is forgotten while it runs, the next one hears of
            if state is not None and state is not START and state is not remembered:
                raise StateLostError(f"{name}: the state of the calls before is gone")
            outputs = model.infer(inputs)
        except ModelClosedError:
            raise
        except ModelError as error:
            self._meter.record_error(name, version, error.code)
            if isinstance(error, FaultError):
                self._diagnostics.note(resident.manifest, model.caps, inputs, error)
            raise
        nan_outputs = resident.find_nan(outputs) if self.flags_nan else ()
        latency_us = (time.perf_counter_ns() - start_ns) // 1000
        self._meter.record(name, version, latency_us, model.memory_bytes)
        if nan_outputs:
            self._diagnostics.note_nan(resident.manifest, inputs, nan_outputs)
        return InferResult(
            version=version,
            outputs=outputs,
            latency_us=latency_us,
            manifest=resident.manifest,
            state=remembered,
            nan_outputs=nan_outputs,
        )

    def _suspend(self, slot: _Slot, fault: ModelError) -> None:
        """Let the previous release answer, and tell of the fault if no other call has."""
        manifest = slot.active.manifest
        with self._lock:
            if self._slots.get(manifest.model) is not slot:
                return
            self._slots[manifest.model] = msgspec.structs.replace(slot, is_suspended=True)
        if slot.previous is not None:
            _forget_state(slot.previous)
        self._on_fault(manifest.model, manifest.version, fault)

    def _slot(self, model_name: str) -> _Slot:
        slot = self._slots.get(model_name)
        if slot is None:
            names = ", ".join(sorted(self._slots.copy())) or "none"
            raise UnknownModelError(f"no release of {model_name[:80]!r} is active here; active models: {names}")
        return slot


def _serving(slot: _Slot) -> Resident:
    return slot.previous if slot.is_suspended and slot.previous is not None else slot.active


def _succession(old: _Slot | None) -> tuple[Resident | None, Resident | None]:
    """Return the release that stands behind the next one, and the one that is dropped."""
    if old is None:
        return None, None
    return (old.active, old.previous) if old.is_committed else (old.previous, old.active)


def _close(slot: _Slot) -> None:
    slot.active.model.close()
    if slot.previous is not None:
        slot.previous.model.close()


def _forget_state(resident: Resident) -> None:
    if resident.manifest.stateful:
        # A reset that fails leaves the model without an instance, and the next call makes a fresh one.
        with contextlib.suppress(ModelError):
            resident.model.reset()
