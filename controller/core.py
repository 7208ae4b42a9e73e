"""What every part of the running service shares: state, keys, clock, randomness. It holds, it does not act."""

from collections.abc import Callable
from typing import NamedTuple

from securesystemslib.signer import CryptoSigner

from controller.changes import Changes
from controller.counters import Counters
from controller.store.engine import Store
from controller.store.files import FileStore
from controller.store.times import Clock, to_ms


class Trust(NamedTuple):
    """The keys that the service signs with, and the roots that it checks against."""

    snapshot: CryptoSigner
    timestamp: CryptoSigner
    director: CryptoSigner
    image_root: bytes
    director_root: bytes


class World(NamedTuple):
    """What differs between a test and a run."""

    now: Clock
    random_hex: Callable[[int], str]
    """Returns that many random bytes in hexadecimal."""


class Core:
    """The shared parts of one service."""

    def __init__(self, store: Store, files: FileStore, trust: Trust, *, world: World) -> None:
        self.store = store
        self.files = files
        self.trust = trust
        self.now = world.now
        self.random_hex = world.random_hex
        self.changes = Changes()
        self.counters = Counters()
        self.wake_publisher: Callable[[], None] = _nothing

    def now_ms(self) -> int:
        """Return now in Unix milliseconds."""
        return to_ms(self.now())


def _nothing() -> None:
    """Stand in until there is a publisher to wake."""
