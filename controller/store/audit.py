"""Who commanded what: one row for each command that changed something, in the same transaction."""

import msgspec
from sqlalchemy.orm import Session

from controller.store.models import AuditRow


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who commands, and in which request."""

    name: str
    request_id: str


def record(session: Session, actor: Actor, at_ms: int, *, action: str, subject: str, detail: str = "") -> None:
    """Write down that `actor` did `action` to `subject`."""
    session.add(
        AuditRow(
            at_ms=at_ms,
            actor=actor.name[:64],
            action=action,
            subject=subject[:200],
            request_id=actor.request_id[:64],
            detail=detail[:2_000],
        )
    )
