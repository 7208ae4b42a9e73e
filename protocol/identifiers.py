"""Names: devices, models, groups, versions, digests. Each parses from text or raises.

Every name is safe as an MQTT topic level, a file name and a URL path segment.
"""

import re
from typing import NewType

import msgspec

from protocol.errors import UnknownIdentifierError

DeviceId = NewType("DeviceId", str)
ModelName = NewType("ModelName", str)
GroupName = NewType("GroupName", str)
Digest = NewType("Digest", str)
"""A SHA-256 as 64 lower-case hexadecimal digits."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SEMVER = re.compile(
    r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
)
_RESERVED = frozenset({"all"})


def _name(kind: str, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise UnknownIdentifierError(
            f"expected a {kind} of 1 to 63 characters from a-z, 0-9, '-' and '_' "
            f"that starts with a letter or digit, got {text[:80]!r}"
        )
    if text in _RESERVED:
        raise UnknownIdentifierError(f"{text!r} is reserved: choose another {kind}")
    return text


def parse_device_id(text: str) -> DeviceId:
    """Return `text` as a device id, or raise UnknownIdentifierError."""
    return DeviceId(_name("device id", text))


def parse_model_name(text: str) -> ModelName:
    """Return `text` as a model name, or raise UnknownIdentifierError."""
    return ModelName(_name("model name", text))


def parse_group_name(text: str) -> GroupName:
    """Return `text` as a group name, or raise UnknownIdentifierError."""
    return GroupName(_name("group name", text))


def parse_digest(text: str) -> Digest:
    """Return `text` as a SHA-256 digest, or raise UnknownIdentifierError."""
    if not _DIGEST.fullmatch(text):
        raise UnknownIdentifierError(f"expected 64 hexadecimal digits of a SHA-256, got {text[:80]!r}")
    return Digest(text)


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A release version after Semantic Versioning 2.0.0, without build metadata.

    Build metadata is left out because two versions that differ in it alone have no order.
    """

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Return the version that `text` spells, or raise UnknownIdentifierError."""
        match = _SEMVER.fullmatch(text) if len(text) <= 64 else None
        if match is None:
            raise UnknownIdentifierError(f"expected a version like 1.2.0 or 2.0.0-rc.1, got {text[:80]!r}")
        major, minor, patch, pre = match.groups()
        return cls(
            major=int(major),
            minor=int(minor),
            patch=int(patch),
            prerelease=tuple(pre.split(".")) if pre else (),
        )

    def next_patch(self) -> "Version":
        """Return the version that follows when nothing else is asked for."""
        patch = self.patch if self.prerelease else self.patch + 1
        return Version(major=self.major, minor=self.minor, patch=patch)

    def _precedence(self) -> tuple[object, ...]:
        # Semantic Versioning 2.0.0, section 11: numeric identifiers are lower than alphanumeric ones,
        # and a version without pre-release identifiers is higher than one with.
        keys = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in self.prerelease)
        return (self.major, self.minor, self.patch, not self.prerelease, keys)

    # All four are spelt out: functools.total_ordering sees those of Struct, which always refuse, and adds none.
    def __lt__(self, other: object) -> bool:
        return self._precedence() < other._precedence() if isinstance(other, Version) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self._precedence() <= other._precedence() if isinstance(other, Version) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self._precedence() > other._precedence() if isinstance(other, Version) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self._precedence() >= other._precedence() if isinstance(other, Version) else NotImplemented

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        return f"{text}-{'.'.join(self.prerelease)}" if self.prerelease else text
