"""Tests of sizes, durations and times in words."""

from datetime import UTC, datetime

import pytest

from controller.cli import wording

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (102_400, "100 KiB"),
        (123_456, "121 KiB"),
        (1 << 20, "1 MiB"),
        (5 << 30, "5 GiB"),
        (5 << 40, "5120 GiB"),
    ],
)
def test_sizes_are_in_binary_units(count: int, expected: str) -> None:
    """A size has two or three digits and its unit."""
    assert expected == wording.size(count)


@pytest.mark.parametrize(
    ("us", "expected"),
    [(0.4, "0 µs"), (12.3, "12 µs"), (999, "999 µs"), (1_500, "1.5 ms"), (123_456, "123 ms"), (2_500_000, "2.5 s")],
)
def test_durations_have_a_fitting_unit(us: float, expected: str) -> None:
    """A duration is in microseconds, milliseconds or seconds."""
    assert expected == wording.duration_us(us)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (None, "never"),
        ("2026-03-01T11:59:58Z", "just now"),
        ("2026-03-01T12:00:30Z", "just now"),
        ("2026-03-01T11:59:30Z", "30 s ago"),
        ("2026-03-01T11:58:00.250Z", "1 min ago"),
        ("2026-03-01T09:00:00Z", "3 h ago"),
        ("2026-02-28T12:00:00Z", "1 day ago"),
        ("2026-02-01T12:00:00Z", "28 days ago"),
    ],
)
def test_the_past_is_an_age(at: str | None, expected: str) -> None:
    """A time is shown as how long ago it was; a clock that is a little off is no surprise."""
    assert expected == wording.ago(at, NOW)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-03-01T12:00:00Z", "over"),
        ("2026-03-01T12:00:20Z", "in 20 s"),
        ("2026-03-01T13:00:00Z", "in 1 h"),
        ("2026-03-03T12:00:00Z", "in 2 days"),
    ],
)
def test_the_future_is_a_span(at: str, expected: str) -> None:
    """What ends later says when."""
    assert expected == wording.until(at, NOW)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("swap_us", 12, "swap 12 µs"),
        ("self_test_ms", 1_500, "self test 1.5 s"),
        ("delta_bytes", 2_048, "delta 2 KiB"),
        ("boot_attempts", 2, "boot attempts 2"),
    ],
)
def test_measures_lose_their_unit_to_their_value(name: str, value: int, expected: str) -> None:
    """A measure's name ends in its unit; unknown units stay in the name."""
    assert expected == wording.measure(name, value)


def test_short_work_is_not_timed() -> None:
    """Less than a second is not worth a word."""
    assert ("", " after 5 s") == (
        wording.took("2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"),
        wording.took("2026-03-01T12:00:00Z", "2026-03-01T12:00:05Z"),
    )
