"""Where candidates are kept: MLflow's model registry, one registered model a workload, a version each.

A version is a logged model: the artifact folder as an engine loads it, byte for byte, in a package that MLflow can
serve by itself (`package.py`), with its card, its metrics on the dataset that it was scored on, and the hashes of its
files as tags (`versions.py` writes it). The adapter that it was merged from lies beside it, with its MLflow run, and
has a tag of its own. The tag `verdict` is what the gate said of it. No version serves but by an alias, and three move:
`champion` serves, `previous` served before it, `challenger` is on its way to serve (`infra/rollout`); who moved them is
kept by `promotions.py`. By default MLflow writes SQLite and a folder in the home; FLYWHEEL_MLFLOW names a server
instead.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra import package, versions
from infra.settings import SetupError, settings
from infra.tracking import connected, download, local
from infra.versions import ADAPTER as ADAPTER
from infra.versions import SUMS_HASH, Told
from infra.versions import Data as Data

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
HASH = "artifact_hash"
ADAPTER_HASH = "adapter_hash"
VERDICT, PROMOTE = "verdict", "promote"  # the tag, and its value where the gate lets a version serve
SERVED = "flywheel:"


@dataclass(frozen=True)
class Version:
    """One registered model version whose files are at hand and are what was registered."""

    workload: str
    version: str
    folder: Path
    artifact_hash: str
    tags: dict[str, str] = field(default_factory=dict)


def artifact_hash(folder: Path) -> str:
    """sha256 over the sorted (relative name, sha256 of the bytes) of every file in a folder.

    Raises:
        SetupError: The folder is missing or has no files.
    """
    files = package.hashes(folder)
    if not files:
        raise SetupError(f"artifact {str(folder)!r} has no files; quantize the student again")
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(json.dumps([name, content]).encode())
    return digest.hexdigest()


def served_name(workload: str, version: str) -> str:
    """What a response of this version carries as `model`."""
    return f"{SERVED}{workload}/{version}"


def is_student(model: str | None) -> bool:
    """Whether a response's `model` says that one of our versions answered."""
    return bool(model and model.startswith(SERVED))


def register(
    workload: str,
    folder: Path,
    *,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    parameters: Mapping[str, Any],
    run_name: str,
    card: str = "",
    data: Data | None = None,
    documents: Mapping[str, Any] | None = None,
    adapter: Path | None = None,
    shared: bool = False,
) -> tuple[str, str]:
    """Register an artifact folder as a version of the workload's model; returns (version, MLflow run id).

    The same files are one version: if they are registered already, that version is returned, and nothing is written
    but where `tags` bring another verdict. Then all that is told of it is told anew, save the card within its package,
    which is as it was registered. A version that passed once has passed: no later verdict changes its tag.

    It costs the bytes of the folder and of the adapter once more, and some 30 kB; with `shared` these alone, where
    MLflow keeps its files in a folder on the same disk.

    Args:
        folder: The files as an engine loads them.
        metrics: Numbers for MLflow's charts, of run and logged model.
        tags: On run, logged model and version alike; the hashes are added.
        parameters: How the artifact was made.
        card: What the version is, in Markdown.
        data: Becomes the run's input, with the dataset's id as its digest.
        documents: JSON documents kept with the run, by file name.
        adapter: The folder of the adapter that the artifact's weights were merged from, kept with the run.
        shared: Let the version's files be second names of the folder's and the adapter's, if that can be. Who then
            writes into one in place changes both, and the hash is refused: not for what is to serve.

    Raises:
        SetupError: MLflow cannot be reached or refuses.
    """
    digest = artifact_hash(folder)
    told = Told(metrics, parameters, card, data, documents or {})
    with _mlflow() as client:
        if known := _with_files(client, workload, digest):
            if tags.get(VERDICT) not in (None, known.tags.get(VERDICT)) and known.tags.get(VERDICT) != PROMOTE:
                versions.tell_again(client, known, told, tags, shared)
            return str(known.version), str(known.run_id)
        labels = {**tags, HASH: digest, "workload": workload}
        if adapter is not None:
            labels[ADAPTER_HASH] = artifact_hash(adapter)
        experiment = experiment_of(client, workload)
        run_id = versions.taken_up(client, experiment, f"tags.{HASH} = '{digest}'", labels, told)
        if run_id is None:
            run_id = str(client.create_run(experiment, tags=labels, run_name=run_name).info.run_id)
        try:
            if adapter is not None:
                versions.log_adapter(client, run_id, adapter, shared)
            version = versions.write(client, _model(workload), workload, folder, run_id, labels, told, shared)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
        return version, run_id


