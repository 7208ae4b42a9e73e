"""The error tree of the protocol.

    ProtocolError              what a peer sent cannot be accepted
    ├── MalformedError         it does not parse, or a field has a value outside its domain
    ├── LimitExceededError     it is larger than the protocol allows
    ├── UnsupportedVersionError  it is from a version of the protocol that we do not speak
    ├── UnknownIdentifierError a name that is not an identifier of its kind
    └── TrustError             it parses, but must not be believed
        ├── SignatureError     no valid signature of the key that must vouch for it
        ├── WrongDeviceError   it was made for another device
        ├── RollbackError      it is older than what was already accepted, or below the release floor
        ├── ExpiredError       its validity has ended
        └── DigestError        the content is not what the signed metadata names
    TransitionError            our own bug: the lifecycle table has no such transition

Each class carries a stable `code`: it is what a receipt, an API problem and a test name.
"""


class ProtocolError(Exception):
    """A peer sent something that cannot be accepted."""

    code = "protocol"


class MalformedError(ProtocolError):
    """It does not parse, or a field has a value outside its domain."""

    code = "malformed"


class LimitExceededError(ProtocolError):
    """It is larger than the protocol allows."""

    code = "limit_exceeded"


class UnsupportedVersionError(ProtocolError):
    """It is written in a version of the protocol that we do not speak."""

    code = "unsupported_version"


class UnknownIdentifierError(ProtocolError):
    """A name that is not an identifier of its kind."""

    code = "bad_identifier"


class TrustError(ProtocolError):
    """It parses, but must not be believed."""

    code = "untrusted"


class SignatureError(TrustError):
    """It carries no valid signature of the key that must vouch for it."""

    code = "bad_signature"


class WrongDeviceError(TrustError):
    """It was made for another device."""

    code = "wrong_device"


class RollbackError(TrustError):
    """It is older than what was already accepted, or below the release floor."""

    code = "below_floor"


class ExpiredError(TrustError):
    """Its validity has ended."""

    code = "expired"


class DigestError(TrustError):
    """The content is not what the signed metadata names."""

    code = "digest_mismatch"


class TransitionError(Exception):
    """Our own bug: the lifecycle table has no such transition."""
