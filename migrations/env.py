"""Runs the revisions on the connection that the service opened."""

from alembic import context

from controller.store import rollup_models  # noqa: F401 - its tables belong to the metadata
from controller.store.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
