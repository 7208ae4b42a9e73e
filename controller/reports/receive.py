"""What a genuine report changes: devices, receipts and deployments, telemetry, acknowledgements.

A report is stored once, by its stream and number. The device's clock is kept beside, and orders nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from controller.reports.reconcile import reconcile
from controller.reports.rollup import CLOSED_UNTIL, arrival_ms
from controller.rollouts import Effect, apply_receipt
from controller.store import outbox
from controller.store.deployments import refresh_rollout, relevant_rows, standing
from controller.store.models import (
    AckRow,
    DeploymentRow,
    DeviceRow,
    InstalledRow,
    ReceiptRow,
    SampleRow,
    SettingRow,
    UsageErrorRow,
    UsageRow,
    UsageTrapRow,
)
from protocol.identifiers import DeviceId
from protocol.messages import Liveness, Receipt, ReceiptBatch, TelemetryBatch, TelemetryRecord

PATIENCE = 2
"""How often a device must repeat what lies behind a gap before the gap is believed to be for good."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Whose reports came, in which stream, and when by our clock."""

    device: DeviceId
    stream: str
    at_ms: int


class _Batch(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a batch, what it follows, and whether its first report was stored before."""

    numbers: list[int]
    after: int | None
    is_repeated: bool


class Consequences:
    """What must follow from what was stored, once for a whole batch of messages."""

    def __init__(self) -> None:
        self.rollouts: set[str] = set()
        self.acknowledged: set[str] = set()
        self.reassigned: set[str] = set()

    def add(self, other: "Consequences") -> None:
        """Take over what another message changed."""
        self.rollouts |= other.rollouts
        self.acknowledged |= other.acknowledged
        self.reassigned |= other.reassigned

    def settle(self, session: Session, at_ms: int) -> None:
        """Bring rollouts to the states that follow, and have the rest published."""
        for rollout in sorted(self.rollouts):
            refresh_rollout(session, rollout, at_ms)
        outbox.mark(session, "ack", self.acknowledged)
        outbox.mark(session, "assign", self.reassigned)


def prefetch(session: Session, devices: Sequence[str]) -> list[object]:
    """Return the rows that reports of `devices` are about, read at once: as long as they are kept, `get` finds them."""
    mine = select(AckRow).where(AckRow.device_id.in_(devices))
    installed = select(InstalledRow).where(InstalledRow.device_id.in_(devices))
    closed = select(SettingRow).where(SettingRow.key == CLOSED_UNTIL)
    deployments = relevant_rows(session, devices).values()
    return [*session.scalars(mine), *session.scalars(installed), *session.scalars(closed), *deployments]


def receive_liveness(session: Session, row: DeviceRow, liveness: Liveness, then: Consequences, at_ms: int) -> bool:
    """Take a birth or a death; return whether it was news. One of an older session says nothing.

    Sessions compare within one stream alone: a device that lost its memory counts them from 1 again.
    """
    is_new_memory = liveness.stream != row.stream
    if not liveness.online:
        if is_new_memory or liveness.session != row.session:
            return False  # of a session that was replaced, or whose birth never came: there is nothing to end
        row.liveness, row.liveness_at_ms = "offline", at_ms
        return True
    if is_new_memory:
        row.acknowledged_director_version = 0
    elif liveness.session < row.session:
        return False
    row.stream, row.session = liveness.stream, liveness.session
    row.liveness, row.liveness_at_ms, row.last_seen_at_ms = "online", at_ms, at_ms
    row.agent_version = liveness.agent_version[:64]
    row.slots_json = msgspec.json.encode(liveness.slots).decode()
    row.problems_json = msgspec.json.encode(liveness.problems).decode()
    if liveness.capacity is not None:
        row.capacity_json = msgspec.json.encode(liveness.capacity).decode()
        row.arch = liveness.capacity.arch[:64]
    row.acknowledged_director_version = max(row.acknowledged_director_version, liveness.director_version)
    if liveness.director_version > row.director_version:
        # Our memory is older than the device's: the next document must be newer than what it has seen.
        if row.restored_version is None:
            row.restored_version = row.director_version
        row.director_version = liveness.director_version
        then.reassigned.add(row.id)
    if row.restored_version is not None:
        session.flush()
        then.rollouts |= reconcile(session, row, liveness, at_ms)
        then.reassigned.add(row.id)
    return True


def receive_receipts(session: Session, row: DeviceRow, batch: ReceiptBatch, then: Consequences, at_ms: int) -> int:
    """Store what is new and move the deployments that it speaks of; return how many receipts that were."""
    origin = Origin(device=DeviceId(row.id), stream=batch.stream, at_ms=at_ms)
    row.last_seen_at_ms = at_ms
    numbers = [r.seq for r in batch.receipts]
    ack = _ack_row(session, origin)
    known = _known(session, ReceiptRow, origin, numbers, ack.receipts_cleared)
    new = [receipt for receipt in batch.receipts if receipt.seq not in known]
    for receipt in new:
        deployment = session.get(DeploymentRow, receipt.deployment_id)
        if deployment is None or deployment.device_id != row.id:
            session.add(_receipt_row(receipt, "unknown_deployment", origin))
            continue
        effect = apply_receipt(standing(deployment), receipt, batch.stream)
        session.add(_receipt_row(receipt, effect.ignored, origin))
        if effect.ignored is None:
            if deployment.is_closed_by_controller or effect.is_final:
                then.reassigned.add(row.id)
            _apply(session, deployment, receipt, effect, origin)
            then.rollouts.add(deployment.rollout_id)
            told = deployment.director_version or 0
            row.acknowledged_director_version = max(row.acknowledged_director_version, told)
    came = _Batch(numbers=numbers, after=batch.after, is_repeated=numbers[0] in known)
    if _has_forgotten(ack, "receipts", batch.acknowledged):
        _ask_again(row, then)
    if _acknowledge(ack, "receipts", came):
        then.acknowledged.add(row.id)
    return len(new)


def _apply(session: Session, row: DeploymentRow, receipt: Receipt, effect: Effect, origin: Origin) -> None:
    row.stream, row.seq, row.updated_at_ms = origin.stream, receipt.seq, origin.at_ms
    is_corrected, row.is_closed_by_controller = row.is_closed_by_controller, False
    if effect.state is None:
        return  # the device confirms what was decided here
    row.state = effect.state
    row.done_bytes = receipt.progress.done_bytes if receipt.progress else None
    row.total_bytes = receipt.progress.total_bytes if receipt.progress else None
    if receipt.reason or is_corrected:
        row.reason_code = receipt.reason.code if receipt.reason else None
        row.reason_message = receipt.reason.message if receipt.reason else None
    measures = {**msgspec.json.decode(row.measures_json, type=dict[str, int]), **receipt.measures}
    row.measures_json = msgspec.json.encode(measures).decode()
    if effect.installs:
        session.merge(
            InstalledRow(
                device_id=row.device_id,
                model=row.model,
                version=row.version,
                deployment_id=row.id,
                installed_at_ms=origin.at_ms,
            )
        )
    if effect.uninstalls:
        session.flush()
        session.execute(
            delete(InstalledRow).where(InstalledRow.device_id == row.device_id, InstalledRow.model == row.model)
        )


def _receipt_row(receipt: Receipt, ignored: str | None, origin: Origin) -> ReceiptRow:
    return ReceiptRow(
        device_id=origin.device,
        stream=origin.stream,
        seq=receipt.seq,
        deployment_id=receipt.deployment_id,
        model=receipt.model,
        version=receipt.version,
        state=receipt.state,
        session=receipt.session,
        at_ms=receipt.at_ms,
        received_at_ms=origin.at_ms,
        reason_code=receipt.reason.code if receipt.reason else None,
        reason_message=receipt.reason.message if receipt.reason else None,
        measures_json=msgspec.json.encode(receipt.measures).decode(),
        ignored_because=ignored,
    )


def receive_telemetry(session: Session, row: DeviceRow, batch: TelemetryBatch, then: Consequences, at_ms: int) -> int:
    """Store what is new; return how many records that were."""
    origin = Origin(device=DeviceId(row.id), stream=batch.stream, at_ms=arrival_ms(session, at_ms))
    row.last_seen_at_ms = at_ms
    numbers = [r.seq for r in batch.records]
    ack = _ack_row(session, origin)
    known = _known(session, SampleRow, origin, numbers, ack.telemetry_cleared)
    new = [record for record in batch.records if record.seq not in known]
    for record in new:
        _store_record(session, record, origin)
    came = _Batch(numbers=numbers, after=batch.after, is_repeated=numbers[0] in known)
    if _has_forgotten(ack, "telemetry", batch.acknowledged):
        _ask_again(row, then)
    if _acknowledge(ack, "telemetry", came):
        then.acknowledged.add(row.id)
    return len(new)


def _store_record(session: Session, record: TelemetryRecord, origin: Origin) -> None:
    session.add(
        SampleRow(
            device_id=origin.device,
            stream=origin.stream,
            seq=record.seq,
            session=record.session,
            from_ms=record.from_ms,
            to_ms=record.to_ms,
            received_at_ms=origin.at_ms,
            cpu_permille=record.device.cpu_permille,
            memory_used_bytes=record.device.memory_used_bytes,
            memory_total_bytes=record.device.memory_total_bytes,
            agent_memory_bytes=record.device.agent_memory_bytes,
            uptime_s=record.device.uptime_s,
        )
    )
    for usage in record.models:
        which = {
            "device_id": origin.device,
            "stream": origin.stream,
            "seq": record.seq,
            "model": usage.model,
            "version": usage.version,
        }
        session.add(
            UsageRow(
                **which,
                received_at_ms=origin.at_ms,
                inferences=usage.inferences,
                latency_json=msgspec.json.encode(usage.latency).decode(),
                memory_peak_bytes=usage.memory_peak_bytes,
            )
        )
        errors: Counter[str] = Counter()
        for code, n in usage.errors.items():
            errors[code[:64]] += n
        session.add_all(UsageErrorRow(**which, code=code, count=n) for code, n in errors.items())
        session.add_all(UsageTrapRow(**which, kind=t.kind, layer=t.layer, count=t.count) for t in usage.traps)


def _known(
    session: Session, kind: type[ReceiptRow] | type[SampleRow], origin: Origin, numbers: list[int], cleared: int
) -> set[int]:
    """Return which of `numbers` are stored, or were until they, up to `cleared`, were cleared away."""
    mine = (kind.device_id == origin.device, kind.stream == origin.stream, kind.seq.in_(numbers))
    return set(session.scalars(select(kind.seq).where(*mine))) | {n for n in numbers if n <= cleared}


def _ack_row(session: Session, origin: Origin) -> AckRow:
    row = session.get(AckRow, (origin.device, origin.stream))
    if row is None:
        row = AckRow(
            device_id=origin.device,
            stream=origin.stream,
            receipts=0,
            telemetry=0,
            receipts_gap_seen=0,
            telemetry_gap_seen=0,
            receipts_cleared=0,
            telemetry_cleared=0,
            updated_at_ms=origin.at_ms,
        )
        session.add(row)
        session.flush()  # the next report of the stream has to find it
    row.updated_at_ms = origin.at_ms
    return row


def _has_forgotten(row: AckRow, kind: Literal["receipts", "telemetry"], acknowledged: int | None) -> bool:
    """Take over what the device had acknowledged; return whether that was more than is known here.

    Then this database was restored from a backup, and the device has forgotten what was reported since.
    """
    known = row.receipts if kind == "receipts" else row.telemetry
    if acknowledged is None or acknowledged <= known:
        return False
    if kind == "receipts":
        row.receipts = acknowledged
    else:
        row.telemetry = acknowledged
    return True


def _ask_again(row: DeviceRow, then: Consequences) -> None:
    """Have a document signed that says which deployments are open here: the device tells again how they ended."""
    row.director_version += 1
    then.reassigned.add(row.id)


def _acknowledge(row: AckRow, kind: Literal["receipts", "telemetry"], batch: _Batch) -> bool:
    """Move the mark below which everything is stored; return whether the device is to be told.

    A device says what its batch follows; when that is stored, nothing is missing. Else another batch before it may have
    been lost on the way, until the device has repeated itself: it repeats all that it does not know acknowledged. What
    it does not repeat then it has dropped, or had acknowledged by a database that was since restored from a backup.
    """
    covered = row.receipts if kind == "receipts" else row.telemetry
    repeats = row.receipts_gap_seen if kind == "receipts" else row.telemetry_gap_seen
    follows = batch.numbers[0] - 1 if batch.after is None else batch.after
    repeats = repeats + 1 if batch.is_repeated else 0
    is_complete = follows <= covered or repeats >= PATIENCE
    if is_complete:
        covered, repeats = max(covered, batch.numbers[-1]), 0
    if kind == "receipts":
        row.receipts, row.receipts_gap_seen = covered, repeats
    else:
        row.telemetry, row.telemetry_gap_seen = covered, repeats
    return is_complete
