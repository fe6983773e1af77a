"""Release against a real database and a real MLflow registry; only the models' answers are made up."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from infra import promotions, registry
from infra.database.session import session
from infra.database.tables import (
    Candidate,
    Dataset,
    DatasetItem,
    Interaction,
    Promotion,
    Scorecard,
    Student,
    Verdict,
    now,
)
from infra.settings import SetupError, settings
from infra.tracking import local
from tasks.gate import looks
from tasks.metrics import Answered, Quality
from tasks.release import GateSpec, newest_dataset, release, rollback, scorecard_table, verdict_markdown
from tasks.scoring.scorecards import score, write_items
from tests.conftest import living_in
from tests.mlflow_server import mlflow_server

SPEC = GateSpec()
N = 300


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the file: MLflow takes seconds to make its tables. Each test has a workload of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def at_home(shared_home: Path) -> Iterator[None]:
    with living_in(shared_home, TEACHER=""):
        yield


@dataclass
class Turn:
    """A turn of the wheel up to its scorecards: a dataset, a student, and what was scored."""

    workload: str
    number: int = 1

    @property
    def dataset_id(self) -> str:
        return f"{self.workload}-{self.number}"

    def __post_init__(self) -> None:
        with session() as db:
            db.add(Dataset(id=self.dataset_id, workload=self.workload, path="", report={}, spec={}))
            db.flush()
            db.add(Student(id=self.dataset_id, dataset_id=self.dataset_id, path="", report={}, spec={}))

    def candidate(self, name: str, content: bytes = b"") -> str:
        folder = settings().home / "candidates" / f"{self.dataset_id}-{name}"
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(content or name.encode() + self.dataset_id.encode())
        (folder / "flywheel.json").write_text("{}")
        with session() as db:
            db.add(
                Candidate(
                    id=folder.name, student_id=self.dataset_id, name=name, format="gguf", path=str(folder),
                    artifact_hash=registry.artifact_hash(folder), size=1, spec={"method": {"name": "rtn", "bits": 4}},
                )
            )  # fmt: skip
        return folder.name

    def scored(
        self, subject: str, wrong: Sequence[int] = (), seconds: float | None = 0.1, bytes: int = 1000, **more: Any
    ) -> str:
        rows = [
            {"interaction_id": i, "conversation": f"c{i}", "expected": {"role": "assistant", "content": "yes"}}
            for i in range(N)
        ]
        answers = [{"role": "assistant", "content": "no" if i in wrong else "yes"} for i in range(N)]
        answered = [Answered(row, answer) for row, answer in zip(rows, answers, strict=True)]
        metrics, items = score(answered, Quality())
        card_id = f"{self.dataset_id}-{subject}"
        path = settings().home / "scorecards" / card_id.replace(":", "-") / "items.parquet"
        write_items(path, answered, items)
        measured = {"bytes": bytes, "seconds_per_request": seconds, "tokens_per_second": 100.0, "latency_p50_ms": 9.0}
        measured |= more
        with session() as db:
            found = db.get(Candidate, subject.partition(":")[2]) if subject.startswith("candidate:") else None
            db.merge(
                Scorecard(
                    id=card_id, dataset_id=self.dataset_id, subject=subject, path=str(path), spec={},
                    artifact_hash=found.artifact_hash if found else None,
                    metrics={"name": f"the {subject}", **metrics, **measured},
                )
            )  # fmt: skip
        return card_id

    def model(self, name: str, content: bytes = b"", **scored: Any) -> str:
        candidate_id = self.candidate(name, content)
        self.scored(f"candidate:{candidate_id}", **scored)
        return candidate_id


def verdicts(workload: str) -> dict[str, Verdict]:
    with session(write=False) as db:
        query = select(Verdict).where(Verdict.workload == workload).order_by(Verdict.created)
        return {v.candidate_id: v for v in db.scalars(query)}


def test_the_cheapest_of_those_that_pass_serves() -> None:
    turn = Turn("cheapest")
    turn.scored("teacher", seconds=1.0, bytes=50_000_000)
    good = turn.model("int8", seconds=0.5, bytes=2_400_000)
    best = turn.model("int4", wrong=[1], seconds=0.2, bytes=1_300_000)
    bad = turn.model("int2", wrong=range(60), seconds=0.1, bytes=700_000)
    result = release(turn.dataset_id, SPEC, flow_run_id="run-1")
    assert (result["outcome"], result["winner"], result["reference"]) == ("promote", "int4", "teacher")
    served = registry.champion("cheapest")
    assert served is not None and served.version == result["version"]
    assert served.tags["candidate_id"] == best and served.tags["dataset_id"] == turn.dataset_id
    assert served.tags["reference"] == "teacher" and served.tags["flow_run_id"] == "run-1"
    stored = verdicts("cheapest")
    assert {key: v.outcome for key, v in stored.items()} == {good: "promote", best: "promote", bad: "reject"}
    assert stored[best].model_version == served.version and stored[good].model_version
    assert all(verdict.mlflow_run_id for verdict in stored.values())
    assert "at most" in stored[bad].reasons["reasons"][0]

    table = scorecard_table(result)
    assert [row["model"] for row in table] == ["the teacher", "int8", "int4", "int2"]
    assert table[2] == {
        "model": "int4", "quality [95 % CI]": "99.7% [98.1%, 99.9%]", "bytes": "1.3 MB", "tokens/s": "100",
        "p50 ms": "9", "cost per 1,000 (teacher 1)": "0.20", "verdict": "promote",
    }  # fmt: skip
    assert [row["verdict"] for row in table] == ["reference", "promote", "promote", "reject"]
    text = verdict_markdown(result)
    assert text.startswith(f"**promote** of cheapest: int4 serves as version {served.version}")
    assert "- int2: reject; on the holdout 80.0% right against 100.0%" in text


def client() -> Any:
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow_uri)
    return mlflow.MlflowClient(settings().mlflow_uri)


def versions(workload: str) -> dict[str, Any]:
    """MLflow's versions of a workload by the candidate's name."""
    found = {}
    for version in client().search_model_versions(f"name = '{workload}'"):
        assert version.tags["name"] not in found, "the same candidate twice"
        version._version = str(version.version)  # a number where MLflow is SQLite
        found[version.tags["name"]] = version
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(params=["sqlite", "server"])
def registry_of(request: pytest.FixtureRequest, shared_home: Path) -> Iterator[str]:
    mlflow = request.getfixturevalue("server") if request.param == "server" else ""
    with living_in(shared_home, TEACHER="", MLFLOW=mlflow):
        yield request.param


def test_every_candidate_is_a_version_and_only_the_winner_has_an_alias(registry_of: str) -> None:
    turn = Turn(f"every-{registry_of}")
    turn.scored("teacher", seconds=1.0)
    turn.model("reject", seconds=0.05, wrong=range(60))
    turn.model("unclear", seconds=0.1, wrong=range(7))
    turn.model("also", seconds=0.5)
    turn.model("winner", seconds=0.2)
    result = release(turn.dataset_id, SPEC, flow_run_id="run-1")
    found = versions(turn.workload)
    assert {name: version.tags["verdict"] for name, version in found.items()} == {
        "reject": "reject", "unclear": "inconclusive", "also": "promote", "winner": "promote",
    }  # fmt: skip
    assert result["version"] == found["winner"].version == "1", "it waits for no other's bytes"
    aliases = client().get_registered_model(turn.workload).aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"champion": "1"}
    assert {row["name"]: row["version"] for row in result["rows"][1:]} == {n: v.version for n, v in found.items()}
    stored = verdicts(turn.workload).values()
    assert {(v.model_version, v.mlflow_run_id) for v in stored} == {(v.version, v.run_id) for v in found.values()}

    failed = found["reject"]
    assert "## Verdict: reject\n\n- on the holdout 80.0% right" in failed.description
    assert "It did not pass the gate" in failed.description and "did not pass" not in found["winner"].description
    assert {*failed.tags, "promoted_by"} == set(found["winner"].tags)
    run = client().get_run(failed.run_id)
    assert run.data.metrics["quality"] == 0.8 and [d.dataset.digest for d in run.inputs.dataset_inputs]
    assert {file.path for file in client().list_artifacts(failed.run_id)} == {"scorecard.json", "verdict.json"}

    before = _bytes_of(kept := settings().home / "mlflow-artifacts")
    again = release(turn.dataset_id, SPEC, flow_run_id="run-2")
    assert {n: v.last_updated_timestamp for n, v in versions(turn.workload).items()} == {
        n: v.last_updated_timestamp for n, v in found.items()
    }
    assert again["version"] == "1" and _bytes_of(kept) == before
    with pytest.raises(SetupError, match="version 1 is its only champion so far"):
        rollback(turn.workload)


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _adapter(turn: Turn) -> Path:
    """The file of an adapter that the turn's student has."""
    adapter = settings().home / "students" / turn.dataset_id / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"A and B")
    with session() as db:
        db.get_one(Student, turn.dataset_id).path = str(adapter.parent)
    return adapter / "adapter_model.safetensors"


