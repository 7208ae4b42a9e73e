"""The tables. Times are Unix milliseconds by the controller's clock; a column that ends in `_json` holds JSON text.

Only portable column types: the same models serve SQLite and PostgreSQL.
"""

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from protocol.limits import MAX_LAYER_CHARS

_NAME = String(64)
_DIGEST = String(64)
_STATE = String(24)
_KEY = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only an INTEGER primary key


class Base(DeclarativeBase):
    """The root of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class DeviceRow(Base):
    """One enrolled device, and what it last said about itself."""

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    certificate_serial: Mapped[str] = mapped_column(String(64))
    enrolled_at_ms: Mapped[int] = mapped_column(BigInteger)
    liveness: Mapped[str] = mapped_column(_STATE, default="never_seen")
    liveness_at_ms: Mapped[int | None] = mapped_column(BigInteger)
    stream: Mapped[str] = mapped_column(_NAME, default="")
    """Of the last birth, and its `session`: a device that lost its memory begins both anew."""
    session: Mapped[int] = mapped_column(BigInteger, default=0)
    last_seen_at_ms: Mapped[int | None] = mapped_column(BigInteger)
    arch: Mapped[str | None] = mapped_column(String(64))
    agent_version: Mapped[str | None] = mapped_column(String(64))
    capacity_json: Mapped[str | None] = mapped_column(Text)
    slots_json: Mapped[str] = mapped_column(Text, default="[]")
    problems_json: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    """What it could not do when it was born last: a reason by what is concerned."""
    soak_ms: Mapped[int | None] = mapped_column(Integer)
    director_version: Mapped[int] = mapped_column(BigInteger, default=0)
    acknowledged_director_version: Mapped[int] = mapped_column(BigInteger, default=0)
    restored_version: Mapped[int | None] = mapped_column(BigInteger)
    """The last document that this database signed before a restore made it forget later ones; null: all is known."""


class GroupRow(Base):
    """A static group of devices."""

    __tablename__ = "groups"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)


class DeviceGroupRow(Base):
    """One device in one group."""

    __tablename__ = "device_groups"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    group_name: Mapped[str] = mapped_column(ForeignKey("groups.name"), primary_key=True, index=True)


class InviteRow(Base):
    """A single-use invite; only the hash of its token is kept."""

    __tablename__ = "invites"

    token_hash: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    device_id: Mapped[str] = mapped_column(_NAME)
    groups_json: Mapped[str] = mapped_column(Text)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    expires_at_ms: Mapped[int] = mapped_column(BigInteger)
    used_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class ModelRow(Base):
    """A named series of releases."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    min_release_counter: Mapped[int] = mapped_column(BigInteger, default=0)
    last_counter: Mapped[int] = mapped_column(BigInteger, default=0)


class ReleaseRow(Base):
    """One release that the signed targets name."""

    __tablename__ = "releases"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    release_counter: Mapped[int] = mapped_column(BigInteger)
    manifest_digest: Mapped[str] = mapped_column(ForeignKey("files.digest"))
    module_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_bytes: Mapped[int] = mapped_column(BigInteger)
    targets_version: Mapped[int] = mapped_column(BigInteger)
    """The version of the signed targets that added it."""
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    yanked_at_ms: Mapped[int | None] = mapped_column(BigInteger)
    yank_reason: Mapped[str | None] = mapped_column(Text)


class ReleaseFileRow(Base):
    """One file that a device may need for a release, its manifest included."""

    __tablename__ = "release_files"

    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("files.digest"), primary_key=True, index=True)


