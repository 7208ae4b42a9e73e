"""The tables of telemetry summed up by hours and days, for as long as the single intervals are not kept.

`length_ms` says which: an hour or a day, in UTC. A row may be written again from what it sums up, with the same result.
"""

from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from controller.store.models import Base
from protocol.limits import MAX_LAYER_CHARS

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
_NAME = String(64)


class SampleRollupRow(Base):
    """How one device fared: the mean of the processor, the highest of everything else."""

    __tablename__ = "sample_rollups"

    start_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    length_ms: Mapped[int] = mapped_column(Integer, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    intervals: Mapped[int] = mapped_column(BigInteger)
    cpu_permille: Mapped[int] = mapped_column(BigInteger)
    memory_used_bytes: Mapped[int] = mapped_column(BigInteger)
    memory_total_bytes: Mapped[int] = mapped_column(BigInteger)
    agent_memory_bytes: Mapped[int] = mapped_column(BigInteger)
    uptime_s: Mapped[int] = mapped_column(BigInteger)


class UsageRollupRow(Base):
    """What one release did on one device; the latency is the merged sketch."""

    __tablename__ = "usage_rollups"

    start_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    length_ms: Mapped[int] = mapped_column(Integer, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    inferences: Mapped[int] = mapped_column(BigInteger)
    latency_json: Mapped[str] = mapped_column(Text)
    memory_peak_bytes: Mapped[int] = mapped_column(BigInteger)


class UsageErrorRollupRow(Base):
    """How often one kind of error happened."""

    __tablename__ = "usage_error_rollups"

    start_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    length_ms: Mapped[int] = mapped_column(Integer, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    code: Mapped[str] = mapped_column(_NAME, primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


class UsageTrapRollupRow(Base):
    """How often a release went wrong in one way in one of its layers."""

    __tablename__ = "usage_trap_rollups"

    start_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    length_ms: Mapped[int] = mapped_column(Integer, primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    model: Mapped[str] = mapped_column(_NAME, primary_key=True)
    version: Mapped[str] = mapped_column(_NAME, primary_key=True)
    kind: Mapped[str] = mapped_column(_NAME, primary_key=True)
    layer: Mapped[str] = mapped_column(String(MAX_LAYER_CHARS), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
