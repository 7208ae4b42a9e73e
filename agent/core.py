"""The engine with its memory: every event is a step, every step is stored before anything follows from it."""

import logging
from collections import deque
from collections.abc import Callable

from agent.clock import Clock
from agent.engine import actions, step
from agent.engine.actions import Action
from agent.engine.events import Event, Resumed, Started
from agent.errors import StateError
from agent.logs import named
from agent.store import Store
from protocol.errors import TransitionError

_log = logging.getLogger(__name__)


class Core:
    """The one owner of the engine's state. `act` carries out an action; it may post further events."""

    def __init__(self, store: Store, clock: Clock, session: int, act: Callable[[Action], None]) -> None:
        self.state = store.load()
        self.has_receipts = False
        """Whether receipts were stored since the owner last looked."""
        self.has_announcement = False
        """Whether what the birth message says has changed since the owner last looked."""
        self.is_stalled = False
        """Whether the last step could not be stored; `drain` tries it again."""
        self._store = store
        self._clock = clock
        self._session = session
        self._act = act
        self._events: deque[Event] = deque((Started(), Resumed()))

    def post(self, event: Event) -> None:
        """Let the engine hear of `event` at the next `drain`."""
        self._events.append(event)

    def drain(self) -> None:
        """Take every event that waits, and those that follow from it."""
        while self._events:
            event = self._events[0]
            try:
                state, todo = step(self.state, event, self._clock.monotonic_ms())
            except TransitionError:
                _log.exception("a defect of the agent: %s is dropped", type(event).__name__)
                self._events.popleft()
                continue
            receipts = [action for action in todo if isinstance(action, actions.EmitReceipt)]
            try:
                self._store.save(self.state, state, receipts, at_ms=self._clock.wall_ms(), session=self._session)
            except StateError as error:
                if not self.is_stalled:
                    _log.error("%s; what runs goes on running, the step is tried again", error)
                self.is_stalled = True
                return
            self.is_stalled = False
            self._events.popleft()
            self.state = state
            self.has_receipts |= bool(receipts)
            self.has_announcement |= actions.Announce() in todo
            for action in todo:
                self._log(action)
                self._act(action)

    def _log(self, action: Action) -> None:
        if isinstance(action, actions.EmitReceipt) and action.progress is None:
            why = f": {action.reason.message}" if action.reason else ""
            level = logging.WARNING if action.reason else logging.INFO
            told = named(
                "deployment",
                model=action.model,
                version=action.version,
                deployment=action.deployment_id,
                state=action.state,
                reason=action.reason.code if action.reason else None,
                measures=action.measures,
            )
            _log.log(level, "%s %s %s%s", action.model, action.version, action.state, why, extra=told)
