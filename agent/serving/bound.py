"""Bound inputs: a message on one topic of the broker is a request, and its answer is a message on another.

Each binding answers in the order in which its messages come, by the same way as the local API and within the same
bounds. What is offered never waits: when messages come faster than the model answers, the oldest give way. Nothing is
kept over a stop of the agent.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

import msgspec

from agent.bindings import Binding, BindingStatus
from agent.errors import AgentError
from agent.host import UnknownModelError
from agent.mqtt import LinkEvent, Message, Oversize
from agent.runtime import processors
from agent.serving import HEADER_LENGTH
from agent.serving.body import WholeBody
from agent.serving.openinference import (
    ErrorResponse,
    InferInput,
    InferRequest,
    InputParameters,
    RequestParameters,
)
from agent.serving.routes import Reply, Request, error_reply, error_text
from protocol import limits
from protocol.manifest import Manifest

MAX_MESSAGE_BYTES: Final = limits.MAX_METADATA_SET_BYTES
"""More does not pass the link; what the model's inputs can need is mostly less, and checked for each request."""
MAX_WAITING: Final = 32
MAX_WAITING_BYTES: Final = limits.MAX_METADATA_SET_BYTES
"""Of one binding; a single message always has room."""
GRACE_S: Final = 5.0
"""How long an answer in work may take to end when the agent stops."""
COMPLAINT_PERIOD_S: Final = 60.0
SEQUENCE: Final = "mqtt"
"""The messages for a stateful model are one sequence, unless they name another: nobody else is mixed with them."""

Answer = Callable[[Request], Reply]
ManifestOf = Callable[[str], Manifest]
"""The manifest of the release of a model that answers now; raises UnknownModelError."""


class Broker(Protocol):
    """What a binding needs of the link to the broker."""

    def subscribe(self, topics: dict[str, int]) -> None:
        """Hear these topics, each with its largest message."""

    def unsubscribe(self, topics: Collection[str]) -> None:
        """Hear them no more."""

    def publish_in_turn(self, topic: str, payload: bytes) -> bool:
        """Send a message, wait while too many are under way, and say whether there was a connection."""


_log = logging.getLogger(__name__)


