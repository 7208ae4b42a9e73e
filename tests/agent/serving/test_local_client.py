"""The Python client of the local API, against a real service, and one that dies."""

import socket
import struct
import threading
from pathlib import Path

import pytest

from agent.client import (
    AgentGoneError,
    AgentNotRunningError,
    BadRequestError,
    InferenceFailedError,
    LocalClient,
    ModelNotActiveError,
)
from agent.host import ModelHost
from agent.serving.listeners import TcpListener, UnixListener
from agent.serving.service import LocalService
from tests.agent.serving.callers import SPIN, Status, activate


def test_client_runs_a_model_on_numbers_and_on_bytes(client: LocalClient, host: ModelHost) -> None:
    """Both forms of input give the same outputs, with the release and the name of the highest number."""
    activate(host)
    for x in ([1.5, -4], [[1.5, -4]], struct.pack("<2f", 1.5, -4), bytearray(struct.pack("<2f", 1.5, -4))):
        answer = client.infer("digits", {"x": x})
        assert ("digits", "1.0.0", ["y"]) == (answer.model, answer.version, list(answer.outputs))
        output = answer.outputs["y"]
        assert ("FP32", (1, 2), [3.0, -8.0], ("no",)) == (output.datatype, output.shape, output.values, output.labels)


def test_client_reads_status_models_and_metadata(client: LocalClient, host: ModelHost) -> None:
    """Everything that the command line shows comes from here."""
    activate(host)
    activate(host, name="words", n=3)
    assert {"device_id": "pump-1"} == client.status()
    assert [("digits", 2), ("words", 3)] == [(m.name, m.inputs[0].shape[1]) for m in client.models()]
    assert ("1.0.0",) == client.metadata("digits").versions


def test_client_follows_a_swap(client: LocalClient, host: ModelHost) -> None:
    """A release with other inputs is noticed, and the labels are those of the release that answered."""
    activate(host)
    client.infer("digits", {"x": [1, 2]})
    activate(host, "1.1.0", n=3)
    answer = client.infer("digits", {"x": [1, 2, 3]})
    assert ("1.1.0", (1, 3), ()) == (answer.version, answer.outputs["y"].shape, answer.outputs["y"].labels)
    activate(host, "1.2.0")
    answer = client.infer("digits", {"x": [1, 2]})
    assert ("1.2.0", ("yes",)) == (answer.version, answer.outputs["y"].labels)


def test_client_errors_have_types_and_codes(client: LocalClient, host: ModelHost) -> None:
    """A caller can tell apart what it can mend from what it cannot."""
    with pytest.raises(ModelNotActiveError) as not_active:
        client.infer("digits", {"x": [1, 2]})
    assert "unknown_model" == not_active.value.code
    activate(host)
    activate(host, name="spin", infer=SPIN)
    activate(host, name="trap", infer="unreachable")
    with pytest.raises(BadRequestError, match="unknown input 'z': expected the inputs x"):
        client.infer("digits", {"z": [1, 2]})
    with pytest.raises(BadRequestError, match="missing input x"):
        client.infer("digits", {})
    with pytest.raises(BadRequestError, match=r"expected 2 numbers for the shape \[1, 2\], got 3"):
        client.infer("digits", {"x": [1, 2, 3]})
    with pytest.raises(BadRequestError, match="expected 8 bytes"):
        client.infer("digits", {"x": b"1234567"})
    for model, code in (("spin", "deadline_exceeded"), ("trap", "trap")):
        with pytest.raises(InferenceFailedError, match="layer 'run'") as failed:
            client.infer(model, {"x": [1, 2]})
        assert code == failed.value.code
    assert [2.0, 4.0] == client.infer("digits", {"x": [1, 2]}).outputs["y"].values


def test_client_without_an_agent(path: Path) -> None:
    """The message says how to start one; a dead agent's socket is as good as none."""
    with LocalClient(path) as client:
        with pytest.raises(AgentNotRunningError, match="start it with: fleet-agent run"):
            client.status()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(path))
        with pytest.raises(AgentNotRunningError, match="refused"):
            client.status()


def test_client_survives_a_restart_of_the_agent(path: Path, host: ModelHost) -> None:
    """A kept connection to the old agent is replaced by one to the new."""
    with LocalClient(path) as client:
        for _ in range(2):
            service = LocalService([UnixListener(path)], host, Status)
            service.start()
            assert {"device_id": "pump-1"} == client.status()
            service.close()


def test_agent_that_dies_in_a_request_is_reported(path: Path) -> None:
    """Half a conversation is an error with a hint, not a stack of protocol errors."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with LocalClient(path) as client, pytest.raises(AgentNotRunningError, match="ended before it answered"):
            client.status()
        thread.join()


def test_client_speaks_to_a_port_as_well(host: ModelHost) -> None:
    """The address is enough; when nobody listens there, the message names it."""
    activate(host)
    service = LocalService([TcpListener("127.0.0.1:0")], host, Status)
    service.start()
    (address,) = service.addresses
    with LocalClient(address) as client:
        assert [2.0, 4.0] == client.infer("digits", {"x": [1, 2]}).outputs["y"].values
    service.close()
    with LocalClient(address) as client, pytest.raises(AgentNotRunningError, match=f"no agent listens on {address}"):
        client.status()


def test_request_that_was_heard_is_not_made_again(path: Path) -> None:
    """Half a reply on a kept connection is an error: a model that remembers would count the call twice."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for reply in (b"Content-Length: 2\r\n\r\n{}", b"Content-Length: 99\r\n\r\n{"):
                    heard.append(connection.recv(65_536))
                    connection.sendall(b"HTTP/1.1 200 OK\r\n" + reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with LocalClient(path) as client:
            assert {} == client.status()
            with pytest.raises(AgentGoneError, match="ended before it answered"):
                client.status()
        thread.join()
    assert 2 == len(heard)
