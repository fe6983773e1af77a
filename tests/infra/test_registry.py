"""The registry against real MLflow: SQLite in the home, and a server over HTTP with its files behind a proxy."""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import registry
from infra.settings import SetupError, settings
from tests.conftest import living_in
from tests.mlflow_server import mlflow_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server whose artifacts only it can reach."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the file: MLflow takes seconds to make its tables. Each test has a workload of its own."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, shared_home: Path) -> Iterator[str]:
    mlflow = request.getfixturevalue("server") if request.param == "server" else ""
    with living_in(shared_home / request.param, MLFLOW=mlflow):
        yield request.param


def artifact(folder: Path, content: bytes) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "model.gguf").write_bytes(content)
    (folder / "flywheel.json").write_text("{}")
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    return folder


def register(workload: str, folder: Path) -> tuple[str, str]:
    return registry.register(
        workload, folder, metrics={"quality": 0.93, "bytes": 2400000.0}, tags={"dataset_id": "d1", "name": "int4"},
        parameters={"method.bits": 4}, run_name="int4", documents={"scorecard.json": {"slices": {"calls": 0.9}}},
    )  # fmt: skip


def test_the_hash_follows_names_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    first, second = artifact(tmp_path / "a", b"weights"), artifact(tmp_path / "b", b"weights")
    os.utime(second / "model.gguf", (0, 0))
    assert registry.artifact_hash(first) == registry.artifact_hash(second)
    (second / "model.gguf").rename(second / "model2.gguf")
    assert registry.artifact_hash(first) != registry.artifact_hash(second)
    assert registry.artifact_hash(artifact(tmp_path / "c", b"weightz")) != registry.artifact_hash(first)
    (tmp_path / "d").mkdir()
    with pytest.raises(SetupError, match="no files"):
        registry.artifact_hash(tmp_path / "d")


def test_a_version_is_registered_promoted_and_rolled_back(store: str, tmp_path: Path) -> None:
    workload = "shop.assistant"
    assert registry.champion(workload) is None
    assert registry.champion_number(workload) is None
    one, two = artifact(tmp_path / "one", b"one"), artifact(tmp_path / "two", b"two")
    first, run_id = register(workload, one)
    assert registry.champion(workload) is None, "registering alone must not serve"
    registry.promote(workload, first)
    served = registry.champion(workload)
    assert served is not None
    assert (served.version, served.artifact_hash) == (first, registry.artifact_hash(one))
    assert (served.folder / "model.gguf").read_bytes() == b"one"
    assert (served.folder / "tokenizer" / "vocab.json").exists()
    assert served.tags["dataset_id"] == "d1"
    with pytest.raises(SetupError, match=f"version {first} is its only champion"):
        registry.rollback(workload)

    second, _ = register(workload, two)
    registry.promote(workload, second)
    registry.promote(workload, second)
    assert registry.champion_number(workload) == second
    assert registry.rollback(workload) == (first, second)
    served = registry.champion(workload)
    assert served is not None and (served.folder / "model.gguf").read_bytes() == b"one"
    assert registry.rollback(workload) == (second, first)
    assert registry.champions()[workload] == second

    import mlflow

    client = mlflow.MlflowClient(settings().mlflow_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"quality": 0.93, "bytes": 2400000.0}
    assert run.data.params == {"method.bits": "4"}
    assert run.data.tags["artifact_hash"] == registry.artifact_hash(one)
    kept = client.download_artifacts(run_id, "scorecard.json", str(tmp_path))
    assert json.loads(Path(kept).read_text()) == {"slices": {"calls": 0.9}}


