"""The agent: one loop that owns the engine and the store, and everything that is wired to it.

The network thread, the worker and the requests only put things into the inbox. What is committed is served from the
disk before the network is even tried, and goes on being served whatever happens there.
"""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from agent.acks import Acks
from agent.captures import FOLDER_NAME as CAPTURES_NAME
from agent.captures import Captures
from agent.clock import Clock, SystemClock
from agent.core import Core
from agent.diagnostics import Diagnostics
from agent.documents import Documents
from agent.download import Downloads
from agent.engine import next_deadline_ms, troubles
from agent.engine.actions import Action
from agent.engine.events import Event, Faulted, Planned, PolicyRead, Stopping, Ticked
from agent.errors import AgentError, PolicyError, StateError
from agent.executor import Executor
from agent.files import Files
from agent.host import ModelHost
from agent.identity import load_identity
from agent.inbox import Inbox
from agent.installer import Installer
from agent.jobs import Assembled, Done, Jobs, Result
from agent.lock import lock_folder
from agent.logs import named
from agent.mqtt import Endpoint, Link, LinkDown, LinkEvent, LinkUp, Message, Oversize
from agent.policy import Policy, capacity_of, followed, load_policy, waiting
from agent.runtime import ModelError, ModuleCache, Zygote, provide_stacks
from agent.serving.bound import BoundInputs
from agent.serving.gate import Gate
from agent.serving.listeners import listeners
from agent.serving.service import LocalService
from agent.signals import Reload, Stop, listen
from agent.status import AgentStatus, model_statuses
from agent.store import Store
from agent.systemd import Systemd
from agent.telemetry import Telemetry
from agent.trust import Document, Trust
from agent.uplink import AGENT_VERSION, Uplink
from agent.usage import UsageMeter
from agent.worker import Worker
from protocol import limits
from protocol.errors import ProtocolError
from protocol.messages import Reason

SOCKET_NAME: Final = "agent.sock"
INBOX_CAPACITY: Final = 16
"""Small, because a hostile broker may fill it with the largest messages."""
BUSY_TICK_MS: Final = 250
IDLE_TICK_MS: Final = 5_000
MEMORY_RETRY_MS: Final = 5_000
WORKER_GRACE_S: Final = 15.0

_log = logging.getLogger(__name__)


Item = LinkUp | LinkDown | Message | Oversize | Faulted | Stop | Reload | Result


