"""Does a release fit a device: every reason why not, and which variant is chosen."""

import msgspec
import pytest

from protocol.admission import AdmissionError, misfits, select_variant
from protocol.manifest import Contract, FileRef, Variant
from tests.protocol.fleet import capacity, manifest

GOOD = manifest()


@pytest.mark.parametrize(
    ("capacity_changes", "contract_changes", "phrase"),
    [
        ({"max_model_memory_bytes": 65_535}, {}, "needs 65,536 bytes of memory, the device allows 65,535"),
        ({"max_stack_kib": 256}, {"stack_kib": 1024}, "needs 1,024 KiB of stack, the device allows 256"),
        ({"max_deadline_ms": 10}, {}, "needs 1,000 ms of time per inference, the device allows 10"),
        ({"disk_quota_bytes": 3}, {}, "needs 4 bytes of disk, the device allows 3"),
        ({}, {"imports": ("env.log",)}, "imports env.log, which no device provides"),
    ],
)
def test_each_misfit(capacity_changes: dict, contract_changes: dict, phrase: str) -> None:
    """Each bound is exact, and the phrase has both numbers."""
    contract = msgspec.structs.replace(GOOD.variants[0].contract, **contract_changes)
    variant = msgspec.structs.replace(GOOD.variants[0], contract=contract)
    assert [phrase] == misfits(variant, capacity(**capacity_changes))


def test_a_missing_feature() -> None:
    """A variant that needs what the engine lacks does not fit."""
    variant = msgspec.structs.replace(GOOD.variants[0], requires=("simd128", "threads"))
    assert ["needs threads, which the device's engine lacks"] == misfits(variant, capacity())


def test_a_release_that_just_fits() -> None:
    """What equals the bound fits."""
    exact = capacity(max_model_memory_bytes=65_536, max_stack_kib=64, max_deadline_ms=1_000, disk_quota_bytes=4)
    assert [] == misfits(GOOD.variants[0], exact)
    assert GOOD.variants[0] == select_variant(GOOD, exact)


def test_the_first_variant_that_fits() -> None:
    """Variants are tried in the order of the manifest."""
    relaxed = Variant(file=FileRef.of(b"r"), contract=Contract(memory_bytes=65_536), requires=("relaxed_simd",))
    plain = Variant(file=FileRef.of(b"p"), contract=Contract(memory_bytes=65_536), requires=("simd128",))
    both = msgspec.structs.replace(GOOD, variants=(relaxed, plain))
    assert relaxed == select_variant(both, capacity())
    assert plain == select_variant(both, capacity(features=("simd128",)))


def test_no_variant_fits() -> None:
    """The error names the release and a reason for each variant."""
    big = Variant(file=FileRef.of(b"b"), contract=Contract(memory_bytes=1 << 31))
    odd = Variant(file=FileRef.of(b"o"), contract=Contract(memory_bytes=65_536), requires=("threads",))
    with pytest.raises(AdmissionError) as caught:
        select_variant(msgspec.structs.replace(GOOD, variants=(big, odd)), capacity())
    assert (
        "double 1.0.0 does not fit: variant 0: needs 2,147,483,648 bytes of memory, the device allows 134,217,728; "
        "variant 1: needs threads, which the device's engine lacks"
    ) == str(caught.value)
    assert "contract_exceeds_device" == caught.value.code