def test_a_version_that_failed_is_whole_and_costs_no_second_copy(tmp_path: Path) -> None:
    import mlflow

    turn = Turn("shares")
    turn.scored("teacher", seconds=1.0)
    adapter = _adapter(turn)
    files = {name: settings().home / "candidates" / turn.model(name, wrong=wrong) / "model.gguf"
             for name, wrong in {"good": (), "bad": range(60)}.items()}  # fmt: skip
    release(turn.dataset_id, SPEC)
    found = versions("shares")
    whole = Path(mlflow.artifacts.download_artifacts(f"models:/shares/{found['bad'].version}", dst_path=str(tmp_path)))
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=whole, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "## Verdict: reject" in (whole / "MODEL_CARD.md").read_text()
    for name, same in (("good", False), ("bad", True)):
        registered = registry.version("shares", found[name].version).folder / "model.gguf"
        assert registered.samefile(files[name]) == same, "what passed has bytes of its own: it may serve any day"
        kept = local(client().get_run(found[name].run_id).info.artifact_uri) / "adapter/adapter_model.safetensors"
        assert kept.samefile(adapter) == same and kept.read_bytes() == b"A and B"

    files["bad"].unlink()
    assert registry.version("shares", found["bad"].version), "a candidate's folder may go"
    again = release(turn.dataset_id, SPEC)
    assert again["notes"] == [] and again["rows"][-1]["version"] == found["bad"].version