class Daemon:
    """A running agent. Raises AgentError where it cannot start."""

    def __init__(self, state_dir: Path, clock: Clock | None = None, rng: random.Random | None = None) -> None:
        provide_stacks()
        self._clock = clock or SystemClock()
        rng = rng or random.Random()  # noqa: S311 - jitter
        self._identity = identity = load_identity(state_dir)
        self._state_dir = state_dir
        self._systemd = Systemd()
        self._policy = policy = load_policy(state_dir, identity.topics)
        capacity = capacity_of(policy)
        self._lock = lock_folder(state_dir)
        self._inbox: Inbox[Item] = Inbox(INBOX_CAPACITY)
        self._worker: Worker[Item] = Worker(self._inbox.put)
        self._store = Store(state_dir / "agent.db")
        self._session = self._store.next_session()
        self._core = Core(self._store, self._clock, self._session, self._act)
        self._meter = UsageMeter()
        self._captures = Captures(state_dir / CAPTURES_NAME, isolation=policy.isolation)
        diagnostics = Diagnostics(self._meter, self._captures, self._clock.wall_ms)
        self._host = ModelHost(self._meter, self._on_fault, diagnostics)
        self._files = Files(state_dir / "files", policy.disk_quota_bytes)
        self._trust = Trust(identity, state_dir / "tuf", self._store)
        cache = ModuleCache(state_dir / "compiled", identity.derive_key("compiled modules"))
        self._zygote = Zygote() if policy.isolation == "process" else None
        self._installer = Installer(
            self._files, capacity, lambda: self._trust.targets, cache=cache, zygote=self._zygote
        )
        jobs = Jobs(self._worker.submit, self._installer, self._files)
        self._executor = Executor(self._host, self._files, self._installer, jobs, self._core.post)
        self._uplink = Uplink(identity, self._store, self._session, capacity)
        endpoint = Endpoint(
            url=identity.mqtt_url,
            client_id=identity.device_id,
            identity_folder=identity.folder,
            protocol=policy.mqtt_protocol,
        )
        self._link = Link(endpoint, self._last_will, self._hear, rng)
        self._uplink.attach(self._link)
        self._acks = Acks(self._trust.open_ack, self._store, self._uplink.reports)
        self._documents = Documents(self._trust, self._core.post, self._uplink.want)
        around = _Around(self._link, self._uplink, self._core, jobs, self._make_room)
        self._downloads = Downloads(self._files, identity.topics, around, rng)
        self._telemetry = Telemetry(self._meter, session=self._session, now_ms=self._clock.wall_ms())
        self._gate = Gate()
        callers = listeners(state_dir / SOCKET_NAME, policy.http_address)
        self._service = LocalService(callers, self._host, self.status, gate=self._gate)
        self._bound = BoundInputs(self._service.answer, self._host.manifest, self._link)
        self._backlog = self._store.backlog()
        self._kinds: dict[str, Document | Literal["ack"]] = {}
        self._link_problem: str | None = None
        self._telemetry_taken_ms = self._memory_retry_ms = 0
        self._is_stopping = False
        self._told_problem: Reason | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; read the policy again at SIGHUP."""
        listen(self._inbox.put_now)
        try:
            self._start()
            while not self._is_stopping:
                item = self._inbox.take(self._wait_s())
                try:
                    if item is not None:
                        self._handle(item)
                    self._tick()
                except (AgentError, ProtocolError, OSError):
                    _log.exception("unexpected error; what runs goes on running")
        finally:
            self._close()

    def status(self) -> AgentStatus:
        """Return how the agent fares. From any thread."""
        state, backlog = self._core.state, self._backlog
        return AgentStatus(
            device_id=self._identity.device_id,
            agent_version=AGENT_VERSION,
            session=self._session,
            broker=self._identity.mqtt_url,
            local_api=self._service.addresses,
            is_connected=self._link.is_connected,
            link_problem=self._link_problem,
            director_version=state.director_version,
            problems=self._problems(),
            unsent_receipts=backlog.receipts,
            unsent_telemetry=backlog.telemetry,
            ignored_acks=self._acks.ignored,
            models=model_statuses(state, self._telemetry.answered()),
            bindings=self._bound.statuses(),
        )

    def _problems(self) -> dict[str, Reason]:
        memory = {"memory": self._store.problem} if self._store.problem else {}
        models = {f"model/{name}": reason for name, reason in troubles(self._core.state).items()}
        ports = {f"local_api/{at}": Reason.of("bad_listener", why) for at, why in self._service.problems.items()}
        return {**self._documents.problems, **models, **memory, **ports}

    # --- the main loop

    def _start(self) -> None:
        told = named("started", version=AGENT_VERSION, device=self._identity.device_id, session=self._session)
        _log.info("fleet-agent %(version)s starts as %(device)s, start %(session)d", told["fields"], extra=told)
        self._follow(self._policy)
        self._core.drain()  # serves what is committed, from the disk
        if self._store.problem:
            self._make_room()  # perhaps it is ours to make
        self._service.start()
        self._systemd.ready(self._summary())
        topics, device = self._identity.topics, self._identity.device_id
        own: dict[str, tuple[Document | Literal["ack"], int]] = {
            topics.timestamp: ("timestamp", limits.MAX_TIMESTAMP_BYTES),
            topics.metadata: ("metadata", limits.MAX_METADATA_SET_BYTES),
            topics.director(device): ("director", limits.MAX_DIRECTOR_BYTES),
            topics.ack(device): ("ack", limits.MAX_ACK_BYTES),
        }
        self._kinds = {topic: kind for topic, (kind, _) in own.items()}
        self._link.subscribe({topic: size for topic, (_, size) in own.items()})
        self._telemetry_taken_ms = self._now_ms()
        self._link.start()

    def _hear(self, event: LinkEvent) -> None:
        """Take what the network brings: what is for a model goes to it past the main loop. From the network thread."""
        if not self._bound.offer(event):
            self._inbox.put(event)

    def _handle(self, item: Item) -> None:
        match item:
            case Message():
                self._on_message(item.topic, item.payload)
            case Oversize():
                self._on_oversize(item)
            case LinkUp():
                self._on_link_up()
            case LinkDown():
                if item.reason != self._link_problem:
                    told = named("disconnected", reason=item.reason)
                    _log.warning("no connection to the broker: %s; trying on", item.reason, extra=told)
                self._link_problem = item.reason
            case Done():
                self._on_done(item.event)
            case Assembled():
                self._downloads.assembled(item.file, item.error, self._now_ms())
            case Faulted():
                self._core.post(item)
            case Stop():
                self._is_stopping = True
            case Reload():
                self._reload()

    def _tick(self) -> None:
        """Do everything that is due, and let the engine take what was posted."""
        now_ms, wall_ms = self._now_ms(), self._clock.wall_ms()
        self._systemd.alive(now_ms)
        self._retry_memory(now_ms)
        deadline = next_deadline_ms(self._core.state)
        if deadline is not None and now_ms >= deadline and not self._core.is_stalled:
            self._core.post(Ticked())
        if now_ms >= self._telemetry_due_ms():
            self._take_telemetry(wall_ms)
        if not self._core.is_stalled:  # else what it posts would pile up
            self._downloads.tick(now_ms)
        self._core.drain()
        if self._link.is_connected:
            self._documents.tick(wall_ms=wall_ms, now_ms=now_ms)
            self._uplink.reports.tick(now_ms)
        self._core.drain()
        if self._core.has_announcement or self._store.problem != self._told_problem:
            self._core.has_announcement = False
            self._announce(wall_ms)
        if self._core.has_receipts:
            self._core.has_receipts = False
            self._uplink.reports.flush_soon(now_ms)
            self._backlog = self._store.backlog()

    def _retry_memory(self, now_ms: int) -> None:
        """See whether the disk takes something again."""
        if self._store.problem and now_ms >= self._memory_retry_ms:
            self._memory_retry_ms = now_ms + MEMORY_RETRY_MS
            if self._store.retry():
                self._documents.judge_soon()

    def _wait_s(self) -> float:
        if self._core.is_stalled:
            return BUSY_TICK_MS / 1000  # a deadline that has passed stays so until the step is stored
        now_ms = self._now_ms()
        tick_ms = BUSY_TICK_MS if self._downloads.is_busy else IDLE_TICK_MS
        tick_ms = min(tick_ms, self._systemd.interval_ms or tick_ms)
        due = [now_ms + tick_ms, self._telemetry_due_ms(), self._uplink.due_ms]
        deadline = next_deadline_ms(self._core.state)
        return max(min(due if deadline is None else [*due, deadline]) - now_ms, 0) / 1000

    # --- what happens

    def _on_message(self, topic: str, payload: bytes) -> None:
        kind = self._kinds.get(topic)
        if kind is None:
            self._downloads.receive(topic, payload, self._now_ms())
        elif kind == "ack":
            if self._acks.receive(payload, self._now_ms()):
                self._backlog = self._store.backlog()
        else:
            self._documents.receive(kind, payload, wall_ms=self._clock.wall_ms(), now_ms=self._now_ms())

    def _on_oversize(self, item: Oversize) -> None:
        message = f"expected at most {item.limit_bytes:,} bytes on {item.topic}, got {item.size_bytes:,}"
        kind = self._kinds.get(item.topic)
        if kind is None or kind == "ack":
            _log.warning("dropped unread: %s", message)
        else:
            self._documents.refuse(kind, Reason.of("limit_exceeded", message), self._now_ms())

    def _on_link_up(self) -> None:
        _log.info("connected to %s", self._identity.mqtt_url, extra=named("connected", broker=self._identity.mqtt_url))
        self._link_problem = None
        self._documents.connected(self._now_ms())
        self._link.resubscribe()
        self._announce(self._clock.wall_ms())
        self._uplink.reports.restart(self._now_ms())

    def _announce(self, wall_ms: int) -> None:
        self._told_problem = self._store.problem
        self._uplink.announce(self._core.state, wall_ms, self._told_problem)

    def _on_done(self, event: Event) -> None:
        self._core.post(event)
        self._core.drain()
        if isinstance(event, Planned):
            self._downloads.planned(event.deployment_id, event.candidate, self._now_ms())

    def _on_fault(self, model: str, release: str, error: ModelError) -> None:
        reason = Reason.of(error.code, f"while answering a request: {error}")
        self._inbox.put_now(Faulted(model=model, version=release, reason=reason))

    def _reload(self) -> None:
        """Read the policy again, and follow it as far as a running agent can."""
        self._systemd.reloading()
        try:
            read = load_policy(self._state_dir, self._identity.topics)
        except PolicyError as error:
            _log.error("the policy stays as it was: %s", error, extra=named("policy", is_valid=False))
        else:
            later, policy = waiting(self._policy, read), followed(self._policy, read)
            self._follow(policy)
            self._executor.enforce_policy(self._core.state)
            self._core.post(PolicyRead())
            self._core.has_announcement = True
            note = f"; these wait for the next start: {', '.join(later)}" if later else ""
            _log.info("policy read again%s", note, extra=named("policy", is_valid=True, waiting=later))
        finally:
            self._systemd.ready(self._summary())

    def _follow(self, policy: Policy) -> None:
        """Obey what can be obeyed at any time."""
        self._captures.allow(policy.max_captures, policy.max_captures_bytes)
        self._installer.capacity = self._uplink.capacity = capacity_of(policy)
        self._files.quota_bytes = policy.disk_quota_bytes
        self._gate.max_waiting = policy.max_queue
        self._host.flags_nan = policy.nan_outputs == "flag"
        self._bound.bind(policy.bindings)

    def _summary(self) -> str:
        return f"models active: {len(self._host.manifests())}, start {self._session}"

    def _take_telemetry(self, wall_ms: int) -> None:
        self._telemetry_taken_ms = self._now_ms()
        if self._store.problem and not self._is_stopping:
            return  # what was counted stays in memory, and is part of a longer interval
        try:
            for record in self._telemetry.take(wall_ms):
                self._store.add_telemetry(record)
        except (StateError, OSError) as error:
            _log.error("telemetry of this interval is lost: %s", error)
        if self._link.is_connected:
            self._uplink.reports.flush(self._now_ms())
        self._backlog = self._store.backlog()

    # --- what is done

    def _act(self, action: Action) -> None:
        self._executor.act(action, self._core.state, self._downloads, self._now_ms())

    def _make_room(self) -> int:
        return self._executor.make_room(self._core.state, self._downloads)

    def _close(self) -> None:
        """End everything, as far as it was begun: nothing that was stored is lost."""
        _log.info("fleet-agent stops", extra=named("stopping", on_request=self._is_stopping))
        self._systemd.stopping()
        if self._is_stopping:
            self._core.post(Stopping())
            self._core.drain()
            self._take_telemetry(self._clock.wall_ms())
        self._inbox.close()
        self._bound.close()  # while there is a link to answer over
        # Also when an error ends the agent: after a clean disconnect the broker would not send the last will.
        self._link.close(self._last_will())
        self._service.close()
        if not self._worker.close(WORKER_GRACE_S):
            _log.warning("a job of the installation did not end in time")
        self._downloads.close()
        self._installer.close()
        self._host.close()
        if self._zygote:
            self._zygote.close()
        self._store.close()
        os.close(self._lock)

    def _last_will(self) -> tuple[str, bytes]:
        return self._uplink.death(self._clock.wall_ms())

    def _now_ms(self) -> int:
        return self._clock.monotonic_ms()

    def _telemetry_due_ms(self) -> int:
        # Asked anew each time: an assignment that shortens the interval takes effect within the old one.
        return self._telemetry_taken_ms + self._core.state.config.telemetry_interval_s * 1000


class _Around:
    """What a download sees of the daemon."""

    def __init__(self, link: Link, uplink: Uplink, core: Core, jobs: Jobs, make_room: Callable[[], int]) -> None:
        self.listen = link.listen
        self.want = uplink.want
        self.post = core.post
        self.make_room = make_room
        self.plan = jobs.plan
        self.assemble = jobs.assemble
