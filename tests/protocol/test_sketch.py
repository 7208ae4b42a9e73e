"""The latency sketch: its promised accuracy, merging in any order, and hostile data."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import encode
from protocol.errors import MalformedError
from protocol.sketch import MAX_BUCKET, MAX_US, RELATIVE_ERROR, LatencySketch, SketchData

durations = st.lists(st.integers(1, MAX_US) | st.integers(1, 2_000), min_size=1, max_size=200)


def sketch_of(values: list[int]) -> LatencySketch:
    """Return a sketch that counted `values`."""
    sketch = LatencySketch()
    for value in values:
        sketch.record(value)
    return sketch


@pytest.mark.property
@given(durations, st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_quantiles_are_within_one_percent(values: list[int], fraction: float) -> None:
    """The estimate lies within 1 % of the recorded value of that rank."""
    exact = sorted(values)[int(fraction * (len(values) - 1))]
    estimate = sketch_of(values).quantile_us(fraction)
    assert estimate is not None
    assert abs(estimate - exact) <= RELATIVE_ERROR * exact * (1 + 1e-9)


@pytest.mark.property
@given(durations, durations, durations)
def test_merging_is_associative_and_commutative(a: list[int], b: list[int], c: list[int]) -> None:
    """However the parts are grouped and ordered, the merged sketch equals that of all values at once."""
    whole = sketch_of([*a, *b, *c]).data()
    left = merged(merged(sketch_of(a), sketch_of(b)), sketch_of(c))
    right = merged(sketch_of(c), merged(sketch_of(b), sketch_of(a)))
    assert whole == left.data() == right.data()


def merged(a: LatencySketch, b: LatencySketch) -> LatencySketch:
    """Return a new sketch of both."""
    both = LatencySketch()
    both.merge(a.data())
    both.merge(b.data())
    return both


@pytest.mark.property
@given(durations)
def test_the_wire_keeps_everything(values: list[int]) -> None:
    """A sketch that travelled answers as the one it was made of."""
    sent = sketch_of(values)
    got = LatencySketch()
    got.merge(msgspec.json.decode(encode(sent.data()), type=SketchData))
    assert sent.data() == got.data()
    assert sent.quantile_us(0.5) == got.quantile_us(0.5)


def test_totals() -> None:
    """Count, sum and maximum are exact; what is out of range counts as the nearest duration in range."""
    sketch = sketch_of([0, -5, 10, MAX_US + 7])
    assert (4, 1 + 1 + 10 + MAX_US, MAX_US) == (sketch.count, sketch.sum_us, sketch.max_us)
    assert MAX_BUCKET == sketch.data().buckets[-1][0]


def test_an_empty_sketch() -> None:
    """Nothing counted has no quantile, and travels too."""
    assert LatencySketch().quantile_us(0.5) is None
    assert SketchData(count=0, sum_us=0, max_us=0, buckets=()) == LatencySketch().data()


def test_it_stays_small() -> None:
    """Whatever is recorded, a sketch has at most about a thousand buckets."""
    assert MAX_BUCKET < 1_200
    assert len(encode(sketch_of([round(1.02**n) for n in range(1_100)]).data())) < 16_384


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 3}, {"count": -1}, {"sum_us": -1}, {"sum_us": 1 << 53}, {"max_us": -1}, {"max_us": MAX_US + 1},
        {"buckets": [[1, 1], [1, 1]]}, {"buckets": [[2, 1], [1, 1]]}, {"buckets": [[-1, 2]]}, {"buckets": [[1, 2.0]]},
        {"buckets": [[MAX_BUCKET + 1, 2]]}, {"buckets": [[1, 0], [2, 2]]}, {"buckets": [[1, 3], [2, -1]]},
        {"buckets": [[1]]}, {"buckets": [[1, 2, 3]]}, {"buckets": None},
    ],
)  # fmt: skip
def test_hostile_sketches(changes: dict[str, object]) -> None:
    """Counts that do not add up, buckets out of order or range, and negative numbers are malformed."""
    raw = encode({"count": 2, "sum_us": 10, "max_us": 9, "buckets": [[1, 1], [2, 1]], **changes})
    with pytest.raises((MalformedError, msgspec.ValidationError)):
        msgspec.json.decode(raw, type=SketchData)
