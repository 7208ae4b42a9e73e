"""The bundle of one release: its manifest, and the bytes of every file by SHA-256. Two builds are byte-identical."""

from pathlib import Path

import msgspec

from controller.bundling.preflight import Preflight
from controller.bundling.source import ModelSource
from protocol.codec import sha256
from protocol.identifiers import Digest, Version
from protocol.manifest import Manifest, Provenance


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """One release, ready to be uploaded and signed; `files` holds the manifest too."""

    manifest: Manifest
    manifest_bytes: bytes
    files: dict[Digest, bytes]

    @property
    def digest(self) -> Digest:
        """The SHA-256 of the manifest, which names the release's content."""
        return sha256(self.manifest_bytes)

    @property
    def size_bytes(self) -> int:
        """How many bytes all files have."""
        return sum(map(len, self.files.values()))


def build_bundle(
    source: ModelSource, checked: Preflight, *, model: str, version: Version, release_counter: int
) -> Bundle:
    """Return the bundle of `source`, which passed as `checked`; raises ProtocolError when a name is not one."""
    spec = source.spec
    manifest = Manifest(
        model=model,
        version=str(version),
        release_counter=release_counter,
        inputs=spec.inputs,
        outputs=spec.outputs,
        variants=checked.variants,
        self_test=checked.self_test,
        # Not the name that the file happens to have: the same content is the same release under whatever name.
        provenance=Provenance(
            source=source.file, source_name=f"{model}{Path(source.file_name).suffix.lower()}", tool=source.tool
        ),
        stateful=spec.stateful,
        labels=spec.labels,
    )
    manifest_bytes = manifest.to_bytes()
    return Bundle(
        manifest=manifest,
        manifest_bytes=manifest_bytes,
        files={sha256(data): data for data in (source.wasm, *source.fallbacks, checked.vectors, manifest_bytes)},
    )
