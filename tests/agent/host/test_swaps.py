"""The resident models: which release answers, through swaps, commits and roll-backs."""

import pytest

from agent.host import CommitError, ModelHost, NoPreviousReleaseError, UnknownModelError
from agent.runtime.errors import (
    ModelClosedError,
)
from tests.agent.host.conftest import SCALE, ask, number, release


def test_nothing_active_is_said_with_what_is(host: ModelHost) -> None:
    """A caller who mistyped the name sees the right one."""
    with pytest.raises(UnknownModelError, match="active models: none"):
        ask(host)
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    with pytest.raises(UnknownModelError, match="'digit' is active here; active models: digits"):
        ask(host, name="digit")


def test_active_release_answers(host: ModelHost) -> None:
    """The answer carries the release that gave it."""
    manifest, model = release("1.0.0", SCALE.format(3))
    assert host.activate(manifest, model, is_committed=True) >= 1
    result = host.infer("digits", [number(2)])
    assert ("1.0.0", [number(6)], manifest) == (result.version, result.outputs, result.manifest)
    assert result.latency_us >= 0
    assert {"digits": manifest} == host.manifests()


def test_swap_keeps_the_previous_release_loaded(host: ModelHost) -> None:
    """After a swap the new release answers, and the old one is one step away."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", SCALE.format(2)), is_committed=False)
    assert ("1.1.0", 2) == ask(host)
    assert "1.0.0" == host.rollback("digits")
    assert ("1.0.0", 1) == ask(host)


def test_release_before_the_previous_is_unloaded(host: ModelHost) -> None:
    """Two releases of a model are resident, not more."""
    releases = [release(f"1.{n}.0", SCALE.format(n)) for n in range(3)]
    for one in releases:
        host.activate(*one, is_committed=True)
    with pytest.raises(ModelClosedError):
        releases[0][1].infer([number(1)])
    assert [number(1)] == releases[1][1].infer([number(1)])


def test_uncommitted_release_never_stands_behind_another(host: ModelHost) -> None:
    """What is kept to fall back to has been trusted once."""
    doubtful = release("1.1.0", SCALE.format(2))
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*doubtful, is_committed=False)
    host.activate(*release("1.2.0", SCALE.format(3)), is_committed=False)
    assert "1.0.0" == host.rollback("digits")
    with pytest.raises(ModelClosedError):
        doubtful[1].infer([number(1)])


def test_rollback_of_a_committed_release_can_be_undone(host: ModelHost) -> None:
    """Both releases were trusted: going back and forth loads nothing."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("1.1.0", SCALE.format(2)), is_committed=False)
    host.commit("digits", "1.1.0")
    assert "1.0.0" == host.rollback("digits")
    assert "1.1.0" == host.rollback("digits")
    assert ("1.1.0", 2) == ask(host)


def test_rollback_needs_a_previous_release(host: ModelHost) -> None:
    """Without one the active release stays."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=False)
    with pytest.raises(NoPreviousReleaseError, match=r"before 1\.0\.0"):
        host.rollback("digits")
    assert ("1.0.0", 1) == ask(host)


def test_unknown_model_can_neither_be_committed_nor_rolled_back(host: ModelHost) -> None:
    """The caller learns that there is nothing to act on."""
    with pytest.raises(UnknownModelError):
        host.commit("digits", "1.0.0")
    with pytest.raises(UnknownModelError):
        host.rollback("digits")


def test_release_that_is_not_active_is_not_committed(host: ModelHost) -> None:
    """Whoever trusts one release does not trust another that took its place."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=False)
    with pytest.raises(CommitError, match=r"expected 1\.1\.0 to answer, got 1\.0\.0"):
        host.commit("digits", "1.1.0")
    host.activate(*release("1.2.0", SCALE.format(2)), is_committed=False)
    with pytest.raises(NoPreviousReleaseError):
        host.rollback("digits")


def test_removed_model_is_unloaded(host: ModelHost) -> None:
    """Removing drops both releases; removing again does nothing."""
    old, new = release("1.0.0", SCALE.format(1)), release("1.1.0", SCALE.format(2))
    host.activate(*old, is_committed=True)
    host.activate(*new, is_committed=True)
    host.remove("digits")
    host.remove("digits")
    assert {} == host.manifests()
    for _, model in (old, new):
        with pytest.raises(ModelClosedError):
            model.infer([number(1)])


def test_models_are_independent(host: ModelHost) -> None:
    """A swap of one model leaves the others alone."""
    host.activate(*release("1.0.0", SCALE.format(1)), is_committed=True)
    host.activate(*release("2.0.0", SCALE.format(5), name="words"), is_committed=True)
    host.remove("digits")
    assert ("2.0.0", 5) == ask(host, name="words")
