"""Models and releases, as the API shows them."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from controller.api import schema
from controller.errors import NotFoundError
from controller.store.files import FileStore
from controller.store.models import InstalledRow, ModelRow, ReleaseRow
from controller.store.times import rfc3339, rfc3339_or_none
from protocol.identifiers import Digest, Version
from protocol.manifest import Manifest


def list_models(session: Session) -> list[schema.Model]:
    """Return every model by name."""
    devices = dict(
        session.execute(
            select(InstalledRow.model, func.count(InstalledRow.device_id)).group_by(InstalledRow.model)
        ).all()
    )
    versions: dict[str, list[ReleaseRow]] = {}
    for row in session.scalars(select(ReleaseRow)):
        versions.setdefault(row.model, []).append(row)
    return [
        schema.Model(
            name=row.name,
            latest=_latest(versions.get(row.name, [])),
            releases=len(versions.get(row.name, [])),
            devices=devices.get(row.name, 0),
            min_release_counter=row.min_release_counter,
            last_counter=row.last_counter,
        )
        for row in session.scalars(select(ModelRow).order_by(ModelRow.name))
    ]


def list_releases(session: Session, model: str | None = None) -> list[schema.Release]:
    """Return every release, or those of one model, the newest first within a model."""
    query = select(ReleaseRow).order_by(ReleaseRow.model, ReleaseRow.release_counter.desc())
    if model is not None:
        if session.get(ModelRow, model) is None:
            raise no_model(session, model)
        query = query.where(ReleaseRow.model == model)
    return _show(session, list(session.scalars(query)))


def get_release(session: Session, model: str, version: str) -> schema.Release:
    """Return one release; raises NotFoundError."""
    return _show(session, [release_row(session, model, version)])[0]


def release_row(session: Session, model: str, version: str) -> ReleaseRow:
    """Return the row of one release; raises NotFoundError."""
    row = session.get(ReleaseRow, (model, version))
    if row is not None:
        return row
    if session.get(ModelRow, model) is None:
        raise no_model(session, model)
    known = session.scalars(
        select(ReleaseRow.version).where(ReleaseRow.model == model).order_by(ReleaseRow.release_counter.desc()).limit(5)
    )
    raise NotFoundError(
        f"there is no release {version[:64]!r} of {model}; the newest are {', '.join(known)}",
        hint=f"see `fleetctl releases list --model {model}`",
    )


def no_model(session: Session, model: str) -> NotFoundError:
    """Return the error that names the models there are."""
    known = list(session.scalars(select(ModelRow.name).order_by(ModelRow.name).limit(5)))
    there_are = f"; there are {', '.join(known)}" if known else "; nothing was pushed yet"
    return NotFoundError(f"there is no model {model[:64]!r}{there_are}", hint="see `fleetctl models list`")


def is_below_floor(session: Session, row: ReleaseRow) -> bool:
    """Return whether the release was retired."""
    return row.release_counter < session.get_one(ModelRow, row.model).min_release_counter


def read_manifest(files: FileStore, row: ReleaseRow) -> Manifest:
    """Return the manifest of a release that was accepted."""
    return Manifest.from_bytes(files.read(Digest(row.manifest_digest)))


def refusal_of(session: Session, row: ReleaseRow) -> str | None:
    """Return why no device may get the release, or None."""
    if row.yanked_at_ms is not None:
        return f"{row.model} {row.version} was yanked: {row.yank_reason}"
    if is_below_floor(session, row):
        return f"{row.model} {row.version} was retired: its release counter {row.release_counter} is below the floor"
    return None


def _show(session: Session, rows: list[ReleaseRow]) -> list[schema.Release]:
    counts: dict[tuple[str, str], int] = {
        (model, version): n
        for model, version, n in session.execute(
            select(InstalledRow.model, InstalledRow.version, func.count()).group_by(
                InstalledRow.model, InstalledRow.version
            )
        )
    }
    return [
        schema.Release(
            model=row.model,
            version=row.version,
            release_counter=row.release_counter,
            manifest_digest=row.manifest_digest,
            module_bytes=row.module_bytes,
            memory_bytes=row.memory_bytes,
            created_at=rfc3339(row.created_at_ms),
            yanked_at=rfc3339_or_none(row.yanked_at_ms),
            yank_reason=row.yank_reason,
            is_below_floor=is_below_floor(session, row),
            devices=counts.get((row.model, row.version), 0),
        )
        for row in rows
    ]


def _latest(rows: list[ReleaseRow]) -> str | None:
    """Return the highest version, yanked or not: the next one must be above it."""
    return max((row.version for row in rows), key=Version.parse, default=None)
