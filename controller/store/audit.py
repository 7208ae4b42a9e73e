"""Who commanded what: one row for each command that changed something, in the same transaction."""

import msgspec
from sqlalchemy.orm import Session

from controller.store.models import AuditRow


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who commands, and in which request."""

    name: str
    request_id: str


class Deed(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, to what."""

    action: str
    subject: str
    detail: str = ""


def record(session: Session, actor: Actor, deed: Deed, at_ms: int) -> None:
    """Write down that `actor` did `deed`."""
    session.add(
        AuditRow(
            at_ms=at_ms,
            actor=actor.name[:64],
            action=deed.action,
            subject=deed.subject[:200],
            request_id=actor.request_id[:64],
            detail=deed.detail[:2_000],
        )
    )
