"""One step of one model: the state as it changes, and the actions that it leads to.

Every change of a deployment's state goes through `move`, and `move` asks the lifecycle table.
"""

from typing import Final

from msgspec.structs import replace

from agent.engine.actions import Abandon, Action, Collect, Download, EmitReceipt, Unload
from agent.engine.state import MAX_SETTLED, Deployment, Ended, Goal, Installed, Model
from protocol.assignment import AgentConfig
from protocol.lifecycle import DEPLOYMENT, GOOD_ENDS, DeploymentState, require
from protocol.messages import Progress, Reason

FIRST_REPAIR_PAUSE_MS: Final = 60_000
MAX_REPAIR_PAUSE_MS: Final = 6 * 3_600_000
ACTIVATED: Final = frozenset({"activated", "committing"})
"""States in which the release answers requests; only a commit or a rollback leads out of them."""


class Turn:
    """The working copy of one model during one step."""

    def __init__(self, name: str, model: Model, settled: tuple[Ended, ...], config: AgentConfig, now_ms: int) -> None:
        self.name = name
        self.model = model
        self.settled = settled
        self.config = config
        self.now_ms = now_ms
        self.actions: list[Action] = []

    @property
    def current(self) -> Deployment:
        """The deployment in progress; only where there is one."""
        assert self.model.current is not None
        return self.model.current

    def set_current(self, deployment: Deployment | None) -> None:
        """Note what is known about the deployment in progress, without a change of its state."""
        self.model = replace(self.model, current=deployment)

    def move(
        self, state: DeploymentState, *, reason: Reason | None = None, measures: dict[str, int] | None = None
    ) -> None:
        """Enter `state` and report it; raises TransitionError where the table has no such transition."""
        current = self.current
        require(DEPLOYMENT, current.state, state)
        self.set_current(
            replace(
                current,
                state=state,
                since_ms=self.now_ms,
                reported_ms=self.now_ms,
                measures={**current.measures, **(measures or {})},
            )
        )
        self.report(reason=reason)

    def report(self, *, progress: Progress | None = None, reason: Reason | None = None) -> None:
        """Emit a receipt of the state that the deployment is in."""
        current = self.current
        if not current.is_repair:
            self.actions.append(
                EmitReceipt(
                    model=self.name,
                    deployment_id=current.goal.deployment_id,
                    version=current.goal.version,
                    state=current.state,
                    progress=progress,
                    reason=reason,
                    measures=current.measures,
                )
            )

    def settle(self, state: DeploymentState, *, reason: Reason | None = None) -> None:
        """End the deployment in `state`, and go on with what the assignment wants next."""
        self.move(state, reason=reason)
        current = self.current
        ended = Ended(current.goal.deployment_id, state, reason.code if reason else "")
        if state == "succeeded":
            self.model = replace(self.model, active=current.candidate, previous=self.model.active)
        elif state == "already_installed" and self.model.active:
            self.model = replace(self.model, active=replace(self.model.active, deployment_id=ended.deployment_id))
        self.set_current(None)
        if current.is_repair and not ended.is_installed:
            self._postpone_repair(current, reason)  # it did succeed once: that stays the end of the deployment
        else:
            others = (each for each in self.settled if each.deployment_id != ended.deployment_id)
            self.settled = (*others, ended)[-MAX_SETTLED:]
            self.model = replace(self.model, failed_repairs=0, repair_at_ms=0)
        if state in GOOD_ENDS:
            self.model = replace(self.model, trouble=None, unserved=None)
        goal = self.model.goal
        if goal and goal.deployment_id == ended.deployment_id and not current.is_repair:
            self.model = replace(self.model, goal=replace(goal, is_open=False))  # this receipt is the answer
        self.actions += [Abandon(model=self.name, deployment_id=ended.deployment_id), Collect()]
        self.pursue()

    def remember_success(self, installed: Installed) -> None:
        """Note that a release succeeded which is active no more: its deployment is not to be reported anew."""
        ended = Ended(installed.deployment_id, "succeeded")
        self.settled = (*(each for each in self.settled if each.deployment_id != ended.deployment_id), ended)[
            -MAX_SETTLED:
        ]

    def pursue(self) -> None:
        """Start, replace or give up work until it is the assignment's goal that is worked on."""
        goal, current = self.model.goal, self.model.current
        if current is not None and current.state in ACTIVATED:
            return  # it is committed or rolled back first; then `settle` comes here again
        if goal is None:
            if current is not None:
                self.settle("superseded", reason=Reason.of("withdrawn", "the assignment no longer names this release"))
        elif current is None:
            self._take_up(goal)
        elif current.goal.deployment_id != goal.deployment_id:
            self.settle("superseded", reason=Reason.of("superseded", f"{goal.version} is wanted now"))
        elif current.state == "retrieved":
            self.set_current(replace(current, goal=goal))
            self.begin()

    def begin(self) -> None:
        """Leave `retrieved` as far as what is known allows."""
        goal, active = self.current.goal, self.model.active
        if goal.is_removal:
            self.model = replace(self.model, active=None, previous=None)
            self.actions.append(Unload(model=self.name))
            self.settle("removed")
        elif goal.refusal is not None:
            self.settle("rejected", reason=goal.refusal)
        elif goal.manifest is None:
            return  # the image repository does not know the release yet: its metadata is on the way
        elif active is not None and (active.version, active.manifest) == (goal.version, goal.manifest):
            self.settle("already_installed")
        else:
            self.download()

    def download(self) -> None:
        """Look for the files of the release: also after a restart, since those that are here are not fetched again."""
        self.move("downloading")
        goal = self.current.goal
        assert goal.manifest is not None
        self.actions.append(
            Download(model=self.name, deployment_id=goal.deployment_id, version=goal.version, manifest=goal.manifest)
        )

    def _take_up(self, goal: Goal) -> None:
        """Begin what was not done yet, bring back what is gone, tell again what the director has forgotten."""
        ended = self._ended(goal)
        is_gone = ended is not None and ended.is_installed and not self._is_active(goal)
        if ended is None or (is_gone and goal.is_open):
            self.set_current(Deployment(goal=goal, state="queued", since_ms=self.now_ms))
            self.move("retrieved")
            self.begin()
        elif is_gone:
            if self.now_ms >= self.model.repair_at_ms:
                self.set_current(Deployment(goal=goal, state="retrieved", since_ms=self.now_ms, is_repair=True))
                self.begin()
        elif goal.is_open:
            self._tell_again(goal, ended)

    def _ended(self, goal: Goal) -> Ended | None:
        """Return how the deployment of `goal` ended here, or None if it has not."""
        active = self.model.active
        if active is not None and active.deployment_id == goal.deployment_id:
            return Ended(goal.deployment_id, "succeeded")
        return next((each for each in self.settled if each.deployment_id == goal.deployment_id), None)

    def _is_active(self, goal: Goal) -> bool:
        active = self.model.active
        return (
            active is not None
            and active.version == goal.version
            and (goal.manifest is None or goal.manifest == active.manifest)
        )

    def _tell_again(self, goal: Goal, ended: Ended) -> None:
        reason = Reason.of(ended.code, "as was reported before: the controller had forgotten") if ended.code else None
        self.model = replace(self.model, goal=replace(goal, is_open=False))
        self.actions.append(
            EmitReceipt(
                model=self.name,
                deployment_id=goal.deployment_id,
                version=goal.version,
                state="already_installed" if ended.is_installed else ended.state,
                reason=reason,
            )
        )

    def _postpone_repair(self, repair: Deployment, reason: Reason | None) -> None:
        failures = self.model.failed_repairs + 1
        pause_ms = min(FIRST_REPAIR_PAUSE_MS << min(failures - 1, 16), MAX_REPAIR_PAUSE_MS)
        if repair.is_outdated:
            failures, pause_ms = 0, 1
        self.model = replace(
            self.model,
            failed_repairs=failures,
            repair_at_ms=self.now_ms + pause_ms,
            trouble=reason or self.model.trouble,
        )
