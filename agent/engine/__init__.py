"""The device's decisions, pure: `step(state, event, now) -> (state, actions)`.

Owns the life of every deployment on a device, as `protocol.lifecycle.DEPLOYMENT` allows it. Knows nothing of files,
brokers or wasm: a real device and a simulated one differ only in who carries out the actions.
"""

from agent.engine import actions, events
from agent.engine.state import Deployment, Ended, Goal, Installed, Model, State, references, slots, troubles
from agent.engine.step import next_deadline_ms, step

__all__ = [
    "Deployment",
    "Ended",
    "Goal",
    "Installed",
    "Model",
    "State",
    "actions",
    "events",
    "next_deadline_ms",
    "references",
    "slots",
    "step",
    "troubles",
]
