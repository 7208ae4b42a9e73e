"""A client of the local API, for `fleet-agent infer` and `status`, for tests and for applications on the device.

It comes with the agent's own packages: importing it loads msgspec and the model runtime too.
Any client of the Open Inference Protocol over a Unix socket does as well.
"""

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from agent.errors import AgentError
from agent.runtime.selftest import FORMATS
from agent.serving.openinference import (
    HEADER_LENGTH,
    ErrorResponse,
    InferResponse,
    ModelMetadata,
)

T = TypeVar("T")

TIMEOUT_S: Final = 630.0
"""Longer than the longest deadline of a model."""

Values = Sequence[Any]
"""Numbers, flat or nested as the shape."""


class ClientError(AgentError):
    """The agent did not answer as asked; `code` is the agent's own, such as `unknown_model` or `trap`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class AgentNotRunningError(ClientError):
    """Nobody listens on the socket."""


class ModelNotActiveError(ClientError):
    """No release of the model is active."""


class BadRequestError(ClientError):
    """The inputs do not fit the model."""


class InferenceFailedError(ClientError):
    """The model failed, or the agent."""


class AgentBusyError(ClientError):
    """The agent serves as many callers as it can."""


class OutputTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One output. `labels` holds the name of the highest number of each row, when the release names them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    labels: tuple[str, ...] = ()

    @property
    def values(self) -> list[Any]:
        """The numbers, flat, in row-major order."""
        item = FORMATS[self.datatype]  # type: ignore[index] # the agent names datatypes of the protocol
        return [value for (value,) in struct.iter_unpack(f"<{item}", self.raw)]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said, and which release of it."""

    model: str
    version: str
    outputs: dict[str, OutputTensor]


