"""Tensors and messages of the Open Inference Protocol, version 2, over HTTP: parsed and written, no I/O.

Tensors travel as JSON numbers, flat or nested, or behind the JSON as raw little-endian bytes (the binary tensor data
extension). JSON has no NaN and no infinity: both are written as null; whoever needs them asks for binary tensors.
Source: https://github.com/kserve/open-inference-protocol, `inference_rest.md`, and the Triton Inference Server's
`extension_binary_data.md`.
"""

import itertools
import struct
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Final

import msgspec

from agent.runtime.errors import InputError
from agent.serving import HEADER_LENGTH
from protocol.datatypes import FORMATS
from protocol.errors import MalformedError
from protocol.manifest import Manifest
from protocol.tensors import TensorSpec

EXTENSIONS: Final = ("binary_tensor_data", "sequence")
MAX_BATCH: Final = 256
MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Of what a batch takes, and of what it gives, as raw tensors."""
_ARRAYS: Final[dict[str, type[list[Any]]]] = {
    "BOOL": list[bool],
    "FP16": list[float],
    "FP32": list[float],
    "FP64": list[float],
}
"""What a JSON array of a datatype holds; of all others, integers."""
_SequenceNumber = Annotated[int, msgspec.Meta(ge=0)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_SequenceName = Annotated[str, msgspec.Meta(max_length=128)]


class InputParameters(msgspec.Struct, frozen=True, kw_only=True):
    """`binary_data_size`: how many bytes of the input stand behind the JSON. The rest is refused."""

    binary_data_size: _Int64 | None = None
    shared_memory_region: str | None = None


class OutputParameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`binary_data` asks for bytes behind the JSON, `binary_data_size` says how many there are.

    `has_nan` (ours) says that NaN stands in the output, on a device whose policy flags it.
    """

    binary_data: bool | None = None
    binary_data_size: int | None = None
    has_nan: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class RequestParameters(msgspec.Struct, frozen=True, kw_only=True):
    """`binary_data_output` asks for all outputs behind the JSON, `timeout` is in microseconds.

    The rest is for stateful models: which calls belong together (0 and "" are no sequence), the first and the last.
    """

    binary_data_output: bool = False
    timeout: Annotated[int, msgspec.Meta(ge=0)] | None = None
    sequence_id: _SequenceNumber | _SequenceName = 0
    sequence_start: bool = False
    sequence_end: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.sequence_id, int) and self.sequence_id >> 64:
            raise ValueError("expected a sequence_id of at most 64 bits")


