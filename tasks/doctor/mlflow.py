"""MLflow: there, of our version, and the champions are what was registered and what our database says of them."""

from collections.abc import Iterator
from importlib.metadata import version

import httpx

from infra import promotions, registry
from infra.backup.copies import file_of
from infra.settings import SetupError, settings
from infra.tracking import shown
from tasks.doctor.finding import Level


def check() -> Iterator[tuple[Level, str, str]]:
    uri, ours = settings().mlflow_uri, version("mlflow")
    file = file_of(uri) if uri.startswith("sqlite") else None
    if file is not None and not file.exists():
        yield "ok", f"{file} is not there yet; the first release makes it", ""
        return
    if uri.startswith("http"):
        try:
            theirs = httpx.get(f"{uri.rstrip('/')}/version", timeout=5).text.strip()
        except httpx.HTTPError as problem:
            raise SetupError(
                f"MLflow at {shown(uri)} does not answer ({type(problem).__name__}); check FLYWHEEL_MLFLOW"
            ) from problem
        same = theirs.split(".")[:2] == ours.split(".")[:2]
        yield (
            "ok" if same else "warning",
            f"server {theirs[:20]} at {shown(uri)}, client {ours}",
            "" if same else f"pip install mlflow=={theirs[:20]}",
        )
    champions = registry.champions()
    yield "ok", f"{shown(uri)} answers; {len(champions)} workloads have a champion", ""
    noted = promotions.serving()
    for workload in sorted(champions.keys() | noted.keys()):
        yield from champion(workload, champions.get(workload), noted.get(workload))


def champion(workload: str, serves: str | None, noted: str | None) -> Iterator[tuple[Level, str, str]]:
    """One workload's champion: its files by their hashes, and whether our database knows of it."""
    if serves is not None:
        try:
            found = registry.version(workload, serves)
            yield (
                "ok",
                f"version {serves} of {workload}: files are what was registered ({found.artifact_hash[:12]})",
                "",
            )
        except SetupError as problem:
            yield "wrong", str(problem).partition("; ")[0], f"flywheel release --rollback --workload {workload}"
    if serves != noted:
        said = (
            f"{workload}: the alias champion is at {serves or 'nothing'}, our last note of it at {noted or 'nothing'}"
        )
        yield "warning", said, f"flywheel redeploy --workload {workload}"
