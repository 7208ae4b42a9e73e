"""What the handlers of both listeners need besides the request."""

from collections.abc import Callable
from typing import NamedTuple

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from controller.api.schema import Info
from controller.core import Core
from controller.queries.query import Queries
from controller.trust.authority import Authority


class Addresses(NamedTuple):
    """Where the service and its broker are really found."""

    enroll_url: str
    device_mqtt_url: str


class Office(NamedTuple):
    """The service, as its API sees it."""

    core: Core
    queries: Queries
    authority: Authority
    ca_pem: bytes
    topic_prefix: str
    addresses: Addresses
    describe: Callable[[], Info]


OfficeDependency = NamedDependency[SkipValidation[Office]]
"""The parameter `office` of a handler."""
