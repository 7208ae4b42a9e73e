"""A small fleet of keys, and hands that sign what the real operator never would."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Targets
from tuf.api.serialization.json import JSONSerializer

from controller.trust import image
from controller.trust.keys import generate_signer
from controller.trust.roots import sign_director_root, sign_image_root
from protocol.manifest import Contract, FileRef, Manifest, Provenance, SelfTest, Variant
from protocol.tensors import TensorSpec

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def _signers() -> list[CryptoSigner]:
    return [generate_signer() for _ in range(3)]


@dataclass
class Fleet:
    """Every key of a fleet, and the image repository as the service would keep it."""

    now: datetime = NOW
    image_roots: list[CryptoSigner] = field(default_factory=_signers)
    director_roots: list[CryptoSigner] = field(default_factory=_signers)
    operator: CryptoSigner = field(default_factory=generate_signer)
    snapshot: CryptoSigner = field(default_factory=generate_signer)
    timestamp: CryptoSigner = field(default_factory=generate_signer)
    director: CryptoSigner = field(default_factory=generate_signer)

    def __post_init__(self) -> None:
        self.image_root = sign_image_root(
            self.image_roots, targets=self.operator, snapshot=self.snapshot, timestamp=self.timestamp, now=self.now
        )
        self.director_root = sign_director_root(self.director_roots, director=self.director, now=self.now)

    def manifest(self, version: str, counter: int, model: str = "digits") -> Manifest:
        """Return a manifest; only its name, version and counter matter here."""
        tensor = TensorSpec(name="x", datatype="FP32", shape=(4,))
        return Manifest(
            model=model,
            version=version,
            release_counter=counter,
            inputs=(tensor,),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(4,)),),
            variants=(Variant(file=FileRef.of(b"\0asm"), contract=Contract(memory_bytes=65_536)),),
            self_test=SelfTest(file=FileRef.of(bytes(32)), count=1),
            provenance=Provenance(source=FileRef.of(b"source"), source_name="digits.wat", tool="test"),
        )

    def released(self, *releases: tuple[str, int]) -> bytes:
        """Return targets metadata with these releases of `digits`, each added by the operator."""
        raw = image.first_targets(self.operator, self.now)
        for version, counter in releases:
            manifest = self.manifest(version, counter)
            raw = image.add_release(raw, manifest, manifest.to_bytes(), self.operator, self.now)
        return raw

    def accept(self, current: bytes | None, new: bytes, now: datetime | None = None) -> image.AcceptedTargets:
        """Accept `new` after `current`, as the service does."""
        return image.accept_targets(current, new, self.image_root, now or self.now)

    def resign(self, raw: bytes, change: Callable[[Targets], Any], signer: CryptoSigner | None = None) -> bytes:
        """Return the next version of `raw` after `change`, signed with the operator's own key, or another."""
        metadata: Metadata[Targets] = Metadata.from_bytes(raw)
        metadata.signed.version += 1
        metadata.signed.expires = self.now + timedelta(days=365)
        change(metadata.signed)
        metadata.sign(signer or self.operator)
        return metadata.to_bytes(JSONSerializer(compact=True))


@pytest.fixture
def fleet() -> Fleet:
    """A fleet with new keys."""
    return Fleet()


@pytest.fixture(scope="session")
def make_fleet() -> Callable[[], Fleet]:
    """Makes fleets, for fixtures that outlive one test."""
    return Fleet
