"""Names and versions: what parses, what is refused, and how versions are ordered."""

import itertools
import operator
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UnknownIdentifierError
from protocol.identifiers import Version, parse_device_id, parse_digest, parse_group_name, parse_model_name

PARSERS = (parse_device_id, parse_model_name, parse_group_name)
NAME_CHARACTERS = string.ascii_lowercase + string.digits + "-_"

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True).filter(lambda name: name != "all")
_numeric = st.integers(0, 10**6).map(str)
_word = st.from_regex(r"[0-9]{0,3}[a-zA-Z-][0-9a-zA-Z-]{0,4}", fullmatch=True)
versions = st.builds(
    Version,
    major=st.integers(0, 999_999_999),
    minor=st.integers(0, 999),
    patch=st.integers(0, 999),
    prerelease=st.lists(_numeric | _word, max_size=4).map(tuple),
)


@pytest.mark.property
@given(names)
def test_every_name_of_the_grammar_parses(name: str) -> None:
    """A name of 1 to 63 allowed characters is returned unchanged by all parsers."""
    assert [name, name, name] == [parse(name) for parse in PARSERS]


@pytest.mark.property
@given(st.text(max_size=70))
def test_a_parsed_name_is_safe_everywhere(text: str) -> None:
    """Whatever parses has no character that means something to a broker, a file system or a URL."""
    try:
        name = parse_device_id(text)
    except UnknownIdentifierError:
        return
    assert set() == set(name) - set(NAME_CHARACTERS)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "text",
    ["", "a" * 64, "-a", "_a", "A", "a/b", "a+b", "#", "a b", "a.b", "..", "é", "a\n", "a\0", "\ud800", "all", "٣"],
)
def test_bad_names_are_refused(parse, text: str) -> None:
    """Empty, long, reserved and unsafe names raise, and the message names what was given."""
    with pytest.raises(UnknownIdentifierError) as caught:
        parse(text)
    assert repr(text)[:60] in str(caught.value)


def test_a_long_bad_name_is_cut_in_the_message() -> None:
    """A megabyte of rubbish does not become a megabyte of log."""
    with pytest.raises(UnknownIdentifierError) as caught:
        parse_model_name("x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_digests() -> None:
    """A digest is exactly 64 lower-case hexadecimal digits."""
    digest = "0123456789abcdef" * 4
    assert digest == parse_digest(digest)
    for bad in ("", digest[:-1], digest + "0", digest.upper(), "g" * 64, digest + "\n", "٣" * 64):
        with pytest.raises(UnknownIdentifierError):
            parse_digest(bad)


SPECIFICATION_CHAIN = (
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "2.0.0",
    "2.1.0",
    "2.1.1",
)
"""The examples of Semantic Versioning 2.0.0, section 11, in order."""


@pytest.mark.parametrize(("lower", "higher"), list(itertools.combinations(SPECIFICATION_CHAIN, 2)))
def test_the_chain_of_the_specification(lower: str, higher: str) -> None:
    """Every pair of the specification's examples compares as it says, with all six operators."""
    a, b = Version.parse(lower), Version.parse(higher)
    assert (True, True, False, False, False, True) == _comparisons(a, b)
    assert (False, False, True, True, False, True) == _comparisons(b, a)


def _comparisons(a: Version, b: Version) -> tuple[bool, ...]:
    operators = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)
    return tuple(compare(a, b) for compare in operators)


@pytest.mark.property
@given(versions, versions, versions)
def test_versions_are_totally_ordered(a: Version, b: Version, c: Version) -> None:
    """Exactly one of <, ==, > holds, the order is transitive, and equality agrees with the hash."""
    assert 1 == (a < b) + (a == b) + (a > b)
    assert (a <= b) == (not a > b)
    assert (a >= b) == (not a < b)
    low, middle, high = sorted((a, b, c))
    assert low <= middle <= high
    assert low <= high
    assert (hash(a) == hash(b)) or a != b


@pytest.mark.property
@given(versions)
def test_versions_round_trip(version: Version) -> None:
    """A version that fits its 64 characters is spelt and parsed back the same."""
    text = str(version)
    if len(text) <= 64:
        assert version == Version.parse(text)


@pytest.mark.property
@given(versions)
def test_the_next_patch_is_higher(version: Version) -> None:
    """The version that follows is higher, has no pre-release and is the final one of a pre-release."""
    following = version.next_patch()
    assert following > version
    assert () == following.prerelease


def test_next_patch() -> None:
    """1.2.3 leads to 1.2.4, and a candidate of 2.0.0 to 2.0.0 itself."""
    assert "1.2.4" == str(Version.parse("1.2.3").next_patch())
    assert "2.0.0" == str(Version.parse("2.0.0-rc.1").next_patch())


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1.2", "1.2.3.4", "01.2.3", "1.02.3", "1.2.03", "1.2.3-", "1.2.3-a..b", "1.2.3-01", "v1.2.3", "1.2.3 ",
        "1.2.3\n", "1.2.3+build", "-1.2.3", "1.2.x", "1.2.3-é", "1234567890.0.0", "1.0.0-" + "a" * 60, "٣.0.0", "x",
    ],
)  # fmt: skip
def test_bad_versions_are_refused(text: str) -> None:
    """Everything outside the grammar raises; build metadata too, because it has no order."""
    with pytest.raises(UnknownIdentifierError, match=r"expected a version like 1\.2\.0"):
        Version.parse(text)


def test_a_version_does_not_compare_with_text() -> None:
    """Comparing with anything else is an error, not an answer."""
    with pytest.raises(TypeError):
        _ = Version.parse("1.0.0") < "1.0.1"
