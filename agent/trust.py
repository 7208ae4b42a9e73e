"""What this device believes: both trust domains, and what they say together.

Takes the three retained messages in any order and any number of times, and judges what it has. A release is a goal
only when the director's document and the image repository name the same manifest. Nothing here stops what already
runs: a judgement can only fail to bring something new.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec
from tuf.api.metadata import Root, Targets

from agent import durable, faults
from agent.clock import believable_ms, trusted_now
from agent.engine import Goal
from agent.engine.events import AssignmentAccepted
from agent.errors import AgentError
from agent.identity import Identity
from agent.image_repository import ImageRepository, floor_name
from protocol import limits
from protocol.assignment import AssignedRelease, VerifiedAssignment, verify_assignment
from protocol.errors import ExpiredError, LimitExceededError, ProtocolError, RollbackError
from protocol.identifiers import Digest
from protocol.manifest import FileRef
from protocol.messages import Ack, Reason, open_ack
from protocol.repository import MetadataSet, walk_roots

_ROOT_FLOOR: Final = "director.root"
Document = Literal["timestamp", "metadata", "director"]


class FloorStore(Protocol):
    """Where the highest accepted versions are kept."""

    def floors(self) -> dict[str, int]:
        """Return the highest version accepted of each role."""

    def raise_floors(self, versions: dict[str, int], *, signed_time_ms: int | None = None) -> None:
        """Remember accepted versions, and the time that the newest director document signs."""

    def signed_time_ms(self) -> int:
        """Return that time."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from the documents at hand."""

    assignment: AssignmentAccepted | None = None
    """What the device must do, if a director document is accepted."""
    problems: dict[Document, Reason] = {}
    """Why a document is not believed."""

    @property
    def is_behind(self) -> bool:
        """Whether image metadata is missing: a part of it, or a release that the director names."""
        goals = self.assignment.goals.values() if self.assignment else ()
        reasons = self.problems.values()
        return any(not (g.is_removal or g.manifest or g.refusal) for g in goals) or any(
            reason.code == "incomplete" for reason in reasons
        )


