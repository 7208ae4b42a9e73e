"""Whatever is sent to a device: it says what is wrong, runs nothing that it should not, and goes on serving."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from agent.runtime import assemble
from controller.broker import BrokerProcess
from controller.trust.keys import generate_signer
from protocol import limits
from protocol.chunks import cut
from protocol.manifest import FileRef
from protocol.messages import Ack
from tests.agent.conftest import new_agent, new_backend
from tests.agent.rig import CHUNK_BYTES, Agent, Backend, wait_for
from tests.agent.signing import Bundle, Signing, bundle

pytestmark = pytest.mark.needs("mosquitto")

_INTERFACE = """
  (func (export "fleet_input") (param i32) (result i32) (i32.const 0))
  (func (export "fleet_output") (param i32) (result i32) (i32.const 64))"""
_STORE = "(f32.store (i32.const 64) (f32.const 1)) (i32.const 0)"
VECTORS = bytes(16)


Bad = dict[str, Any]


class Device:
    """A running agent, what stands in its controller's place, and its committed release."""

    def __init__(self, agent: Agent, backend: Backend, first: Bundle) -> None:
        self.agent, self.backend, self.first = agent, backend, first
        self._counter = 1

    def next_release(self, **parts: Any) -> Bundle:
        """Return a release that no test before has used."""
        self._counter += 1
        return bundle(f"1.{self._counter}.0", self._counter, **parts)


def _bad(wasm: bytes, *, memory_bytes: int = 65_536, deadline_ms: int = 1_000) -> Bad:
    return {"wasm": wasm, "vectors": VECTORS, "memory_bytes": memory_bytes, "deadline_ms": deadline_ms}


def _module(infer: str = _STORE, rest: str = "", memory: str = "1 1") -> bytes:
    run = f'(func $layer (export "fleet_infer") (result i32) {infer})'
    return assemble(f'(module {rest} (memory (export "memory") {memory}) {_INTERFACE} {run})')


# What is wrong, and how the deployment ends: state, code, and a word of the message.
BAD_MODULES: dict[str, tuple[Callable[[], Bad], str, str, str]] = {
    "not a wasm file": (lambda: _bad(b"\x7fELF, not wasm"), "failed", "compile_failed", "wasm"),
    "cut off": (lambda: _bad(_module()[:-5]), "failed", "compile_failed", ""),
    "without the ABI": (
        lambda: _bad(assemble('(module (memory (export "memory") 1 1))')), "failed", "abi", "fleet_infer"
    ),
    "undeclared import": (
        lambda: _bad(_module(rest='(import "env" "log" (func))')), "failed", "undeclared_import", "env.log"
    ),
    "memory above its contract": (lambda: _bad(_module(memory="4 4")), "failed", "memory_cap", "65,536"),
    "more memory than the device allows": (
        lambda: _bad(_module(), memory_bytes=1 << 30), "rejected", "contract_exceeds_device", "memory"
    ),
    "wrong answers": (lambda: _bad(_module()), "failed", "self_test_failed", "expected"),
    "loops for ever": (
        lambda: _bad(_module("(loop $l (br $l)) (i32.const 0)"), deadline_ms=50), "failed", "deadline_exceeded", "layer"
    ),
    "traps": (lambda: _bad(_module("unreachable")), "failed", "trap", "layer"),
    "reports an error": (lambda: _bad(_module("(i32.const 7)")), "failed", "model_status", "7"),
    "overflows its stack": (lambda: _bad(_module("(call $layer)")), "failed", "stack_overflow", "layer"),
}  # fmt: skip