class BoundInputs:
    """All bindings of a device, from the first `bind` to `close`."""

    def __init__(self, answer: Answer, manifest: ManifestOf, broker: Broker) -> None:
        self._asking = _Asking(answer, manifest)
        self._broker = broker
        self._bound: tuple[_Bound, ...] = ()
        self._leaving: list[_Bound] = []
        """Those that were removed, with a call in work perhaps."""

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Answer for these bindings from now on, and for no others; what stays keeps its messages and its counts."""
        old = {bound.binding: bound for bound in self._bound}
        new = {each: old.get(each) or _Bound(each, self._asking, self._broker.publish_in_turn) for each in bindings}
        heard, wanted = ({binding.subscribe for binding in each} for each in (old, new))
        try:
            for binding in new.keys() - old.keys():
                new[binding].start()
        except RuntimeError as error:
            for binding in new.keys() - old.keys():
                new[binding].end()
            raise AgentError(f"the bindings stay as they were: {error}") from error
        self._broker.unsubscribe(heard - wanted)
        self._bound = tuple(new.values())
        gone = [old[binding] for binding in old.keys() - new.keys()]
        for bound in gone:
            bound.end()  # its call in work ends by itself: the main loop does not wait
        self._leaving = [bound for bound in (*self._leaving, *gone) if bound.is_running]
        self._broker.subscribe(dict.fromkeys(wanted - heard, MAX_MESSAGE_BYTES))

    def offer(self, event: LinkEvent) -> bool:
        """Take what came on a topic of ours, at once; return False when it is none."""
        if not isinstance(event, Message | Oversize):
            return False
        found = [bound for bound in self._bound if bound.binding.subscribe == event.topic]
        for bound in found:
            bound.offer(event)
        return bool(found)

    def statuses(self) -> tuple[BindingStatus, ...]:
        """Return what became of the messages so far. From any thread."""
        return tuple(bound.status() for bound in self._bound)

    def close(self) -> None:
        """Let the answers in work end, of removed bindings too, drop what waits. Closing twice does nothing."""
        for bound in self._bound:
            bound.end()
        until_s = time.monotonic() + GRACE_S
        for bound in (*self._bound, *self._leaving):
            bound.join(max(until_s - time.monotonic(), 0))


class _Bound:
    """One binding: what waits, and the thread that answers it."""

    def __init__(self, binding: Binding, asking: "_Asking", publish: Callable[[str, bytes], bool]) -> None:
        self.binding = binding
        self._asking = asking
        self._publish = publish
        self._waiting: deque[Message | Oversize] = deque()
        self._waiting_bytes = 0
        self._is_ending = False
        self._changed = threading.Condition()
        self._status = BindingStatus(model=binding.model, subscribe=binding.subscribe, publish=binding.publish)
        self._complained_s = float("-inf")
        self._thread = threading.Thread(target=self._run, name="binding", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, item: Message | Oversize) -> None:
        with self._changed:
            if self._is_ending:
                return
            self._waiting.append(item)
            self._waiting_bytes += _size(item)
            while len(self._waiting) > MAX_WAITING or (
                self._waiting_bytes > MAX_WAITING_BYTES and len(self._waiting) > 1
            ):
                self._waiting_bytes -= _size(self._waiting.popleft())
                self._count(dropped=1)
            self._changed.notify()

    def status(self) -> BindingStatus:
        with self._changed:
            return self._status

    def end(self) -> None:
        with self._changed:
            self._is_ending = True
            self._waiting.clear()
            self._changed.notify()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        if self.is_running:  # one that never started cannot be joined
            self._thread.join(timeout_s)

    def _run(self) -> None:
        processors.use_all()
        while (item := self._take()) is not None:
            dropped = self.status().dropped
            try:
                self._handle(item)
            except Exception:  # noqa: BLE001 - one message must not end the binding
                _log.exception("a defect of the agent: a message on %s was not answered", self.binding.subscribe)
                self._count(failed=1)
            if self.status().dropped > dropped:
                self._complain("messages come faster than they are answered: the oldest are dropped")

    def _take(self) -> Message | Oversize | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_ending)
            if self._is_ending:
                return None
            item = self._waiting.popleft()
            self._waiting_bytes -= _size(item)
            return item

    def _handle(self, item: Message | Oversize) -> None:
        reply = _too_large(item) if isinstance(item, Oversize) else self._asking.ask(self.binding, item.payload)
        is_answer = reply.status == 200
        if not is_answer and self.binding.format == "raw":
            self._count(failed=1)
            self._complain(msgspec.json.decode(reply.body, type=ErrorResponse).error)
            return
        is_sent = self._publish(self.binding.publish, reply.body)
        self._count(answered=int(is_answer and is_sent), failed=int(not is_answer), unsent=int(not is_sent))

    def _count(self, *, answered: int = 0, failed: int = 0, dropped: int = 0, unsent: int = 0) -> None:
        with self._changed:
            now = self._status
            self._status = msgspec.structs.replace(
                now,
                answered=now.answered + answered,
                failed=now.failed + failed,
                dropped=now.dropped + dropped,
                unsent=now.unsent + unsent,
            )

    def _complain(self, problem: str) -> None:
        """Say in the log what is wrong, but not with every message."""
        now_s = time.monotonic()
        if now_s - self._complained_s >= COMPLAINT_PERIOD_S:
            self._complained_s = now_s
            _log.warning("binding of %s to %s: %s", self.binding.model, self.binding.subscribe, problem)


class _Asking:
    """Puts messages to the local API as requests."""

    def __init__(self, answer: Answer, manifest: ManifestOf) -> None:
        self._answer = answer
        self._manifest = manifest

    def ask(self, binding: Binding, payload: bytes) -> Reply:
        """Return what is to be published: status 200 for an answer, else an error of the protocol."""
        path = f"/v2/models/{binding.model}/infer"
        if binding.format == "raw":
            return self._ask_raw(binding.model, path, payload)
        reply = self._answer(Request(method="POST", path=path, body=WholeBody(payload), stream=SEQUENCE))
        if HEADER_LENGTH not in reply.headers:
            return reply
        return error_text(400, "expected JSON outputs to be asked for: a message has no place for others", "bad_input")

    def _ask_raw(self, model: str, path: str, payload: bytes) -> Reply:
        """Ask the release that answers now, and again if it is another one by then."""
        try:
            manifest = self._manifest(model)
            while True:
                reply = self._ask_tensors(manifest, path, payload)
                known, manifest = manifest, self._manifest(model) if reply.status == 400 else manifest
                if manifest is known:  # else another release was swapped in meanwhile, perhaps with other inputs
                    break
        except UnknownModelError as error:
            return error_reply(503, error)
        return reply

    def _ask_tensors(self, manifest: Manifest, path: str, payload: bytes) -> Reply:
        """Put the tensors in `payload` behind the JSON that says what they are; return those behind the reply's."""
        expected = sum(spec.size_bytes for spec in manifest.inputs)
        if len(payload) != expected:
            names = ", ".join(spec.name for spec in manifest.inputs)
            message = f"expected a message of {expected:,} bytes, those of {names}, got {len(payload):,}"
            return error_text(400, message, "bad_input")
        head = _head(manifest)
        request = Request(
            method="POST", path=path, body=WholeBody(head + payload), header_length=str(len(head)), stream=SEQUENCE
        )
        reply = self._answer(request)
        if reply.status != 200:
            return reply
        return Reply(status=200, body=reply.body[int(reply.headers[HEADER_LENGTH]) :])


def _head(manifest: Manifest) -> bytes:
    """Return a request whose inputs all follow it, as raw bytes in the order of the manifest; so will its outputs."""
    return msgspec.json.encode(
        InferRequest(
            inputs=tuple(
                InferInput(
                    name=spec.name,
                    datatype=spec.datatype,
                    shape=spec.shape,
                    data=msgspec.Raw(b"null"),
                    parameters=InputParameters(binary_data_size=spec.size_bytes),
                )
                for spec in manifest.inputs
            ),
            parameters=RequestParameters(binary_data_output=True),
        )
    )


def _too_large(item: Oversize) -> Reply:
    message = f"expected a message of at most {item.limit_bytes:,} bytes, got {item.size_bytes:,}"
    return error_text(413, message, "limit_exceeded")


def _size(item: Message | Oversize) -> int:
    return len(item.payload) if isinstance(item, Message) else 0
