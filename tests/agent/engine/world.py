"""A device in miniature around the engine: does what the engine asks, well or badly, as a test says."""

import msgspec

from agent.engine import Goal, Installed, State, actions, events, step
from agent.engine.actions import Action, EmitReceipt
from agent.engine.events import Event
from protocol.assignment import AgentConfig
from protocol.lifecycle import DEPLOYMENT, DeploymentState, allows, is_final
from protocol.manifest import FileRef
from protocol.messages import Reason

REASON = Reason.of("test", "because the test says so")
CONFIG = AgentConfig(soak_ms=1_000, max_boot_attempts=2)


def file(name: str) -> FileRef:
    return FileRef.of(name.encode())


def goal(deployment_id: str, version: str = "1.0.0", **fields: object) -> Goal:
    values: dict[str, object] = {"manifest": file(f"manifest {version}"), **fields}
    return Goal(deployment_id=deployment_id, version=version, **values)  # type: ignore[arg-type]


def accepted(version: int = 1, canceled: tuple[str, ...] = (), **goals: Goal) -> events.AssignmentAccepted:
    return events.AssignmentAccepted(version=version, goals=goals, canceled=canceled, config=CONFIG)


def candidate(action: actions.Download) -> Installed:
    return Installed(
        version=action.version,
        deployment_id=action.deployment_id,
        manifest=action.manifest,
        module=file(f"module {action.version}"),
        vectors=file(f"vectors {action.version}"),
    )


def good_answers(action: Action) -> list[Event]:
    """Return what follows when the world does as it is asked."""
    if not isinstance(action, actions.DeploymentAction):
        return []
    names = {"model": action.model, "deployment_id": action.deployment_id}
    match action:
        case actions.Download():
            return [events.Planned(candidate=candidate(action), **names), events.Downloaded(**names)]
        case actions.Verify():
            return [events.Verified(elapsed_ms=2, **names)]
        case actions.Compile():
            return [events.Compiled(elapsed_ms=3, **names)]
        case actions.Test():
            return [events.Tested(elapsed_ms=4, **names)]
        case actions.Activate() | actions.Reactivate():
            return [events.Swapped(swap_us=5, **names)]
        case actions.Commit():
            return [events.Committed(**names)]
        case actions.RollBack():
            return [events.RolledBack(**names)]
        case _:
            return []


def bad_answers(action: Action) -> list[Event]:
    """Return the ways in which the world may fail to do it, one event each."""
    if isinstance(action, actions.Load):
        return [events.LoadFailed(model=action.model, version=action.installed.version, reason=REASON)]
    if not isinstance(action, actions.DeploymentAction):
        return []
    names = {"model": action.model, "deployment_id": action.deployment_id}
    failed = events.Failed(reason=REASON, **names)
    match action:
        case actions.Download() | actions.Verify() | actions.Compile() | actions.Test():
            rejected = msgspec.structs.replace(failed, is_rejection=True)
            return [failed, rejected, events.Spoiled(reason=REASON, **names)]
        case actions.Activate() | actions.Reactivate() | actions.Commit():
            return [failed]
        case actions.RollBack():
            return [events.RolledBack(error=REASON, **names)]
        case _:
            return []


class World:
    """The engine's state, the actions that wait to be done, and everything that was reported."""

    def __init__(self) -> None:
        self.state = State(config=CONFIG)
        self.now_ms = 0
        self.pending: list[Action] = []
        self.answers: list[Event] = []
        self.receipts: list[EmitReceipt] = []
        self.reported: dict[str, DeploymentState] = {}
        self.forgotten: set[str] = set()
        """Deployments whose receipts the director has lost: it may hear of them again."""
        self.transitions: set[tuple[DeploymentState, DeploymentState]] = set()

    def feed(self, event: Event) -> tuple[Action, ...]:
        """Take one event, check what every step must keep, and queue what is asked for."""
        before = self.state
        self.state, todo = step(before, event, self.now_ms)
        assert self.state == msgspec.json.decode(msgspec.json.encode(self.state), type=State)
        for action in todo:
            if isinstance(action, EmitReceipt):
                self._check_receipt(action)
        self._check_slots(before, event, todo)
        self.pending += [action for action in todo if good_answers(action) or bad_answers(action)]
        return todo

    def restart(self, *, is_clean: bool = False) -> None:
        """Lose everything but the stored state."""
        if is_clean:
            self.feed(events.Stopping())
        self.pending.clear()
        self.answers.clear()
        self.now_ms = 0
        self.feed(events.Started())
        self.feed(events.Resumed())

    def do(self, answers: list[Event]) -> None:
        """Feed what the world answers."""
        for answer in answers:
            self.feed(answer)

    def run_well(self) -> None:
        """Let the world do everything as it is asked, until nothing is left to do."""
        for _ in range(1_000):
            while self.pending:
                self.do(good_answers(self.pending.pop(0)))
            if not any(m.current and m.current.state == "activated" for m in self.state.models.values()):
                return
            self.now_ms += CONFIG.soak_ms
            self.feed(events.Ticked())
        raise AssertionError("the engine goes round in circles")

    def states(self, deployment_id: str) -> list[DeploymentState]:
        """Return the states that were reported of one deployment, without repetitions."""
        return [r.state for r in self.receipts if r.deployment_id == deployment_id and r.progress is None]

    def _check_receipt(self, receipt: EmitReceipt) -> None:
        old = self.reported.get(receipt.deployment_id, "queued")
        if receipt.deployment_id in self.forgotten:
            self.forgotten.remove(receipt.deployment_id)
            assert receipt.state == "retrieved" or is_final(DEPLOYMENT, receipt.state)
            self.reported[receipt.deployment_id] = receipt.state
            self.receipts.append(receipt)
            return
        assert not is_final(DEPLOYMENT, old), f"{receipt.deployment_id} ended as {old}, then {receipt.state}"
        assert allows(DEPLOYMENT, old, receipt.state), f"{receipt.deployment_id}: {old} to {receipt.state}"
        self.reported[receipt.deployment_id] = receipt.state
        self.transitions.add((old, receipt.state))
        self.receipts.append(receipt)

    def _check_slots(self, before: State, event: Event, todo: tuple[Action, ...]) -> None:
        """Only a commit brings another active release; only a removal or a damaged disk takes it away."""
        ended = {a.model: a.state for a in todo if isinstance(a, EmitReceipt)}
        for name, old in before.models.items():
            new = self.state.models.get(name)
            if isinstance(event, events.LoadFailed) or (old.current and old.current.is_repair):
                continue
            active = new.active if new else None
            if old.active and active is None:
                assert any(isinstance(a, actions.Unload) and a.model == name for a in todo)
            elif active and (old.active is None or old.active.manifest != active.manifest):
                assert any(isinstance(a, EmitReceipt) and a.model == name and a.state == "succeeded" for a in todo), (
                    ended
                )
