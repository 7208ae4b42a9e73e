"""Who gets a release, what each device is told, and what its receipts mean.

Pure: facts in, decisions out. Owns the rules of rollouts, waves and deployments; refuses to know how they are stored.

A device's desired state is never stored: it is its newest unfinished deployment of each model, else what it has
committed. So a deployment that failed, was canceled or superseded stops being desired by itself, and the fleet's
state is honest.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from controller.api.schema import Liveness, PlannedDevice
from protocol import lifecycle, limits
from protocol.admission import AdmissionError, Capacity, select_variant
from protocol.assignment import AgentConfig, AssignedRelease, Assignment, Removal
from protocol.identifiers import DeviceId
from protocol.lifecycle import DEPLOYMENT, DeploymentState, RolloutState, WaveState
from protocol.manifest import Manifest
from protocol.messages import Receipt

MAX_CANCELED = 32
"""How many given-up deployments a document names; the newest matter."""
_UNDER_WAY: frozenset[DeploymentState] = frozenset({"activated", "committing"})
"""Too late to take back: the device commits or rolls back by itself."""

Ignored = Literal["stale", "final", "withdrawn", "wrong_release", "wrong_kind", "no_transition"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One device that a rollout of one model may concern."""

    device: str
    liveness: Liveness
    capacity: Capacity | None
    """None until the device was born; then the device itself checks the contract."""
    installed: str | None
    open_version: str | None = None
    """What an unfinished deployment of the model is about."""
    other_models: int = 0


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What a device has committed of one model."""

    model: str
    version: str
    deployment_id: str


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where one deployment stands."""

    id: str
    model: str
    version: str
    number: int
    """That of its rollout; a higher one is newer."""
    state: DeploymentState
    is_removal: bool = False
    is_closed_by_controller: bool = False
    stream: str | None = None
    seq: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it is unfinished."""
        return not lifecycle.is_final(DEPLOYMENT, self.state)

    @property
    def is_withdrawable(self) -> bool:
        """Whether the controller may still close it."""
        return self.is_open and self.state not in _UNDER_WAY


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What a receipt changes."""

    state: DeploymentState | None = None
    """The deployment's new state; None when the receipt only confirms the one it has."""
    installs: bool = False
    uninstalls: bool = False
    ignored: Ignored | None = None

    @property
    def is_final(self) -> bool:
        """Whether the deployment ends with it."""
        return self.state is not None and lifecycle.is_final(DEPLOYMENT, self.state)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The states that follow from those of all deployments."""

    rollout: RolloutState
    wave: WaveState
    is_finished: bool


def plan_release(
    manifest: Manifest, candidates: Iterable[Candidate], *, refusal: str | None = None
) -> tuple[PlannedDevice, ...]:
    """Return what deploying `manifest` means for each device; `refusal` is why no device may get it."""
    return tuple(_plan_one(manifest, candidate, refusal) for candidate in candidates)


def plan_removal(candidates: Iterable[Candidate]) -> tuple[PlannedDevice, ...]:
    """Return what removing the model means for each device that has it or is getting it."""
    return tuple(
        PlannedDevice(device=c.device, decision="deploy", installed=c.installed, download_bytes=0, liveness=c.liveness)
        for c in candidates
        if c.installed or c.open_version
    )


def _plan_one(manifest: Manifest, candidate: Candidate, refusal: str | None) -> PlannedDevice:
    def planned(
        decision: Literal["deploy", "already_installed", "refused"], reason: str | None = None
    ) -> PlannedDevice:
        return PlannedDevice(
            device=candidate.device,
            decision=decision,
            installed=candidate.installed,
            download_bytes=_download_bytes(manifest, candidate.capacity) if decision == "deploy" else 0,
            reason=reason,
            liveness=candidate.liveness,
        )

    if refusal:
        return planned("refused", refusal)
    if candidate.installed == manifest.version and candidate.open_version is None:
        return planned("already_installed")
    has_model = candidate.installed or candidate.open_version
    if not has_model and candidate.other_models >= limits.MAX_MODELS_PER_DEVICE:
        return planned("refused", f"it has {candidate.other_models} models already, the most a device may have")
    if candidate.capacity is not None:
        try:
            select_variant(manifest, candidate.capacity)
        except AdmissionError as error:
            return planned("refused", str(error))
    return planned("deploy")


def _download_bytes(manifest: Manifest, capacity: Capacity | None) -> int:
    variant = select_variant(manifest, capacity) if capacity else manifest.variants[0]
    return variant.file.size + manifest.self_test.file.size


def superseded(standings: Iterable[Standing]) -> tuple[str, ...]:
    """Return the unfinished deployments of a model on a device that a newer one replaces."""
    return tuple(s.id for s in standings if s.is_withdrawable)


def build_assignment(
    device: DeviceId,
    installed: Sequence[Installed],
    standings: Sequence[Standing],
    *,
    issued_at_ms: int,
    config: AgentConfig,
) -> Assignment:
    """Return the whole desired state of a device; raises ProtocolError when it is more than a document may say.

    `standings` are its unfinished deployments and those that the controller closed before the device did.
    """
    releases, removals = desired_state(installed, standings)
    canceled = sorted((s for s in standings if s.is_closed_by_controller), key=lambda s: s.number)
    return Assignment(
        device_id=device,
        issued_at_ms=issued_at_ms,
        releases=tuple(releases[m] for m in sorted(releases)),
        removals=tuple(removals[m] for m in sorted(removals)),
        canceled=tuple(s.id for s in canceled[-MAX_CANCELED:]),
        config=config,
    )


def desired_state(
    installed: Sequence[Installed], standings: Sequence[Standing]
) -> tuple[dict[str, AssignedRelease], dict[str, Removal]]:
    """Return what a device must run and what it must remove, by model, whether or not a document can say it."""
    releases: dict[str, AssignedRelease] = {
        i.model: AssignedRelease(model=i.model, version=i.version, deployment_id=i.deployment_id) for i in installed
    }
    removals: dict[str, Removal] = {}
    for standing in sorted((s for s in standings if s.is_open), key=lambda s: s.number):
        if standing.is_removal:
            releases.pop(standing.model, None)
            removals[standing.model] = Removal(
                model=standing.model, version=standing.version, deployment_id=standing.id, is_open=True
            )
        else:
            removals.pop(standing.model, None)
            releases[standing.model] = AssignedRelease(
                model=standing.model, version=standing.version, deployment_id=standing.id, is_open=True
            )
    return releases, removals


def apply_receipt(standing: Standing, receipt: Receipt, stream: str) -> Effect:
    """Return what `receipt` changes about its deployment.

    A receipt may skip states, because one that was lost must not make a deployment hang, but it never leads back
    from a later receipt of the same stream, nor out of what the device said was final. What the controller closed by
    itself the device may correct: it may have committed before it heard.
    """
    if (receipt.model, receipt.version) != (standing.model, standing.version):
        return Effect(ignored="wrong_release")
    if stream == standing.stream and receipt.seq <= standing.seq:
        return Effect(ignored="stale")
    if receipt.state in ("removed", "succeeded") and standing.is_removal != (receipt.state == "removed"):
        return Effect(ignored="wrong_kind")
    if standing.is_closed_by_controller:
        return _apply_withdrawn(receipt.state)
    if not standing.is_open:
        return Effect(ignored="final")
    if receipt.state not in lifecycle.reachable(DEPLOYMENT, standing.state):
        return Effect(ignored="no_transition")
    return _effect(receipt.state)


def _apply_withdrawn(state: DeploymentState) -> Effect:
    if not lifecycle.is_final(DEPLOYMENT, state):
        return Effect(ignored="withdrawn")
    return _effect(state) if state in lifecycle.GOOD_ENDS else Effect()


def _effect(state: DeploymentState) -> Effect:
    return Effect(state=state, installs=state in ("succeeded", "already_installed"), uninstalls=state == "removed")


def outcome(rollout: RolloutState, deployments: Mapping[DeploymentState, int]) -> Outcome:
    """Return where a rollout of one wave stands, from the number of its deployments in each state."""
    counts = Counter(deployments)
    is_finished = all(lifecycle.is_final(DEPLOYMENT, state) for state, n in counts.items() if n)
    if not is_finished:
        return Outcome(rollout=rollout, wave="running", is_finished=False)
    has_bad = any(counts[state] for state in lifecycle.BAD_ENDS)
    has_good = any(counts[state] for state in lifecycle.GOOD_ENDS)
    return Outcome(
        rollout="finished" if rollout == "running" else "stopped",
        wave="error" if has_bad and not has_good else "finished",
        is_finished=True,
    )
