"""A client of the local API, for `fleet-agent infer` and `status`, for tests and for applications on the device.

It loads the standard library and a few lines of ours, no other package: an application pays for nothing of the
agent. Any client of the Open Inference Protocol over a Unix socket does as well.
"""

import contextlib
import http.client
import json
import math
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from agent.errors import AgentError
from agent.serving import HEADER_LENGTH
from protocol.datatypes import FORMATS, ITEM_BYTES

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


class AgentGoneError(AgentNotRunningError):
    """The agent ended before it answered."""


class ModelNotActiveError(ClientError):
    """No release of the model is active."""


class BadRequestError(ClientError):
    """The inputs do not fit the model."""


class SequenceLostError(BadRequestError):
    """A stateful model is not in the sequence of this call, or lost its state: start it again."""


class InferenceFailedError(ClientError):
    """The model failed, or the agent."""


class AgentBusyError(ClientError):
    """The agent serves as many callers as it can."""


class TensorMetadata(NamedTuple):
    """One input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(NamedTuple):
    """What a model takes and gives; `labels` names the indices of an output's last dimension."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    labels: dict[str, tuple[str, ...]]
    max_batch_size: int


class OutputTensor(NamedTuple):
    """One output. `labels` holds the name of the highest number of each row, when the release names them.

    `has_nan` says that NaN stands in it; only a device whose policy flags NaN looks for it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes
    labels: tuple[str, ...] = ()
    has_nan: bool = False

    @property
    def values(self) -> list[Any]:
        """The numbers, flat, in row-major order."""
        count = len(self.raw) // ITEM_BYTES[self.datatype]  # type: ignore[index] # the agent names those of the protocol
        return list(struct.unpack(f"<{count}{FORMATS[self.datatype]}", self.raw))  # type: ignore[index] # as above


class Answer(NamedTuple):
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
        with _understanding():
            return dict(self._get("/v1/status"))

    def models(self) -> list[ModelMetadata]:
        """Return what the active releases take and give."""
        with _understanding():
            return [_metadata(model) for model in self._get("/v1/models")["models"]]

    def metadata(self, model: str) -> ModelMetadata:
        """Return what the active release of `model` takes and gives; raises ModelNotActiveError."""
        with _understanding():
            return _metadata(self._get(f"/v2/models/{quote(model, safe='')}"))

    def infer(
        self,
        model: str,
        inputs: Mapping[str, bytes | bytearray | memoryview | Values],
        *,
        sequence_id: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> Answer:
        """Run `model` on each input's raw little-endian bytes or numbers; raises ClientError.

        A stateful model forgets what came before when a call starts a sequence. If the calls of one have an id, other
        calls in between are refused until one ends it or starts another.
        """
        marks = {"sequence_id": sequence_id, "sequence_start": sequence_start, "sequence_end": sequence_end}
        parameters = {"binary_data_output": True, **{name: mark for name, mark in marks.items() if mark}}
        known = self._metadata.get(model)
        try:
            return self._infer(model, inputs, known or self._learn(model), parameters)
        except SequenceLostError:
            raise
        except BadRequestError:
            # What was learnt may be of a release that has been replaced.
            if known is None or self._learn(model) == known:
                raise
            return self._infer(model, inputs, self._metadata[model], parameters)

    def _learn(self, model: str) -> ModelMetadata:
        self._metadata[model] = self.metadata(model)
        return self._metadata[model]

    def _infer(
        self, model: str, inputs: Mapping[str, Any], metadata: ModelMetadata, parameters: dict[str, Any]
    ) -> Answer:
        specs = {tensor.name: tensor for tensor in metadata.inputs}
        if unknown := sorted(set(inputs) - set(specs)):
            raise BadRequestError(f"unknown input {unknown[0]!r}: expected the inputs {', '.join(specs)}", "bad_input")
        described, tail = [], []
        for name, data in inputs.items():
            tensor, raw = _describe(specs[name], data)
            described.append(tensor)
            if raw is not None:
                tail.append(raw)
        head = _as_json({"inputs": described, "parameters": parameters})
        headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
        path = f"/v2/models/{quote(model, safe='')}/infer"
        body, length = self._send("POST", path, b"".join((head, *tail)), headers)
        with _understanding():
            answer = _parse_answer(body, length)
        if answer.version not in metadata.versions:
            metadata = self._learn(model)
        return _with_labels(answer, metadata) if answer.version in metadata.versions else answer

    def _get(self, path: str) -> Any:
        body, _ = self._send("GET", path, b"", {})
        with _understanding():
            return json.loads(body)

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
        """Connect; raises AgentNotRunningError, or AgentBusyError."""
        try:
            if self._path is None:
                super().connect()
            else:
                self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self.sock.settimeout(TIMEOUT_S)
                self.sock.connect(str(self._path))
        except BlockingIOError as error:
            self.close()
            raise AgentBusyError(
                f"too many callers wait for the agent on {self._place()}: try again in a moment", "overloaded"
            ) from error
        except OSError as error:
            self.close()
            raise AgentNotRunningError(
                f"no agent listens on {self._place()} ({error.strerror or error}): start it with: fleet-agent run",
                "agent_not_running",
            ) from error

    def _place(self) -> str:
        return f"{self.host}:{self.port}" if self._path is None else str(self._path)

    def exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, int | None]:
        """Return status and body of the reply, and the length of the JSON before binary tensors."""
        is_reused = self.sock is not None
        try:
            # Who is turned away may not get rid of the whole request, but can read why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.request(method, path, body or None, headers)
            with self.getresponse() as response:
                is_reused = False  # the agent heard it: a model that remembers must not hear it twice
                length = response.getheader(HEADER_LENGTH)
                return response.status, response.read(), None if length is None else int(length)
        except (ConnectionError, http.client.HTTPException) as error:
            self.close()
            if is_reused:
                return self.exchange(method, path, body, headers)
            raise AgentGoneError(
                f"the agent on {self._place()} ended before it answered: see: fleet-agent logs", "agent_not_running"
            ) from error
        except TimeoutError as error:
            self.close()
            raise InferenceFailedError(
                f"the agent on {self._place()} said nothing for {TIMEOUT_S:.0f} s: see `fleet-agent logs`", "timeout"
            ) from error
        except BaseException:
            self.close()  # half of an answer may be under way: it must not answer the next question
            raise


def _describe(
    spec: TensorMetadata, data: bytes | bytearray | memoryview | Values
) -> tuple[dict[str, Any], bytes | bytearray | memoryview | None]:
    """Return an input as a request describes it, and its raw bytes unless the numbers are in the description.

    Flat numbers go as bytes, which is quicker and holds NaN. What cannot is for the agent to judge.
    """
    tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    raw = data if isinstance(data, (bytes, bytearray, memoryview)) else _pack(spec, data)
    if raw is None:
        return {**tensor, "data": data}, None
    return {**tensor, "parameters": {"binary_data_size": memoryview(raw).nbytes}}, raw


def _pack(spec: TensorMetadata, values: Values) -> bytes | None:
    """Return the bytes of flat numbers; None for others, and for numbers that do not fit."""
    kinds = {bool} if spec.datatype == "BOOL" else {int, float}
    if (
        not isinstance(values, Sequence)
        or len(values) != math.prod(spec.shape)
        or not kinds.issuperset(map(type, values))
    ):
        return None
    try:
        return struct.pack(f"<{len(values)}{FORMATS[spec.datatype]}", *values)  # type: ignore[index] # the protocol's
    except (struct.error, OverflowError):
        return None


def _as_json(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(request, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequestError(f"expected inputs as bytes, or as numbers that JSON has: {error}", "bad_input") from error


@contextlib.contextmanager
def _understanding() -> Iterator[None]:
    """Raise InferenceFailedError for an answer that is none."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InferenceFailedError(f"the answer is not one of wasmfleet's agent: {error!r}", "bad_answer") from error


