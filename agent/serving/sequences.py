"""Which calls of a stateful model belong together: the sequence extension, as far as one state for each model goes.

A model that remembers is in one sequence at a time, or in none. A call must be of the sequence that the model is in,
unless it starts one: then the model forgets what came before. So nobody goes on, without noticing, from what another
caller left, nor from nothing after a release was swapped in or the model went wrong.
Source: the Triton Inference Server's `extension_sequence.md`.
"""

from collections.abc import Sequence

import msgspec

from agent.errors import AgentError
from agent.host import START, InferResult, ModelHost, StateLostError
from agent.serving.openinference import RequestParameters


class SequenceError(AgentError):
    """The call does not go on from where the model is."""

    code = "wrong_sequence"


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    """The sequence that a model is in."""

    sequence_id: int | str
    state: object


class Sequences:
    """Runs stateful models. Each call of `run` for a model must have the turn at it."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._running: dict[str, _Running] = {}

    def run(self, model: str, items: Sequence[list[bytes]], asked: RequestParameters) -> list[InferResult]:
        """Return the answer to each item, all of one release.

        Raises:
            SequenceError: the model is in another sequence, or lost the state of this one.
            UnknownModelError, InputError, ModelError: as `ModelHost.infer`.
        """
        name = asked.sequence_id or None
        if asked.sequence_start:
            self._running.pop(model, None)
        running = self._running.get(model)
        if not asked.sequence_start and name != (running and running.sequence_id):
            raise _is_elsewhere(model, name, running)
        state = START if asked.sequence_start else running and running.state
        results: list[InferResult] = []
        while len(results) < len(items):
            try:
                results.append(self._host.infer(model, items[len(results)], state))
            except StateLostError:
                if running is not None:
                    del self._running[model]
                    raise SequenceError(
                        f"{model}: the state of the sequence {name!r} is gone, since a release was swapped or the "
                        "model went wrong: begin again with sequence_start"
                    ) from None
                results, state = [], START  # swapped within a batch: all of it for the new release
            else:
                state = results[-1].state
        if name is not None and not asked.sequence_end:
            self._running[model] = _Running(sequence_id=name, state=state)
        else:
            self._running.pop(model, None)
        return results


def _is_elsewhere(model: str, name: int | str | None, running: _Running | None) -> SequenceError:
    expected = f"a call of the sequence {running.sequence_id!r}" if running else "a call that starts a sequence"
    got = f"one of {name!r}" if name is not None else "one of none"
    return SequenceError(f"{model}: expected {expected}, got {got}: begin with sequence_start, which forgets the state")
