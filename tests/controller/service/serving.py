"""Both listeners on real sockets, in a thread of the test: real HTTP, without a process of its own."""

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from controller.api.app import device_app, operator_app
from controller.api.office import Addresses, Office
from controller.api.schema import Info
from controller.listeners import Listener, bind, serve_all, url_of
from controller.queries.query import Queries
from tests.controller.service.fleet import FleetCore


class Served:
    """The addresses of a fleet that is being served, and clients for them."""

    def __init__(self, fleet: FleetCore, api_url: str, device_url: str) -> None:
        self.fleet = fleet
        self.api_url = api_url
        self.device_url = device_url
        token = fleet.workspace.operator.api_token
        trusted = ssl.create_default_context(cadata=fleet.workspace.server.ca_pem.decode())
        self.api = httpx.Client(base_url=f"{api_url}/v1", headers={"Authorization": f"Bearer {token}"})
        self.stranger = httpx.Client(base_url=api_url)
        self.device = httpx.Client(base_url=device_url, verify=trusted)

    def close(self) -> None:
        """Close the clients."""
        for client in (self.api, self.stranger, self.device):
            client.close()

    def events(self, rollout: str) -> Iterator[dict[str, object]]:
        """Yield the events of a rollout as they come."""
        with self.api.stream("GET", f"/rollouts/{rollout}/events", timeout=20) as response:
            assert "text/event-stream" in response.headers["content-type"]
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))


@contextmanager
def serving(fleet: FleetCore) -> Iterator[Served]:
    """Serve `fleet` until the end of the block."""
    home = fleet.workspace.server
    with bind("127.0.0.1", 0) as api, bind("127.0.0.1", 0) as devices:
        api_url, device_url = url_of("http", "127.0.0.1", api), url_of("https", "127.0.0.1", devices)
        office = Office(
            core=fleet.core,
            queries=Queries(fleet.core.store.path),
            authority=home.authority,
            ca_pem=home.ca_pem,
            topic_prefix=home.config.prefix,
            addresses=Addresses(enroll_url=device_url, device_mqtt_url="mqtt://broker:1883"),
            describe=lambda: Info(
                version="0",
                topic_prefix="fleet",
                mqtt_url="mqtt://broker:1883",
                is_mqtt_connected=False,
                enroll_url=device_url,
                targets_version=1,
                targets_expires="",
            ),
        )
        up, loops, stops = threading.Event(), [], []

        async def run() -> None:
            stop = asyncio.Event()
            loops.append(asyncio.get_running_loop())
            stops.append(stop)
            listeners = [
                Listener(operator_app(office, home.api_token), api),
                Listener(
                    device_app(office),
                    devices,
                    certificate=home.listener_certificate_path,
                    key=home.listener_key_path,
                ),
            ]
            task = asyncio.create_task(serve_all(listeners, stop))
            for listener in listeners:
                await listener.is_up.wait()
            up.set()
            await task

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            assert up.wait(20)
            served = Served(fleet, api_url, device_url)
            try:
                yield served
            finally:
                served.close()
        finally:
            fleet.core.changes.close()
            loops[0].call_soon_threadsafe(stops[0].set)
            thread.join()
