"""What `flywheel traffic` says is what is there, in both databases."""

from typing import Any

import pytest
from sqlalchemy import event

from infra.database.session import database as opened
from infra.database.session import session
from infra.database.store import move_cursor, quarantine
from infra.database.tables import Quarantine, now
from infra.settings import SetupError, settings
from tasks.traffic import traffic
from tests.tasks.test_curate import put, record, thumb

DAY = 24 * 60  # `record` takes minutes since Sunday 24 August 2025, 01:46 UTC


def call(n: int, day: int = 0, model: str = "teacher", tokens: int | None = 100, **more: Any) -> dict[str, Any]:
    made = record(n, at=day * DAY + n, **more)
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens, "completion_tokens": 10}}
    return {**made, "response": {**made["response"], "model": model, **usage}}


def test_each_workload_is_counted_by_day_model_token_and_feedback(database: str) -> None:
    put(
        *(call(n) for n in range(4)), *(call(n, 1, model="flywheel:w/1") for n in range(4, 6)), call(6, 1, tokens=None),
        *(call(n, 1, workload_id="v") for n in range(7, 9)),
        thumb(0), thumb(0, -1, id="again"), thumb(1, -1, target="inference", metric="helpful"),
        thumb(4, "x", "correction"), thumb(7, -1), thumb(99), thumb(5, -1, target="episode"),
    )  # fmt: skip
    found = traffic(prompt_price=1.0, completion_price=10.0)
    assert found["days"] == ["2025-08-24", "2025-08-25"] and found["waiting"] == 1
    w, v = found["workloads"]
    assert (w["workload"], w["interactions"], w["first"], w["last"]) == (
        "w", 7, "2025-08-24T01:46:40+00:00", "2025-08-25T01:52:40+00:00",
    )  # fmt: skip
    assert w["per_day"] == {"2025-08-24": 4, "2025-08-25": 3}
    assert [(m["model"], m["interactions"]) for m in w["models"]] == [("teacher", 5), ("flywheel:w/1", 2)]
    assert w["tokens"] == {"prompt": 600, "completion": 60, "prompt_known": 6, "completion_known": 6}
    assert w["cost"] == pytest.approx(4 * (100 * 1 + 10 * 10) / 1e6), "what a student of ours answered is not paid for"
    counts = {kind: said["interactions"] for kind, said in w["feedback"].items()}
    assert counts == {"any": 4, "thumb up": 1, "thumb down": 3, "correction": 1}
    assert w["down_per_day"] == {"2025-08-24": 2, "2025-08-25": 1} and v["feedback"]["any"]["share"] == 0.5


def test_only_the_latest_days_are_counted_and_the_totals_remain(database: str) -> None:
    put(*(call(n, day) for n, day in enumerate((0, 3, 3, 9))), call(9, 8, workload_id="v"))
    found = traffic(days=2)
    assert found["days"] == ["2025-09-01", "2025-09-02"]
    assert {row["workload"]: (row["interactions"], row["recent"]) for row in found["workloads"]} == {
        "v": (1, 1), "w": (4, 1),
    }  # fmt: skip
    assert traffic("w", days=2)["days"] == ["2025-08-27", "2025-09-02"]
    assert traffic(days=2)["workloads"][0]["cost"] is None, "no price is made up"


def test_the_sample_tells_latency_failures_and_near_duplicates(database: str) -> None:
    near = call(1)
    near["request"]["messages"][1]["content"] = call(0)["request"]["messages"][1]["content"].upper() + "!"
    cut = call(2)
    cut["response"]["choices"][0]["finish_reason"] = "length"
    put({**call(0), "latency_ms": 100}, {**near, "latency_ms": 300}, cut, {**call(3), "response": {"error": "busy"}})
    (row,) = traffic()["workloads"]
    assert row["sample"] == {
        "interactions": 4, "near_duplicates": 0.25, "errors": 0.25, "cut_off": 0.25, "latency_known": 2,
        "latency_mean_ms": 200, "latency_p95_ms": 300,
    }  # fmt: skip


def test_reasons_that_differ_in_numbers_and_names_are_one(database: str) -> None:
    def bad(n: int, reason: str) -> Quarantine:
        return Quarantine(source="jsonl", position=f"a.jsonl:{n}", digest=str(n), raw=b"{}", reason=reason)

    with session() as db:
        quarantine(db, [*(bad(n, f"message {n} has role 'x{n}', known are user") for n in range(3)), bad(9, "no JSON")])
        move_cursor(db, "jsonl:abc", {"path": "/logs/a.jsonl", "rows": 4, "quarantined": 4})
    found = traffic()
    assert found["quarantined"] == 4 and found["workloads"] == found["days"] == []
    assert found["quarantine"][0] == {
        "reason": "message … has role …, known are user", "source": "jsonl", "records": 3, "example": "a.jsonl:0",
    }  # fmt: skip
    (source,) = found["sources"]
    assert (source["place"], source["rows"], source["moved"][:10]) == ("/logs/a.jsonl", 4, now().date().isoformat())


def test_only_the_sample_is_read_row_by_row(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.traffic.SAMPLE", 5)
    put(*(call(n) for n in range(60)), *(thumb(n) for n in range(60)))
    rows: list[str] = []

    def noted(_: Any, __: Any, statement: str, *___: Any) -> None:
        rows.append(" ".join(statement.split()))

    event.listen(opened(settings().database_url), "before_cursor_execute", noted)
    traffic()
    whole = [said for said in rows if "interaction.request" in said]
    assert len(whole) == 1 and "LIMIT" in whole[0]
    assert not any("DISTINCT interaction.workload" in said for said in rows)


def test_an_unknown_workload_and_half_a_price_are_one_line(home: Any) -> None:
    with pytest.raises(SetupError, match="'x' has no traffic; known are none yet"):
        traffic("x")
    with pytest.raises(SetupError, match="needs both prices"):
        traffic(prompt_price=1.0)
