"""The daemon's loop, turn by turn, with its real store."""

from pathlib import Path

import msgspec

from agent.daemon import BUSY_TICK_MS, Daemon
from agent.engine import Goal, next_deadline_ms
from agent.engine.state import Deployment, Model
from tests.agent.signing import Signing


def test_deadline_on_a_full_disk_does_not_make_the_loop_spin(tmp_path: Path) -> None:
    """A soak that ends while nothing can be stored is asked about once, and the loop rests between its attempts."""
    Signing().enroll(tmp_path, "mqtt://127.0.0.1:1")  # nobody listens there
    daemon = Daemon(tmp_path)
    try:
        daemon._core.drain()
        goal = Goal(deployment_id="d1", version="1.0.0")
        soaking = Deployment(goal=goal, state="activated", since_ms=-(10**9), is_serving=True)
        daemon._core.state = msgspec.structs.replace(daemon._core.state, models={"m": Model(current=soaking)})
        assert (next_deadline_ms(daemon._core.state) or 0) < daemon._now_ms()
        daemon._store._db.execute("PRAGMA query_only = ON")  # like a disk without room: no step can be stored
        for _ in range(5):
            daemon._tick()
            assert BUSY_TICK_MS / 1000 == daemon._wait_s()
        assert daemon._core.is_stalled
        assert 1 == len(daemon._core._events)
    finally:
        daemon._store._db.execute("PRAGMA query_only = OFF")
        daemon._core._events.clear()
        daemon._close()
