"""A tombstone keeps out what a batch brings, also one that was under way when it was put up."""

import threading
import time

from sqlalchemy import func, select

from infra.database.forgotten import CLIENT, INTERACTION, bury, tombstone
from infra.database.records import parse
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import Forgotten, Interaction, now
from tests.tasks.test_curate import record


def test_a_batch_under_way_is_committed_before_the_tombstone_stands(database: str) -> None:
    """Else its rows would be committed behind the back of whoever looks for rows to delete after it."""
    seen: list[int] = []

    def erase() -> None:
        with session() as db:
            bury(db, [tombstone(INTERACTION, "r1")])
        with session(write=False) as db:
            seen.append(db.scalar(select(func.count()).select_from(Interaction)) or 0)

    with session() as db:
        assert store(db, [parse(record(1), source="jsonl", at=now())]) == ["stored"]
        other = threading.Thread(target=erase)
        other.start()
        time.sleep(0.5)
        assert not seen
    other.join(30)
    assert seen == [1]


def test_a_tombstone_that_is_put_up_again_has_its_new_time(database: str) -> None:
    mark = tombstone(CLIENT, "alice")
    times = []
    for _ in range(2):
        with session() as db:
            bury(db, [mark])
        with session(write=False) as db:
            times.append(db.scalars(select(Forgotten.created)).one())
    assert times[0] < times[1]
