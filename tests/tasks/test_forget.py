"""What is forgotten is in no table and in no file, does not come back, and what was made of it is marked."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from infra import registry
from infra.database.records import parse
from infra.database.session import session
from infra.database.store import store
from infra.database.tables import (
    Base,
    Candidate,
    DatasetItem,
    Feedback,
    Forgotten,
    Interaction,
    Quarantine,
    RolloutCall,
    Scorecard,
    Student,
    now,
)
from infra.privacy.redaction import redactor
from infra.settings import SetupError, settings
from tasks.curate import curate, load
from tasks.forget import forget
from tasks.ingest import ingest
from tasks.metrics import Answered, Quality
from tasks.scoring.scorecards import read_items, score, write_items
from tasks.sources.jsonl import JSONL
from tests.tasks.test_curate import SPEC, put, record, rows, thumb
from tests.tasks.test_retention import shadowed

SECRET = "client-7f3a9c51"


def of_client(n: int, **more: Any) -> dict[str, Any]:
    made = record(n, client_id=SECRET if n % 10 == 0 else f"c{n}", **more)
    if n % 10 == 0:
        made["request"]["messages"][1]["content"] += f" says {SECRET}"
    return made


def count(table: type[Base], *where: Any) -> int:
    with session(write=False) as db:
        return db.scalar(select(func.count()).select_from(table).where(*where)) or 0


def log(path: Path, *records: Any) -> JSONL:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return JSONL((str(path),))


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_a_client_is_gone_from_tables_and_files_and_does_not_come_back(database: str, tmp_path: Path) -> None:
    bad = json.dumps({"client_id": SECRET, "id": "broken"}) + "\n"
    episode = {**thumb(10, 1, target="episode"), "record_id": "c10"}
    source = log(
        tmp_path / "a.jsonl",
        *(of_client(n) for n in range(60)), thumb(20, "better", "correction"), thumb(21), episode, bad, "not json\n",
    )  # fmt: skip
    ingest(source)
    made = curate("w", SPEC)
    (Path(made["path"]) / "teacher-abc-42-top32.safetensors").write_bytes(SECRET.encode())
    dry = forget(client=SECRET, dry_run=True)
    assert (dry["interactions"], dry["feedback"], dry["quarantine"]) == (6, 2, 1) and count(Forgotten) == 0
    assert count(Interaction) == 60 and "forgotten" not in load(made["dataset_id"]).report
    done = forget(client=SECRET)
    assert {key: done[key] for key in done if key != "dry_run"} == {key: dry[key] for key in dry if key != "dry_run"}
    assert (count(Interaction), count(Feedback), count(Quarantine)) == (54, 1, 1)
    assert count(Interaction, Interaction.client == SECRET) == 0 and count(DatasetItem) == 54
    dataset = load(made["dataset_id"])
    assert dataset.report["forgotten"]["count"] == 6 and "erasing" not in dataset.report
    assert {int(r[1:]) for r in rows(made)} == {n for n in range(60) if n % 10}
    assert SECRET.encode() not in everything(settings().home), "no file of the home holds it, SQLite's included"
    again = ingest(log(tmp_path / "copy.jsonl", (tmp_path / "a.jsonl").read_text()))
    assert (again["interactions"], again["feedback"], again["quarantined"], again["duplicates"]) == (0, 0, 1, 64)
    assert (count(Interaction), count(Feedback), count(Quarantine)) == (54, 1, 1)
    assert forget(client=SECRET)["interactions"] == 0


def test_a_disliked_answer_is_forgotten_as_any_other(home: Path) -> None:
    put(*(of_client(n) for n in range(60)), thumb(10, -1), thumb(11, -1))
    made = curate("w", SPEC)
    assert rows(made, "disliked").keys() == {"r10", "r11"}
    forget(client=SECRET)
    assert load(made["dataset_id"]).report["forgotten"]["count"] == 6 and rows(made, "disliked").keys() == {"r11"}
    assert SECRET.encode() not in everything(settings().home)


def test_who_comes_back_is_a_customer_like_any_other(database: str) -> None:
    forget(client="alice")
    old, new = record(1, client_id="alice"), record(2, client_id="alice", timestamp=now().timestamp() + 1)
    with session() as db:
        made = [parse(r, source="jsonl", at=now()) for r in (old, new)]
        assert store(db, made) == ["duplicate", "stored"]


def test_what_a_student_said_to_it_in_shadow_goes_too(database: str) -> None:
    put(of_client(0), of_client(1))
    shadowed("r0", "r1")
    forget(client=SECRET, dry_run=True)
    assert count(RolloutCall) == 2
    forget(client=SECRET)
    assert count(RolloutCall, RolloutCall.id == "r0") == 0 and count(RolloutCall) == 1


def test_one_interaction_goes_with_its_feedback_and_the_others_stay(database: str) -> None:
    put(*(record(n, client_id="c") for n in range(4)), thumb(1, -1), thumb(2))
    done = forget(interaction="r1")
    assert (done["interactions"], done["feedback"], done["datasets"], done["versions"]) == (1, 1, [], [])
    with session() as db:
        assert sorted(db.scalars(select(Interaction.external_id))) == ["r0", "r2", "r3"]
        late = [parse(r, source="elsewhere", at=now()) for r in (record(1), thumb(1, 1, id="late"), record(9))]
        assert store(db, late) == ["duplicate", "duplicate", "stored"]


def test_a_short_id_takes_no_other_record_out_of_quarantine(database: str, tmp_path: Path) -> None:
    lines = ['{"id": "1", "x": 2}\n', '{"id": 1}\n', '{"value": 1, "n": "11"}\n', '{"id": "1\n', "1\n"]
    with pytest.raises(SetupError, match="nothing in"):
        ingest(log(tmp_path / "a.jsonl", *lines))
    assert forget(interaction="1")["quarantine"] == 3
    with session(write=False) as db:
        assert sorted(bytes(raw) for raw in db.scalars(select(Quarantine.raw))) == [b"1", b'{"value": 1, "n": "11"}']


def test_the_versions_trained_on_it_are_tagged_and_its_answers_leave_the_scorecards(home: Path) -> None:
    put(*(of_client(n) for n in range(60)))
    made = curate("w", SPEC)
    held_out = load(made["dataset_id"]).split("holdout")
    answers = [row["expected"] for row in held_out]
    answered = [Answered(row, answer) for row, answer in zip(held_out, answers, strict=True)]
    _, items = score(answered, Quality())
    card = home / "scorecards" / "one" / "items.parquet"
    write_items(card, answered, items)
    folder = home / "candidates" / "k"
    folder.mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"weights")
    digest = registry.artifact_hash(folder)
    with session() as db:
        db.add(Student(id="s", dataset_id=made["dataset_id"], path="", report={}, spec={}))
        db.flush()
        db.add(
            Candidate(
                id="k",
                student_id="s",
                name="int4",
                format="gguf",
                path=str(folder),
                artifact_hash=digest,
                size=7,
                spec={},
            )
        )
        db.add(
            Scorecard(id="one", dataset_id=made["dataset_id"], subject="teacher", path=str(card), metrics={}, spec={})
        )
    about = {"metrics": {}, "parameters": {}, "run_name": "int4"}
    version, _ = registry.register("w", folder, tags={registry.VERDICT: "promote"}, **about)
    registry.promote("w", version)
    failed = home / "candidates" / "failed"
    failed.mkdir()
    (failed / "model.gguf").write_bytes(b"other weights")
    made_of = {"student_id": "s", "name": "int2", "format": "gguf", "path": str(failed), "size": 7, "spec": {}}
    with session() as db:
        db.add(Candidate(id="a", artifact_hash=registry.artifact_hash(failed), **made_of))
    other, _ = registry.register("w", failed, tags={registry.VERDICT: "reject"}, **about, shared=True)
    assert (
        forget(client=SECRET, dry_run=True)["versions"]
        == forget(client=SECRET)["versions"]
        == [{"workload": "w", "version": v, "dataset_id": made["dataset_id"]} for v in (version, other)]
    )
    for number in (version, other):
        mark = registry.version("w", number).tags["flywheel.forgotten"]
        assert mark.startswith(f"6 of dataset {made['dataset_id']}, 20")
    gone = {row["interaction_id"] for row in held_out if SECRET in json.dumps(row)}
    assert gone and {item.interaction_id for item in read_items(card)} == {i.interaction_id for i in items} - gone


def test_a_killed_run_is_finished_by_the_next(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(*(of_client(n) for n in range(60)))
    made = curate("w", SPEC)

    def killed(self: Path, target: Path) -> Path:
        if target.name == "train.parquet":
            raise KeyboardInterrupt
        return self.rename(target)

    for moment in ("replace", "unlink"):  # between the files, and behind them
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            (Path(made["path"]) / "teacher.safetensors").touch()
            patch.setattr(
                Path, moment, killed if moment == "replace" else lambda _: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            forget(client=SECRET)
        assert count(Interaction) == 60
    assert forget(client=SECRET)["datasets"][0]["forgotten"] == 6
    assert load(made["dataset_id"]).report["forgotten"]["count"] == 6 and count(Interaction) == 54


def test_a_dataset_that_others_changed_is_erased_from_and_stays_refused(home: Path) -> None:
    put(*(of_client(n) for n in range(60)))
    made = curate("w", SPEC)
    file, other = (Path(made["path"]) / f"{name}.parquet" for name in ("train", "validation"))
    file.write_bytes(other.read_bytes())
    forget(client=SECRET)
    with pytest.raises(SetupError, match="missing or was changed"):
        load(made["dataset_id"])
    assert SECRET.encode() not in everything(home)


def test_lines_of_the_spool_go_and_the_others_stay(home: Path) -> None:
    put(record(1, client_id=SECRET))
    spool = home / "spool" / "2026-01-01.jsonl"
    spool.parent.mkdir(parents=True)
    lines = [record(2, client_id=SECRET), record(3), thumb(2), thumb(3), thumb(1)]
    torn = '{"client_id": "' + SECRET
    spool.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    assert forget(client=SECRET)["spool"] == 4
    kept = [json.loads(line) for line in spool.read_text().splitlines()]
    assert kept == [record(3), thumb(3)] and [f.name for f in spool.parent.iterdir()] == [spool.name]
    with session() as db:
        assert store(db, [parse(thumb(2), source="gateway", at=now())]) == ["duplicate"]


def test_what_to_forget_must_be_said(home: Path) -> None:
    for given in ({}, {"client": "a", "interaction": "b"}, {"client": ""}):
        with pytest.raises(SetupError, match="--client ID or --interaction ID"):
            forget(**given)


def test_a_client_known_by_an_address_that_was_redacted_is_found_by_the_address(home: Path, tmp_path: Path) -> None:
    lines = [record(n, client_id="ann@example.com" if n % 2 else "bob") for n in range(4)]
    ingest(log(tmp_path / "a.jsonl", *lines))
    assert count(Interaction, Interaction.client == "ann@example.com") == 0
    assert forget(client="ann@example.com")["interactions"] == 2
    assert ingest(log(tmp_path / "copy.jsonl", *lines))["interactions"] == 0
    assert count(Interaction) == 2


def test_of_two_clients_whose_short_numbers_look_alike_when_redacted_one_is_forgotten(
    home: Path, tmp_path: Path
) -> None:
    one, other = "+683 4002", "+683 4003"
    assert redactor().text(one) == redactor().text(other) != one
    lines = [record(n, client_id=one if n % 2 else other) for n in range(4)]
    ingest(log(tmp_path / "a.jsonl", *lines))
    assert forget(client=one, dry_run=True)["interactions"] == 2
    assert forget(client="+6834002")["interactions"] == 2, "however it is written"
    assert ingest(log(tmp_path / "copy.jsonl", *lines))["interactions"] == 0
    assert forget(client=other)["interactions"] == 2


def test_a_client_known_by_digits_that_its_words_tell_to_be_a_telephone_number_is_found(
    home: Path, tmp_path: Path
) -> None:
    lines = [record(n, client_id="6502530000" if n % 2 else "6502530001") for n in range(4)]
    for line in lines:
        line["request"]["messages"][1]["content"] += f", my number is {line['client_id']}"
    ingest(log(tmp_path / "a.jsonl", *lines))
    assert b"6502530000" not in everything(home)
    assert forget(client="6502530000")["interactions"] == 2
    assert count(Interaction) == 2
