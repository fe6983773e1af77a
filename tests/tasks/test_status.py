"""What `status` says of a home: nothing, what serves, and what a person should know."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from infra.database.session import session
from infra.database.tables import Dataset, Interaction, Promotion, Quarantine, Rollout, RolloutDecision, now
from infra.gateway.journal import Journal
from tasks.status import alerts, status


def promotion(number: int, **given: object) -> Promotion:
    said = {"version": str(number), "by": "release", "noticed": "flow", "reason": "passed", "at": now(), **given}
    return Promotion(workload="shop", number=number, **said)


def moving(**given: object) -> Rollout:
    return Rollout(workload="shop", step_began=now(), tally={}, **given)


def row(n: int) -> dict[str, object]:
    return {
        "source": "t", "external_id": str(n), "workload": "shop", "conversation": "c", "at": now(), "request": {},
        "response": {}, "digest": "", "created": now(),
    }  # fmt: skip


def names(workload: str | None = "shop") -> list[str]:
    return [alert["name"] for alert in alerts(workload)]


def test_an_empty_home_stays_empty(home: Path) -> None:
    found = status()
    assert found["workloads"] == [] and found["alerts"] == [] and not home.exists()
    assert found["schedule"]["said"] == "no schedule: `flywheel up`" and found["gateway"]["up"] is False


def test_who_serves_and_what_is_under_way(database: str) -> None:
    with session() as db:
        db.execute(insert(Interaction), [row(n) for n in range(3)])
        db.add(promotion(1, at=now() - timedelta(hours=2)))
        steps = {"steps": [{"weight": 0}, {"weight": 0.05}]}
        db.add(moving(version="2", reference="1", step=1, status="running", spec=steps))
    (shop,) = status()["workloads"]
    assert (shop["interactions"], shop["champion"]["version"], shop["champion"]["age_seconds"] // 3600) == (3, "1", 2)
    assert (shop["rollout"]["version"], shop["rollout"]["step"], shop["rollout"]["weight"]) == ("2", 2, 0.05)
    assert names() == [] and names(None) == []


def test_each_alert_is_raised_by_what_it_is_about_and_by_nothing_else(database: str) -> None:
    with session() as db:
        db.execute(insert(Interaction), [row(n) for n in range(3)])
        db.add(promotion(1, at=now() - timedelta(days=40)))
    assert names() == ["stale"]
    with session() as db:
        db.add(promotion(2, by="rollback", replaced="1", reason="asked for"))
    assert names() == ["rollback", "hand"], "back to one that no verdict let serve"
    assert "because a rollback gave it its place back" in alerts("shop")[1]["said"]
    with session() as db:
        db.add(promotion(3, by="hand", at=now() + timedelta(seconds=1)))
    assert names() == ["hand"]
    with session() as db:
        undone = moving(version="4", reference="3", step=0, status="rolled back", spec={"steps": []}, ended=now())
        db.add(undone)
        db.flush()
        said = {"action": "rolled back", "reason": "breach: errors", "evidence": {}}
        db.add(RolloutDecision(rollout_id=undone.id, at=now(), step=0, **said))
    assert names() == ["rollout", "hand"] and "breach: errors" in alerts("shop")[0]["said"]
    with session() as db:
        db.add(Dataset(id="d", workload="shop", path="", report={}, spec={}))
    assert "turn" not in names()
    with session() as db:
        db.execute(update(Dataset).values(created=now() - timedelta(days=1)))
    assert names()[-1] == "turn"


@pytest.mark.parametrize(("bad", "good", "told"), [(1, 0, True), (1, 150, False), (3, 150, True)])
def test_quarantine_is_told_where_it_is_more_than_a_few(bad: int, good: int, told: bool, database: str) -> None:
    with session() as db:
        db.execute(insert(Interaction), [row(n) for n in range(good)] or [row(0)])
        for n in range(bad):
            db.add(Quarantine(source="t", position=str(n), digest=str(n), raw=b"", reason="no JSON"))
    assert names(None) == (["quarantine"] if told else [])


def test_a_spool_that_waits_is_told(home: Path) -> None:
    Journal().append(b"{}")
    assert names(None) == ["spool"]
