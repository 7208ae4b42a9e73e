"""Which calls of a stateful model belong together: the sequence extension, as far as one state for each model goes.

A model that remembers is in one sequence at a time, or in none. A call must be of the sequence that the model is in,
unless it starts one: then the model forgets what came before. So nobody goes on, without noticing, from what another
caller left, nor from nothing after a release was swapped in or the model went wrong. A stream, such as the messages on
a topic, cannot be told to begin again: its sequence begins by itself, whenever the model is in none or lost its state.
Source: the Triton Inference Server's `extension_sequence.md`.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from agent.errors import AgentError
from agent.host import START, InferResult, ModelHost, StateLostError
from agent.serving.openinference import RequestParameters

IDLE_S: Final = 60.0
"""A sequence that had no call for so long keeps nobody out: its caller may have died."""


class SequenceError(AgentError):
    """The call does not go on from where the model is."""

    code = "wrong_sequence"


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    """The sequence that a model is in."""

    sequence_id: int | str
    state: object
    used_s: float


class Sequences:
    """Runs stateful models. Each call of `run` for a model must have the turn at it."""

    def __init__(self, host: ModelHost, now_s: Callable[[], float] = time.monotonic) -> None:
        self._host = host
        self._now_s = now_s
        self._running: dict[str, _Running] = {}

    def run(
        self, model: str, items: Sequence[list[bytes]], asked: RequestParameters, stream: str = ""
    ) -> list[InferResult]:
        """Return the answer to each item, all of one release. A call of a `stream` is of its sequence, or of `asked`'s.

        Raises:
            SequenceError: the model is in another sequence, or lost the state of this one.
            UnknownModelError, InputError, ModelError: as `ModelHost.infer`.
        """
        name = asked.sequence_id or stream or None
        begins_by_itself = name == stream
        running = self._found(model, name)
        if asked.sequence_start or (begins_by_itself and running is None):
            self._running.pop(model, None)
            state, running = START, None
        elif name == (running and running.sequence_id):
            state = running and running.state
        else:
            raise _is_elsewhere(model, name, running)
        results: list[InferResult] = []
        while len(results) < len(items):
            try:
                results.append(self._host.infer(model, items[len(results)], state))
            except StateLostError:
                if running is not None and not begins_by_itself:
                    del self._running[model]
                    raise _is_gone(model, name) from None
                results, state = [], START  # swapped within a batch: all of it for the new release
            else:
                state = results[-1].state
        if name is not None and not asked.sequence_end:
            self._running[model] = _Running(sequence_id=name, state=state, used_s=self._now_s())
        else:
            self._running.pop(model, None)
        return results

    def _found(self, model: str, name: int | str | None) -> _Running | None:
        """Return the sequence that the model is in; one of others only while it is in use."""
        running = self._running.get(model)
        if running is None or name == running.sequence_id or self._now_s() - running.used_s < IDLE_S:
            return running
        return None


def _is_elsewhere(model: str, name: int | str | None, running: _Running | None) -> SequenceError:
    expected = f"a call of the sequence {running.sequence_id!r}" if running else "a call that starts a sequence"
    got = f"one of {name!r}" if name is not None else "one of none"
    return SequenceError(f"{model}: expected {expected}, got {got}: begin with sequence_start, which forgets the state")


def _is_gone(model: str, name: int | str | None) -> SequenceError:
    return SequenceError(
        f"{model}: the state of the sequence {name!r} is gone, since a release was swapped or the model went wrong: "
        "begin again with sequence_start"
    )
