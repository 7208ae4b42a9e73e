"""Tests of how a release is named when the operator does not say."""

import pytest

from controller.bundling.errors import ModelSpecError
from controller.bundling.naming import Choice, choose_model, find_version, next_version
from controller.bundling.source import ModelSource, parse_source
from protocol.errors import UnknownIdentifierError
from protocol.identifiers import Version
from tests.controller.wat_models import wasm


def source(file_name: str = "a.wasm", **fields: object) -> ModelSource:
    return parse_source(file_name, wasm(**fields))  # type: ignore[arg-type] # fields of the spec


@pytest.mark.parametrize(
    ("file_name", "model", "version"),
    [
        ("digits.wasm", "digits", None),
        ("digits-1.1.0.wasm", "digits", "1.1.0"),
        ("digits-v2.0.0-rc.1.wasm", "digits", "2.0.0-rc.1"),
        ("Mobile Net V2.WASM", "mobile-net-v2", None),
        ("wake_word-12.wat", "wake_word-12", None),
    ],
)
def test_the_file_name_says_what_nobody_else_does(file_name: str, model: str, version: str | None) -> None:
    """Model and version come from the file's stem, as far as it has them."""
    found = find_version(source(file_name), None)
    assert Choice(value=model, origin="from the file name") == choose_model(source(file_name), None)
    assert version == (found.value if found else None)


def test_the_spec_says_more_than_the_file_name() -> None:
    """Name and version of the section are taken before those of the file."""
    named = source("other-9.9.9.wasm", name="digits", version="1.0.0")
    assert "digits (from fleet.model)" == str(choose_model(named, None))
    assert "1.0.0 (from fleet.model)" == str(find_version(named, None))


def test_the_operator_says_most() -> None:
    """Given names hold, and are shown without an origin."""
    named = source("other-9.9.9.wasm", name="digits", version="1.0.0")
    assert ("mine", "3.0.0") == (str(choose_model(named, "mine")), str(find_version(named, "3.0.0")))


def test_a_spec_with_a_name_alone_leaves_the_version_to_the_file() -> None:
    """Each of the two is looked for on its own."""
    assert "1.1.0 (from the file name)" == str(find_version(source("x-1.1.0.wasm", name="digits"), None))


@pytest.mark.parametrize("file_name", ["___.wasm", "all.wasm", "模型.wasm", "-1.0.0.wasm"])
def test_file_names_that_name_nothing_are_refused(file_name: str) -> None:
    """The hint says to give a name."""
    with pytest.raises(ModelSpecError, match="does not make a model name") as caught:
        choose_model(source(file_name), None)
    assert "--model" in caught.value.hint


@pytest.mark.parametrize("given", ["1.0", "latest", "1.0.0+build", ""])
def test_bad_versions_are_refused(given: str) -> None:
    """A version is a Semantic Version without build metadata."""
    with pytest.raises(UnknownIdentifierError, match=r"expected a version like 1.2.0"):
        find_version(source(), given)


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ([], "1.0.0 (the first)"),
        (["1.0.0"], "1.0.1 (next after 1.0.0)"),
        (["1.10.0", "1.9.0"], "1.10.1 (next after 1.10.0)"),
        (["2.0.0-rc.1"], "2.0.0 (next after 2.0.0-rc.1)"),
    ],
)
def test_the_next_version_follows_the_latest(existing: list[str], expected: str) -> None:
    """The latest by precedence counts, not the last made."""
    assert expected == str(next_version([Version.parse(text) for text in existing]))