class FileRow(Base):
    """One file of a bundle on the service's disk; `blob` names its published form once it was cut."""

    __tablename__ = "files"

    digest: Mapped[str] = mapped_column(_DIGEST, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    blob: Mapped[str | None] = mapped_column(_DIGEST, index=True)
    published_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class MetadataRow(Base):
    """One file of signed metadata, exactly as signed."""

    __tablename__ = "metadata"

    domain: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    signed_at_ms: Mapped[int] = mapped_column(BigInteger)


class DirectorRow(Base):
    """The newest director document of one device."""

    __tablename__ = "director_documents"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    version: Mapped[int] = mapped_column(BigInteger)
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    content_digest: Mapped[str] = mapped_column(_DIGEST)
    """Of the assignment without its time: what must change for a new version to be due."""
    signed_at_ms: Mapped[int] = mapped_column(BigInteger)
    renew_at_ms: Mapped[int] = mapped_column(BigInteger, index=True)


class RolloutRow(Base):
    """One rollout; `version` is null when it removes the model."""

    __tablename__ = "rollouts"

    id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, index=True)
    version: Mapped[str | None] = mapped_column(_NAME)
    state: Mapped[str] = mapped_column(_STATE, index=True)
    to_json: Mapped[str] = mapped_column(Text)
    refused_json: Mapped[str] = mapped_column(Text, default="[]")
    soak_ms: Mapped[int | None] = mapped_column(Integer)
    number: Mapped[int] = mapped_column(BigInteger, unique=True)
    """Rises with every rollout: two of the same millisecond still have an order."""
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    finished_at_ms: Mapped[int | None] = mapped_column(BigInteger)


class WaveRow(Base):
    """One step of a rollout."""

    __tablename__ = "waves"

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[str] = mapped_column(_STATE)


class DeploymentRow(Base):
    """One device in one rollout. `version` is what it installs, or what it removes."""

    __tablename__ = "deployments"
    __table_args__ = (
        Index("ix_deployments_device_id_model_number", "device_id", "model", "number"),
        Index("ix_deployments_rollout_id_state", "rollout_id", "state"),
    )

    id: Mapped[str] = mapped_column(_NAME, primary_key=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollouts.id"))
    wave: Mapped[int] = mapped_column(Integer)
    number: Mapped[int] = mapped_column(BigInteger)
    """That of its rollout: a higher one is newer."""
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    model: Mapped[str] = mapped_column(_NAME)
    version: Mapped[str] = mapped_column(_NAME)
    is_removal: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str] = mapped_column(_STATE)
    is_closed_by_controller: Mapped[bool] = mapped_column(default=False)
    """Canceled or superseded here, and the device has not said anything final yet."""
    stream: Mapped[str | None] = mapped_column(_NAME)
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    """Stream and number of the newest receipt that counted."""
    done_bytes: Mapped[int | None] = mapped_column(BigInteger)
    total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    reason_code: Mapped[str | None] = mapped_column(String(64))
    reason_message: Mapped[str | None] = mapped_column(Text)
    measures_json: Mapped[str] = mapped_column(Text, default="{}")
    director_version: Mapped[int | None] = mapped_column(BigInteger)
    """The first director document that told the device."""
    created_at_ms: Mapped[int] = mapped_column(BigInteger)
    updated_at_ms: Mapped[int] = mapped_column(BigInteger)


class InstalledRow(Base):
    """The release of one model that a device has committed, and the deployment that brought it."""

    __tablename__ = "installed"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME)
    deployment_id: Mapped[str] = mapped_column(_NAME)
    installed_at_ms: Mapped[int] = mapped_column(BigInteger)


