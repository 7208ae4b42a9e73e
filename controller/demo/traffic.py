"""Live inference against one device, the way any Open Inference Protocol client does it.

Counts what was answered, what was answered correctly, and what was not: *interrupted* while the device's process
was known to be dead, *lost* for every other reason.
"""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import msgspec

_PAUSE_S = 0.002
_RETRY_S = 0.05
_TIMEOUT_S = 10.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One live input and the class that it shows."""

    image: tuple[float, ...]
    label: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the requests so far."""

    answered: int = 0
    correct: int = 0
    interrupted: int = 0
    lost: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    """The releases that answered, in the order of their first answer."""


class Traffic:
    """A thread that asks one device to classify one sample after the other until it is closed."""

    def __init__(self, socket: Path, model: str, samples: Sequence[Sample], is_alive: Callable[[], bool]) -> None:
        self._url = f"http://device/v2/models/{model}/infer"
        self._socket = socket
        self._samples = samples
        self._is_alive = is_alive
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._counts = Counts()
        self._thread = threading.Thread(target=self._run, name=f"traffic {socket}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the request that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_TIMEOUT_S * 2)

    @property
    def counts(self) -> Counts:
        """What became of the requests so far."""
        with self._lock:
            return self._counts

    def _run(self) -> None:
        transport = httpx.HTTPTransport(uds=str(self._socket))
        with httpx.Client(transport=transport, timeout=_TIMEOUT_S) as client:
            for sample in itertools.cycle(self._samples):
                if self._stop.is_set():
                    return
                self._ask(client, sample)
                time.sleep(_PAUSE_S)

    def _ask(self, client: httpx.Client, sample: Sample) -> None:
        body = {
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, len(sample.image)], "data": sample.image}]
        }
        try:
            response = client.post(self._url, json=body)
        except httpx.TransportError as error:
            self._count_failure(f"{type(error).__name__}: {error}")
            return
        if response.status_code != httpx.codes.OK:
            self._count_failure(f"{response.status_code} {response.text[:200]}")
            return
        answer = response.json()
        scores = answer["outputs"][0]["data"]
        self._count_answer(answer["model_version"], is_correct=scores.index(max(scores)) == sample.label)

    def _count_answer(self, version: str, *, is_correct: bool) -> None:
        with self._lock:
            old = self._counts
            self._counts = msgspec.structs.replace(
                old,
                answered=old.answered + 1,
                correct=old.correct + is_correct,
                versions=old.versions if version in old.versions else (*old.versions, version),
            )

    def _count_failure(self, what: str) -> None:
        # A connection breaks a moment before the kernel reports the process as dead: look twice.
        is_dead = not self._is_alive()
        if not is_dead:
            time.sleep(_RETRY_S)
            is_dead = not self._is_alive()
        with self._lock:
            old = self._counts
            if is_dead:
                self._counts = msgspec.structs.replace(old, interrupted=old.interrupted + 1)
            else:
                self._counts = msgspec.structs.replace(old, lost=(*old.lost, what))
        time.sleep(_RETRY_S)
