"""Where Alembic finds the database and the tables."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from infra.database.session import VERSION_TABLE, engine
from infra.database.tables import Base, UTCDateTime
from infra.settings import settings


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        # SQLite alters a table by copying it.
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=render,
    )
    with context.begin_transaction():
        context.run_migrations()


def render(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """A migration keeps the column types of its day: it must not import ours, which will change."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UTCDateTime) else False


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    with engine(settings().database_url).begin() as opened:
        migrate(opened)
