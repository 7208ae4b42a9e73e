"""What the device's owner allows models to take: `policy.toml` in the state folder, or the defaults below.

max_model_memory_bytes = 134217728   # of one instance
max_stack_kib          = 1024
max_deadline_ms        = 10000       # of one inference
disk_quota_bytes       = 1073741824  # of all model files together
isolation              = "thread"    # or "process": each model in a process of its own
mqtt_protocol          = "auto"      # or "5", or "3.1.1"
max_captures           = 0           # inputs on which a model went wrong that are kept, to replay them
max_captures_bytes     = 16777216    # of all of them together
http_address           = ""          # of the local API besides the Unix socket, as in "127.0.0.1:8000"
max_queue              = 32          # callers that wait for one model; the next one is refused
nan_outputs            = "allow"     # or "flag": say and count when NaN stands in an answer

[[bindings]]                         # none by default, as many as `agent.bindings` allows
model     = "digits"
subscribe = "plant/line1/image"
publish   = "plant/line1/digit"
format    = "json"                   # or "raw"
"""

import os
import platform
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from agent.bindings import Bindings, check_bindings
from agent.errors import AgentError, PolicyError
from agent.runtime import engine_features, runtime_name
from agent.serving.gate import LONGEST_QUEUE, MAX_WAITING
from agent.serving.listeners import parse_address
from protocol import limits
from protocol.admission import Capacity
from protocol.topics import Topics

FILE_NAME = "policy.toml"
MAX_FILE_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 4_096
"""The time of the parser grows with the square of a key's parts: seconds for a line of 40 KB."""
_Positive = Annotated[int, msgspec.Meta(gt=0, le=limits.MAX_INTEGER)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upper bounds for any model on this device."""

    max_model_memory_bytes: _Positive = limits.DEFAULT_MEMORY_CAP_BYTES
    max_stack_kib: _Positive = max(limits.STACK_CLASSES_KIB)
    max_deadline_ms: _Positive = 10_000
    disk_quota_bytes: _Positive = 1024 * limits.MIB
    isolation: Literal["thread", "process"] = "thread"
    mqtt_protocol: Literal["auto", "5", "3.1.1"] = "auto"
    max_captures: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0
    """How many inputs on which a model went wrong are kept for `fleet-agent replay`."""
    max_captures_bytes: _Positive = 16 * limits.MIB
    http_address: str = ""
    """A loopback address and port for the local API, besides the Unix socket; empty for none."""
    max_queue: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_QUEUE)] = MAX_WAITING
    """How many callers wait for their turn at one model. With 0 nobody does: a model that is busy refuses."""
    nan_outputs: Literal["allow", "flag"] = "allow"
    """Whether a caller and the telemetry are told when NaN stands in an answer, which is given all the same."""
    bindings: Bindings = ()
    """Models that answer what is published on topics of the broker."""


AT_ONCE: Final = frozenset(
    {
        "max_captures",
        "max_captures_bytes",
        "max_model_memory_bytes",
        "disk_quota_bytes",
        "max_queue",
        "nan_outputs",
        "bindings",
    }
)
"""What a running agent follows when it reads the policy again; the rest waits for its next start."""


def load_policy(state_dir: Path, topics: Topics) -> Policy:
    """Return the policy of this device, in a fleet that has `topics`.

    Raises PolicyError when the file is there but not valid.
    """
    path = state_dir / FILE_NAME
    try:
        policy = msgspec.convert(tomllib.loads(_read(path)), Policy)
        check_bindings(policy.bindings, topics)
        if policy.http_address:
            parse_address(policy.http_address)
    except FileNotFoundError:
        return Policy()
    # The parser has bare ones, as for nesting that is too deep.
    except (ValueError, RecursionError, OSError, AgentError) as error:
        raise PolicyError(f"{path}: {error}. Correct it, or delete it to have the defaults") from error
    return policy


def _read(path: Path) -> str:
    """Return the text of the file; raises PolicyError where it, or a line of it, is too long to be a policy."""
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise PolicyError(f"expected a file of at most {MAX_FILE_BYTES:,} bytes, got more")
    for number, line in enumerate(raw.split(b"\n"), 1):
        if len(line) > MAX_LINE_BYTES:
            raise PolicyError(f"line {number}: expected at most {MAX_LINE_BYTES:,} bytes, got {len(line):,}")
    return raw.decode()


def followed(running: Policy, read: Policy) -> Policy:
    """Return what an agent that started under one policy follows of another one that it reads while it runs."""
    return msgspec.structs.replace(running, **{name: getattr(read, name) for name in AT_ONCE})


def waiting(running: Policy, read: Policy) -> list[str]:
    """Return the names of the fields of `read` that wait for the next start."""
    return sorted(n for n in Policy.__struct_fields__ if n not in AT_ONCE and getattr(running, n) != getattr(read, n))


def capacity_of(policy: Policy) -> Capacity:
    """Return what this device offers to models."""
    return Capacity(
        arch=platform.machine(),
        cpus=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        features=engine_features(),
        runtime=runtime_name(),
        max_model_memory_bytes=policy.max_model_memory_bytes,
        max_stack_kib=policy.max_stack_kib,
        max_deadline_ms=policy.max_deadline_ms,
        disk_quota_bytes=policy.disk_quota_bytes,
    )
