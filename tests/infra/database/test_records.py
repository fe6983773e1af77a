"""Records become rows, and rows are stored once, in SQLite and in PostgreSQL."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from infra.database.jsontext import Rejected
from infra.database.records import InteractionRow, feedback, interaction, parse
from infra.database.session import session
from infra.database.store import quarantine, release, store
from infra.database.tables import Feedback, Interaction, Quarantine

AT = datetime(2026, 9, 1, 12, tzinfo=UTC)


def record(text: str = "where is 48213?", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    answer = {"choices": [{"message": {"role": "assistant", "content": "On its way."}}]}
    return {"workload_id": "shop", "request": {"messages": [message]}, "response": answer, **more}


def read(**more: Any) -> InteractionRow:
    return interaction(record(**more), source="jsonl", at=AT)


def test_a_full_record_keeps_what_it_says() -> None:
    row = read(
        id="r1", timestamp=1756684873, client_id="web", conversation_id="c9", latency_ms=12.5,
        response={
            "id": "chatcmpl-1", "model": "teacher", "usage": {"prompt_tokens": 50, "completion_tokens": 5},
            "choices": [{"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        },
    )  # fmt: skip
    assert (row.source, row.external_id, row.workload, row.client, row.conversation) == (
        "jsonl",
        "r1",
        "shop",
        "web",
        "c9",
    )
    assert (row.model, row.prompt_tokens, row.completion_tokens, row.latency_ms) == ("teacher", 50, 5, 12.5)
    assert row.at == datetime.fromtimestamp(1756684873, UTC)


def test_a_record_without_id_is_known_by_its_response_or_its_content() -> None:
    assert read(response={**record()["response"], "id": "chatcmpl-7"}).external_id == "chatcmpl-7"
    swapped = dict(reversed(record(timestamp=5).items()))
    assert interaction(swapped, source="jsonl", at=AT).external_id == read(timestamp=5).external_id
    assert read(timestamp=5).external_id != read(timestamp=6).external_id


@pytest.mark.parametrize(
    "timestamp",
    [1756684873, 1756684873.0, 1756684873000, "1756684873", "2025-09-01T00:01:13Z", "2025-09-01T02:01:13+02:00"],
)
def test_times_are_read_in_every_common_form(timestamp: Any) -> None:
    assert read(timestamp=timestamp).at == datetime(2025, 9, 1, 0, 1, 13, tzinfo=UTC)


def test_a_record_without_time_takes_the_responses_or_the_files() -> None:
    assert read().at == AT
    assert read(response={**record()["response"], "created": 1756684873}).at.year == 2025


def test_turns_of_one_conversation_are_known_by_how_it_opened() -> None:
    opened = [{"role": "user", "content": "where is it?"}, {"role": "assistant", "content": "Which one?"}]
    first = read(request={"messages": opened[:1]}, response={"choices": [{"message": opened[1]}]})
    later = read(request={"messages": [*opened, {"role": "user", "content": "48213"}]})
    other = read(request={"messages": opened[:1]}, response={"choices": [{"message": {"content": "Say more."}}]})
    assert first.conversation == later.conversation != other.conversation


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"workload_id": None}, "`workload` option"),
        ({"workload_id": ["a"]}, "workload_id is a list"),
        ({"timestamp": "yesterday"}, "'yesterday'"),
        ({"timestamp": 1e400}, "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+05:00"}, "timestamp"),
        ({"id": "a\x00b"}, "no database stores"),
        ({"id": "\ud800"}, "no database stores"),
        ({"id": "x" * 600}, "600 characters"),
        ({"response": None}, "no response"),
    ],
)
def test_a_record_that_cannot_be_kept_says_why(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected, match=said):
        read(**more)


def test_a_golden_item_never_enters() -> None:
    golden = {k: v for k, v in record(expected={"content": "x"}).items() if k != "response"}
    with pytest.raises(Rejected, match="never trains"):
        parse(golden, source="jsonl", at=AT)


MESSAGE = {"role": "assistant", "content": "lost_card"}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"kind": "thumb", "value": 1}, 1),
        ({"kind": "thumb", "value": False}, -1),
        ({"kind": "thumb", "value": "down"}, -1),
        ({"kind": "thumb", "value": -1, "metric": "solved", "target": "episode"},
         {"value": -1, "metric": "solved", "target": "episode"}),
        ({"kind": "rating", "value": 4}, 4),
        ({"kind": "rating", "value": 0.33, "metric": "f1", "target": "record"}, {"value": 0.33, "metric": "f1"}),
        ({"kind": "rating", "value": 9, "scale": [0, 10]}, {"value": 9, "scale": [0, 10]}),
        ({"kind": "correction", "value": "lost_card"}, MESSAGE),
        ({"kind": "correction", "value": {"content": "lost_card"}}, MESSAGE),
        ({"kind": "preference", "value": {"chosen": "lost_card", "rejected": "pin"}},
         {"chosen": MESSAGE, "rejected": {"role": "assistant", "content": "pin"}}),
    ],
)  # fmt: skip
def test_feedback_is_kept_in_one_shape(said: dict[str, Any], kept: Any) -> None:
    assert feedback({"record_id": "r1", **said}, source="jsonl", at=AT).value == kept


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"record_id": "r", "kind": "thumb", "value": 0}, "a thumb's value is '0'"),
        ({"record_id": "r", "kind": "rating", "value": 7}, "outside 1 to 5"),
        ({"record_id": "r", "kind": "rating", "value": "good"}, "a rating's value is text"),
        ({"record_id": "r", "kind": "rating", "value": 7, "scale": [1, 1]}, "scale"),
        ({"record_id": "r", "kind": "rating", "value": 7, "scale": [1, None]}, "scale"),
        ({"record_id": "r", "kind": "correction", "value": 5}, "an answer is a number"),
        ({"record_id": "r", "kind": "preference", "value": "this one"}, "chosen, rejected"),
        ({"record_id": "r", "kind": "shrug", "value": 1}, "'shrug'"),
        ({"kind": "thumb", "value": 1}, "no record_id"),
        ({"record_id": "r", "kind": "thumb"}, "no value"),
    ],
)
def test_feedback_that_says_nothing_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(Rejected, match=why):
        feedback(said, source="jsonl", at=AT)


def test_each_row_is_stored_once_and_a_taken_id_is_told(database: str) -> None:
    first, other = read(id="1"), read(id="2", text="another")
    opinion = feedback({"record_id": "1", "kind": "thumb", "value": 1}, source="jsonl", at=AT)
    with session() as db:
        assert store(db, [first, opinion, other, first]) == ["stored", "stored", "stored", "duplicate"]
    again = read(id="1", response={**record()["response"], "usage": {"prompt_tokens": 3}})
    taken = read(id="2", text="quite another")
    with session() as db:
        assert store(db, [again, taken, opinion]) == ["duplicate", "conflict", "duplicate"]
    with session(write=False) as db:
        assert db.scalar(select(func.count()).select_from(Interaction)) == 2
        assert db.scalar(select(func.count()).select_from(Feedback)) == 1
        assert db.scalars(select(Interaction).where(Interaction.external_id == "2")).one().request == other.request


def test_a_row_is_known_again_whatever_its_time(database: str) -> None:
    """As of records without one, whose time is that of their file."""
    there = [
        read(id="1"),
        read(id="2"),
        feedback({"record_id": "1", "kind": "thumb", "value": 1}, source="jsonl", at=AT),
    ]
    with session() as db:
        store(db, there)
    later = [row._replace(at=row.at + timedelta(days=40)) for row in [*there, read(id="3")]]
    taken = read(id="2", text="quite another")._replace(at=AT - timedelta(days=40))
    with session() as db:
        assert store(db, [*later, taken]) == ["duplicate", "duplicate", "duplicate", "stored", "conflict"]
        assert store(db, [*later, taken]) == ["duplicate"] * 4 + ["conflict"]
        assert sorted(db.scalars(select(Interaction.external_id))) == ["1", "2", "3"]


def test_awkward_text_comes_back_as_it_was(database: str) -> None:
    awkward = 'nul \x00, half a pair \ud83d, quote " \\ and 漢字 🎈'
    with session() as db:
        assert store(db, [read(id="1", text=awkward)]) == ["stored"]
    with session(write=False) as db:
        assert db.scalars(select(Interaction)).one().request["messages"][0]["content"] == awkward
    with session() as db:
        assert store(db, [read(id="1", text=awkward)]) == ["duplicate"]


def test_quarantine_keeps_the_same_bytes_once_until_they_are_understood(database: str) -> None:
    def entry(raw: bytes) -> Quarantine:
        return Quarantine(source="jsonl", position="f:1", digest=raw.hex(), raw=raw, reason="why")

    for _ in range(2):
        with session() as db:
            quarantine(db, [entry(b"\x00\xff"), entry(b"b"), entry(b"b")])
    with session() as db:
        assert sorted(db.scalars(select(Quarantine.raw))) == [b"\x00\xff", b"b"]
        release(db, "jsonl", [b"b".hex()])
        assert list(db.scalars(select(Quarantine.raw))) == [b"\x00\xff"]
