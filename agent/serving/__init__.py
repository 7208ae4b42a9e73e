"""The local API: the Open Inference Protocol over HTTP, for programs on this device.

One way through it: a listener accepts, a connection parses HTTP, the routes answer, the gate lets one caller after
another to each model. Everything that a caller can make the agent hold is bounded: connections, heads, bodies, time.
"""

from typing import Final

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""The header that says where the JSON of a body ends and binary tensors begin."""