def test_another_verdict_on_the_same_candidate_is_told_of_the_same_version(registry_of: str) -> None:
    turn = Turn(f"asked-again-{registry_of}")
    adapter = _adapter(turn)
    turn.scored("teacher")
    candidate_id = turn.model("int4", wrong=range(7))
    assert release(turn.dataset_id, SPEC)["outcome"] == "inconclusive"
    file = settings().home / "candidates" / candidate_id / "model.gguf"
    assert registry.version(turn.workload, "1").folder.joinpath("model.gguf").samefile(file) == (
        registry_of == "sqlite"
    )
    wider = GateSpec(margin=0.1)
    for _ in range(2):
        assert release(turn.dataset_id, wider)["version"] == "1"
    told = versions(turn.workload)["int4"]
    assert (told.tags["verdict"], dict(told.tags)["promoted_by"]) == ("promote", "release")
    assert "## Verdict: promote" in told.description and told.description.endswith("that it was registered with.")
    run = client().get_run(told.run_id)
    assert run.data.tags["verdict"] == "promote" and len(run.inputs.dataset_inputs) == 1
    assert client().get_logged_model(told.source.removeprefix("models:/")).tags["verdict"] == "promote"
    assert not registry.version(turn.workload, "1").folder.joinpath("model.gguf").samefile(file)
    assert adapter.stat().st_nlink == 1
    found = registry.champion_adapter(turn.workload)
    assert found is not None and found.version == "1"
    assert release(turn.dataset_id, SPEC)["outcome"] == "inconclusive"
    assert versions(turn.workload)["int4"].tags["verdict"] == "promote", "it has passed once"


