"""The error tree: every class has a code of its own, and the drawing of the tree is true."""

import inspect
import re

from protocol import errors
from protocol.admission import AdmissionError
from protocol.errors import ProtocolError

CODES = {
    "protocol", "malformed", "limit_exceeded", "unsupported_version", "bad_identifier", "untrusted", "bad_signature",
    "wrong_device", "below_floor", "expired", "digest_mismatch", "contract_exceeds_device",
}  # fmt: skip
"""What receipts and API problems of every version say: codes are added, never changed."""


def test_codes_are_stable() -> None:
    """Every class of the tree has a code, no two the same, and none has gone."""
    classes = [ProtocolError, AdmissionError, *_below(ProtocolError)]
    codes = [each.code for each in dict.fromkeys(classes)]
    assert CODES == set(codes)
    assert len(codes) == len(set(codes))


def test_the_drawing_is_true() -> None:
    """The tree in the module's docstring has every class of the module, indented as it inherits."""
    lines = re.findall(r"^([ │├└─]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    drawn = {name: len(indent) // 4 for indent, name in lines}
    real = {
        name: len(inspect.getmro(each)) - len(inspect.getmro(Exception))
        for name, each in vars(errors).items()
        if inspect.isclass(each)
    }
    assert real == drawn


def _below(root: type[ProtocolError]) -> list[type[ProtocolError]]:
    found = [each for each in root.__subclasses__() if each.__module__.startswith("protocol.")]
    return found + [deeper for each in found for deeper in _below(each)]