class InferInput(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a request."""

    name: str
    datatype: str
    shape: tuple[_Int64, ...]
    data: msgspec.Raw = msgspec.Raw()
    parameters: InputParameters = InputParameters()


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """One output that a request asks for."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to run a model; without `outputs` it asks for all."""

    inputs: tuple[InferInput, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    parameters: RequestParameters = RequestParameters()


class InferOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One output of a response; `data` is flat, in row-major order."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None
    parameters: OutputParameters | None = None


class InferResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The outputs, and the release that gave them."""

    model_name: str
    model_version: str
    outputs: list[InferOutput]
    id: str | None = None


class FaultReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where in which release a model went wrong, and on what.

    `capture` names the file that keeps the first input with a fault of this kind and place, if any is kept.
    """

    kind: str
    layer: str | None
    offset: int
    release: str
    input_sha256: str
    capture: str = ""


class ErrorResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong; `code` and `fault` are ours, to tell errors apart without reading."""

    error: str
    code: str = ""
    fault: FaultReport | None = None


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes and gives; `labels` (ours) names the indices of an output's last dimension."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    labels: dict[str, tuple[str, ...]] = {}
    max_batch_size: int = 1
    """How many items a request may hold along the first dimension of every tensor (ours)."""


def max_batch_size(manifest: Manifest) -> int:
    """Return how many items a request for this release may hold: it is one unless every tensor is of one item."""
    if any(tensor.shape[:1] != (1,) for tensor in (*manifest.inputs, *manifest.outputs)):
        return 1
    return min(MAX_BATCH, max(MAX_BATCH_BYTES // sum(tensor.size_bytes for tensor in manifest.outputs), 1))


def describe(manifest: Manifest) -> ModelMetadata:
    """Return the metadata of a release."""

    def tensors(specs: tuple[TensorSpec, ...]) -> tuple[TensorMetadata, ...]:
        return tuple(TensorMetadata(name=t.name, datatype=t.datatype, shape=t.shape) for t in specs)

    return ModelMetadata(
        name=manifest.model,
        versions=(manifest.version,),
        platform="wasm_fleet",
        inputs=tensors(manifest.inputs),
        outputs=tensors(manifest.outputs),
        labels=manifest.labels,
        max_batch_size=max_batch_size(manifest),
    )


def max_request_bytes(manifest: Manifest) -> int:
    """Return what a request for this release may take at most: 64 characters for each number, and a header.

    A batch may take more than one item, but not much more than MAX_BATCH_BYTES.
    """
    one = 64 * sum(tensor.elements for tensor in manifest.inputs)
    return 65_536 + max(one, min(one * max_batch_size(manifest), MAX_BATCH_BYTES))


def parse_request(body: bytes, header_length: int | None) -> tuple[InferRequest, memoryview]:
    """Return the request in `body`, and the binary tensors behind it; raises MalformedError."""
    length = len(body) if header_length is None else header_length
    if not 0 <= length <= len(body):
        raise MalformedError(f"expected {HEADER_LENGTH} from 0 to {len(body):,}, the length of the body, got {length}")
    view = memoryview(body)
    try:
        return msgspec.json.decode(view[:length], type=InferRequest), view[length:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"not a valid inference request: {error}") from error


def input_tensors(request: InferRequest, binary: memoryview, manifest: Manifest) -> list[list[bytes]]:
    """Return the items of `request`, one if it is no batch, each as raw tensors in the order of the inputs.

    Raises InputError.
    """
    given: dict[str, list[bytes]] = {}
    by_name = {spec.name: spec for spec in manifest.inputs}
    for tensor in request.inputs:
        spec = by_name.get(tensor.name)
        if spec is None or tensor.name in given:
            fault = "unknown" if spec is None else "a second"
            raise InputError(f"{fault} input {tensor.name[:80]!r}: expected the inputs {', '.join(by_name)}")
        count = _count_items(tensor, spec, max_batch_size(manifest))
        size = tensor.parameters.binary_data_size
        if size is None:
            raw = pack_json(bytes(tensor.data), msgspec.structs.replace(spec, shape=tensor.shape))
        elif not 0 <= size <= len(binary):
            raise InputError(f"input {spec.name!r}: expected {size:,} bytes behind the JSON, got {len(binary):,}")
        else:
            raw, binary = bytes(binary[:size]), binary[size:]
        given[tensor.name] = _cut(raw, spec, count)
    if missing := [name for name in by_name if name not in given]:
        raise InputError(f"missing input {', '.join(missing)}: expected the inputs {', '.join(by_name)}")
    if len(binary):
        raise InputError(f"expected the body to end after the tensors, got {len(binary):,} bytes more")
    counts = {name: len(items) for name, items in given.items()}
    if len(set(counts.values())) > 1:
        raise InputError(f"expected as many items of each input in a batch, got {counts}")
    return [list(item) for item in zip(*(given[spec.name] for spec in manifest.inputs), strict=True)]


def requested_outputs(request: InferRequest, specs: Sequence[TensorSpec]) -> dict[str, bool]:
    """Return the outputs to answer with, and for each whether it is to be binary; raises InputError."""
    names = {spec.name for spec in specs}
    everywhere = request.parameters.binary_data_output
    if not request.outputs:
        return {spec.name: everywhere for spec in specs}
    wanted = {}
    for output in request.outputs:
        if output.name not in names:
            raise InputError(f"unknown output {output.name[:80]!r}: expected some of {', '.join(sorted(names))}")
        if output.parameters.classification is not None or output.parameters.shared_memory_region is not None:
            raise InputError(
                f"output {output.name[:80]!r}: expected a tensor to be asked for, got a classification or shared memory"
            )
        is_binary = output.parameters.binary_data
        wanted[output.name] = everywhere if is_binary is None else is_binary
    return wanted


def encode_response(
    manifest: Manifest,
    outputs: Sequence[bytes],
    wanted: dict[str, bool],
    request_id: str | None,
    nan_outputs: Collection[str] = (),
) -> tuple[bytes, int | None]:
    """Return the body of a response, and the length of its JSON if binary tensors follow it.

    Each of `outputs` holds one or more items, one behind the other; those named in `nan_outputs` are flagged.
    """
    raw = {spec.name: (spec, data) for spec, data in zip(manifest.outputs, outputs, strict=True)}
    described, tail = [], []
    for name, is_binary in wanted.items():
        spec, data = raw[name]
        if is_binary:
            tail.append(data)
        if len(data) != spec.size_bytes:
            spec = msgspec.structs.replace(spec, shape=(len(data) // spec.size_bytes, *spec.shape[1:]))
        size_bytes, has_nan = len(data) if is_binary else None, name in nan_outputs or None
        described.append(
            InferOutput(
                name=name,
                datatype=spec.datatype,
                shape=spec.shape,
                data=None if is_binary else unpack(data, spec),
                parameters=OutputParameters(binary_data_size=size_bytes, has_nan=has_nan)
                if is_binary or has_nan
                else None,
            )
        )
    head = msgspec.json.encode(
        InferResponse(model_name=manifest.model, model_version=manifest.version, outputs=described, id=request_id)
    )
    return (b"".join((head, *tail)), len(head)) if tail else (head, None)


def pack_json(data: bytes, spec: TensorSpec) -> bytes:
    """Return the raw tensor that the JSON array `data` spells, flat or nested as the shape; raises InputError."""
    kind = _ARRAYS.get(spec.datatype, list[int])
    # Parsed, small numbers and empty arrays take many times their characters: count before.
    if (commas := data.count(b",")) >= max(spec.elements, 1):
        raise InputError(
            f"input {spec.name!r}: expected {spec.elements:,} numbers for the shape {list(spec.shape)}, "
            f"got {commas + 1:,}"
        )
    try:
        if data.lstrip(b" \t\r\n")[1:].lstrip(b" \t\r\n")[:1] == b"[":
            values = msgspec.convert(_flatten(msgspec.json.decode(data), spec.shape, spec), kind)
        else:
            values = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"input {spec.name!r}: expected an array of {spec.datatype}: {error}") from error
    if len(values) != spec.elements:
        raise InputError(
            f"input {spec.name!r}: expected {spec.elements:,} numbers for the shape {list(spec.shape)}, "
            f"got {len(values):,}"
        )
    try:
        return struct.pack(f"<{len(values)}{FORMATS[spec.datatype]}", *values)
    except (struct.error, OverflowError) as error:
        raise InputError(f"input {spec.name!r}: a number is out of the range of {spec.datatype}: {error}") from error


def unpack(raw: bytes, spec: TensorSpec) -> list[Any]:
    """Return the numbers of a raw tensor, flat."""
    return list(struct.unpack(f"<{spec.elements}{FORMATS[spec.datatype]}", raw))


def _count_items(tensor: InferInput, spec: TensorSpec, max_items: int) -> int:
    """Return how many items `tensor` says that it holds; raises InputError unless it has the form of `spec`."""
    if tensor.parameters.shared_memory_region is not None:
        raise InputError(f"input {spec.name!r}: expected its data in the request, got shared memory")
    if tensor.datatype != spec.datatype:
        raise InputError(f"input {spec.name!r}: expected datatype {spec.datatype}, got {tensor.datatype[:20]!r}")
    if tensor.shape == spec.shape:
        return 1
    is_like_it = len(tensor.shape) == len(spec.shape) and tensor.shape[1:] == spec.shape[1:]
    if max_items > 1 and is_like_it and 1 <= tensor.shape[0] <= max_items:
        return tensor.shape[0]
    batch = f", or up to {max_items} such items in its first dimension" if max_items > 1 else ""
    raise InputError(f"input {spec.name!r}: expected shape {list(spec.shape)}{batch}, got {list(tensor.shape[:12])}")


def _cut(raw: bytes, spec: TensorSpec, count: int) -> list[bytes]:
    """Return the items that lie one behind the other in `raw`."""
    if count == 1:
        return [raw]  # the model itself checks its size
    if len(raw) != count * spec.size_bytes:
        raise InputError(f"input {spec.name!r}: expected {count * spec.size_bytes:,} bytes, got {len(raw):,}")
    return [raw[start : start + spec.size_bytes] for start in range(0, len(raw), spec.size_bytes)]


def _flatten(value: object, shape: tuple[int, ...], spec: TensorSpec) -> list[object]:
    """Return the elements of nested arrays that have exactly `shape`."""
    if not shape:
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        got = f"an array of {len(value)}" if isinstance(value, list) else "a single value"
        raise InputError(
            f"input {spec.name!r}: expected nested arrays of the shape {list(spec.shape)}, got {got} "
            f"where {shape[0]} elements belong"
        )
    return list(itertools.chain.from_iterable(_flatten(part, shape[1:], spec) for part in value))
