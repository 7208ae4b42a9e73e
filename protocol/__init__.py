"""What the controller, the compiler and every device agree on.

Owns the topics, messages, manifest, tensor ABI, limits, lifecycle tables and the rules for signed documents.
Everything here is pure: bytes and values in, values out. Nothing here does I/O, reads a clock or logs.
`docs/PROTOCOL.md` describes the same things for people who write a device in another language.
"""

PROTOCOL_VERSION = 1
"""The version in every topic; a device names the versions it speaks in its birth message."""
