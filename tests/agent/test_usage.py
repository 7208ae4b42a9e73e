"""Counting what releases did."""

import threading

from agent.usage import MAX_USAGES, UsageMeter


def test_calls_errors_and_memory_are_counted_for_each_release() -> None:
    """Each release has counters of its own."""
    meter = UsageMeter()
    meter.record("digits", "1.0.0", 100, memory_bytes=70)
    meter.record("digits", "1.0.0", 300, memory_bytes=50)
    meter.record("digits", "1.1.0", 10)
    meter.record_error("digits", "1.1.0", "trap")
    meter.record_error("digits", "1.1.0", "trap")
    meter.record_error("digits", "1.1.0", "deadline_exceeded")
    meter.note_memory("digits", "1.1.0", 9)
    old, new = meter.take()
    assert ("digits", "1.0.0", 2, {}, 70) == (
        old.model,
        old.version,
        old.inferences,
        old.errors,
        old.memory_peak_bytes,
    )
    assert (2, 400, 300) == (old.latency.count, old.latency.sum_us, old.latency.max_us)
    assert ("1.1.0", 1, {"trap": 2, "deadline_exceeded": 1}, 9) == (
        new.version,
        new.inferences,
        new.errors,
        new.memory_peak_bytes,
    )


def test_taking_starts_anew() -> None:
    """What was taken is not counted a second time."""
    meter = UsageMeter()
    meter.record("digits", "1.0.0", 100)
    meter.take()
    assert () == meter.take()


def test_release_that_was_not_called_still_reports_its_memory() -> None:
    """A loaded model takes memory, called or not."""
    meter = UsageMeter()
    meter.note_memory("digits", "1.0.0", 65536)
    (usage,) = meter.take()
    assert (0, 65536) == (usage.inferences, usage.memory_peak_bytes)


def test_more_releases_than_fit_wait_for_the_next_report() -> None:
    """A report has a bound, and what it leaves out comes with the next."""
    meter = UsageMeter()
    for n in range(MAX_USAGES + 3):
        meter.record(f"m{n}", "1.0.0", 1)
    first, second = meter.take(), meter.take()
    assert (MAX_USAGES, 3) == (len(first), len(second))
    assert [f"m{n}" for n in range(MAX_USAGES + 3)] == [usage.model for usage in (*first, *second)]


def test_nothing_is_lost_or_counted_twice_between_threads() -> None:
    """Reports taken while calls are counted add up to the calls."""
    meter = UsageMeter()
    taken = []

    def count() -> None:
        for _ in range(5_000):
            meter.record("digits", "1.0.0", 7)
            meter.record_error("digits", "1.0.0", "trap")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken.extend(meter.take())
    taken.extend(meter.take())
    assert 20_000 == sum(usage.inferences for usage in taken)
    assert 20_000 == sum(usage.errors["trap"] for usage in taken if usage.errors)
    assert 140_000 == sum(usage.latency.sum_us for usage in taken)