def registered(workload: str, digest: str) -> tuple[str, str] | None:
    """(version, MLflow run id) of what has the files with this hash, or None."""
    with _mlflow() as client:
        known = _with_files(client, workload, digest)
    return (str(known.version), str(known.run_id)) if known else None


def mark(workload: str, version: str, tag: str, value: str) -> None:
    """Set a tag of a version."""
    with _mlflow() as client:
        client.set_model_version_tag(_model(workload), version, tag, value)


def champion_number(workload: str) -> str | None:
    """The version that serves, or None. One indexed read and no file access: cheap enough to poll."""
    return _alias(workload, CHAMPION)


def previous_number(workload: str) -> str | None:
    """The version that served before it, or None."""
    return _alias(workload, PREVIOUS)


def workload_of(name: str) -> str | None:
    """The workload whose model has this name in MLflow; None for a model of others, or none."""
    from mlflow.exceptions import MlflowException

    with _mlflow() as client:
        try:
            tagged = str(client.get_registered_model(name).tags.get("workload", ""))
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
    return tagged if _model(tagged) == name else None


def champions() -> dict[str, str]:
    """Every workload that has a champion, with its version."""
    found: dict[str, str] = {}
    with _mlflow() as client:
        token: str | None = None
        while True:
            page = client.search_registered_models(page_token=token)
            # The tag tells our models from others' on a shared server.
            found |= {m.tags["workload"]: str(m.aliases[CHAMPION]) for m in page if _ours(m)}
            token = page.token
            if not token:
                return found


def champion(workload: str) -> Version | None:
    """The version that serves, with its files on this machine and its hash verified; None if nothing serves.

    Files that MLflow keeps in a local folder are used where they are; others are downloaded once, into the home.

    Raises:
        SetupError: MLflow cannot be reached, or the files are not what was registered.
    """
    with _mlflow() as client:
        found = _by_alias(client, workload, CHAMPION)
        if found is None:
            return None
        return _at_hand(workload, found, _location(client, found), HASH)


def version(workload: str, number: str) -> Version:
    """A registered version, likewise, whether or not it serves.

    Raises:
        SetupError: It is not registered, MLflow cannot be reached, or the files are not what was registered.
    """
    from mlflow.exceptions import MlflowException

    with _mlflow() as client:
        try:
            found = client.get_model_version(_model(workload), number)
        except MlflowException as problem:
            if problem.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise SetupError(f"{workload!r} has no version {number!r}; `flywheel release` registers one") from problem
        return _at_hand(workload, found, _location(client, found), HASH)


def champion_adapter(workload: str) -> Version | None:
    """The adapter of the version that serves, likewise; None if nothing serves.

    Raises:
        SetupError: MLflow cannot be reached, none was registered, or the files are not what was registered.
    """
    with _mlflow() as client:
        found = _by_alias(client, workload, CHAMPION)
        if found is None:
            return None
        if ADAPTER_HASH not in found.tags:
            raise SetupError(
                f"champion {found.version} of {workload!r} was registered without an adapter; begin with the base"
            )
        location = f"{client.get_run(found.run_id).info.artifact_uri.rstrip('/')}/{ADAPTER}"
        return _at_hand(workload, found, location, ADAPTER_HASH)


def promote(workload: str, version: str) -> None:
    """Let a version serve; what served becomes `previous`. Doing it twice changes nothing."""
    with _mlflow() as client:
        serving = _by_alias(client, workload, CHAMPION)
        if serving is not None and str(serving.version) == str(version):
            return
        # `previous` first: a crash between the two leaves the old champion serving, and promoting again finishes it.
        if serving is not None:
            client.set_registered_model_alias(_model(workload), PREVIOUS, str(serving.version))
        client.set_registered_model_alias(_model(workload), CHAMPION, str(version))