class ReceiptRow(Base):
    """One signed receipt, stored once."""

    __tablename__ = "receipts"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stream: Mapped[str] = mapped_column(_NAME, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    deployment_id: Mapped[str] = mapped_column(_NAME, index=True)
    model: Mapped[str] = mapped_column(_NAME)
    version: Mapped[str] = mapped_column(_NAME)
    state: Mapped[str] = mapped_column(_STATE)
    session: Mapped[int] = mapped_column(BigInteger)
    at_ms: Mapped[int] = mapped_column(BigInteger)
    """By the device's clock, which orders nothing."""
    received_at_ms: Mapped[int] = mapped_column(BigInteger)
    reason_code: Mapped[str | None] = mapped_column(String(64))
    reason_message: Mapped[str | None] = mapped_column(Text)
    measures_json: Mapped[str] = mapped_column(Text)
    ignored_because: Mapped[str | None] = mapped_column(String(64))
    """Why it changed no deployment; null when it did."""


class SampleRow(Base):
    """How one device fared in one telemetry interval."""

    __tablename__ = "device_samples"
    __table_args__ = (Index("ix_device_samples_device_id_received_at_ms", "device_id", "received_at_ms"),)

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stream: Mapped[str] = mapped_column(_NAME, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    session: Mapped[int] = mapped_column(BigInteger)
    from_ms: Mapped[int] = mapped_column(BigInteger)
    to_ms: Mapped[int] = mapped_column(BigInteger)
    received_at_ms: Mapped[int] = mapped_column(BigInteger, index=True)
    cpu_permille: Mapped[int] = mapped_column(BigInteger)
    memory_used_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_total_bytes: Mapped[int] = mapped_column(BigInteger)
    agent_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    uptime_s: Mapped[int] = mapped_column(BigInteger)


class UsageRow(Base):
    """What one release did on one device in one telemetry interval."""

    __tablename__ = "usage"
    __table_args__ = (Index("ix_usage_device_id_received_at_ms", "device_id", "received_at_ms"),)

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stream: Mapped[str] = mapped_column(_NAME, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    received_at_ms: Mapped[int] = mapped_column(BigInteger)
    inferences: Mapped[int] = mapped_column(BigInteger)
    latency_json: Mapped[str] = mapped_column(Text)
    memory_peak_bytes: Mapped[int] = mapped_column(BigInteger)


class UsageErrorRow(Base):
    """How often one kind of error happened in one telemetry interval."""

    __tablename__ = "usage_errors"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stream: Mapped[str] = mapped_column(_NAME, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    code: Mapped[str] = mapped_column(_NAME, primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


class UsageTrapRow(Base):
    """How often a release went wrong in one way in one of its layers, in one telemetry interval."""

    __tablename__ = "usage_traps"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stream: Mapped[str] = mapped_column(_NAME, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    kind: Mapped[str] = mapped_column(_NAME, primary_key=True)
    layer: Mapped[str] = mapped_column(String(MAX_LAYER_CHARS), primary_key=True)
    """Empty when the place has no name."""
    count: Mapped[int] = mapped_column(BigInteger)


class AckRow(Base):
    """Up to which report of a stream everything is stored."""

    __tablename__ = "acks"

    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    stream: Mapped[str] = mapped_column(_NAME, primary_key=True)
    receipts: Mapped[int] = mapped_column(BigInteger, default=0)
    telemetry: Mapped[int] = mapped_column(BigInteger, default=0)
    receipts_gap_seen: Mapped[int] = mapped_column(Integer, default=0)
    telemetry_gap_seen: Mapped[int] = mapped_column(Integer, default=0)
    """How often the device repeated reports behind a gap: it has nothing to fill it with."""
    receipts_cleared: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    telemetry_cleared: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """The highest number that was stored and cleared away since: it and all below are known."""
    updated_at_ms: Mapped[int] = mapped_column(BigInteger)


class OutboxRow(Base):
    """Something that the broker does not have yet; the content is made when it is published."""

    __tablename__ = "outbox"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    key: Mapped[str] = mapped_column(_NAME, primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, default=1)
    """Rises when it changes again while it is being published."""


class AuditRow(Base):
    """Who commanded what."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(_KEY, primary_key=True, autoincrement=True)
    at_ms: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(_NAME)
    action: Mapped[str] = mapped_column(_NAME)
    subject: Mapped[str] = mapped_column(String(200))
    request_id: Mapped[str] = mapped_column(_NAME)
    detail: Mapped[str] = mapped_column(Text)


class IdempotencyRow(Base):
    """The answer to a command that must not happen twice."""

    __tablename__ = "idempotency"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_digest: Mapped[str] = mapped_column(_DIGEST)
    response: Mapped[bytes] = mapped_column(LargeBinary)
    created_at_ms: Mapped[int] = mapped_column(BigInteger, index=True)


class SettingRow(Base):
    """A value of the service's own."""

    __tablename__ = "settings"

    key: Mapped[str] = mapped_column(_NAME, primary_key=True)
    value: Mapped[str] = mapped_column(Text)
