"""What a link is made of, without a broker: addresses, patience, and who waits for which answer."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.delivery.broker_address import BrokerAddress
from controller.delivery.confirmations import Confirmations
from controller.delivery.link import backoff_s
from controller.errors import BrokerError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://fleet.example", BrokerAddress(scheme="mqtt", host="fleet.example", port=1883)),
        ("mqtts://fleet.example", BrokerAddress(scheme="mqtts", host="fleet.example", port=8883)),
        ("ws://fleet.example/mqtt", BrokerAddress(scheme="ws", host="fleet.example", port=80, path="/mqtt")),
        ("wss://fleet.example", BrokerAddress(scheme="wss", host="fleet.example", port=443)),
        ("mqtt://[::1]:1884", BrokerAddress(scheme="mqtt", host="::1", port=1884)),
        (
            "mqtt://press:p%40ss@10.0.0.7:1885",
            BrokerAddress(scheme="mqtt", host="10.0.0.7", port=1885, username="press", password="p@ss"),
        ),
    ],
)
def test_an_address_is_read_from_a_url(url, expected):
    """Each scheme has its usual port; user and password are decoded."""
    assert expected == BrokerAddress.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "fleet.example",
        "http://fleet.example",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://h:0",
        "mqtt://h:99999",
        "mqtt://[::1",
    ],
)
def test_what_is_no_address_is_refused(url):
    """The message shows what a URL looks like."""
    with pytest.raises(BrokerError, match=r"expected a broker URL like mqtt://host:1883"):
        BrokerAddress.parse(url)


@pytest.mark.parametrize("url", ["http://u:hunter2@h", "mqtt://u:hunter2@", "mqtt://u:hunter2@h:port"])
def test_a_password_is_never_repeated(url):
    """Neither an error nor the text of an address shows it."""
    with pytest.raises(BrokerError) as caught:
        BrokerAddress.parse(url)
    assert "hunter2" not in str(caught.value)
    address = BrokerAddress.parse("mqtts://u:hunter2@h")
    assert "mqtts://h:8883" == str(address)
    assert "hunter2" not in repr(address)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_patience_is_bounded(failures, share):
    """The wait never falls below an eighth of a second and never exceeds half a minute."""
    assert 0.125 <= backoff_s(failures, share) <= 30.0


def test_patience_doubles():
    """Each failure doubles the wait, half of which is random."""
    assert [0.25, 0.5, 1.0, 2.0] == [backoff_s(failures, 1.0) for failures in range(4)]
    assert [0.125, 30.0, 15.0] == [backoff_s(0, 0.0), backoff_s(9, 1.0), backoff_s(9, 0.0)]


@pytest.fixture
def stalls() -> list[str]:
    """What was said when the broker stalled."""
    return []


@pytest.fixture
def confirmations(stalls) -> Confirmations:
    """Confirmations of a connection that may have two outstanding and waits 50 ms."""
    return Confirmations(max_outstanding=2, timeout_s=0.05, on_stall=stalls.append)


def test_an_answer_may_come_before_it_is_expected(confirmations):
    """The broker can be quicker than the thread that sent."""
    confirmations.answer(7, "")
    confirmations.wait_for(confirmations.expect(7))
    confirmations.answer(8, "not authorized")
    with pytest.raises(BrokerError, match="the broker refuses: not authorized"):
        confirmations.wait_for(confirmations.expect(8))


def test_a_packet_id_is_used_again(confirmations):
    """An answer belongs to the packet that waits for it, not to an earlier one of the same number."""
    first = confirmations.expect(7)
    confirmations.answer(7, "")
    second = confirmations.expect(7)
    assert first.done()
    assert not second.done()
    confirmations.answer(7, "refused")
    with pytest.raises(BrokerError, match="refused"):
        confirmations.wait_for(second)


def test_the_end_of_a_connection_fails_all_who_wait(confirmations):
    """Those who wait, those who come later, and those who want to send are told the reason."""
    waiting = confirmations.expect(1)
    confirmations.end("the power went")
    for confirmation in (waiting, confirmations.expect(2)):
        with pytest.raises(BrokerError, match="lost before it confirmed: the power went"):
            confirmations.wait_for(confirmation)
    with pytest.raises(BrokerError, match="the power went"):
        confirmations.take_slot()


def test_only_so_many_are_outstanding(confirmations):
    """A third waits until one of two is done."""
    confirmations.take_slot()
    confirmations.take_slot()
    took = threading.Event()
    third = threading.Thread(target=lambda: (confirmations.take_slot(), took.set()))
    third.start()
    assert not took.wait(0.01)
    confirmations.free_slot()
    assert took.wait(10)
    third.join()


def test_a_broker_may_ask_for_fewer(stalls):
    """With its receive maximum of one, a second waits."""
    confirmations = Confirmations(max_outstanding=5, timeout_s=0.05, on_stall=lambda why: confirmations.end(why))  # noqa: PLW0108 - not yet bound
    confirmations.lower_limit(1)
    confirmations.take_slot()
    with pytest.raises(BrokerError, match="has confirmed nothing for 0 s"):
        confirmations.take_slot()


def test_a_silent_broker_is_given_up():
    """Who waits does not wait for ever: the connection is ended, and with it the wait."""
    confirmations = Confirmations(max_outstanding=2, timeout_s=0.05, on_stall=lambda why: confirmations.end(why))  # noqa: PLW0108 - not yet bound
    with pytest.raises(BrokerError, match="has confirmed nothing for 0 s"):
        confirmations.wait_for(confirmations.expect(1))


def test_a_busy_broker_is_not_given_up(confirmations, stalls):
    """As long as anything is confirmed, a wait may last longer than the timeout."""
    slow = confirmations.expect(1)
    done = threading.Event()

    def answer_others() -> None:
        for number in range(20):
            confirmations.expect(100 + number)
            confirmations.answer(100 + number, "")
            done.wait(0.01)
        confirmations.answer(1, "")

    started = time.monotonic()
    thread = threading.Thread(target=answer_others)
    thread.start()
    confirmations.wait_for(slow)
    thread.join()
    assert time.monotonic() - started >= 0.15
    assert [] == stalls
