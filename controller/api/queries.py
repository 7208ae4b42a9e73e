"""Routes: dashboard queries."""

from litestar import get, post
from litestar.params import JSONBody

from controller.api.office import OfficeDependency
from controller.api.schema import NamedQuery, QueryRequest, QueryResult


@get("/v1/queries", sync_to_thread=True)
def queries(office: OfficeDependency) -> list[NamedQuery]:
    """Return the named queries, each with its SQL."""
    return list(office.queries.named)


@post("/v1/query", status_code=200, sync_to_thread=True)
def query(data: JSONBody[QueryRequest], office: OfficeDependency) -> QueryResult:
    """Run a named query, or SQL over the documented views."""
    return office.queries.run(data)


HANDLERS = (queries, query)
