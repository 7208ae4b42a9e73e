"""The retained documents as they arrive: judged, told to the engine, asked for when one of them is behind.

What is not believed is a problem that the status shows and the log names once; it never stops what runs.
"""

import logging
from collections.abc import Callable
from typing import Final

from agent.engine.events import AssignmentAccepted
from agent.trust import Document, Judgement, Trust
from protocol.messages import Reason, Want

REJUDGE_MS: Final = 60_000
FIRST_PATIENCE_MS: Final = 3_000
MAX_PATIENCE_MS: Final = 900_000

_log = logging.getLogger(__name__)


class Documents:
    """What arrived, and what is missing."""

    def __init__(
        self, trust: Trust, accept: Callable[[AssignmentAccepted], None], want: Callable[[Want], None]
    ) -> None:
        self._trust = trust
        self._accept = accept
        self._want = want
        self._arrived: set[Document] = set()
        self._is_behind = False
        self._patience_ms = FIRST_PATIENCE_MS
        self._ask_at_ms = 0
        self._judge_at_ms = 0
        self.problems: dict[str, Reason] = {}

    def connected(self, now_ms: int) -> None:
        """A new connection brings every retained document again."""
        self._arrived.clear()
        self._be_patient(now_ms)

    def receive(self, document: Document, raw: bytes, *, wall_ms: int, now_ms: int) -> None:
        """Judge a document that arrived."""
        if not raw:
            return  # a retained message that was deleted
        self._arrived.add(document)
        self._take(self._trust.judge(document, raw, wall_ms), now_ms)

    def refuse(self, document: Document, reason: Reason, now_ms: int) -> None:
        """Note a document that was not even read."""
        self._note({**self.problems, document: reason}, now_ms)

    def judge_soon(self) -> None:
        """What could not be judged or kept may be possible now."""
        self._judge_at_ms = 0

    def tick(self, *, wall_ms: int, now_ms: int) -> None:
        """Ask for what is missing; judge again what was not believed, since the clock may have been set."""
        wants = self._missing()
        if wants and now_ms >= self._ask_at_ms:
            self._patience_ms = min(self._patience_ms * 2, MAX_PATIENCE_MS)
            self._ask_at_ms = now_ms + self._patience_ms
            for want in wants:
                self._want(want)
        if self.problems and now_ms >= self._judge_at_ms:
            self._take(self._trust.judge_again(wall_ms), now_ms)

    def _missing(self) -> list[Want]:
        is_image_missing = not {"timestamp", "metadata"} <= self._arrived or self.problems.keys() - {"director"}
        wants = [Want(kind="metadata")] if is_image_missing or self._is_behind else []
        # A device that was never assigned anything asks as well: it cannot know that there is nothing to wait for.
        is_director_missing = "director" not in self._arrived or "director" in self.problems
        return [*wants, Want(kind="director")] if is_director_missing else wants

    def _take(self, judgement: Judgement, now_ms: int) -> None:
        self._judge_at_ms = now_ms + REJUDGE_MS
        if judgement.is_behind and not self._is_behind:
            self._be_patient(now_ms)
        self._is_behind = judgement.is_behind
        self._note({str(name): reason for name, reason in judgement.problems.items()}, now_ms)
        if judgement.assignment:
            self._accept(judgement.assignment)

    def _note(self, problems: dict[str, Reason], now_ms: int) -> None:
        for name, reason in problems.items():
            if self.problems.get(name) != reason:
                level = logging.INFO if reason.code == "incomplete" else logging.WARNING
                _log.log(level, "%s not accepted: %s", name, reason.message)
                self._be_patient(now_ms)
        self.problems = problems

    def _be_patient(self, now_ms: int) -> None:
        """What is missing may be on its way: wait a little before asking."""
        self._patience_ms = FIRST_PATIENCE_MS
        self._ask_at_ms = now_ms + self._patience_ms
