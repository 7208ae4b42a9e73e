"""The tensor ABI: what a module declares about itself in its `fleet.model` section.

A module exports

    memory
    fleet_input(index: i32) -> i32      address where the host writes input `index`
    fleet_output(index: i32) -> i32     address where the host reads output `index`
    fleet_infer() -> i32                0 on success, any other value is the model's own error status
    fleet_reset()                       optional: forget all state between calls

Shapes are static, tensors are dense, row-major and little-endian, addresses stay the same for the life of an
instance, and a call allocates nothing. Names and datatypes are those of the Open Inference Protocol v2.
"""

import math

import msgspec

from protocol import limits
from protocol.codec import decode, encode
from protocol.datatypes import ITEM_BYTES, Datatype
from protocol.errors import LimitExceededError, MalformedError, UnsupportedVersionError

SECTION_NAME = "fleet.model"
SCHEMA_VERSION = 1
REQUIRED_EXPORTS = ("memory", "fleet_input", "fleet_output", "fleet_infer")
OPTIONAL_EXPORTS = ("fleet_reset",)


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Name, datatype and static shape of one input or output."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200:
            raise MalformedError(f"expected a tensor name of 1 to 200 characters, got {self.name[:80]!r}")
        if len(self.shape) > limits.MAX_RANK or any(n < 1 for n in self.shape):
            raise MalformedError(
                f"tensor {self.name!r}: expected at most {limits.MAX_RANK} dimensions, each at least 1, "
                f"got {list(self.shape[:12])}"
            )
        if self.size_bytes > limits.MAX_TENSOR_BYTES:
            raise LimitExceededError(
                f"tensor {self.name!r}: expected at most {limits.MAX_TENSOR_BYTES:,} bytes, got {self.size_bytes:,}"
            )

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """How many bytes the tensor takes in the module's memory."""
        return self.elements * ITEM_BYTES[self.datatype]


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a module's `fleet.model` section, or of a `model.toml` beside it.

    `labels` maps an output's name to the meaning of its indices. `stateful` says that `fleet_reset` exists and
    calls depend on earlier ones.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    schema: int = SCHEMA_VERSION
    name: str | None = None
    version: str | None = None
    stateful: bool = False
    stack_kib: int = limits.DEFAULT_STACK_KIB
    deadline_ms: int = limits.DEFAULT_DEADLINE_MS
    labels: dict[str, tuple[str, ...]] = {}
    producer: str | None = None

    def __post_init__(self) -> None:
        if self.schema != SCHEMA_VERSION:
            raise UnsupportedVersionError(
                f"expected schema {SCHEMA_VERSION} of {SECTION_NAME}, got {self.schema}: use a newer wasmfleet"
            )
        check_tensors(self.inputs, self.outputs, self.labels)
        if self.stack_kib not in limits.STACK_CLASSES_KIB:
            raise MalformedError(f"expected stack_kib in {limits.STACK_CLASSES_KIB}, got {self.stack_kib}")
        if not 1 <= self.deadline_ms <= limits.MAX_DEADLINE_MS:
            raise MalformedError(f"expected deadline_ms from 1 to {limits.MAX_DEADLINE_MS}, got {self.deadline_ms}")

    @classmethod
    def from_bytes(cls, raw: bytes) -> "ModelSpec":
        """Parse the payload of a `fleet.model` section; raises ProtocolError."""
        return decode(raw, cls, limit_bytes=limits.MAX_MODEL_SPEC_BYTES, what=f"{SECTION_NAME} section")

    def to_bytes(self) -> bytes:
        """Return the payload of a `fleet.model` section."""
        return encode(self)


def check_tensors(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], labels: dict[str, tuple[str, ...]]
) -> None:
    """Raise MalformedError unless the tensors of a model fit together."""
    for kind, tensors in (("input", inputs), ("output", outputs)):
        if not 1 <= len(tensors) <= limits.MAX_TENSORS:
            raise MalformedError(f"expected 1 to {limits.MAX_TENSORS} {kind}s, got {len(tensors)}")
        names = [t.name for t in tensors]
        if len(set(names)) != len(names):
            raise MalformedError(f"expected every {kind} to have a name of its own, got {names[:10]}")
    sizes = {t.name: t.shape[-1] if t.shape else 1 for t in outputs}
    for name, texts in labels.items():
        if name not in sizes:
            raise MalformedError(f"labels name an output {name!r} that does not exist; outputs: {list(sizes)}")
        if len(texts) > limits.MAX_LABELS or len(texts) != sizes[name]:
            raise MalformedError(
                f"labels of {name!r}: expected {sizes[name]}, one for each index of its last dimension, "
                f"got {len(texts)}"
            )
