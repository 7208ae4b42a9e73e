"""Answers to commands that must not happen twice, by the key that the client chose."""

import msgspec
from sqlalchemy import delete
from sqlalchemy.orm import Session

from controller.errors import ConflictError
from controller.store.models import IdempotencyRow
from protocol.codec import sha256
from protocol.identifiers import Digest

KEEP_MS = 24 * 3_600_000
MAX_KEY_CHARS = 200


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A key, and the digest of the request that came with it."""

    key: str
    request_digest: Digest

    @classmethod
    def of(cls, key: str, request: bytes) -> "Ticket":
        """Return the ticket of `request`."""
        return cls(key=key, request_digest=sha256(request))


def recall(session: Session, ticket: Ticket) -> bytes | None:
    """Return the answer that was given before; raises ConflictError when it was to another request."""
    row = session.get(IdempotencyRow, ticket.key)
    if row is None:
        return None
    if row.request_digest != ticket.request_digest:
        raise ConflictError(
            "the Idempotency-Key was used for another request", hint="send a new key with every new command"
        )
    return row.response


def remember(session: Session, ticket: Ticket, response: bytes, at_ms: int) -> None:
    """Keep the answer for a day."""
    session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at_ms < at_ms - KEEP_MS))
    session.add(
        IdempotencyRow(key=ticket.key, request_digest=ticket.request_digest, response=response, created_at_ms=at_ms)
    )
