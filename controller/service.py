"""The service process: opens what is durable, wires the parts, serves until it is told to stop.

One process for one database. Killed at any instruction, it goes on after the next start where it was.
"""

import asyncio
import logging
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version as package_version
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import make_url
from sqlalchemy.exc import DatabaseError

from agent import durable
from controller.api.app import device_app, operator_app
from controller.api.office import Addresses, Office
from controller.api.schema import Info
from controller.core import Core, Trust, World
from controller.delivery.memory import instance_name
from controller.delivery.mqtt import LinkSettings, MqttLink
from controller.delivery.publisher import Publisher
from controller.delivery.wants import Wants
from controller.errors import WorkspaceError
from controller.first_start import prepare
from controller.listeners import Listener, bind, serve_all, url_of
from controller.queries.query import Queries
from controller.reads.targets import describe_signed
from controller.reports.ingest import Ingest
from controller.store.engine import Store
from controller.store.files import FileStore
from controller.store.times import Clock
from controller.upkeep import Upkeep
from controller.workspace import ServerHome
from protocol import limits

log = logging.getLogger(__name__)


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """`server/endpoints.json`: where the running service is found; the file is there only while it runs."""

    api_url: str
    enroll_url: str
    mqtt_url: str


def say_ready(endpoints: Endpoints) -> None:
    """Say on stdout, in one line, that the service is ready."""
    sys.stdout.write(f"ready: {endpoints.api_url}\n")
    sys.stdout.flush()


class Options(NamedTuple):
    """What a start may say besides the configuration."""

    mqtt_url: str | None = None
    """Overrides the broker of the configuration, for one that was started on a free port."""
    telemetry_interval_s: int = 60
    on_ready: Callable[[Endpoints], None] = say_ready


def serve(
    home: ServerHome,
    *,
    now: Clock,
    mqtt_url: str | None = None,
    telemetry_interval_s: int = 60,
    on_ready: Callable[[Endpoints], None] = say_ready,
) -> None:
    """Serve the fleet at `home` until SIGTERM or SIGINT; `on_ready` says when everything answers.

    The caller holds the folder's lock (`controller.store.lock.one_service`). Raises ControllerError when the workspace
    or an address cannot be used.
    """
    options = Options(mqtt_url=mqtt_url, telemetry_interval_s=telemetry_interval_s, on_ready=on_ready)
    with ExitStack() as stack:
        asyncio.run(Service(home, stack, World(now=now, random_hex=secrets.token_hex), options).run())


