"""What the broker does not have yet, as rows, so that a killed service goes on where it was.

A row names a thing, never its content: the content is made when it is published, so the newest always wins and a
thing that changes ten times is published once.
"""

from collections.abc import Iterable
from typing import Literal

import msgspec
from sqlalchemy import delete, insert, select, tuple_, update
from sqlalchemy.orm import Session

from controller.store.batches import batches
from controller.store.models import OutboxRow

Kind = Literal["metadata", "ack", "file", "assign", "director"]
KINDS: tuple[Kind, ...] = ("metadata", "ack", "file", "assign", "director")
"""In the order in which they are published: a device that reads a document finds everything it names.

`assign` decides and signs the document of one device; the others only publish what is stored.
"""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to publish, as it was when it was taken."""

    kind: Kind
    key: str
    generation: int


def mark(session: Session, kind: Kind, keys: Iterable[str]) -> None:
    """Note that `keys` must be published."""
    for batch in batches(sorted(set(keys))):
        mine = (OutboxRow.kind == kind, OutboxRow.key.in_(batch))
        known = set(session.scalars(select(OutboxRow.key).where(*mine)))
        session.execute(update(OutboxRow).where(*mine).values(generation=OutboxRow.generation + 1))
        if new := [{"kind": kind, "key": key, "generation": 1} for key in batch if key not in known]:
            session.execute(insert(OutboxRow), new)


def take(session: Session, kind: Kind, limit: int) -> list[Item]:
    """Return up to `limit` things of one kind; they stay until `done`."""
    rows = session.scalars(select(OutboxRow).where(OutboxRow.kind == kind).order_by(OutboxRow.key).limit(limit))
    return [Item(kind=kind, key=row.key, generation=row.generation) for row in rows]


def done(session: Session, items: Iterable[Item]) -> None:
    """Forget `items`, except what changed since they were taken."""
    this = tuple_(OutboxRow.kind, OutboxRow.key, OutboxRow.generation)
    for batch in batches([(item.kind, item.key, item.generation) for item in items]):
        session.execute(delete(OutboxRow).where(this.in_(batch)), execution_options={"synchronize_session": False})


def is_empty(session: Session) -> bool:
    """Return whether the broker has everything."""
    return session.scalar(select(OutboxRow.kind).limit(1)) is None