class LocalClient:
    """Talks to the agent on this device over one kept connection. Safe to use from many threads, one call at a time.

    `where` is the path of its socket, or an address such as `127.0.0.1:8000` if the device's policy names one.
    """

    def __init__(self, where: Path | str) -> None:
        self._connection = _Connection(where)
        self._lock = threading.Lock()
        self._metadata: dict[str, ModelMetadata] = {}

    def __enter__(self) -> "LocalClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            self._connection.close()

    def status(self) -> dict[str, Any]:
        """Return the daemon's status."""
        return self._get("/v1/status", dict[str, Any])

    def models(self) -> list[ModelMetadata]:
        """Return what the active releases take and give."""
        return self._get("/v1/models", dict[str, list[ModelMetadata]])["models"]

    def metadata(self, model: str) -> ModelMetadata:
        """Return what the active release of `model` takes and gives; raises ModelNotActiveError."""
        return self._get(f"/v2/models/{quote(model, safe='')}", ModelMetadata)

    def infer(self, model: str, inputs: Mapping[str, bytes | bytearray | memoryview | Values]) -> Answer:
        """Run `model` on each input's raw little-endian bytes or numbers; raises ClientError."""
        known = self._metadata.get(model)
        try:
            return self._infer(model, inputs, known or self._learn(model))
        except BadRequestError:
            # What was learnt may be of a release that has been replaced.
            if known is None or self._learn(model) == known:
                raise
            return self._infer(model, inputs, self._metadata[model])

    def _learn(self, model: str) -> ModelMetadata:
        self._metadata[model] = self.metadata(model)
        return self._metadata[model]

    def _infer(self, model: str, inputs: Mapping[str, Any], metadata: ModelMetadata) -> Answer:
        specs = {tensor.name: tensor for tensor in metadata.inputs}
        if unknown := sorted(set(inputs) - set(specs)):
            raise BadRequestError(f"unknown input {unknown[0]!r}: expected the inputs {', '.join(specs)}", "bad_input")
        described, tail = [], []
        for name, data in inputs.items():
            tensor: dict[str, Any] = {"name": name, "datatype": specs[name].datatype, "shape": specs[name].shape}
            if isinstance(data, (bytes, bytearray, memoryview)):
                tensor["parameters"] = {"binary_data_size": memoryview(data).nbytes}
                tail.append(data)
            else:
                tensor["data"] = data
            described.append(tensor)
        head = msgspec.json.encode({"inputs": described, "parameters": {"binary_data_output": True}})
        headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        path = f"/v2/models/{quote(model, safe='')}/infer"
        body, length = self._send("POST", path, b"".join((head, *tail)), headers)
        answer = _parse_answer(body, length)
        if answer.version not in metadata.versions:
            metadata = self._learn(model)
        return _with_labels(answer, metadata) if answer.version in metadata.versions else answer

    def _get(self, path: str, kind: type[T]) -> T:
        body, _ = self._send("GET", path, b"", {})
        return msgspec.json.decode(body, type=kind)

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, int | None]:
        """Return the body of a reply and the length of its JSON; raises ClientError for a reply that is an error."""
        with self._lock:
            status, raw, length = self._connection.exchange(method, path, body, headers)
        if status != 200:
            raise _error(status, raw)
        return raw, length


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket or a port. A kept connection that the agent closed meanwhile is opened again, once."""

    def __init__(self, where: Path | str) -> None:
        is_port = isinstance(where, str) and "/" not in where and ":" in where
        super().__init__(str(where) if is_port else "localhost", timeout=TIMEOUT_S)
        self._path = None if is_port else Path(where)

    def connect(self) -> None:
        """Connect; raises AgentNotRunningError."""
        try:
            if self._path is None:
                super().connect()
            else:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.sock.settimeout(TIMEOUT_S)
                self.sock.connect(str(self._path))
        except OSError as error:
            self.close()
            raise AgentNotRunningError(
                f"no agent listens on {self._place()} ({error.strerror or error}): start it with `fleet-agent run`, "
                "or name its state folder with --state",
                "agent_not_running",
            ) from error

    def _place(self) -> str:
        return f"{self.host}:{self.port}" if self._path is None else str(self._path)

    def exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, int | None]:
        """Return status and body of the reply, and the length of the JSON before binary tensors."""
        is_reused = self.sock is not None
        try:
            # Who is turned away may not get rid of the whole request, but can read why.
            with contextlib.suppress(BrokenPipeError):
                self.request(method, path, body or None, headers)
            with self.getresponse() as response:
                length = response.getheader(HEADER_LENGTH)
                return response.status, response.read(), None if length is None else int(length)
        except (ConnectionError, http.client.HTTPException) as error:
            self.close()
            if is_reused:
                return self.exchange(method, path, body, headers)
            raise AgentNotRunningError(
                f"the agent on {self._place()} ended before it answered: see `fleet-agent logs`", "agent_not_running"
            ) from error
        except BaseException:
            self.close()  # half of an answer may be under way: it must not answer the next question
            raise


def _error(status: int, raw: bytes) -> ClientError:
    try:
        reply = msgspec.json.decode(raw, type=ErrorResponse)
    except msgspec.DecodeError:
        reply = ErrorResponse(error=f"the agent answered with status {status}", code="internal")
    kinds: dict[str, type[ClientError]] = {
        "unknown_model": ModelNotActiveError,
        "overloaded": AgentBusyError,
    }
    kind = kinds.get(reply.code, BadRequestError if 400 <= status < 500 else InferenceFailedError)
    return kind(reply.error, reply.code)


def _parse_answer(body: bytes, json_length: int | None) -> Answer:
    view = memoryview(body)
    response = msgspec.json.decode(view[:json_length], type=InferResponse)
    tail = view[len(body) if json_length is None else json_length :]
    outputs = {}
    for output in response.outputs:
        size = (output.parameters and output.parameters.binary_data_size) or 0
        outputs[output.name] = OutputTensor(
            name=output.name, datatype=output.datatype, shape=output.shape, raw=bytes(tail[:size])
        )
        tail = tail[size:]
    return Answer(model=response.model_name, version=response.model_version, outputs=outputs)


def _with_labels(answer: Answer, metadata: ModelMetadata) -> Answer:
    outputs = dict(answer.outputs)
    for name, texts in metadata.labels.items():
        output = outputs.get(name)
        if output is None or not texts:
            continue
        values = output.values
        rows = [values[i : i + len(texts)] for i in range(0, len(values), len(texts))]
        top = tuple(texts[max(range(len(row)), key=row.__getitem__)] for row in rows)
        outputs[name] = msgspec.structs.replace(output, labels=top)
    return msgspec.structs.replace(answer, outputs=outputs)
