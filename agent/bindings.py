"""Bindings: which model answers what is published on which topic of the broker, and where its answers go.

The device's owner writes them into `policy.toml`. What could hurt is refused here, before anything is subscribed:
topics that are none, wildcards, the fleet's own topics, and answers that would come back as questions for ever.
"""

import graphlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from agent.errors import PolicyError
from protocol.errors import UnknownIdentifierError
from protocol.identifiers import parse_model_name
from protocol.topics import Topics

MAX_BINDINGS: Final = 16
MAX_TOPIC_BYTES: Final = 256
"""As some big brokers have it; MQTT itself allows 65,535."""


class Binding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, the topic of its inputs and the topic of its answers."""

    model: str
    subscribe: str
    publish: str
    format: Literal["json", "raw"] = "json"
    """`json`: requests and responses of the Open Inference Protocol. `raw`: nothing but the bytes of the tensors."""


Bindings = Annotated[tuple[Binding, ...], msgspec.Meta(max_length=MAX_BINDINGS)]


class BindingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the messages of one binding since the agent started."""

    model: str
    subscribe: str
    publish: str
    answered: int = 0
    failed: int = 0
    """Not answered by the model: with `json` the error was published, with `raw` it is in the log."""
    dropped: int = 0
    """Given up for newer ones, which came faster than the model answers."""
    unsent: int = 0
    """Answers and errors for which there was no connection."""


def check_bindings(bindings: Sequence[Binding], topics: Topics) -> None:
    """Raise PolicyError for what cannot be bound; `topics` are those of the fleet."""
    for number, binding in enumerate(bindings, 1):
        try:
            parse_model_name(binding.model)
        except UnknownIdentifierError as error:
            raise PolicyError(f"binding {number}: {error}") from error
        for field in ("subscribe", "publish"):
            if fault := _fault(getattr(binding, field), topics.prefix):
                raise PolicyError(f"binding {number}: {field}: {fault}")
        if binding in bindings[: number - 1]:
            raise PolicyError(f"binding {number}: expected every binding once, this one is there already")
    _check_loops(bindings)


def _fault(topic: str, prefix: str) -> str:
    """Return why `topic` cannot be bound, or nothing."""
    shown = repr(topic[:80])
    if not topic.isprintable() or not 1 <= len(topic.encode()) <= MAX_TOPIC_BYTES:
        return f"expected a topic of 1 to {MAX_TOPIC_BYTES} bytes of printable text, got {shown}"
    if "+" in topic or "#" in topic:
        return f"expected one topic, got the wildcard {shown}: write a binding for each topic"
    if topic.startswith("$"):
        return f"expected a topic that is not the broker's own, got {shown}"
    if topic == prefix or topic.startswith(f"{prefix}/"):
        return f"expected a topic outside of {prefix}/, which is the fleet's own, got {shown}"
    return ""


def _check_loops(bindings: Sequence[Binding]) -> None:
    """Raise PolicyError when an answer would come back to the binding that gave it, by whatever way."""
    leads_to: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for binding in bindings:
        leads_to.add(binding.publish, binding.subscribe)
    try:
        leads_to.prepare()
    except graphlib.CycleError as error:
        way = " -> ".join(error.args[1])
        raise PolicyError(f"bindings: expected answers to end somewhere, these go round for ever: {way}") from error
