"""Does this release fit this device? One rule, applied before assignment and again on the device."""

import msgspec

from protocol.codec import Count
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, Variant


class AdmissionError(ProtocolError):
    """No variant of the release fits the device."""

    code = "contract_exceeds_device"


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a device can offer a model: its hardware, limited by its own policy."""

    arch: str
    cpus: Count
    memory_bytes: Count
    features: tuple[str, ...]
    """Engine features, such as `simd128` and `relaxed_simd`."""
    runtime: str
    max_model_memory_bytes: Count
    max_stack_kib: Count
    max_deadline_ms: Count
    disk_quota_bytes: Count
    cpu_features: tuple[str, ...] = ()


def select_variant(manifest: Manifest, capacity: Capacity) -> Variant:
    """Return the first variant that fits; raises AdmissionError with the reason for each that does not."""
    reasons = []
    for number, variant in enumerate(manifest.variants):
        problems = misfits(variant, capacity)
        if not problems:
            return variant
        prefix = f"variant {number}: " if len(manifest.variants) > 1 else ""
        reasons.append(prefix + ", ".join(problems))
    raise AdmissionError(f"{manifest.model} {manifest.version} does not fit: " + "; ".join(reasons))


def misfits(variant: Variant, capacity: Capacity) -> list[str]:
    """Return one phrase for each way in which `variant` asks more than `capacity` has."""
    contract = variant.contract
    problems = [f"needs {f}, which the device's engine lacks" for f in variant.requires if f not in capacity.features]
    for need, have, unit, what in (
        (contract.memory_bytes, capacity.max_model_memory_bytes, "bytes", "memory"),
        (contract.stack_kib, capacity.max_stack_kib, "KiB", "stack"),
        (contract.deadline_ms, capacity.max_deadline_ms, "ms", "time per inference"),
        (variant.file.size, capacity.disk_quota_bytes, "bytes", "disk"),
    ):
        if need > have:
            problems.append(f"needs {need:,} {unit} of {what}, the device allows {have:,}")
    problems.extend(f"imports {name}, which no device provides" for name in contract.imports)
    return problems