class Service:
    """The wired parts of one running service; `stack` closes them, the last one first."""

    def __init__(self, home: ServerHome, stack: ExitStack, world: World, options: Options) -> None:
        self._home = home
        self._endpoints_path = home.path / "endpoints.json"
        self._endpoints_path.unlink(missing_ok=True)  # of a service that was killed
        self._stack = stack
        self._on_ready = options.on_ready
        with _usable_database(home):
            self.core = _open_core(home, stack, world)
            prepare(self.core, home, telemetry_interval_s=options.telemetry_interval_s)
        self._mqtt_url = options.mqtt_url or home.config.mqtt.url
        self._link = self._connect()
        api, devices = home.config.api, home.config.devices
        self._api_socket = stack.enter_context(bind(api.host, api.port))
        self._device_socket = stack.enter_context(bind(devices.host, devices.port))
        self.endpoints = Endpoints(
            api_url=url_of("http", api.host, self._api_socket),
            enroll_url=url_of("https", devices.public_host, self._device_socket),
            mqtt_url=without_credentials(self._mqtt_url),
        )

    def _connect(self) -> MqttLink:
        """Start what speaks with the broker, which may be away."""
        topics = self._home.topics
        wants = Wants(self.core.counters, self.core.now)
        ingest = Ingest(self.core, topics, wants.add)

        def on_message(topic: str, payload: bytes, _retained: bool) -> None:
            if not publisher.memory.receive(topic, payload):
                ingest.offer(topic, payload)

        def on_up() -> None:
            publisher.on_up()

        with self.core.store.read() as session:
            client_id = f"wasmfleet-{instance_name(session)[:12]}"
        version = self._home.config.mqtt.version
        link = MqttLink(
            self._mqtt_url,
            client_id,
            version=version,
            on_message=on_message,
            on_up=on_up,
            # The largest thing that it may read back; reports have bounds of their own.
            settings=LinkSettings(max_message_bytes=limits.MAX_METADATA_SET_BYTES),
        )
        publisher = Publisher(self.core, topics, link, wants)
        self.core.wake_publisher = publisher.wake
        link.subscribe(topics.all_uplinks)
        for part in (ingest, publisher, Upkeep(self.core, self._home.config.retention), link):
            self._stack.callback(part.close)
            part.start()
        return link

    async def run(self) -> None:
        """Serve until a signal comes."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        office = self._office()
        home = self._home
        listeners = [
            Listener(operator_app(office, home.api_token), self._api_socket),
            Listener(
                device_app(office),
                self._device_socket,
                certificate=home.listener_certificate_path,
                key=home.listener_key_path,
            ),
        ]
        serving = asyncio.create_task(serve_all(listeners, stop))
        await _first(serving, asyncio.gather(*(listener.is_up.wait() for listener in listeners)))
        durable.replace(self._endpoints_path, msgspec.json.encode(self.endpoints))
        self._on_ready(self.endpoints)
        log.info("ready", extra={"api_url": self.endpoints.api_url})
        try:
            await _first(serving, asyncio.ensure_future(stop.wait()))
        finally:
            self._endpoints_path.unlink(missing_ok=True)
            self.core.changes.close()
        await serving

    def _office(self) -> Office:
        home = self._home
        device_mqtt_url = home.config.mqtt.device_url or self.endpoints.mqtt_url
        return Office(
            core=self.core,
            queries=Queries(self.core.store.path),
            authority=home.authority,
            ca_pem=home.ca_pem,
            topic_prefix=home.config.prefix,
            addresses=Addresses(enroll_url=self.endpoints.enroll_url, device_mqtt_url=device_mqtt_url),
            describe=self.describe,
        )

    def describe(self) -> Info:
        """Return what the service is and how it fares."""
        with self.core.store.read() as session:
            state = describe_signed(session, self.core.now())
        is_connected = self._link.is_connected
        warnings = list(state.warnings)
        if not is_connected:
            warnings.append(f"no connection to the broker at {self._link.address}: it gets what is new when it is back")
        return Info(
            version=package_version("wasmfleet"),
            topic_prefix=self._home.config.prefix,
            mqtt_url=self.endpoints.mqtt_url,
            is_mqtt_connected=is_connected,
            enroll_url=self.endpoints.enroll_url,
            targets_version=state.version,
            targets_expires=state.expires,
            warnings=tuple(warnings),
        )


def without_credentials(url: str) -> str:
    """Return the URL of a broker as it may be shown and told to devices: the service's own password stays here."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


async def _first(serving: asyncio.Task[None], awaited: "asyncio.Future[Any]") -> None:
    """Wait for `awaited`, but not longer than the listeners serve; raises what ended them."""
    await asyncio.wait({serving, awaited}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        awaited.cancel()
        serving.result()


@contextmanager
def _usable_database(home: ServerHome) -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        url = make_url(home.database_url)
        raise WorkspaceError(
            f"the database {url.database or url.host} cannot be used: {error.orig}",
            hint="see that its disk has room and that it may be written; if it is damaged, `fleetctl restore FILE` "
            "puts a backup in its place",
        ) from error


def _open_core(home: ServerHome, stack: ExitStack, world: World) -> Core:
    store = Store(home.database_url)
    stack.callback(store.close)
    store.migrate()
    trust = Trust(
        snapshot=home.snapshot_signer,
        timestamp=home.timestamp_signer,
        director=home.director_signer,
        image_root=home.image_root,
        director_root=home.director_root,
    )
    return Core(store, FileStore(home.files_path), trust, world=world)
