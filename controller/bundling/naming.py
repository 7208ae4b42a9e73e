"""What a release is called when the operator does not say: model from the spec or the file, version from either.

Every choice carries its origin, so that it can be shown.
"""

import re

import msgspec

from controller.bundling.errors import ModelSpecError
from controller.bundling.source import ModelSource
from protocol.errors import UnknownIdentifierError
from protocol.identifiers import ModelName, Version, parse_model_name

FIRST_VERSION = Version(major=1, minor=0, patch=0)
_VERSION_TAIL = re.compile(r"-v?(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)$")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A value, and where it comes from: `given`, `from fleet.model`, `from the file name`, …"""

    value: str
    origin: str

    def __str__(self) -> str:
        return self.value if self.origin == "given" else f"{self.value} ({self.origin})"


def choose_model(source: ModelSource, given: str | None) -> Choice:
    """Return the name of the model; raises UnknownIdentifierError or ModelSpecError."""
    if given is not None:
        return Choice(value=parse_model_name(given), origin="given")
    if source.spec.name is not None:
        return Choice(value=parse_model_name(source.spec.name), origin=f"from {source.spec_origin}")
    return Choice(value=_name_from_stem(source.file_name), origin="from the file name")


def find_version(source: ModelSource, given: str | None) -> Choice | None:
    """Return the version that somebody asked for, or None; raises UnknownIdentifierError."""
    if given is not None:
        return Choice(value=str(Version.parse(given)), origin="given")
    if source.spec.version is not None:
        return Choice(value=str(Version.parse(source.spec.version)), origin=f"from {source.spec_origin}")
    tail = _VERSION_TAIL.search(_stem(source.file_name))
    return Choice(value=str(Version.parse(tail[1])), origin="from the file name") if tail else None


def next_version(existing: list[Version]) -> Choice:
    """Return the version after the latest of `existing`."""
    if not existing:
        return Choice(value=str(FIRST_VERSION), origin="the first")
    latest = max(existing)
    return Choice(value=str(latest.next_patch()), origin=f"next after {latest}")


def _stem(file_name: str) -> str:
    return re.sub(r"\.(wasm|wat|onnx)$", "", file_name, flags=re.IGNORECASE)


def plain_name(file_name: str) -> ModelName:
    """Return the name of a file as that of a model; raises UnknownIdentifierError."""
    stem = _VERSION_TAIL.sub("", _stem(file_name))
    return parse_model_name(re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:63])


def _name_from_stem(file_name: str) -> ModelName:
    try:
        return plain_name(file_name)
    except UnknownIdentifierError as error:
        raise ModelSpecError(
            f"the file name {file_name!r} does not make a model name: {error}", hint="give one with --model NAME"
        ) from error