def _error(status: int, raw: bytes) -> ClientError:
    try:
        reply = json.loads(raw)
        message, code = str(reply["error"]), str(reply.get("code", ""))
    except (ValueError, TypeError, KeyError, AttributeError):
        message, code = f"the agent answered with status {status}", "internal"
    kinds: dict[str, type[ClientError]] = {
        "unknown_model": ModelNotActiveError,
        "overloaded": AgentBusyError,
        "wrong_sequence": SequenceLostError,
    }
    kind = kinds.get(code, BadRequestError if 400 <= status < 500 else InferenceFailedError)
    return kind(message, code)


def _metadata(said: dict[str, Any]) -> ModelMetadata:
    def tensors(key: str) -> tuple[TensorMetadata, ...]:
        return tuple(
            TensorMetadata(name=tensor["name"], datatype=tensor["datatype"], shape=tuple(tensor["shape"]))
            for tensor in said[key]
        )

    return ModelMetadata(
        name=said["name"],
        versions=tuple(said["versions"]),
        platform=said["platform"],
        inputs=tensors("inputs"),
        outputs=tensors("outputs"),
        labels={name: tuple(texts) for name, texts in said.get("labels", {}).items()},
        max_batch_size=said.get("max_batch_size", 1),
    )


def _parse_answer(body: bytes, json_length: int | None) -> Answer:
    head, tail = body[:json_length], memoryview(body)[len(body) if json_length is None else json_length :]
    response = json.loads(head)
    outputs = {}
    for output in response["outputs"]:
        parameters = output["parameters"]
        size = parameters["binary_data_size"]
        outputs[output["name"]] = OutputTensor(
            name=output["name"],
            datatype=output["datatype"],
            shape=tuple(output["shape"]),
            raw=bytes(tail[:size]),
            has_nan=parameters.get("has_nan", False),
        )
        tail = tail[size:]
    return Answer(model=response["model_name"], version=response["model_version"], outputs=outputs)


def _with_labels(answer: Answer, metadata: ModelMetadata) -> Answer:
    outputs = dict(answer.outputs)
    for name, texts in metadata.labels.items():
        output = outputs.get(name)
        if output is None or not texts:
            continue
        values = output.values
        rows = [values[i : i + len(texts)] for i in range(0, len(values), len(texts))]
        top = tuple(texts[max(range(len(row)), key=row.__getitem__)] for row in rows)
        outputs[name] = output._replace(labels=top)
    return answer._replace(outputs=outputs)
