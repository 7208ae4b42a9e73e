"""Sizes, durations and times in words for people. Documents for programs never pass through here."""

from datetime import datetime

_BINARY_UNITS = ("KiB", "MiB", "GiB")
_UNITS = ((86_400, "day"), (3_600, "h"), (60, "min"), (1, "s"))


def size(count_bytes: int) -> str:
    """Return a number of bytes in the largest binary unit that leaves at least 1."""
    if count_bytes < 1024:
        return f"{count_bytes} B"
    power = min(len(_BINARY_UNITS), (count_bytes.bit_length() - 1) // 10)
    value, unit = count_bytes / 1024**power, _BINARY_UNITS[power - 1]
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"


def duration_us(microseconds: float) -> str:
    """Return a short duration in the unit that fits it."""
    if microseconds < 1_000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1_000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def count(number: int, noun: str) -> str:
    """Return `1 device`, `2 devices`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ago(at: str | None, now: datetime) -> str:
    """Return how long before `now` the RFC 3339 time `at` was: `just now`, `2 min ago`, `never`."""
    if at is None:
        return "never"
    seconds = int((now - datetime.fromisoformat(at)).total_seconds())
    return "just now" if seconds < 5 else f"{_span(seconds)} ago"


def until(at: str, now: datetime) -> str:
    """Return how long after `now` the RFC 3339 time `at` comes: `in 1 h`, or `over`."""
    seconds = round((datetime.fromisoformat(at) - now).total_seconds())
    return "over" if seconds < 1 else f"in {_span(seconds)}"


def took(start: str, end: str) -> str:
    """Return ` after 5 s`, or nothing when it was less than a second."""
    seconds = int((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
    return f" after {_span(seconds)}" if seconds >= 1 else ""


def _span(seconds: int) -> str:
    unit_s, unit = next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])
    number = seconds // unit_s
    return f"{number} {unit}{'s' if unit == 'day' and number > 1 else ''}"


def state(name: str) -> str:
    """Return a state of the protocol as people read it: `rolled_back` is `rolled back`."""
    return name.replace("_", " ")


def measure(name: str, value: int) -> str:
    """Return a measure of a receipt, whose unit ends its name: `swap_us` 120 is `swap 120 µs`."""
    what, _, unit = name.rpartition("_")
    if unit == "us":
        return f"{state(what)} {duration_us(value)}"
    if unit == "ms":
        return f"{state(what)} {duration_us(value * 1_000)}"
    if unit == "bytes":
        return f"{state(what)} {size(value)}"
    return f"{state(name)} {value:,}"
