"""Signed metadata, exactly as signed, by domain, role and version."""

from typing import Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from controller.store.models import MetadataRow

Domain = Literal["image", "director"]
Role = Literal["root", "targets", "snapshot", "timestamp"]


def newest(session: Session, domain: Domain, role: Role) -> MetadataRow | None:
    """Return the file of `role` with the highest version."""
    return session.scalars(
        select(MetadataRow)
        .where(MetadataRow.domain == domain, MetadataRow.name == role)
        .order_by(MetadataRow.version.desc())
        .limit(1)
    ).first()


def keep(session: Session, row: MetadataRow) -> None:
    """Keep one file; of snapshots and timestamps only the newest matters."""
    if row.name in ("snapshot", "timestamp"):
        session.execute(
            delete(MetadataRow).where(
                MetadataRow.domain == row.domain, MetadataRow.name == row.name, MetadataRow.version < row.version
            )
        )
    session.merge(row)


def roots(session: Session, domain: Domain) -> list[MetadataRow]:
    """Return the chain of roots, the first one first."""
    return list(
        session.scalars(
            select(MetadataRow)
            .where(MetadataRow.domain == domain, MetadataRow.name == "root")
            .order_by(MetadataRow.version)
        )
    )


def newest_root(session: Session, domain: Domain) -> bytes:
    """Return the root in force; every start makes sure that there is one."""
    return roots(session, domain)[-1].raw
