"""Bindings in a device's policy: what is refused before anything is subscribed, and what the owner reads then."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bindings import MAX_BINDINGS, MAX_TOPIC_BYTES, Binding, BindingStatus, check_bindings
from agent.errors import PolicyError
from agent.policy import Policy, load_policy
from agent.status import AgentStatus, as_table
from protocol.topics import Topics

FLEET = Topics("fleet")


def binding(subscribe: str = "plant/in", publish: str = "plant/out", model: str = "digits") -> Binding:
    return Binding(model=model, subscribe=subscribe, publish=publish)


def load(folder: Path, text: str) -> Policy:
    (folder / "policy.toml").write_text(text)
    return load_policy(folder, FLEET)


def test_policy_holds_bindings(tmp_path: Path) -> None:
    """Every table [[bindings]] is one; JSON is the format when none is named."""
    policy = load(
        tmp_path,
        """max_captures = 1
        [[bindings]]
        model = "digits"
        subscribe = "plant/line1/image"
        publish = "plant/line1/digit"
        [[bindings]]
        model = "noise"
        subscribe = "plant/line 2/Lärm"
        publish = "plant/line1/noise"
        format = "raw"
        """,
    )
    expected = (
        Binding(model="digits", subscribe="plant/line1/image", publish="plant/line1/digit", format="json"),
        Binding(model="noise", subscribe="plant/line 2/Lärm", publish="plant/line1/noise", format="raw"),
    )
    assert expected == policy.bindings


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('model = "m"\nsubscribe = "a"', "missing required field `publish`"),
        ('model = "m"\nsubscribe = "a"\npublish = "b"\nqos = 2', "unknown field `qos`"),
        ('model = "m"\nsubscribe = "a"\npublish = "b"\nformat = "xml"', "Invalid enum value 'xml'"),
        ('model = "m"\nsubscribe = 1\npublish = "b"', "Expected `str`, got `int`"),
        ('model = "M/../x"\nsubscribe = "a"\npublish = "b"', "binding 1: expected a model name"),
        ('model = "m"\nsubscribe = "a"\npublish = "fleet/v1/x"', "binding 1: publish: expected a topic outside"),
    ],
)
def test_policy_with_a_wrong_binding_names_the_file_and_the_fault(tmp_path: Path, text: str, reason: str) -> None:
    """A slip of the pen is found at the start, not by an answer that never comes."""
    with pytest.raises(PolicyError, match=reason) as refused:
        load(tmp_path, f"[[bindings]]\n{text}\n")
    assert str(refused.value).startswith(f"{tmp_path}/policy.toml: ")


def test_too_many_bindings_are_refused(tmp_path: Path) -> None:
    """Each binding has a queue and a thread, so that their number has a bound."""
    table = '[[bindings]]\nmodel = "m"\nsubscribe = "in/{0}"\npublish = "out/{0}"\n'
    assert MAX_BINDINGS == len(load(tmp_path, "".join(table.format(n) for n in range(MAX_BINDINGS))).bindings)
    with pytest.raises(PolicyError, match=f"length <= {MAX_BINDINGS}"):
        load(tmp_path, "".join(table.format(n) for n in range(MAX_BINDINGS + 1)))


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "expected a topic of 1 to 256 bytes"),
        ("é" * (MAX_TOPIC_BYTES // 2 + 1), "expected a topic of 1 to 256 bytes"),
        ("a\0b", "printable"),
        ("a\nb", "printable"),
        ("a\ud800b", "printable"),
        ("plant/+/image", "got the wildcard 'plant/[+]/image'"),
        ("plant/#", "got the wildcard"),
        ("$SYS/broker/load", "the broker's own"),
        ("$share/group/plant", "the broker's own"),
        ("fleet", "outside of fleet/"),
        ("fleet/v1/dev/pump-1/down/director", "outside of fleet/"),
        ("fleet/v2/anything", "outside of fleet/"),
    ],
)
@pytest.mark.parametrize("field", ["subscribe", "publish"])
def test_topics_that_cannot_be_bound(field: str, topic: str, reason: str) -> None:
    """Neither end of a binding may be a wildcard, a topic of the broker or of the fleet, or no topic at all."""
    with pytest.raises(PolicyError, match=f"binding 2: {field}: .*{reason}"):
        check_bindings((binding("x", "y"), binding(**{field: topic})), FLEET)


def test_topics_beside_those_of_the_fleet_are_free() -> None:
    """Only the fleet's own branch is closed, whatever it is called."""
    check_bindings((binding("fleets/in", "fleetout"), binding("plant/v1/x", "Fleet/v1")), FLEET)
    with pytest.raises(PolicyError, match="outside of plant/a/"):
        check_bindings((binding("plant/a/in", "out"),), Topics("plant/a"))


@pytest.mark.parametrize(
    ("bindings", "way"),
    [
        ([("a", "a")], "a -> a"),
        ([("a", "b"), ("b", "a")], "(a -> b -> a|b -> a -> b)"),
        ([("x", "a"), ("a", "b"), ("b", "c"), ("c", "a"), ("c", "y")], ".* -> .* -> .* -> .*"),
    ],
)
def test_answers_that_come_back_as_questions_are_refused(bindings: list[tuple[str, str]], way: str) -> None:
    """A loop of any length would never end; the message names it."""
    with pytest.raises(PolicyError, match=f"go round for ever: {way}$"):
        check_bindings([binding(*each) for each in bindings], FLEET)


def test_answers_may_be_the_questions_of_another_model() -> None:
    """A chain ends; two models may answer one topic, and two may answer on one."""
    check_bindings([binding("a", "b"), binding("b", "c"), binding("a", "c"), binding("a", "b", "noise")], FLEET)


def test_the_same_binding_twice_is_refused() -> None:
    """It would answer everything twice."""
    with pytest.raises(PolicyError, match="binding 2: expected every binding once"):
        check_bindings([binding(), binding()], FLEET)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8, unique=True))
def test_what_is_accepted_comes_to_an_end(edges: list[tuple[int, int]]) -> None:
    """Exactly those bindings are refused from some topic of which one can walk for ever."""
    topics = {topic for edge in edges for topic in edge}
    for _ in range(len(topics)):
        topics = {start for start, end in edges if start in topics and end in topics}
    try:
        check_bindings([binding(f"t/{start}", f"t/{end}") for start, end in edges], FLEET)
        is_accepted = True
    except PolicyError:
        is_accepted = False
    assert (not topics) == is_accepted


def test_status_shows_what_became_of_the_messages() -> None:
    """A line for each binding; what could not be sent is told when there is any."""
    counts = BindingStatus(model="digits", subscribe="in", publish="out", answered=3, failed=1, dropped=2)
    status = AgentStatus(
        device_id="pump-1",
        agent_version="1.0.0",
        session=1,
        broker="mqtt://broker",
        is_connected=True,
        link_problem=None,
        director_version=0,
        problems={},
        local_api=(),
        unsent_receipts=0,
        unsent_telemetry=0,
        ignored_acks={},
        models=(),
        bindings=(counts, BindingStatus(model="noise", subscribe="in", publish="out", unsent=4)),
    )
    lines = [line for line in as_table(status).splitlines() if line.startswith("binding")]
    assert [
        "binding     in -> digits -> out  3 answered, 1 failed, 2 dropped",
        "binding     in -> noise -> out  0 answered, 0 failed, 0 dropped, 4 unsent",
    ] == lines
