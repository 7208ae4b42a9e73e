"""docs/QUERIES.md: every view with its columns, every named query with its SQL, made from the code.

python -m controller.queries.reference > docs/QUERIES.md
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from controller.api.schema import QueryRequest
from controller.queries.named import NAMED
from controller.queries.query import ALLOWED_FUNCTIONS, MAX_ROWS, TIME_LIMIT_S, Queries
from controller.store.engine import Store
from controller.store.views import VIEWS

_PREAMBLE = f"""\
# Questions to the database

`fleetctl query` answers named questions, and SQL of your own over the views below; so does `POST /v1/query`. This page
is made from the code by `python -m controller.queries.reference`.

- **Read-only.** The SQL is SQLite's `SELECT`, one statement, over these views alone: no table, no schema, no `PRAGMA`
  or `ATTACH`. It is stopped after {TIME_LIMIT_S:g} seconds and returns at most {MAX_ROWS:,} rows.
- **Names stay.** Views and columns are not renamed or removed; new ones are added.
- **Times** are RFC 3339 in UTC by the controller's clock, except where a view says that they are the device's.
- **Latencies** are sketches, one for each release, device and interval. `sketch_quantile(latency, 0.99)` is an
  aggregate: it adds up the sketches of all rows of a group and returns microseconds, within 1 %.
  `sketch_merge(latency)` returns the sum as one sketch, for several quantiles of the same rows;
  `sketch_count(latency)` is how many inferences one sketch holds.
- **What is old is summed up** by hours and days (`[retention]` of the server's config.toml). `usage_log`, `error_log`
  and `telemetry_log` have single intervals as long as these are kept; `usage_totals` and `error_totals` add up to the
  same from fewer rows.
- **Parameters** are `:name` in the SQL and `--param name=value` on the command line; one that a named query has and
  that is not given is null, which means any, but for those that it needs.
"""


def reference() -> str:
    """Return the whole page."""
    return "\n".join([_PREAMBLE, *_views(), *_named(), *_functions()])


def _views() -> Iterator[str]:
    yield "## Views\n"
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"sqlite:///{Path(folder) / 'empty.db'}")
        try:
            store.migrate()
            queries = Queries(store.path)
            for view in VIEWS:
                columns = queries.run(QueryRequest(sql=f"SELECT * FROM {view.name}")).columns  # noqa: S608 - our own names
                yield f"**`{view.name}`**: {view.about}.\n"
                yield ", ".join(f"`{column}`" for column in columns) + "\n"
        finally:
            store.close()


def _named() -> Iterator[str]:
    yield "## Named queries\n"
    for query in NAMED:
        names = [f"`{name}`{' (needed)' if name in query.required else ''}" for name in query.parameters]
        parameters = f" Parameters: {', '.join(names)}." if names else ""
        yield f"**`{query.name}`**: {query.about}.{parameters}\n\n```sql\n{query.sql}\n```\n"


def _functions() -> Iterator[str]:
    yield "## Functions\n"
    yield ", ".join(f"`{name}`" for name in sorted(ALLOWED_FUNCTIONS)) + "\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