def test_a_version_says_what_it_is_and_what_it_was_measured_on(store: str, tmp_path: Path) -> None:
    folder, frozen = artifact(tmp_path / "one", b"one"), tmp_path / "dataset"
    frozen.mkdir()
    version, run_id = registry.register(
        "told", folder, metrics={"quality": 0.93}, tags={"name": "int4"}, parameters={"method.bits": 4},
        run_name="int4", card="# told\n" + "x" * 6000, data=registry.Data("08c5bade87c10a1b", frozen),
    )  # fmt: skip
    import mlflow

    client = mlflow.MlflowClient(settings().mlflow_uri)
    found, run = client.get_model_version("told", version), client.get_run(run_id)
    assert found.description.startswith("# told") and found.description.endswith(
        "MODEL_CARD.md, among the version's files."
    )
    assert len(found.description) == 5000
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.digest == "08c5bade87c10a1b" and mlflow.data.get_source(used.dataset).load() == str(frozen)
    (made,) = run.outputs.model_outputs
    model = client.get_logged_model(made.model_id)
    assert model.params == {"method.bits": "4"} and model.tags["name"] == "int4"
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_digest) == ("quality", 0.93, "08c5bade87c10a1b")

    mlflow.set_tracking_uri(settings().mlflow_uri)
    whole = Path(mlflow.artifacts.download_artifacts(f"models:/told/{version}", dst_path=str(tmp_path / "whole")))
    assert (whole / "MODEL_CARD.md").read_text() == "# told\n" + "x" * 6000
    listed = (whole / "SHA256SUMS").read_text()
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=whole, capture_output=True)
    assert done.returncode == 0, done.stderr
    there = {f.relative_to(whole).as_posix() for f in whole.rglob("*") if f.is_file()}
    unlisted = {"SHA256SUMS", "registered_model_meta"}  # MLflow writes the second beside what it has downloaded
    assert {line.split("  ")[1] for line in listed.splitlines()} == there - unlisted
    assert found.tags["sums_hash"] == hashlib.sha256(listed.encode()).hexdigest()
    assert found.tags["artifact_hash"] == registry.artifact_hash(whole / "model") == registry.artifact_hash(folder)
    told = mlflow.models.get_model_info(str(whole))
    assert told.signature.inputs.input_names() == ["messages", "tools", "max_tokens", "max_completion_tokens", "model"]
    assert told.saved_input_example_info is not None
    assert not list(whole.rglob("*.pkl"))


def test_the_same_files_are_one_version(store: str, tmp_path: Path) -> None:
    first = register("same", artifact(tmp_path / "one", b"one"))
    assert register("same", artifact(tmp_path / "copy", b"one")) == first
    assert register("same", artifact(tmp_path / "two", b"two")) != first
    assert register("same.elsewhere", tmp_path / "one")[1] != first[1], "another workload has versions of its own"


