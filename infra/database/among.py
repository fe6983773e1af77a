"""A column and many values, sent as one value."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ColumnElement, any_, func, literal, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session

from infra.database.jsontext import to_column


def among(db: Session, column: Any, values: Sequence[Any]) -> ColumnElement[bool]:
    """Whether a column is one of many values, sent as one: a statement with a thousand would be parsed each time."""
    if db.get_bind().dialect.name == "sqlite":
        each = func.json_each(to_column(values)).table_valued("value")
        return cast(ColumnElement[bool], column.in_(select(each.c.value)))
    return cast(ColumnElement[bool], column == any_(literal(list(values), postgresql.ARRAY(column.type))))
