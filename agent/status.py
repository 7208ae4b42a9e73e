"""What the daemon says about itself on the local API and in `fleet-agent status`."""

import msgspec

from agent.bindings import BindingStatus
from agent.engine import Model, State
from protocol.lifecycle import DeploymentState
from protocol.messages import Reason


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this device."""

    model: str
    active: str | None
    previous: str | None
    candidate: str | None
    """The release that is being installed or is not yet committed."""
    state: DeploymentState | None
    inferences: int
    """Answered since the agent started."""


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The device, its link and its models."""

    device_id: str
    agent_version: str
    session: int
    broker: str
    is_connected: bool
    link_problem: str | None
    director_version: int
    problems: dict[str, Reason]
    """Documents that are not believed, and why; what runs goes on running."""
    local_api: tuple[str, ...]
    """Where inference requests are answered."""
    unsent_receipts: int
    unsent_telemetry: int
    ignored_acks: dict[str, int]
    """Acks that were not obeyed since the start, by reason."""
    models: tuple[ModelStatus, ...]
    bindings: tuple[BindingStatus, ...] = ()


def model_statuses(state: State, answered: dict[str, int]) -> tuple[ModelStatus, ...]:
    """Return the status of every model that the device has or is getting."""
    return tuple(
        _model_status(name, model, answered.get(name, 0))
        for name, model in sorted(state.models.items())
        if model.active or model.current
    )


def _model_status(name: str, model: Model, inferences: int) -> ModelStatus:
    current = model.current
    return ModelStatus(
        model=name,
        active=model.active.version if model.active else None,
        previous=model.previous.version if model.previous else None,
        candidate=current.goal.version if current else None,
        state=current.state if current else None,
        inferences=inferences,
    )


def as_table(status: AgentStatus) -> str:
    """Return the status for a person to read."""
    link = "connected" if status.is_connected else f"not connected ({status.link_problem or 'trying'})"
    lines = [
        f"device      {status.device_id}  (fleet-agent {status.agent_version}, start {status.session})",
        f"broker      {status.broker}  {link}",
        f"assignment  {f'version {status.director_version}' if status.director_version else 'none yet'}",
        f"local api   {'  '.join(status.local_api)}",
        f"unsent      {status.unsent_receipts} receipts, {status.unsent_telemetry} telemetry records",
    ]
    if status.ignored_acks:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(status.ignored_acks.items()))
        lines.append(f"ignored     acks: {counts}")
    lines += [f"problem     {name}: {reason.message}" for name, reason in sorted(status.problems.items())]
    lines += [_binding_line(binding) for binding in status.bindings]
    header = ("MODEL", "ACTIVE", "PREVIOUS", "CANDIDATE", "STATE", "INFERENCES")
    rows = [
        (m.model, m.active or "-", m.previous or "-", m.candidate or "-", m.state or "committed", str(m.inferences))
        for m in status.models
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join((*lines, "", *(line.rstrip() for line in (table if rows else ["no models yet"]))))


def _binding_line(binding: BindingStatus) -> str:
    counts = f"{binding.answered} answered, {binding.failed} failed, {binding.dropped} dropped"
    unsent = f", {binding.unsent} unsent" if binding.unsent else ""
    return f"binding     {binding.subscribe} -> {binding.model} -> {binding.publish}  {counts}{unsent}"