def challenge(workload: str, version: str) -> None:
    """Mark a version as the one that is on its way to serve."""
    with _mlflow() as client:
        client.set_registered_model_alias(_model(workload), CHALLENGER, version)


def unchallenge(workload: str, version: str) -> None:
    """Take that mark from a version, if it has it."""
    with _mlflow() as client:
        found = _by_alias(client, workload, CHALLENGER)
        if found is not None and str(found.version) == version:
            client.delete_registered_model_alias(_model(workload), CHALLENGER)


def rollback(workload: str) -> tuple[str, str]:
    """Give `previous` its place back; returns (champion, previous) as they are now.

    Raises:
        SetupError: There is no previous champion.
    """
    with _mlflow() as client:
        serving, before = (_by_alias(client, workload, alias) for alias in (CHAMPION, PREVIOUS))
        if serving is None or before is None or serving.version == before.version:
            state = f"version {serving.version} is its only champion so far" if serving else "it has no champion"
            raise SetupError(f"workload {workload!r} has nothing to roll back to: {state}; promote another one first")
        client.set_registered_model_alias(_model(workload), CHAMPION, str(before.version))
        client.set_registered_model_alias(_model(workload), PREVIOUS, str(serving.version))
        return str(before.version), str(serving.version)


@contextmanager
def _mlflow() -> Iterator[Any]:
    """MLflow's client on the registry that the settings name."""
    uri = settings().mlflow_uri
    with connected(uri) as client:
        import mlflow

        # The client alone is not enough: on SQLite the registry's store asks the global tracking store for the model.
        if mlflow.get_tracking_uri() != uri:
            mlflow.set_tracking_uri(uri)
        yield client


def _model(workload: str) -> str:
    """MLflow allows neither `/` nor `:` in a model's name; percent signs keep the mapping reversible."""
    return quote(workload, safe=" !#$&()*+,;=@[]{}~")


def experiment_of(client: Any, workload: str) -> str:
    """Id of the experiment that the runs of a workload are in."""
    name = f"flywheel {workload}"
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    # A server knows where its files go; without one MLflow would put them below the working directory.
    served = settings().mlflow_uri.startswith(("http://", "https://"))
    ours = None if served else (settings().home / "mlflow-artifacts" / _model(workload)).as_uri()
    return str(client.create_experiment(name, artifact_location=ours))


def _with_files(client: Any, workload: str, digest: str) -> Any | None:
    filters = f"name = '{_model(workload)}' and tags.{HASH} = '{digest}'"
    return next(iter(client.search_model_versions(filters, max_results=1)), None)


def _ours(model: Any) -> bool:
    return CHAMPION in model.aliases and _model(model.tags.get("workload", "")) == model.name


def _alias(workload: str, alias: str) -> str | None:
    with _mlflow() as client:
        found = _by_alias(client, workload, alias)
    return None if found is None else str(found.version)


def _by_alias(client: Any, workload: str, alias: str) -> Any | None:
    """The model version behind an alias, or None where the model or the alias does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(_model(workload), alias)
    except MlflowException as problem:
        # A missing alias is reported as a bad parameter, a missing model as a missing resource.
        if problem.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _location(client: Any, found: Any) -> str:
    """Where the artifact of a version lies; those from before there were packages are nothing else."""
    whole = str(client.get_model_version_download_uri(found.name, found.version)).rstrip("/")
    return f"{whole}/{package.MODEL}" if SUMS_HASH in found.tags else whole


def _at_hand(workload: str, found: Any, location: str, tag: str) -> Version:
    """What a version's location holds, on this machine and verified by the hash that the tag has."""
    number, tags = str(found.version), dict(found.tags)
    digest = tags.get(tag, "")
    folder = local(location)
    if folder is None:
        folder = settings().home / "serving" / quote(workload, safe="") / (number if tag == HASH else f"{number}.{tag}")
        if not folder.exists() or artifact_hash(folder) != digest:
            download(location, folder)
    if (actual := artifact_hash(folder)) != digest:
        raise SetupError(
            f"the {tag.removesuffix('_hash')} of version {number} of {workload!r} has files with hash {actual[:12]}, "
            f"registered was {digest[:12]}; "
            f"restore {folder}, or `flywheel release --rollback --workload {workload}`"
        )
    return Version(workload, number, folder, digest, tags)
