"""The bundle: a manifest, and the files that it names by SHA-256.

The signed image metadata fixes the manifest's digest, the manifest fixes everything else. It is canonical JSON
without floats (tolerances are decimal strings), so that two builds of one input are byte-identical.
"""

import re
from decimal import Decimal

import msgspec

from protocol import limits
from protocol.codec import decode, encode, sha256
from protocol.errors import LimitExceededError, MalformedError, UnsupportedVersionError
from protocol.identifiers import Digest, Version, parse_digest, parse_model_name
from protocol.tensors import TensorSpec, check_tensors

SCHEMA_VERSION = 1
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,12})?(?:e-?[0-9]{1,2})?")


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the bundle: what it must hash to, and how long it is."""

    digest: Digest
    size: int

    def __post_init__(self) -> None:
        parse_digest(self.digest)
        if not 0 < self.size <= limits.MAX_FILE_BYTES:
            raise LimitExceededError(f"expected a file of 1 to {limits.MAX_FILE_BYTES:,} bytes, got {self.size:,}")

    @classmethod
    def of(cls, data: bytes) -> "FileRef":
        """Return the reference to `data`."""
        return cls(digest=sha256(data), size=len(data))


class Contract(msgspec.Struct, frozen=True, kw_only=True):
    """What a module needs: checked against the device before assignment, enforced on the device."""

    memory_bytes: int
    stack_kib: int = limits.DEFAULT_STACK_KIB
    deadline_ms: int = limits.DEFAULT_DEADLINE_MS
    imports: tuple[str, ...] = ()
    """Allowed imports as `module.name`; this version of the agent provides none."""

    def __post_init__(self) -> None:
        if not 0 < self.memory_bytes <= 1 << 32:
            raise MalformedError(f"expected memory_bytes from 1 to 4 GiB, got {self.memory_bytes:,}")
        if self.stack_kib not in limits.STACK_CLASSES_KIB:
            raise MalformedError(f"expected stack_kib in {limits.STACK_CLASSES_KIB}, got {self.stack_kib}")
        if not 1 <= self.deadline_ms <= limits.MAX_DEADLINE_MS:
            raise MalformedError(f"expected deadline_ms from 1 to {limits.MAX_DEADLINE_MS}, got {self.deadline_ms}")


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One module of the release; a device downloads the first variant whose `requires` it meets."""

    file: FileRef
    contract: Contract
    requires: tuple[str, ...] = ()
    """Engine features by name, such as `simd128` and `relaxed_simd`."""


class SelfTest(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors that a device runs on its own CPU before it activates the release.

    The file holds `count` vectors; each is all inputs, then all expected outputs, in manifest order, as the raw
    bytes of the tensors. A float passes when |got - want| <= atol + rtol * |want|; other types must be equal.
    """

    file: FileRef
    count: int
    atol: str = "1e-5"
    rtol: str = "1e-4"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= limits.MAX_SELF_TEST_VECTORS:
            raise LimitExceededError(
                f"expected 1 to {limits.MAX_SELF_TEST_VECTORS} self-test vectors, got {self.count}"
            )
        if self.file.size > limits.MAX_SELF_TEST_BYTES:
            raise LimitExceededError(
                f"expected self-test vectors of at most {limits.MAX_SELF_TEST_BYTES:,} bytes, "
                f"got {self.file.size:,}: use fewer vectors"
            )
        for name, text in (("atol", self.atol), ("rtol", self.rtol)):
            if not _DECIMAL.fullmatch(text):
                raise MalformedError(f"expected {name} as a decimal like 1e-5, got {text[:40]!r}")

    @property
    def tolerances(self) -> tuple[float, float]:
        """The absolute and the relative tolerance."""
        return float(Decimal(self.atol)), float(Decimal(self.rtol))


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the release came from."""

    source: FileRef
    source_name: str
    """The model's name, with the extension that says what the source is."""
    tool: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one release is."""

    model: str
    version: str
    release_counter: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    self_test: SelfTest
    provenance: Provenance
    schema: int = SCHEMA_VERSION
    stateful: bool = False
    labels: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        if self.schema != SCHEMA_VERSION:
            raise UnsupportedVersionError(
                f"expected manifest schema {SCHEMA_VERSION}, got {self.schema}: update the agent"
            )
        parse_model_name(self.model)
        Version.parse(self.version)
        if not 1 <= self.release_counter < 1 << 53:
            raise MalformedError(f"expected a release_counter of at least 1, got {self.release_counter}")
        check_tensors(self.inputs, self.outputs, self.labels)
        if not 1 <= len(self.variants) <= limits.MAX_VARIANTS:
            raise MalformedError(f"expected 1 to {limits.MAX_VARIANTS} variants, got {len(self.variants)}")
        expected = self.self_test.count * self.vector_bytes
        if self.self_test.file.size != expected:
            raise MalformedError(
                f"expected {expected:,} bytes of self-test vectors for these tensors, got {self.self_test.file.size:,}"
            )

    @property
    def vector_bytes(self) -> int:
        """The size of one self-test vector."""
        return sum(t.size_bytes for t in (*self.inputs, *self.outputs))

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """Parse a manifest; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_MANIFEST_BYTES, what="manifest")

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the manifest; raises LimitExceededError when no device would take it."""
        raw = encode(self)
        if len(raw) > limits.MAX_MANIFEST_BYTES:
            raise LimitExceededError(
                f"expected a manifest of at most {limits.MAX_MANIFEST_BYTES:,} bytes, got {len(raw):,}: "
                f"use fewer or shorter labels"
            )
        return raw
