"""Files as no one meant them: they grow, are rotated, truncated while they are read; and records are odd anywhere."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import select

from infra.database.session import session
from infra.database.tables import Interaction, Quarantine
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources.jsonl import JSONL
from tests.conftest import living_in


def line(n: int, said: str = "where is it?") -> bytes:
    messages = [{"role": "user", "content": f"{said} order {n} {'x' * 200}"}]
    answer = {"choices": [{"message": {"role": "assistant", "content": f"answer {n}"}, "finish_reason": "stop"}]}
    record = {"id": f"r{n}", "timestamp": 1_756_000_000 + n, "workload_id": "w", "request": {"messages": messages}}
    return json.dumps({**record, "response": answer}).encode() + b"\n"


def test_a_file_that_grows_is_rotated_and_truncated_gives_each_line_once(database: str, tmp_path: Path) -> None:
    file = tmp_path / "app.jsonl"
    half = line(3)
    file.write_bytes(line(0) + line(1) + half[:40])  # a writer is in the middle of a line
    ingest(JSONL((str(tmp_path),)))
    with file.open("ab") as stream:
        stream.write(half[40:] + line(4))
    told = ingest(JSONL((str(tmp_path),)))
    assert told["quarantined"] == 0
    file.rename(tmp_path / "app.1.jsonl")
    file.write_bytes(line(5))
    ingest(JSONL((str(tmp_path),)))
    file.write_bytes(line(6))  # copytruncate: the same file, from its start
    ingest(JSONL((str(tmp_path),)))
    with session(write=False) as db:
        assert sorted(db.scalars(select(Interaction.external_id))) == ["r0", "r1", "r3", "r4", "r5", "r6"]
        assert list(db.scalars(select(Quarantine.reason))) == []


ODD = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("\x00")
    | st.just("\ud83d") | st.lists(st.integers(), max_size=2) | st.just({}) | st.just({"a": [[[]]]})
    | st.just([{"role": "x"}]) | st.just([{"function": {}}])
)  # fmt: skip
PLACES: list[tuple[Any, ...]] = [
    ("id",), ("timestamp",), ("workload_id",), ("client_id",), ("conversation_id",), ("latency_ms",), ("metadata",),
    ("request",), ("request", "messages"), ("request", "messages", 0), ("request", "messages", 0, "role"),
    ("request", "messages", 0, "content"), ("request", "messages", 0, "tool_calls"), ("request", "tools"),
    ("response",), ("response", "choices"), ("response", "choices", 0), ("response", "choices", 0, "message"),
    ("response", "choices", 0, "message", "content"), ("response", "choices", 0, "message", "tool_calls"),
    ("response", "choices", 0, "finish_reason"), ("response", "usage"), ("response", "usage", "prompt_tokens"),
    ("response", "model"), ("response", "created"),
]  # fmt: skip
# What a reason calls the part that is wrong.
CALLED = {
    "id": "id", "timestamp": "timestamp", "workload_id": "workload", "client_id": "client_id",
    "conversation_id": "conversation_id", "request": ("request", "message", "tool"),
    "response": ("response", "choice", "message", "tool", "model", "timestamp"),
}  # fmt: skip


Change = tuple[tuple[Any, ...], Any, bool]


@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD, st.booleans()), min_size=20, max_size=60))
@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_a_record_that_is_odd_anywhere_is_stored_or_quarantined_with_a_reason(changes: list[Change]) -> None:
    account_for(changes)


def test_so_are_ten_thousand() -> None:
    chance = random.Random(3)
    pool: list[Any] = [
        None, True, -1, 2**70, 1e308, "", "x", "\x00", "\ud83d", "x" * 600, [], [1], [None], [[]], {}, {"a": [[[]]]},
        [{"role": "x"}], [{"role": "user"}], [{"function": {}}], [{"message": {}}], {"role": "user", "content": 5},
        "2026-01-01", "yesterday", "1e400", -(10**12), [{"type": "text"}], {"content": None, "tool_calls": [{}]},
    ]  # fmt: skip
    account_for([(chance.choice(PLACES), chance.choice(pool), chance.random() < 0.1) for _ in range(10_000)])


def account_for(changes: list[Change]) -> None:
    """Ingest a record a change: (where it is odd, what stands there, or whether it is missing instead)."""
    with tempfile.TemporaryDirectory() as folder, living_in(Path(folder) / "home", TEACHER="", REDACT="none"):
        file = Path(folder) / "a.jsonl"
        lines = []
        for n, (place, odd, missing) in enumerate(changes):
            record = json.loads(line(n))
            record["response"] |= {"usage": {"prompt_tokens": 1}, "model": "m", "created": 1_756_000_000}
            inner: Any = record
            for step in place[:-1]:
                inner = inner[step]
            if missing and isinstance(inner, dict):
                inner.pop(place[-1], None)
            else:
                inner[place[-1]] = odd
            lines.append(json.dumps(record))
        file.write_text("\n".join(lines) + "\n")
        try:
            told = ingest(JSONL((str(file),)))
        except SetupError as problem:
            assert "could be understood" in str(problem)
            return
        assert told["rows"] == len(changes)
        assert told["rows"] == told["interactions"] + told["duplicates"] + told["quarantined"]
        with session(write=False) as db:
            for kept in db.scalars(select(Quarantine)):
                place = changes[int(kept.position.rpartition(":")[2]) - 1][0]
                names = CALLED.get(place[0], ())
                named = any(name in kept.reason for name in ([names] if isinstance(names, str) else names))
                assert named or "no JSON" in kept.reason or "another record" in kept.reason, (place, kept.reason)
