"""A version as MLflow is told of it: run, logged model with the package, metrics on the dataset, description.

What lies in the package is written once, and its hashes with it. What is told beside it (tags, metrics, documents,
description) is told anew when another verdict comes.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from infra import package
from infra.settings import settings
from infra.tracking import local

ADAPTER, SUMS_HASH = "adapter", "sums_hash"
LONGEST_DESCRIPTION, LONGEST_DIGEST = 5000, 36  # characters that MLflow's tables hold


class Data(NamedTuple):
    """The frozen dataset that a version was made of and scored on: its id, and where it lies."""

    id: str
    path: Path


class Told(NamedTuple):
    """What is said of a version, as `registry.register` takes it."""

    metrics: Mapping[str, float]
    parameters: Mapping[str, Any]
    card: str
    data: Data | None
    documents: Mapping[str, Any]


def write(
    client: Any, model: str, workload: str, folder: Path, run_id: str, labels: dict[str, str], told: Told, shared: bool
) -> str:
    """A new version of a registered model, which is made where there is none; returns its number.

    Args:
        model: MLflow's name for the workload's.
        labels: Tags of logged model and version; the hash of the package's SHA256SUMS is added.
    """
    from mlflow.exceptions import MlflowException

    model_id, labels[SUMS_HASH] = _log_model(client, folder, run_id, labels, told, shared)
    _log(client, run_id, model_id, told)
    try:
        client.create_registered_model(model, tags={"workload": workload})
    except MlflowException as problem:
        if problem.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        model, f"models:/{model_id}", run_id, dict(labels), description=_short(told.card), model_id=model_id
    )
    return str(made.version)


def taken_up(client: Any, experiment: str, digest: str, labels: Mapping[str, str], told: Told) -> str | None:
    """The run of a registration that was killed, without the model that it left; None if there is none.

    Args:
        digest: A condition on MLflow's tags by which the files are the same.
    """
    for run in client.search_runs([experiment], f"{digest} and attributes.status != 'FINISHED'"):
        if any(run.data.params.get(name, str(value)) != str(value) for name, value in told.parameters.items()):
            continue  # MLflow lets no parameter change
        run_id = str(run.info.run_id)
        for left in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            client.delete_logged_model(left.model_id)
            if there := local(left.artifact_location):
                shutil.rmtree(there)
        for name, value in labels.items():
            client.set_tag(run_id, name, value)
        return run_id
    return None


def tell_again(client: Any, version: Any, told: Told, tags: Mapping[str, str], shared: bool) -> None:
    """Say of a version what is to be said since another verdict; its tags last: killed before, it is done again."""
    number, model_id = str(version.version), version.source.rpartition("/")[2]  # its own `model_id` is empty here
    if not shared:
        _part(client.get_logged_model(model_id).artifact_location)
        _part(client.get_run(version.run_id).info.artifact_uri)
    _log(client, version.run_id, model_id, told)
    for name, value in tags.items():
        client.set_tag(version.run_id, name, value)
    client.set_logged_model_tags(model_id, dict(tags))
    since = f"{package.CARD}, among the version's files, has the verdict that it was registered with."
    client.update_model_version(version.name, number, _short(told.card, since))
    for name, value in tags.items():
        client.set_model_version_tag(version.name, number, name, value)


def log_adapter(client: Any, run_id: str, adapter: Path, shared: bool) -> None:
    """An adapter as files of a run."""
    client.log_artifacts(run_id, str(adapter), ADAPTER)
    if shared and (there := local(client.get_run(run_id).info.artifact_uri)):
        _share(adapter, there / ADAPTER)


def _log_model(
    client: Any, folder: Path, run_id: str, labels: Mapping[str, str], told: Told, shared: bool
) -> tuple[str, str]:
    """The folder's package as a logged model; returns its id, and the sha256 of its SHA256SUMS."""
    from mlflow.entities import LoggedModelOutput

    experiment = client.get_run(run_id).info.experiment_id
    texts = {name: str(value) for name, value in told.parameters.items()}
    logged = client.create_logged_model(experiment, "artifact", run_id, dict(labels), texts, model_type="chat")
    try:
        # Beside the artifacts, where a second name of a file costs nothing.
        settings().home.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="package-", dir=settings().home) as made:
            whole = Path(made) / "package"
            digest = package.build(whole, folder, card=told.card, model_id=logged.model_id, run_id=run_id)
            client.log_model_artifacts(logged.model_id, str(whole))
        if shared and (there := local(logged.artifact_location)):
            _share(folder, there / package.MODEL)
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
    return logged.model_id, digest


def _share(folder: Path, copy: Path) -> None:
    """Put second names of a folder's files in the place of their copies, where the disk allows."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        name = copy / file.relative_to(folder)
        beside = name.with_name(f"{name.name}.partial")
        try:
            os.link(file, beside)
        except OSError:  # another disk, or one that knows no second names
            return
        beside.replace(name)


def _part(location: str) -> None:
    """Give files that have a second name elsewhere bytes of their own again."""
    there = local(location)
    for file in [file for file in there.rglob("*") if file.is_file() and file.stat().st_nlink > 1] if there else []:
        beside = file.with_name(f"{file.name}.partial")
        shutil.copyfile(file, beside)
        beside.replace(file)


def _log(client: Any, run_id: str, model_id: str, told: Told) -> None:
    """Documents; metrics on run and logged model, of the dataset that they were measured on; parameters on the run."""
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, Param
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
    from mlflow.utils.time import get_current_time_millis

    for name, document in told.documents.items():
        client.log_dict(run_id, document, name)
    measured: dict[str, str] = {}
    if told.data is not None:
        name, digest = f"dataset {told.data.id}", told.data.id[:LONGEST_DIGEST]
        source = get_dataset_source_from_json(json.dumps({"uri": str(told.data.path)}), "local")
        dataset = MetaDataset(source, name, digest)
        context = InputTag(MLFLOW_DATASET_CONTEXT, "training and evaluation")
        client.log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), [context])])
        measured = {"dataset_name": name, "dataset_digest": digest}
    now = get_current_time_millis()
    numbers = [Metric(name, value, now, 0, model_id, run_id=run_id, **measured) for name, value in told.metrics.items()]
    parameters = [Param(name, str(value)) for name, value in told.parameters.items()]
    client.log_batch(run_id, metrics=numbers, params=parameters)


def _short(card: str, note: str = "") -> str:
    """A card as far as a description may be long, with what must be said of it at its end."""
    if len(card) + len(note) > LONGEST_DESCRIPTION:
        note = f"More in {package.CARD}, among the version's files. {note}".strip()
    rest = f"\n\n{note}" if note else ""
    return card[: LONGEST_DESCRIPTION - len(rest)] + rest
