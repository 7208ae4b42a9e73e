"""`fleetctl query`: dashboard queries by name, and SQL over the documented views."""

import csv
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from controller.api import schema
from controller.cli import options
from controller.cli.grids import result_grid
from controller.cli.screen import Screen, warn
from controller.cli.session import session_of
from controller.client import FleetClient
from controller.errors import NotFoundError


class Format(StrEnum):
    """How rows are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def query(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A named query; --list shows them.")] = None,
    *,
    sql: Annotated[str | None, typer.Option("--sql", metavar="SQL", help="Your own SELECT over the views.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the query.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How rows are written.")] = Format.TABLE,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many rows.")] = 1_000,
    is_list: Annotated[bool, typer.Option("--list", help="List the named queries.")] = False,
    is_shown: Annotated[bool, typer.Option("--show-sql", help="Print the SQL of a named query; run nothing.")] = False,
    is_json: options.Json = False,
) -> None:
    """Ask the database, by name or by SQL.

    A named query is one of --list. SQL may read the documented views, and change nothing.
    """
    screen = Screen(is_json=is_json or form is Format.JSON)
    if name is not None and sql is not None:
        raise typer.BadParameter("expected a NAME or --sql, got both")
    with session_of(ctx).client() as client:
        if is_shown:
            _show_sql(screen, _named(client, name))
        elif is_list or (name is None and sql is None):
            _list(screen, client.queries())
        else:
            request = schema.QueryRequest(name=name, sql=sql, parameters=_parameters(parameters or []), limit=limit)
            _write(screen, client.query(request), form)


def _parameters(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise typer.BadParameter(f"expected NAME=VALUE, got {key!r}", param_hint="--param")
    return {key: value for key, _, value in pairs}


def _named(client: FleetClient, name: str | None) -> schema.NamedQuery:
    if name is None:
        raise typer.BadParameter("expected the NAME of a query", param_hint="--show-sql")
    queries = {named.name: named for named in client.queries()}
    if name not in queries:
        raise NotFoundError(f"no query is named {name!r}", hint=f"the queries are {', '.join(sorted(queries))}")
    return queries[name]


def _show_sql(screen: Screen, named: schema.NamedQuery) -> None:
    screen.document(named)
    screen.verbatim(named.sql)


def _list(screen: Screen, queries: list[schema.NamedQuery]) -> None:
    screen.document(queries)
    rows = ((q.name, ", ".join(_parameter(q, name) for name in q.parameters) or "-", q.about) for q in queries)
    screen.table(("query", "parameters", "what it shows"), rows)


def _parameter(named: schema.NamedQuery, name: str) -> str:
    return name if name in named.required else f"[{name}]"


def _write(screen: Screen, result: schema.QueryResult, form: Format) -> None:
    screen.document(result)
    if result.is_cut:
        warn(f"only the first {len(result.rows):,} rows; ask for more with --limit")
    if screen.is_json:
        return
    if form is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.columns)
        writer.writerows(result.rows)
        return
    if not result.rows:
        screen.say("no rows")
        return
    screen.say(result_grid(result.columns, result.rows, width=screen.out.width, now=datetime.now(UTC)))
