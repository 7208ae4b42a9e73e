"""The node tests of the ONNX project, every one that is eligible."""

from collections import Counter

import pytest

from tests.compiler.backend_cases import Outcome, Verdict, cases, run_case

SHARDS = 8
LEAST_PASSED = 1420
"""Of about 1,900 cases; the others need text, sequences, small floats or operators that are not implemented."""


def run_shard(number: int) -> list[Outcome]:
    """Run every so many of the cases."""
    return [run_case(case) for case in cases()[number::SHARDS]]


def table(outcomes: list[Outcome]) -> str:
    """Return the counts by operator."""
    counts = Counter((outcome.operator, outcome.verdict) for outcome in outcomes)
    lines = [f"{'operator':32} passed  not eligible  failed"]
    for operator in sorted({outcome.operator for outcome in outcomes}):
        passed, left, failed = (counts[operator, verdict] for verdict in Verdict)
        lines.append(f"{operator:32} {passed:6} {left:13} {failed:7}")
    lines.append("why the others are left out:")
    lines += [f"{o.operator:32} {o.name}: {o.reason}" for o in outcomes if o.verdict is Verdict.NOT_ELIGIBLE]
    return "\n".join(lines)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_eligible_cases_pass(shard: int) -> None:
    """Whatever the compiler accepts gives the answer that ONNX expects."""
    outcomes = run_shard(shard)
    print(table(outcomes))  # noqa: T201 - for whoever runs it with -s
    assert [] == [outcome for outcome in outcomes if outcome.verdict is Verdict.FAILED]
    assert sum(outcome.verdict is Verdict.PASSED for outcome in outcomes) >= 0.9 * LEAST_PASSED / SHARDS