def test_a_registration_that_was_killed_is_taken_up_and_leaves_nothing_beside_it(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    import mlflow

    folder = artifact(tmp_path / "one", b"one")
    for moment in ("log_outputs", "create_model_version"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(mlflow.MlflowClient, moment, killed)
            patch.setattr(mlflow.MlflowClient, "set_terminated", lambda *_: None)  # nor does a dead process say so
            register("killed", folder)
    version, run_id = register("killed", folder)
    client = mlflow.MlflowClient(settings().mlflow_uri)
    experiment = client.get_experiment_by_name("flywheel killed").experiment_id
    (run,), (model,) = client.search_runs([experiment]), client.search_logged_models([experiment])
    assert (run.info.run_id, run.info.status, model.source_run_id) == (run_id, "FINISHED", run_id)
    assert model.metrics and client.get_model_version("killed", version).source == f"models:/{model.model_id}"
    if store == "sqlite":
        assert len(list((settings().home / "mlflow-artifacts" / "killed").rglob("model.gguf"))) == 1


def test_names_that_mlflow_refuses_are_mapped_and_come_back(store: str, tmp_path: Path) -> None:
    workload = "tensorzero::extract/v1 100% it's"
    version, _ = register(workload, artifact(tmp_path / "one", b"one"))
    registry.promote(workload, version)
    assert registry.champions()[workload] == version
    served = registry.champion(workload)
    assert served is not None and served.workload == workload


def test_files_that_are_not_what_was_registered_do_not_serve(shared_home: Path, tmp_path: Path) -> None:
    with living_in(shared_home / "sqlite"):
        version, _ = register("tampered", artifact(tmp_path / "one", b"one"))
        registry.promote("tampered", version)
        served = registry.champion("tampered")
        assert served is not None
        (served.folder / "model.gguf").write_bytes(b"other")
        with pytest.raises(SetupError, match=r"has files with hash .* --rollback"):
            registry.champion("tampered")


def test_a_download_that_was_damaged_is_made_again(server: str, shared_home: Path, tmp_path: Path) -> None:
    with living_in(shared_home / "server", MLFLOW=server):
        version, _ = register("damaged", artifact(tmp_path / "one", b"one"))
        registry.promote("damaged", version)
        for _ in range(2):
            served = registry.champion("damaged")
            assert served is not None and (served.folder / "model.gguf").read_bytes() == b"one"
            assert served.folder.is_relative_to(shared_home / "server" / "serving")
            assert [p.name for p in served.folder.parent.iterdir()] == [version], "nothing half-made stays"
            (served.folder / "model.gguf").write_bytes(b"other")


def test_the_champion_s_adapter_is_kept_beside_it(store: str, tmp_path: Path) -> None:
    assert registry.champion_adapter("adapted") is None
    folder, adapter = artifact(tmp_path / "one", b"one"), artifact(tmp_path / "adapter", b"A and B")
    made = {"metrics": {}, "tags": {}, "parameters": {}, "run_name": "int4"}
    version, _ = registry.register("adapted", folder, adapter=adapter, **made)
    registry.promote("adapted", version)
    for _ in range(2):
        found, served = registry.champion_adapter("adapted"), registry.champion("adapted")
        assert found is not None and served is not None and found.version == served.version == version
        assert found.artifact_hash == registry.artifact_hash(adapter)
        assert (found.folder / "model.gguf").read_bytes() == b"A and B"
        assert served.artifact_hash == registry.artifact_hash(folder), "what serves is what it was without an adapter"
    (found.folder / "model.gguf").write_bytes(b"other")
    if store == "server":
        again = registry.champion_adapter("adapted")
        assert again is not None and (again.folder / "model.gguf").read_bytes() == b"A and B"
    else:
        with pytest.raises(SetupError, match=r"adapter of version 1 of 'adapted' has files with hash"):
            registry.champion_adapter("adapted")


def test_a_champion_that_was_registered_without_an_adapter_says_so(store: str, tmp_path: Path) -> None:
    version, _ = register("bare", artifact(tmp_path / "one", b"one"))
    registry.promote("bare", version)
    with pytest.raises(SetupError, match=r"champion 1 of 'bare' was registered without an adapter"):
        registry.champion_adapter("bare")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "postgresql://nobody@127.0.0.1:1/none", "nonsense://x"])
def test_an_mlflow_out_of_reach_is_one_line_within_seconds(uri: str, tmp_path: Path) -> None:
    with living_in(tmp_path, MLFLOW=uri):
        started = time.monotonic()
        with pytest.raises(SetupError) as raised:
            registry.champion("x")
        assert time.monotonic() - started < 12
    assert uri in str(raised.value) and "FLYWHEEL_MLFLOW" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_error_does_not_show_the_password(tmp_path: Path) -> None:
    with living_in(tmp_path, MLFLOW="http://me:secret@127.0.0.1:1"), pytest.raises(SetupError) as raised:
        registry.champion_number("x")
    assert "secret" not in str(raised.value)


def test_students_are_known_by_the_name_they_answer_with() -> None:
    assert registry.served_name("shop.assistant", "3") == "flywheel:shop.assistant/3"
    assert registry.is_student(registry.served_name("shop.assistant", "3"))
    assert not registry.is_student("gpt-4o") and not registry.is_student(None)