@pytest.fixture(scope="module")
def device(broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device that many bad releases and documents are thrown at, one after another."""
    backend = new_backend(broker)
    agent = new_agent(broker, backend, tmp_path_factory.mktemp("device") / "state")
    yield Device(agent, backend, started(agent, backend))
    agent.stop()
    backend.close()


@pytest.fixture
def first(agent: Agent, backend: Backend) -> Bundle:
    """A device of the test's own, running, with a committed release."""
    return started(agent, backend)


def started(agent: Agent, backend: Backend) -> Bundle:
    """Start a device and return its first, committed release."""
    good = bundle()
    backend.release(good)
    backend.assign(good)
    agent.start()
    backend.wait_end(good)
    return good


def assert_serves(agent: Agent, bundle: Bundle) -> None:
    """The device answers with `bundle`, and its API is alive."""
    assert (bundle.manifest.version, 2.0) == agent.infer()


@pytest.mark.parametrize("name", BAD_MODULES)
def test_bad_module_ends_its_deployment_and_nothing_else(device: Device, name: str) -> None:
    """A release that cannot run is refused with a reason that names the fault; the one before goes on serving."""
    make, state, code, text = BAD_MODULES[name]
    bad = device.next_release(**make())
    device.backend.release(bad)
    device.backend.assign(bad)
    receipt = device.backend.wait_end(bad, state)
    assert receipt.reason is not None
    assert code == receipt.reason.code
    assert text in receipt.reason.message
    assert_serves(device.agent, device.first)


def test_release_after_a_bad_one_is_installed(agent: Agent, backend: Backend, first: Bundle) -> None:
    """A failure blocks nothing that comes later."""
    bad, good = bundle("1.1.0", 2, **_bad(b"no wasm")), bundle("1.2.0", 3, factor=4.0)
    backend.release(bad, good)
    backend.assign(bad)
    backend.wait_end(bad, "failed")
    backend.assign(good)
    backend.wait_end(good)
    assert ("1.2.0", 4.0) == agent.infer()


def test_release_below_the_floor_is_rejected(agent: Agent, backend: Backend) -> None:
    """A release that the operator retired is not installed, even when the director asks for it."""
    old, new = bundle(), bundle("1.1.0", 2)
    backend.signing.release(old, new)
    backend.signing.retire("scale", 2)
    backend.publish_files(old, new)
    backend.publish_metadata()
    backend.assign(old)
    agent.start()
    receipt = backend.wait_end(old, "rejected")
    assert receipt.reason is not None
    assert "below_floor" == receipt.reason.code


def test_manifest_that_only_the_director_names_is_rejected(agent: Agent, backend: Backend, first: Bundle) -> None:
    """A stolen director key is not enough: the image repository names another manifest for that release."""
    good, evil = bundle("1.1.0", 2, factor=3.0), bundle("1.1.0", 2, factor=666.0)
    backend.release(good)
    backend.publish_files(evil)
    forged = backend.signing.targets
    other = Signing(device=backend.signing.device)
    other.director_key, other.director_version = backend.signing.director_key, backend.signing.director_version
    other.release(evil)
    backend.direct(other.assign(evil))
    assert forged == backend.signing.targets
    receipt = backend.wait_end(good, "rejected")
    assert receipt.reason is not None
    assert "domains_disagree" == receipt.reason.code
    assert_serves(agent, first)


def _wrong_key(backend: Backend, evil: Bundle) -> bytes:
    return backend.signing.direct(backend.signing.assignment(evil), signer=generate_signer())


def _other_device(backend: Backend, evil: Bundle) -> bytes:
    return backend.signing.assign(evil, device="line-4-press")


def _expired(backend: Backend, evil: Bundle) -> bytes:
    backend.signing.later(days=-30)
    raw = backend.signing.assign(evil)
    backend.signing.later(days=30)
    return raw


def _tampered(backend: Backend, evil: Bundle) -> bytes:
    raw = backend.signing.assign(evil)
    return raw.replace(b'"deployment_id":"deploy', b'"deployment_id":"Deploy')


BAD_DOCUMENTS: dict[str, tuple[Callable[[Backend, Bundle], bytes], str]] = {
    "wrong key": (_wrong_key, "bad_signature"),
    "another device": (_other_device, "wrong_device"),
    "expired": (_expired, "expired"),
    "tampered": (_tampered, "bad_signature"),
    "not JSON": (lambda *_: b"\0\1\2", "malformed"),
    "another type": (lambda backend, _: backend.signing.timestamp, "malformed"),
    "deep JSON": (lambda *_: b"[" * 60_000, "malformed"),
    "oversize": (lambda *_: b"x" * (limits.MAX_DIRECTOR_BYTES + 1), "limit_exceeded"),
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_director_document_that_must_not_be_obeyed_is_not(device: Device, name: str) -> None:
    """The status names the reason, nothing new is run, and the next good document is obeyed."""
    make, code = BAD_DOCUMENTS[name]
    agent, backend = device.agent, device.backend
    evil = device.next_release(factor=2.0)
    backend.release(evil)
    backend.direct(make(backend, evil))
    wait_for("the problem", lambda: "director" in agent.status()["problems"], agent.log)
    assert code == agent.status()["problems"]["director"]["code"]
    assert [] == backend.states(f"deploy-scale-{evil.manifest.version}")
    assert_serves(agent, device.first)
    backend.assign(evil)
    backend.wait_end(evil)
    wait_for("no problem", lambda: agent.status()["problems"] == {})
    device.first = evil


def test_old_director_document_is_not_obeyed(agent: Agent, backend: Backend, first: Bundle) -> None:
    """A broker that gives back an older document, however genuine, changes nothing."""
    evil = bundle("1.1.0", 2, factor=3.0)
    backend.release(evil)
    older = backend.signing.assign(evil)
    backend.assign(first)
    version = backend.signing.director_version
    wait_for("the newer document", lambda: agent.status()["director_version"] == version)
    backend.direct(older)
    wait_for("the problem", lambda: "director" in agent.status()["problems"])
    assert "below_floor" == agent.status()["problems"]["director"]["code"]
    assert [] == backend.states("deploy-scale-1.1.0")


@pytest.mark.parametrize("payload", [b"\0garbage", b"{}", b"[" * 5000, b"x" * 4_000_000], ids=len)
def test_garbage_on_every_topic_is_survived(agent: Agent, backend: Backend, first: Bundle, payload: bytes) -> None:
    """Malformed, empty-handed, deep and oversize messages on every topic that a device hears stop nothing."""
    topics = backend.topics
    for topic in (
        topics.timestamp,
        topics.metadata,
        topics.director(backend.signing.device),
        topics.ack(backend.signing.device),
    ):
        backend.publish(topic, payload)
    wait_for("the problem", lambda: "director" in agent.status()["problems"], agent.log)
    assert_serves(agent, first)
    backend.wait("wants", lambda: {"metadata", "director"} <= {want.kind for want in backend.wants})
    good = bundle("1.2.0", 3, factor=4.0)
    backend.release(good)
    backend.assign(good)
    backend.wait_end(good)
    assert ("1.2.0", 4.0) == agent.infer()


def test_unsigned_and_foreign_acks_make_the_device_forget_nothing(
    agent: Agent, backend: Backend, first: Bundle
) -> None:
    """Whoever reaches the broker can publish an ack; only the director's own makes reports go."""
    backend.is_acknowledging = False
    wait_for("reports", lambda: backend.telemetry and agent.status()["unsent_telemetry"] > 0, agent.log)
    record = backend.telemetry[-1]
    (stream,) = {birth.stream for birth in backend.liveness}
    ack = Ack(device_id=backend.signing.device, stream=stream, telemetry=record.seq)
    topic = backend.topics.ack(backend.signing.device)
    backend.publish(topic, ack.to_bytes())
    backend.publish(topic, Signing().acknowledge(ack))
    wait_for("both are ignored", lambda: {"malformed": 1, "bad_signature": 1} == agent.status()["ignored_acks"])
    assert agent.status()["unsent_telemetry"] > 0
    backend.is_acknowledging = True
    wait_for("a real ack", lambda: agent.status()["unsent_telemetry"] == 0, agent.log)


def test_tampered_chunk_is_refused_and_asked_for_again(agent: Agent, backend: Backend) -> None:
    """A chunk that is not what the index names is not taken; the device asks, and gets the real one."""
    release = bundle(padding_bytes=20_000)
    backend.release(release)
    blob = cut(release.files[0], CHUNK_BYTES).blob
    backend.publish(backend.topics.chunk(blob, 1), b"tampered")
    backend.assign(release)
    agent.start()
    backend.wait_end(release)
    assert any(want.digest == blob and 1 in want.chunks for want in backend.wants)


def test_tampered_index_and_offer_are_refused_and_asked_for_again(agent: Agent, backend: Backend) -> None:
    """The same holds for the index of a blob and for an offer."""
    release = bundle()
    backend.release(release)
    module = cut(release.files[0], CHUNK_BYTES)
    backend.publish(backend.topics.chunk_index(module.blob), b"{}")
    backend.publish(backend.topics.offer(FileRef.of(release.files[1]).digest), b"{}")
    backend.assign(release)
    agent.start()
    backend.wait_end(release)
    assert {"offer", "blob"} <= {want.kind for want in backend.wants}


def test_blob_that_holds_another_file_is_given_up(agent: Agent, backend: Backend) -> None:
    """Chunks that fit their index do not help when the file that comes out is not the signed one."""
    release = bundle(padding_bytes=20_000)
    backend.release(release)
    real = FileRef.of(release.files[0])
    evil = cut(bytes(reversed(release.files[0])), CHUNK_BYTES)
    index = msgspec.structs.replace(evil.index, digest=real.digest)
    lie = msgspec.structs.replace(evil, index=index, blob=FileRef.of(index.to_bytes()).digest)
    backend.is_answering = False
    backend.publish(backend.topics.offer(real.digest), lie.offer.to_bytes())
    backend.publish(backend.topics.chunk_index(lie.blob), index.to_bytes())
    for number in range(len(index.chunks)):
        backend.publish(backend.topics.chunk(lie.blob, number), lie.chunk(number))
    backend.assign(release)
    agent.start()
    wait_for("the lie is seen", lambda: "holds another file" in agent.log(), agent.log)
    backend.publish(backend.topics.offer(real.digest), cut(release.files[0], CHUNK_BYTES).offer.to_bytes())
    backend.wait_end(release)
    assert ("1.0.0", 2.0) == agent.infer()


def test_missing_chunks_are_waited_for_with_a_reason(agent: Agent, backend: Backend) -> None:
    """Nothing on the broker and nobody to ask: the deployment stays in downloading and says what it waits for."""
    release = bundle()
    backend.signing.release(release)
    backend.publish_metadata()
    backend.assign(release)
    agent.start()
    receipt = backend.wait(
        "a reason", lambda: next((r for r in backend.receipts if r.state == "downloading" and r.reason), None)
    )
    assert "waiting" == receipt.reason.code
    backend.publish_files(release)
    backend.wait_end(release)


def test_full_disk_fails_the_deployment_and_keeps_the_release(agent: Agent, backend: Backend, first: Bundle) -> None:
    """A disk without room for the new release ends its deployment with the reason; the old one goes on serving."""
    assert 0 == agent.stop()
    large = bundle("1.1.0", 2, padding_bytes=600_000)
    backend.release(large)
    agent.start(file_bytes=400_000)
    agent.wait_serving()
    backend.assign(large)
    receipt = backend.wait_end(large, "failed")
    assert receipt.reason is not None
    assert "disk_full" == receipt.reason.code
    assert_serves(agent, first)


def test_disk_quota_is_kept(agent: Agent, backend: Backend, first: Bundle) -> None:
    """A release that does not fit the quota of the device's owner is refused before it is downloaded."""
    assert 0 == agent.stop()
    (agent.state_dir / "policy.toml").write_text("disk_quota_bytes = 500000")
    large = bundle("1.1.0", 2, padding_bytes=400_000)
    backend.release(large)
    agent.start()
    backend.assign(large)
    receipt = backend.wait_end(large, "failed")
    assert receipt.reason is not None
    assert "disk_quota" == receipt.reason.code
    assert_serves(agent, first)


def test_previous_release_makes_way_when_the_quota_is_reached(agent: Agent, backend: Backend) -> None:
    """A quota for little more than two releases still lets the device go from one to the next, for ever."""
    (agent.state_dir / "policy.toml").write_text("disk_quota_bytes = 700000")
    releases = [bundle(f"1.{n}.0", n + 1, factor=n, padding_bytes=200_000) for n in range(4)]
    backend.release(*releases)
    agent.start()
    for release in releases:
        backend.assign(release)
        backend.wait_end(release)
    assert ("1.3.0", 3.0) == agent.infer()


def test_metadata_that_lags_behind_the_director_is_asked_for(agent: Agent, backend: Backend, first: Bundle) -> None:
    """The director names a release whose metadata has not come: the device waits, asks, and goes on."""
    new = bundle("1.1.0", 2, factor=3.0)
    backend.signing.release(new)
    backend.publish_files(new)
    backend.assign(new)
    backend.wait_end(new)
    assert "metadata" in {want.kind for want in backend.wants}
