"""What the operator API takes and gives: shared by the service, which serves it, and `fleetctl`, which calls it.

Paths, all below `/v1` and with `Authorization: Bearer <token>` on the operator listener:

    GET    /info                                  Info
    GET    /tuf/targets                           the image repository's current targets metadata, as signed
    PUT    /tuf/targets                           signed metadata in, TargetsAccepted out; 409 when another came first
    POST   /tuf/targets/recover                   the operator's newest signed metadata in, TargetsRecovered out
    HEAD   /files/{digest}                        200 when the service has the file
    PUT    /files/{digest}                        the bytes of one file of a bundle
    GET    /models                                list[Model]
    GET    /releases?model=                       list[Release]
    GET    /releases/{model}/{version}            Release
    POST   /releases/{model}/{version}/yank       YankRequest in, Release out
    GET    /devices?to=                           list[Device]
    GET    /devices/{id}                          Device
    PUT    /devices/{id}/groups                   GroupsRequest in, Device out
    GET    /devices/{id}/explain?model=           Explanation
    POST   /invites                               InviteRequest in, InviteResponse out
    POST   /rollouts                              RolloutRequest in (header Idempotency-Key), Plan or Rollout out
    GET    /rollouts?model=&limit=                list[Rollout]
    GET    /rollouts/{id}                         Rollout with its deployments
    GET    /rollouts/{id}/events                  server-sent events: a Rollout with its deployments on every change
    POST   /rollouts/{id}/stop                    Rollout
    GET    /queries                               list[NamedQuery]
    POST   /query                                 QueryRequest in, QueryResult out

and on the device-facing listener (HTTPS): POST /v1/enroll (protocol.enrollment).

An error is `application/problem+json` (RFC 9457): Problem.
"""

from typing import Literal

import msgspec

from protocol.lifecycle import DeploymentState, RolloutState, WaveState
from protocol.messages import Progress, Reason, SlotReport

Liveness = Literal["online", "offline", "never_seen"]
DeviceState = Literal["registered", "pending", "in_sync", "error"]
Decision = Literal["deploy", "already_installed", "refused"]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed. `code` is stable; `hint` names the next thing to do."""

    status: int
    code: str
    title: str
    detail: str
    hint: str = ""
    type: str = "about:blank"


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What this service is and how it fares."""

    version: str
    topic_prefix: str
    mqtt_url: str
    is_mqtt_connected: bool
    enroll_url: str
    targets_version: int
    targets_expires: str
    warnings: tuple[str, ...] = ()


class TargetsAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """New targets metadata is in force; `released` are the releases that it added."""

    version: int
    released: tuple[str, ...]


class TargetsRecovered(msgspec.Struct, frozen=True, kw_only=True):
    """The operator's list is in force again; of the releases in `missing` (`MODEL@VERSION`) the files are not here."""

    version: int
    missing: tuple[str, ...]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One release; times are RFC 3339 in UTC."""

    model: str
    version: str
    release_counter: int
    manifest_digest: str
    module_bytes: int
    memory_bytes: int
    created_at: str
    yanked_at: str | None = None
    yank_reason: str | None = None
    is_below_floor: bool = False
    devices: int = 0
    """How many devices run it now."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A named series of releases."""

    name: str
    latest: str | None
    releases: int
    devices: int
    min_release_counter: int
    last_counter: int


class YankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Keep a release from every further deployment; devices that run it keep it."""

    reason: str


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one device: what it must run and what it has committed."""

    model: str
    desired: str | None
    installed: str | None
    deployment_id: str | None = None
    deployment_state: DeploymentState | None = None
    reason: Reason | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device; times are RFC 3339 in UTC."""

    id: str
    state: DeviceState
    liveness: Liveness
    groups: tuple[str, ...]
    enrolled_at: str
    last_seen_at: str | None
    arch: str | None = None
    agent_version: str | None = None
    director_version: int = 0
    acknowledged_director_version: int = 0
    models: tuple[InstalledModel, ...] = ()
    slots: tuple[SlotReport, ...] = ()
    problems: dict[str, Reason] = {}
    """What it said that it cannot do, by what is concerned: `memory`, or `model/` and its name."""


class GroupsRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The groups that a device belongs to from now on."""

    groups: tuple[str, ...]


class ExplainedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Why a device runs this release of a model, or none."""

    model: str
    installed: str | None
    desired: str | None
    because: tuple[str, ...]
    """Sentences, the most important first."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a device runs what it runs, and why not something else."""

    device: str
    summary: str
    models: tuple[ExplainedModel, ...]
    next_step: str | None = None


class InviteRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Invite one device; the service names it when `device_id` is null.

    One that has enrolled may come back with a new key, in place of its old one, when `is_replacement`.
    """

    device_id: str | None = None
    groups: tuple[str, ...] = ()
    valid_s: int = 3_600
    is_replacement: bool = False


class InviteResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A single-use invite and the line to paste on the device."""

    device_id: str
    invite: str
    command: str
    expires_at: str


class RolloutRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Deploy `version` of `model` to what `to` names, or undeploy the model when `version` is null.

    `to` holds `all`, group names or device ids; none is both.
    """

    model: str
    version: str | None
    to: tuple[str, ...] = ("all",)
    is_dry_run: bool = False
    soak_ms: int | None = None
    manifest: str | None = None
    """For a dry run alone: the manifest, as JSON text, of a release that is not published yet."""


class PlannedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout would do to one device."""

    device: str
    decision: Decision
    installed: str | None
    download_bytes: int
    reason: str | None = None
    liveness: Liveness = "never_seen"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout would do; nothing was changed."""

    model: str
    version: str | None
    devices: tuple[PlannedDevice, ...]


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One device in one rollout."""

    id: str
    device: str
    state: DeploymentState
    updated_at: str
    progress: Progress | None = None
    reason: Reason | None = None
    measures: dict[str, int] = {}


class Wave(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a rollout."""

    number: int
    state: WaveState
    devices: int


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout; `counts` has the number of deployments in each state."""

    id: str
    model: str
    version: str | None
    state: RolloutState
    to: tuple[str, ...]
    created_at: str
    finished_at: str | None
    counts: dict[str, int]
    waves: tuple[Wave, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    refused: tuple[PlannedDevice, ...] = ()


class NamedQuery(msgspec.Struct, frozen=True, kw_only=True):
    """A dashboard query and its SQL; it answers nothing without the parameters that are `required`."""

    name: str
    about: str
    sql: str
    parameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


class QueryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A named query, or SQL over the documented views: exactly one of the two."""

    name: str | None = None
    sql: str | None = None
    parameters: dict[str, str] = {}
    limit: int = 1_000


class QueryResult(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in the order of `columns`; `is_cut` when there were more than asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | bool | None, ...], ...]
    is_cut: bool = False