def test_a_candidate_that_failed_and_whose_files_are_gone_is_said_and_stops_nobody() -> None:
    turn = Turn("gone")
    turn.scored("teacher")
    turn.model("good")
    lost = turn.model("lost", wrong=range(60))
    (settings().home / "candidates" / lost / "model.gguf").write_bytes(b"other")
    result = release(turn.dataset_id, SPEC)
    assert (result["outcome"], versions("gone").keys()) == ("promote", {"good"})
    assert f"- lost is not registered: candidate {lost} is no longer what was scored" in verdict_markdown(result)
    assert verdicts("gone")[lost].model_version is None


def test_a_version_that_did_not_pass_serves_by_a_hand_alone_and_loudly(caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        turn = Turn("by-hand", number)
        turn.scored("teacher")
        if number == 2:
            turn.scored("champion:1")
            with session() as db:
                card = db.get_one(Scorecard, f"{turn.dataset_id}-champion:1")
                card.artifact_hash = registry.version("by-hand", "1").artifact_hash
        turn.model(f"good {number}")
        turn.model(f"bad {number}", wrong=range(60 + number))
        release(turn.dataset_id, SPEC)
    found = {name: version.version for name, version in versions("by-hand").items()}
    one, two, bad = found["good 1"], found["good 2"], found["bad 2"]
    for _ in range(2):
        assert {registry.champion_number("by-hand"), registry.previous_number("by-hand")} == {one, two}
        rollback("by-hand")
    assert not caplog.records
    client().set_registered_model_alias("by-hand", "champion", bad)
    row = promotions.notice("by-hand", bad, "webhook")
    assert row is not None and (row.by, row.verdict_id) == ("hand", None)
    assert f"version {bad} of 'by-hand' did not pass the gate" in caplog.text
    assert versions("by-hand")["bad 2"].tags["promoted_by"] == "hand, not gated"
    assert rollback("by-hand")["previous"] == bad
    caplog.clear()
    rollback("by-hand")
    assert "did not pass the gate: it serves because a rollback gave it its place back" in caplog.text


def test_of_those_that_cost_the_same_within_the_clock_s_error_the_one_most_right_serves() -> None:
    turn = Turn("alike")
    turn.scored("teacher", seconds=1.0, bytes=50_000_000)
    turn.model("int8", seconds=0.3, bytes=2_400_000)
    turn.model("quickest", wrong=[1, 2, 3], seconds=0.200, bytes=1_300_000)
    turn.model("most right", wrong=[1], seconds=0.215, bytes=1_300_000)
    turn.model("of unknown cost", seconds=None)
    assert release(turn.dataset_id, SPEC)["winner"] == "most right"


def test_why_it_serves_is_in_the_database_and_what_it_is_on_its_card() -> None:
    turn = Turn("told")
    turn.scored("teacher")
    best = turn.model("int4", wrong=[1])
    at = datetime(2026, 11, 1, tzinfo=UTC)
    with session() as db:
        row = Interaction(
            source="x", external_id="told", workload="told", conversation="c", at=at, request={}, response={}
        )
        db.add(row)
        db.flush()
        db.add(DatasetItem(dataset_id=turn.dataset_id, interaction_id=row.id, split="holdout"))
    result = release(turn.dataset_id, SPEC, flow_run_id="run-1")
    with session(write=False) as db:
        (move,) = db.scalars(select(Promotion).where(Promotion.workload == "told"))
    assert (move.version, move.replaced, move.by, move.flow_run_id) == (result["version"], None, "release", "run-1")
    assert move.verdict_id == verdicts("told")[best].id and "int4 passed the gate" in move.reason

    import mlflow

    told = mlflow.MlflowClient(settings().mlflow_uri).get_model_version("told", result["version"])
    assert told.description.startswith("# told: int4") and "## Verdict: promote" in told.description
    assert "| holdout | 1 | 2026-11-01 00:00 UTC | 2026-11-01 00:00 UTC |" in told.description
    assert "| method.bits | `4` |" in told.description and "99.7% [98.1%, 99.9%]" in told.description


@pytest.mark.parametrize(("teacher", "cost", "winner"), [
    ({"seconds": 1.0}, 0.01 + 0.3, "student"),  # a third of a teacher's second is dearer than a fifth
    ({"seconds": 0.5}, (0.01 + 0.15) / 0.5, "classifier"),
    ({"seconds": None, "latency_p50_ms": 1000.0}, None, "student"),  # an endpoint, of which only the latency is known
    ({"seconds": None, "latency_p50_ms": None}, None, "classifier"),
])  # fmt: skip
def test_what_a_classifier_leaves_to_the_teacher_is_part_of_its_cost(
    teacher: dict[str, Any], cost: float | None, winner: str
) -> None:
    turn = Turn(f"abstains-{teacher}")
    turn.scored("teacher", **teacher)
    turn.model("student", seconds=0.2, abstained=0.0)
    turn.model("classifier", seconds=0.01, abstained=0.3)
    result = release(turn.dataset_id, SPEC)
    assert result["winner"] == winner
    row = next(row for row in result["rows"] if row["name"] == "classifier")
    assert row["cost"] == (None if cost is None else pytest.approx(cost))
    shown = {row["model"]: row["to the teacher"] for row in scorecard_table(result)}
    assert shown == {"the teacher": "n/a", "student": "0.0%", "classifier": "30.0%"}


def test_the_student_s_adapter_is_registered_with_what_serves() -> None:
    turn = Turn("adapted")
    _adapter(turn)
    turn.scored("teacher")
    turn.model("int4")
    release(turn.dataset_id, SPEC)
    found = registry.champion_adapter("adapted")
    assert found is not None and (found.folder / "adapter_model.safetensors").read_bytes() == b"A and B"


def test_doing_it_again_changes_nothing() -> None:
    turn = Turn("again")
    turn.scored("teacher")
    turn.model("int4")
    first = release(turn.dataset_id, SPEC)
    second = release(turn.dataset_id, SPEC)
    assert second["version"] == first["version"] == "1"
    assert second["outcome"] == "promote"
    with pytest.raises(SetupError, match="nothing to roll back to"):
        rollback("again")


def test_the_next_turn_is_held_against_the_champion_and_the_teacher() -> None:
    first = Turn("next")
    first.scored("teacher")
    first.model("int4")
    assert release(first.dataset_id, SPEC)["version"] == "1"
    second = Turn("next", 2)
    second.scored("teacher", wrong=range(60))
    second.scored("champion:1")
    with session() as db:
        card = db.get_one(Scorecard, f"{second.dataset_id}-champion:1")
        served = registry.champion("next")
        assert served is not None
        card.artifact_hash = served.artifact_hash
    second.model("worse", wrong=range(40))  # better than the teacher, worse than what serves
    result = release(second.dataset_id, SPEC)
    assert (result["outcome"], result["reference"], result["version"]) == ("reject", "champion:1", None)
    assert result["rows"][-1]["version"] == "2"
    assert registry.champion_number("next") == "1"
    assert [row["verdict"] for row in scorecard_table(result)] == ["reference", "reference", "reject"]

    second.model("better")
    assert release(second.dataset_id, SPEC)["version"] == "3"
    assert rollback("next") == {"workload": "next", "champion": "1", "previous": "3"}
    assert registry.champion_number("next") == "1"


def test_the_champions_own_files_are_not_registered_again() -> None:
    first = Turn("own")
    first.scored("teacher")
    first.model("int4", b"the same bytes")
    release(first.dataset_id, SPEC)
    second = Turn("own", 2)
    second.scored("teacher")
    second.model("int4", b"the same bytes")  # its scorecard is the champion's too: the files are the same
    result = release(second.dataset_id, SPEC)
    assert (result["outcome"], result["version"], result["reference"]) == ("promote", "1", "champion:1")
    with pytest.raises(SetupError, match="nothing to roll back to"):
        rollback("own")


def test_inconclusive_never_promotes() -> None:
    turn = Turn("unclear")
    turn.scored("teacher")
    turn.model("int4", wrong=range(7))
    result = release(turn.dataset_id, SPEC)
    assert result["outcome"] == "inconclusive" and result["winner"] is None and result["version"] is None
    assert "items would tell" in result["reasons"][0]
    assert registry.champions().get("unclear") is None
    assert "nothing is shown either way" in verdict_markdown(result)


def test_a_missing_reference_fails_closed() -> None:
    turn = Turn("no-reference")
    turn.model("int4")
    result = release(turn.dataset_id, SPEC)
    assert result["outcome"] == "inconclusive"
    assert "the teacher has no scorecard on this dataset" in result["reasons"][0]
    assert scorecard_table(result)[0]["quality [95 % CI]"] == "n/a"
    assert scorecard_table(result)[1]["cost per 1,000 (teacher 1)"] == "n/a"
    assert registry.champion("no-reference") is None


def test_a_champion_that_was_not_scored_on_this_dataset_fails_closed() -> None:
    first = Turn("unscored")
    first.scored("teacher")
    first.model("int4")
    release(first.dataset_id, SPEC)
    second = Turn("unscored", 2)
    second.scored("teacher")
    second.model("other")
    result = release(second.dataset_id, SPEC)
    assert (result["outcome"], result["reference"]) == ("inconclusive", "champion:1")
    assert registry.champion_number("unscored") == "1"


@pytest.mark.parametrize("damage", ["no scorecard", "no items", "other dataset", "other files", "changed files"])
def test_a_candidate_whose_evidence_is_missing_is_not_promoted(damage: str) -> None:
    turn = Turn(f"damaged {damage}")
    turn.scored("teacher")
    candidate_id = turn.model("int4")
    with session() as db:
        card = db.get_one(Scorecard, f"{turn.dataset_id}-candidate:{candidate_id}")
        candidate = db.get_one(Candidate, candidate_id)
        if damage == "no scorecard":
            db.delete(card)
        elif damage == "no items":
            Path(card.path).unlink()
        elif damage == "other dataset":
            card.dataset_id = _other_dataset(db)
        elif damage == "other files":
            card.artifact_hash = "0" * 64
        else:
            (Path(candidate.path) / "model.gguf").write_bytes(b"other")
    if damage == "changed files":
        with pytest.raises(SetupError, match="no longer what was scored"):
            release(turn.dataset_id, SPEC)
    else:
        assert release(turn.dataset_id, SPEC)["outcome"] == "inconclusive"
    assert registry.champion(turn.workload) is None


def _other_dataset(db: Any) -> str:
    db.add(Dataset(id="elsewhere", workload="elsewhere", path="", report={}, spec={}))
    db.flush()
    return "elsewhere"


def test_candidates_of_one_name_are_told_apart() -> None:
    turn = Turn("twins")
    turn.scored("teacher")
    turn.model("int4")
    with session() as db:
        db.add(Student(id="twins-other", dataset_id=turn.dataset_id, path="", report={}, spec={}))
        db.flush()
        twin = db.get_one(Candidate, f"{turn.dataset_id}-int4")
        db.add(
            Candidate(
                id="ffff", student_id="twins-other", name="int4", format="gguf", path=twin.path,
                artifact_hash=twin.artifact_hash, size=1, spec={},
            )
        )  # fmt: skip
    names = [row["name"] for row in release(turn.dataset_id, SPEC)["rows"]]
    assert sorted(names[1:]) == ["int4 · ffff", "int4 · twin"]


def test_what_a_person_gets_wrong_is_one_line() -> None:
    with pytest.raises(SetupError, match="dataset 'nothing' is unknown"):
        release("nothing", SPEC)
    Turn("bare")
    with pytest.raises(SetupError, match="has no candidates"):
        release("bare-1", SPEC)
    with pytest.raises(SetupError, match=r"workload 'shoop' has no dataset; those with a dataset are .*'bare'"):
        newest_dataset("shoop")
    with pytest.raises(SetupError, match="'shoop' has nothing to roll back to: it has no champion"):
        rollback("shoop")


def test_the_newest_dataset_is_the_last_one_frozen() -> None:
    Turn("dated")
    Turn("dated", 2)
    assert newest_dataset("dated") == "dated-2"


def test_a_holdout_decides_so_often_and_then_asks_for_a_fresh_one() -> None:
    turn = Turn("used")
    with session() as db:
        db.get_one(Dataset, turn.dataset_id).spec = {"looks": 2}
        like = {"source": "t", "workload": "used", "conversation": "c", "at": now(), "request": {}, "response": {}}
        rows = [{**like, "external_id": f"used{i}"} for i in range(2)]
        made = [Interaction(**row) for row in rows]
        db.add_all(made)
        db.flush()
        db.add_all(DatasetItem(dataset_id=turn.dataset_id, interaction_id=one.id, split="holdout") for one in made)
    turn.scored("teacher")
    for name in ("first", "second"):
        turn.model(name, wrong=range(60))
    assert release(turn.dataset_id, SPEC)["looks"] == 2
    assert release(turn.dataset_id, SPEC)["outcome"] == "reject", "again, on the same scorecards: no look"
    turn.model("third")
    result = release(turn.dataset_id, SPEC)
    assert (result["outcome"], result["looks"], result["budget"]) == ("inconclusive", 2, 2)
    assert "has been used to decide 2 times and its budget is 2 (curate.looks)" in result["reasons"][-1]
    assert "used to decide 2 times of 2" in verdict_markdown(result)
    assert release(turn.dataset_id, GateSpec(margin=0.9))["outcome"] == "inconclusive", "another margin is another look"

    other = Turn("used", 2)  # shares one item of two
    with session() as db:
        db.add(DatasetItem(dataset_id=other.dataset_id, interaction_id=made[0].id, split="holdout"))
        third = Interaction(**{**rows[0], "external_id": "used3"})
        db.add(third)
        db.flush()
        db.add(DatasetItem(dataset_id=other.dataset_id, interaction_id=third.id, split="holdout"))
    assert looks.looks(other.dataset_id, "used") == 1.0


def test_a_champion_that_is_itself_worse_than_the_teacher_is_said() -> None:
    first = Turn("sunk")
    first.scored("teacher")
    first.model("int4", b"it serves")
    release(first.dataset_id, SPEC)
    second = Turn("sunk", 2)
    second.scored("teacher")
    second.model("int4", b"it serves", wrong=range(90))
    result = release(second.dataset_id, SPEC)
    assert result["outcome"] == "reject" and result["references"] == ["champion:1", "teacher"]
    assert "serves, and is itself shown to be worse than the teacher" in verdict_markdown(result)


def test_where_prices_are_known_cost_is_in_usd_and_not_in_seconds() -> None:
    turn = Turn("priced")
    turn.scored("teacher", seconds=None, usd_per_1000=2.0)
    turn.model("int4", seconds=0.1, usd_per_1000=0.5)
    result = release(turn.dataset_id, GateSpec(max_cost=0.3))
    assert result["outcome"] == "promote" and result["rows"][1]["cost"] == 0.25
    assert release(turn.dataset_id, GateSpec(max_cost=0.2))["outcome"] == "reject"
