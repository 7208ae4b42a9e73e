"""The signed targets, and how long they are good for."""

from datetime import datetime, timedelta

import msgspec
from sqlalchemy.orm import Session

from controller.store.metadata import newest, roots
from protocol.assignment import parse_metadata

WARN = timedelta(days=60)


class SignedState(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force, and what will end."""

    version: int
    expires: str
    """RFC 3339, or empty before the first targets."""
    warnings: tuple[str, ...]


def describe_signed(session: Session, now: datetime) -> SignedState:
    """Return what the operator must know about the signed metadata."""
    targets = newest(session, "image", "targets")
    if targets is None:
        return SignedState(version=0, expires="", warnings=("there are no signed targets yet",))
    expires = parse_metadata(targets.raw, "targets").signed.expires
    warnings = [_warning("the targets", expires, "push any release", now)]
    for row in (*roots(session, "image")[-1:], *roots(session, "director")[-1:]):
        ends = parse_metadata(row.raw, "root").signed.expires
        warnings.append(
            _warning(f"the root of the {row.domain} domain", ends, "sign a new one with two root keys", now)
        )
    return SignedState(
        version=targets.version,
        expires=f"{expires:%Y-%m-%dT%H:%M:%SZ}",
        warnings=tuple(warning for warning in warnings if warning),
    )


def _warning(what: str, expires: datetime, remedy: str, now: datetime) -> str:
    if expires - now > WARN:
        return ""
    verb = "ended" if expires <= now else "end" if what.endswith("s") else "ends"
    return f"{what} {verb} on {expires:%Y-%m-%d}: {remedy}"
