"""Telemetry summed up by hours and days, and what was cleared away."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _period(name: str, *columns: sa.Column[object], key: tuple[str, ...] = ()) -> None:
    op.create_table(
        name,
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("length_ms", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(length=64), nullable=False),
        *columns,
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f(f"fk_{name}_device_id_devices")),
        sa.PrimaryKeyConstraint("start_ms", "length_ms", "device_id", *key, name=op.f(f"pk_{name}")),
    )


def _number(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _text(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.String(length=64), nullable=False)


def upgrade() -> None:
    _period(
        "sample_rollups",
        *map(_number, ("intervals", "cpu_permille", "memory_used_bytes", "memory_total_bytes", "agent_memory_bytes")),
        _number("uptime_s"),
    )
    _period(
        "usage_rollups",
        _text("model"),
        _text("version"),
        _number("inferences"),
        sa.Column("latency_json", sa.Text(), nullable=False),
        _number("memory_peak_bytes"),
        key=("model", "version"),
    )
    _period(
        "usage_error_rollups",
        *map(_text, ("model", "version", "code")),
        _number("count"),
        key=("model", "version", "code"),
    )
    _period(
        "usage_trap_rollups",
        *map(_text, ("model", "version", "kind")),
        sa.Column("layer", sa.String(length=96), nullable=False),
        _number("count"),
        key=("model", "version", "kind", "layer"),
    )
    for column in ("receipts_cleared", "telemetry_cleared"):
        op.add_column("acks", sa.Column(column, sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_device_samples_device_id_received_at_ms", "device_samples", ["device_id", "received_at_ms"])
    op.drop_index("ix_usage_model_version_received_at_ms", "usage")
    op.create_index("ix_usage_device_id_received_at_ms", "usage", ["device_id", "received_at_ms"])


def downgrade() -> None:
    op.drop_index("ix_usage_device_id_received_at_ms", "usage")
    op.create_index("ix_usage_model_version_received_at_ms", "usage", ["model", "version", "received_at_ms"])
    op.drop_index("ix_device_samples_device_id_received_at_ms", "device_samples")
    with op.batch_alter_table("acks") as table:
        table.drop_column("receipts_cleared")
        table.drop_column("telemetry_cleared")
    for name in ("usage_trap_rollups", "usage_error_rollups", "usage_rollups", "sample_rollups"):
        op.drop_table(name)
