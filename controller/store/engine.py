"""The database: opened once, one writer, as many readers as there are threads.

A write transaction takes the writer's lock first, so that SQLite never has to say "database is locked". WAL lets
readers go on meanwhile. `synchronous=FULL` makes a commit survive a power cut.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.orm import Session, sessionmaker

import controller
from controller.store.views import create_views, drop_views, has_views

BUSY_TIMEOUT_MS = 5_000


class Store:
    """The service's database."""

    def __init__(self, url: str) -> None:
        self._lock = threading.Lock()
        self.url = make_url(url)
        self.engine = _engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @property
    def path(self) -> Path | None:
        """Where the SQLite file is; None for another database."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.url.get_backend_name() == "sqlite"

    def migrate(self) -> None:
        """Bring the schema to the newest revision, and the views to those of this program.

        The views are no part of the revisions: they are dropped before, because a table that a view reads cannot
        always be changed, and made anew after. Interrupted anywhere, the next start does the rest.
        """
        with self._lock, self.engine.connect() as connection:
            config = alembic_config(connection)
            head = ScriptDirectory.from_config(config).get_current_head()
            is_new = MigrationContext.configure(connection).get_current_revision() == head
            if is_new and has_views(connection):
                return
            drop_views(connection)
            connection.commit()
            alembic.command.upgrade(config, "head")
            create_views(connection)
            connection.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with self._sessions() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """The only writing session; commits at the end, rolls back when anything is raised."""
        with self._lock, self._sessions(info={"is_writer": True}) as session, session.begin():
            if self.is_sqlite:
                session.connection(execution_options={"sqlite_begin": "IMMEDIATE"})
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def alembic_config(connection: Any) -> alembic.config.Config:
    """Return the configuration of the migrations, on an open connection."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(migrations_folder()))
    config.attributes["connection"] = connection
    return config


def migrations_folder() -> Path:
    """Return where the revisions are: inside the package when it is installed, beside it in a source tree."""
    package = Path(controller.__file__).parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def _engine(url: str) -> Engine:
    engine = create_engine(url, hide_parameters=True)  # an error's words go to the log, what devices said does not
    if engine.dialect.name != "sqlite":
        return engine

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver's own transactions start too late for a consistent read: SQLAlchemy begins them below.
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine
