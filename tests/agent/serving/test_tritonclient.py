"""NVIDIA's `tritonclient`, unchanged, against the local API on a port: what existing applications speak."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from agent.host import ModelHost
from agent.runtime import Caps, assemble, load_model
from agent.serving.gate import Gate
from agent.serving.listeners import TcpListener
from agent.serving.service import LocalService
from protocol.datatypes import ITEM_BYTES, Datatype
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec
from tests.agent.serving.callers import RESET, SUM, Status, activate

DTYPES: dict[Datatype, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}


@pytest.fixture
def triton(host: ModelHost) -> Iterator[InferenceServerClient]:
    service = LocalService([TcpListener("127.0.0.1:0")], host, Status)
    service.start()
    with InferenceServerClient(service.addresses[0]) as client:
        yield client
    service.close()


def activate_copy(host: ModelHost, datatype: Datatype) -> None:
    """Serve a model `copy` that gives back the six numbers of one datatype that it is given."""
    size = 6 * ITEM_BYTES[datatype]
    wat = f"""(module (memory (export "memory") 1 1)
      (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
      (func (export "fleet_output") (param i32) (result i32) (i32.const 64))
      (func (export "fleet_infer") (result i32)
        (memory.copy (i32.const 64) (i32.const 0) (i32.const {size})) (i32.const 0)))"""
    x, y = (TensorSpec(name=name, datatype=datatype, shape=(1, 2, 3)) for name in ("x", "y"))
    module = FileRef.of(b"module")
    manifest = Manifest(
        model="copy",
        version="1.2.3",
        release_counter=1,
        inputs=(x,),
        outputs=(y,),
        variants=(Variant(file=module, contract=Contract(memory_bytes=65536)),),
        self_test=SelfTest(file=FileRef.of(bytes(2 * size)), count=1),
        provenance=Provenance(source=module, source_name="model.wat", tool="test"),
    )
    model = load_model(assemble(wat), (x,), (y,), Caps(memory_bytes=65536))
    host.activate(manifest, model, is_committed=True)


def tensor(name: str, data: np.ndarray, *, is_binary: bool = True) -> InferInput:
    made = InferInput(name, list(data.shape), np_to_triton_dtype(data.dtype))
    made.set_data_from_numpy(data, binary_data=is_binary)
    return made


def numbers(datatype: Datatype, items: int = 1) -> np.ndarray:
    """The ends of the datatype's range, and some between."""
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "b":
        low, high = np.bool_(False), np.bool_(True)
    else:
        info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        low, high = info.min, info.max
    return np.tile(np.array([low, high, 0, 1, 1, 0], dtype).reshape(1, 2, 3), (items, 1, 1))


def test_server_and_model_are_found(triton: InferenceServerClient, host: ModelHost) -> None:
    """Health and metadata read as a Triton server's do."""
    assert triton.is_server_live()
    assert not triton.is_server_ready()
    assert not triton.is_model_ready("digits")
    activate(host)
    assert triton.is_server_ready()
    assert triton.is_model_ready("digits")
    assert triton.is_model_ready("digits", "1.0.0")
    assert not triton.is_model_ready("digits", "2.0.0")
    assert "fleet-agent" == triton.get_server_metadata()["name"]
    metadata = triton.get_model_metadata("digits", "1.0.0")
    assert ("digits", ["1.0.0"]) == (metadata["name"], metadata["versions"])
    assert [{"name": "x", "datatype": "FP32", "shape": [1, 2]}] == metadata["inputs"]


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("is_binary_in", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("is_binary_out", [True, False], ids=["binary", "json"])
def test_every_datatype_survives_both_forms(
    triton: InferenceServerClient, host: ModelHost, datatype: Datatype, is_binary_in: bool, is_binary_out: bool
) -> None:
    """What goes in as JSON or bytes comes out as JSON or bytes, bit for bit, to the ends of its range."""
    activate_copy(host, datatype)
    given = numbers(datatype)
    outputs = [InferRequestedOutput("y", binary_data=is_binary_out)]
    result = triton.infer("copy", [tensor("x", given, is_binary=is_binary_in)], outputs=outputs)
    got = result.as_numpy("y")
    assert (given.dtype, given.shape) == (got.dtype, got.shape)
    assert given.tobytes() == got.tobytes()
    assert ("copy", "1.2.3") == (result.get_response()["model_name"], result.get_response()["model_version"])


def test_outputs_that_nobody_names_come_as_bytes(triton: InferenceServerClient, host: ModelHost) -> None:
    """The client asks for all of them behind the JSON."""
    activate(host)
    result = triton.infer("digits", [tensor("x", np.array([[1, 2]], "f4"))], request_id="a7", model_version="1.0.0")
    assert [[2.0, 4.0]] == result.as_numpy("y").tolist()
    assert {"binary_data_size": 8} == result.get_output("y")["parameters"]
    assert "a7" == result.get_response()["id"]


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
def test_a_batch_is_answered_in_order(triton: InferenceServerClient, host: ModelHost, is_binary: bool) -> None:
    """Each item along the first dimension goes through the model by itself."""
    activate(host)
    given = np.arange(14, dtype="f4").reshape(7, 2)
    result = triton.infer(
        "digits", [tensor("x", given, is_binary=is_binary)], outputs=[InferRequestedOutput("y", binary_data=is_binary)]
    )
    assert (2 * given).tolist() == result.as_numpy("y").tolist()


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_understood(triton: InferenceServerClient, host: ModelHost, algorithm: str) -> None:
    """A client may save bytes; replies come as they are."""
    activate(host)
    result = triton.infer(
        "digits",
        [tensor("x", np.array([[1, 2]], "f4"))],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert [[2.0, 4.0]] == result.as_numpy("y").tolist()


def test_concurrent_requests_of_one_client(host: ModelHost) -> None:
    """The client's own pool keeps several connections."""
    activate(host)
    service = LocalService([TcpListener("127.0.0.1:0")], host, Status)
    service.start()
    with InferenceServerClient(service.addresses[0], concurrency=4) as client:
        pending = [client.async_infer("digits", [tensor("x", np.array([[n, n]], "f4"))]) for n in range(40)]
        got = [request.get_result().as_numpy("y")[0, 0] for request in pending]
    service.close()
    assert [2.0 * n for n in range(40)] == got


def test_a_client_says_how_long_it_waits(host: ModelHost) -> None:
    """Its own `timeout`, in microseconds, ends the wait for a turn with 504."""
    activate(host)
    gate = Gate()
    service = LocalService([TcpListener("127.0.0.1:0")], host, Status, gate=gate)
    service.start()
    with (
        InferenceServerClient(service.addresses[0]) as client,
        gate.turn("digits", time.monotonic()),
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer("digits", [tensor("x", np.array([[1, 2]], "f4"))], timeout=1000)
    service.close()
    assert "504" == caught.value.status()


def test_a_sequence_begins_and_ends(triton: InferenceServerClient, host: ModelHost) -> None:
    """The client's own arguments start a sequence of a stateful model, keep others out and let the model go."""
    activate(host, infer=SUM, reset=RESET)
    given = [tensor("x", np.array([[1, 0]], "f4"))]

    def total(**marks: Any) -> float:
        return float(triton.infer("digits", given, **marks).as_numpy("y")[0, 0])

    for name in (7, "camera"):
        assert 1.0 == total(sequence_id=name, sequence_start=True)
        assert 2.0 == total(sequence_id=name)
        with pytest.raises(InferenceServerException, match="expected a call of the sequence"):
            total(sequence_id=8)
        assert 3.0 == total(sequence_id=name, sequence_end=True)
    assert "sequence" in triton.get_server_metadata()["extensions"]


def test_errors_carry_the_reason(triton: InferenceServerClient, host: ModelHost) -> None:
    """The client's exception holds our sentence and status."""
    activate(host)
    activate(host, name="trap", infer="unreachable")
    good = tensor("x", np.array([[1, 2]], "f4"))
    classes = InferRequestedOutput("y", class_count=2)
    for model, version, given, outputs, status, reason in (
        ("other", "", good, None, "404", "no release of 'other' is active here"),
        ("digits", "9.9.9", good, None, "404", "expected version 1.0.0 of digits, which is active, got '9.9.9'"),
        ("digits", "", tensor("x", np.zeros((1, 3), "f4")), None, "400", "expected shape [1, 2]"),
        ("digits", "", tensor("x", np.zeros((300, 2), "f4")), None, "400", "or up to 256 such items"),
        ("digits", "", tensor("x", np.zeros((1, 2), "f8")), None, "400", "expected datatype FP32, got 'FP64'"),
        ("digits", "", good, [classes], "400", "got a classification"),
        ("digits", "", good, [InferRequestedOutput("z")], "400", "unknown output 'z'"),
        ("trap", "", good, None, "500", "trap in layer 'run'"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            triton.infer(model, [given], outputs=outputs, model_version=version)
        assert status == caught.value.status()
        assert reason in caught.value.message()
