"""Carries out what the engine decides about releases: slow work goes to the worker, swaps happen at once.

Every action ends in an event for the engine, now or later. Runs on the main loop.
"""

import logging
from collections.abc import Callable

from agent import faults
from agent.download import Downloads
from agent.engine import actions, references
from agent.engine.actions import Action
from agent.engine.events import Committed, Event, Failed, LoadFailed, RolledBack, Swapped
from agent.engine.state import Installed, State
from agent.errors import AgentError
from agent.files import Files
from agent.host import HostError, ModelHost
from agent.installer import Installer
from agent.jobs import Jobs
from agent.logs import named
from agent.runtime import LoadedModel, ModelError
from protocol.admission import AdmissionError
from protocol.errors import ProtocolError
from protocol.manifest import Manifest
from protocol.messages import Reason

_log = logging.getLogger(__name__)


class Executor:
    """The hands of the engine."""

    def __init__(
        self, host: ModelHost, files: Files, installer: Installer, jobs: Jobs, post: Callable[[Event], None]
    ) -> None:
        self._host = host
        self._files = files
        self._installer = installer
        self._jobs = jobs
        self._post = post

    def act(self, action: Action, state: State, downloads: Downloads, now_ms: int) -> None:
        """Carry out `action`; `state` is the one that it belongs to."""
        match action:
            case actions.Download():
                downloads.start(action, now_ms)
            case actions.Verify():
                self._jobs.verify(action)
            case actions.Compile():
                self._jobs.compile(action)
            case actions.Test():
                self._jobs.test(action)
            case actions.Abandon():
                downloads.abandon(action.deployment_id, now_ms)
                self._jobs.abandon(action.deployment_id)
            case actions.Collect():
                if not downloads.is_busy:
                    self.make_room(state, downloads)
            case _:
                self._serve(action, state)  # the rest is about what answers requests

    def enforce_policy(self, state: State) -> None:
        """Stop every release that asks for more than the device's policy allows now."""
        for name, model in state.models.items():
            current = model.current
            provisional = current.candidate if current and current.state in ("activated", "committing") else None
            if provisional and (reason := self._forbidden(name, provisional)):
                self._post(Failed(model=name, deployment_id=provisional.deployment_id, reason=reason))
            if model.active and (reason := self._forbidden(name, model.active)):
                _log.error("%s", reason.message)
                self._host.remove(name)
                self._post(LoadFailed(model=name, version=model.active.version, reason=reason))

    def _forbidden(self, model: str, installed: Installed) -> Reason | None:
        try:
            self._installer.check_policy(model, installed)
        except AdmissionError as error:
            return Reason.of(error.code, str(error))
        except (AgentError, ProtocolError) as error:
            _log.warning("cannot tell whether %s %s is allowed: %s", model, installed.version, error)
        return None

    def make_room(self, state: State, downloads: Downloads) -> int:
        """Delete what neither a release nor a download refers to, and return the bytes set free."""
        files, blobs = downloads.references()
        keep = references(state) | files
        self._jobs.prune(keep)
        try:
            freed = self._files.collect(keep, blobs)
        except OSError as error:
            _log.warning("cannot delete files that are not needed any more: %s", error)
            return 0
        if freed:
            told = named("collected", freed_bytes=freed)
            _log.info("deleted %d bytes of files that are not needed any more", freed, extra=told)
        return freed

    def _serve(self, action: Action, state: State) -> None:
        match action:
            case actions.Load():
                self._load(action)
            case actions.Activate():
                self._activate(action)
            case actions.Reactivate():
                self._reactivate(action)
            case actions.Commit():
                self._commit(action)
            case actions.RollBack():
                self._roll_back(action, state)
            case actions.Unload():
                faults.reach("remove.before_unload")
                self._host.remove(action.model)

    def _load(self, action: actions.Load) -> None:
        loaded = self._open(action.model, action.installed)
        if isinstance(loaded, Reason):
            _log.error("%s %s cannot be served: %s", action.model, action.installed.version, loaded.message)
            self._post(LoadFailed(model=action.model, version=action.installed.version, reason=loaded))
            return
        self._host.activate(*loaded, is_committed=True)
        told = named("serving", model=action.model, version=action.installed.version)
        _log.info("serving %s %s", action.model, action.installed.version, extra=told)

    def _activate(self, action: actions.Activate) -> None:
        loaded = self._installer.take(action.deployment_id)
        if loaded is None:
            self._fail(action, Reason.of("internal", "the compiled model was lost: the agent has a defect"))
        else:
            self._swap(action, *loaded)

    def _reactivate(self, action: actions.Reactivate) -> None:
        loaded = self._open(action.model, action.candidate)
        if isinstance(loaded, Reason):
            self._fail(action, loaded)
        else:
            self._swap(action, *loaded)

    def _swap(self, action: actions.Activate | actions.Reactivate, manifest: Manifest, model: LoadedModel) -> None:
        faults.reach("activate.before_swap")
        swap_us = self._host.activate(manifest, model, is_committed=False)
        faults.reach("activate.after_swap")
        self._post(Swapped(model=action.model, deployment_id=action.deployment_id, swap_us=swap_us))

    def _commit(self, action: actions.Commit) -> None:
        faults.reach("commit.before")
        try:
            self._host.commit(action.model, action.version)
        except HostError as error:
            self._fail(action, Reason.of(error.code, str(error)))
            return
        faults.reach("commit.after")
        self._post(Committed(model=action.model, deployment_id=action.deployment_id))

    def _roll_back(self, action: actions.RollBack, state: State) -> None:
        faults.reach("rollback.before")
        serving = self._host.manifests().get(action.model)
        current = state.models[action.model].current
        error = None
        if serving is not None and current is not None and serving.version == current.goal.version:
            try:
                if action.has_previous:
                    self._host.rollback(action.model)
                else:
                    self._host.remove(action.model)
            except HostError as problem:
                self._host.remove(action.model)
                error = Reason.of(problem.code, str(problem))
        faults.reach("rollback.after")
        self._post(RolledBack(model=action.model, deployment_id=action.deployment_id, error=error))

    def _open(self, model: str, installed: Installed) -> tuple[Manifest, LoadedModel] | Reason:
        try:
            return self._installer.load(model, installed)
        except (AgentError, ProtocolError, ModelError) as error:
            return Reason.of(error.code, str(error))
        except (OSError, MemoryError) as error:
            return Reason.of("device", f"{type(error).__name__}: {error}")

    def _fail(self, action: actions.DeploymentAction, reason: Reason) -> None:
        self._post(Failed(model=action.model, deployment_id=action.deployment_id, reason=reason))