class Trust:
    """The documents at hand, and what was accepted before."""

    def __init__(self, identity: Identity, folder: Path, store: FloorStore) -> None:
        self._identity = identity
        self._store = store
        self._image = ImageRepository(folder / "image", identity.image_root)
        self._director_root_path = folder / "director_root.json"
        self._director: tuple[bytes, Root] | None = None
        self._documents: dict[Document, bytes] = {}
        self._set: MetadataSet | None = None
        self._set_raw = b""
        self._refreshed: tuple[bytes, bytes] | None = None

    @property
    def targets(self) -> Targets | None:
        """The image repository's newest accepted targets."""
        return self._image.targets

    def open_ack(self, raw: bytes) -> Ack:
        """Return an ack that the director signed for this device; raises ProtocolError or StateError."""
        _, root = self._trusted_director_root()
        self._check_root_floor(root)
        return open_ack(raw, self._identity.device_id, root)

    def judge(self, document: Document, raw: bytes, wall_ms: int) -> Judgement:
        """Take a document that arrived and judge everything anew."""
        self._documents[document] = raw
        return self.judge_again(wall_ms)

    def judge_again(self, wall_ms: int) -> Judgement:
        """Judge what is at hand: time has passed, or the clock was set."""
        problems: dict[Document, Reason] = {}
        verified: list[VerifiedAssignment] = []
        # The director before the timestamp: its document may be what tells a device without a clock the time.
        steps: tuple[tuple[Document, Callable[[], None]], ...] = (
            ("metadata", self._open_set),
            ("director", lambda: verified.extend(self._judge_director(wall_ms))),
            ("timestamp", lambda: self._refresh_image(self._now(wall_ms))),
        )
        for document, judge_it in steps:
            try:
                judge_it()
            except (ProtocolError, AgentError, OSError) as error:
                problems[document] = _reason(error)
        targets = self._fresh_targets(self._now(wall_ms)) if verified else None
        return Judgement(assignment=agree(verified[0], targets) if verified else None, problems=problems)

    def _now(self, wall_ms: int) -> datetime:
        return trusted_now(wall_ms, self._store.signed_time_ms())

    def _open_set(self) -> None:
        raw = self._documents.get("metadata")
        if raw is None or raw == self._set_raw:
            return
        opened = MetadataSet.from_bytes(raw)
        self._follow_director_roots(opened)
        self._set, self._set_raw = opened, raw

    def _refresh_image(self, now: datetime) -> None:
        timestamp = self._documents.get("timestamp")
        if timestamp is None or self._set is None:
            return
        state = (timestamp, self._documents["metadata"])
        if state == self._refreshed:
            self._image.check_expiry(now)
            return
        if len(timestamp) > limits.MAX_TIMESTAMP_BYTES:
            raise LimitExceededError(
                f"expected a timestamp of at most {limits.MAX_TIMESTAMP_BYTES:,} bytes, got {len(timestamp):,}"
            )
        versions = self._image.refresh(self._set.image, timestamp, self._store.floors(), now)
        self._store.raise_floors(versions)
        self._refreshed = state
        faults.reach("trust.floors_stored")

    def _judge_director(self, wall_ms: int) -> tuple[VerifiedAssignment, ...]:
        """Return what the director's document says, if there is one to believe."""
        raw = self._documents.get("director")
        if raw is None:
            return ()
        _, root = self._trusted_director_root()
        self._check_root_floor(root)
        floor = floor_name("director", root, "targets")
        accepted = self._store.floors().get(floor, 0)
        # Not by the time of an earlier document: the director may correct its clock, never its versions.
        now = trusted_now(wall_ms, 0)
        verified = verify_assignment(
            raw, root=root, device_id=self._identity.device_id, version_floor=accepted, now=now
        )
        versions = {floor: verified.version, _ROOT_FLOOR: root.version}
        if verified.version <= accepted:
            self._store.raise_floors(versions)
            return (verified,)
        if root.is_expired(now):
            raise ExpiredError(f"the director's root ended at {root.expires:%Y-%m-%d %H:%M:%SZ}: publish a new one")
        issued_ms = verified.assignment.issued_at_ms
        self._store.raise_floors(versions, signed_time_ms=believable_ms(issued_ms, wall_ms))
        return (verified,)

    def _fresh_targets(self, now: datetime) -> Targets | None:
        """Return what may bring something new: a release that is not begun waits for metadata that has not ended."""
        try:
            self._image.check_expiry(now)
        except ExpiredError:
            return None
        return self._image.targets if self._refreshed else None

    def _trusted_director_root(self) -> tuple[bytes, Root]:
        """Return the newest root of the director that was accepted, as stored and as read; each ack asks for it."""
        if self._director is None:
            try:
                raw = self._director_root_path.read_bytes()
                root = walk_roots(raw, {}).signed
            except (FileNotFoundError, ProtocolError):
                raw = self._identity.director_root
                root = walk_roots(raw, {}).signed
            except OSError:  # it may pass: nothing is kept in memory
                raw = self._identity.director_root
                return raw, walk_roots(raw, {}).signed
            self._director = raw, root
        return self._director

    def _follow_director_roots(self, opened: MetadataSet) -> None:
        raw, trusted = self._trusted_director_root()
        root = walk_roots(raw, opened.director).signed
        self._check_root_floor(root)
        newest = root.version
        if newest > trusted.version:
            raw = opened.director[f"{newest}.root.json"].encode()
            durable.replace(self._director_root_path, raw)
            self._director = raw, root
        self._store.raise_floors({_ROOT_FLOOR: newest})

    def _check_root_floor(self, root: Root) -> None:
        """Losing the folder must not bring back a director whose keys were replaced."""
        floor = self._store.floors().get(_ROOT_FLOOR, 0)
        if root.version < floor:
            raise RollbackError(f"the director's root has version {root.version}, already accepted {floor}")


def agree(verified: VerifiedAssignment, targets: Targets | None) -> AssignmentAccepted:
    """Return the goals of an assignment: releases are named by both domains, or refused, or still unknown to one."""
    assignment = verified.assignment
    goals = {
        removal.model: Goal(
            deployment_id=removal.deployment_id, version=removal.version, is_open=removal.is_open, is_removal=True
        )
        for removal in assignment.removals
    }
    for release in assignment.releases:
        goals[release.model] = _goal(release, verified.digests[release.target_path], targets)
    return AssignmentAccepted(
        version=verified.version, goals=goals, canceled=assignment.canceled, config=assignment.config
    )


def _goal(release: AssignedRelease, digest: Digest, targets: Targets | None) -> Goal:
    goal = Goal(deployment_id=release.deployment_id, version=release.version, is_open=release.is_open)
    entry = targets.targets.get(release.target_path) if targets else None
    if entry is None:
        return goal
    signed = entry.hashes.get("sha256")
    if signed != digest:
        message = (
            f"the director and the image repository name different manifests for {release.model} {release.version}: "
            f"{digest[:12]} and {str(signed)[:12]}. Find out who signed the director document"
        )
        return msgspec.structs.replace(goal, refusal=Reason.of("domains_disagree", message))
    if not 0 < entry.length <= limits.MAX_MANIFEST_BYTES:
        message = f"expected a manifest of 1 to {limits.MAX_MANIFEST_BYTES:,} bytes, got {entry.length:,}"
        return msgspec.structs.replace(goal, refusal=Reason.of("limit_exceeded", message))
    return msgspec.structs.replace(goal, manifest=FileRef(digest=digest, size=entry.length))


def _reason(error: ProtocolError | AgentError | OSError) -> Reason:
    return Reason.of("disk" if isinstance(error, OSError) else error.code, str(error))
