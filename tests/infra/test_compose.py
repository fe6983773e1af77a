"""infra/compose.yaml and infra/Dockerfile: valid, and as tight as they say. What they run is in test_topology.py."""

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compose import FILE, ROOT, compose

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("flywheel:")}
ONCE = {"bucket", "deployments", "migrate"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that infra/make_secrets.py makes."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    made = make(folder)
    assert made.returncode == 0, made.stderr
    return folder


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    # As on a bare machine: by itself, without our packages or anybody's.
    command = [sys.executable, "-I", str(ROOT / "infra" / "make_secrets.py"), "--folder", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_compose_is_what_the_compose_specification_allows() -> None:
    files = [str(FILE), str(FILE.with_name("compose.gpu.yaml"))]
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), "infra/Dockerfile"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout


def test_no_image_is_latest() -> None:
    images = [service["image"] for service in SERVICES.values()]
    images += re.findall(r"^FROM (\S+:\S+)", (ROOT / "infra/Dockerfile").read_text(), re.MULTILINE)
    assert images and all(re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image) for image in images), images


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["memory"] and limits["cpus"] and limits["pids"]
    user = str(service.get("user", "the image's"))
    assert not user.startswith("0") and user != "root"
    if user == "the image's":
        assert name in OURS | {"minio"}, f"{name} runs as whatever its image says"
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
    assert "healthcheck" in service or name in ONCE


def test_what_the_gpu_file_changes_is_there() -> None:
    added = yaml.safe_load(FILE.with_name("compose.gpu.yaml").read_text())["services"]
    assert added.keys() <= SERVICES.keys()


def test_every_pool_has_a_worker_and_is_made() -> None:
    pools = {f"flywheel-{kind}" for kind in ("cpu", "gpu")}
    polled = {part for service in SERVICES.values() for part in (service.get("command") or []) if part in pools}
    assert polled == pools
    made = re.findall(r"flywheel-\w+", " ".join(SERVICES["deployments"]["command"]))
    assert set(made) == pools
    deployments = yaml.safe_load((ROOT / "infra" / "prefect.yaml").read_text())["deployments"]
    assert {one["work_pool"]["name"] for one in deployments} == pools


def test_our_images_end_as_another_user_than_root() -> None:
    stages = (ROOT / "infra" / "Dockerfile").read_text().split("\nFROM ")[2:]
    assert len(stages) == 2 and all(re.findall(r"^USER (\d+):\d+$", stage, re.MULTILINE) != ["0"] for stage in stages)


def test_a_service_waits_for_what_it_needs() -> None:
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == ("service_completed_successfully" if other in ONCE else "service_healthy")
            assert not set(service["networks"]).isdisjoint(SERVICES[other]["networks"]) or other in ONCE, (name, other)


def test_whom_a_service_names_it_reaches_and_the_stores_have_no_way_out() -> None:
    for name, service in SERVICES.items():
        told = " ".join(map(str, [*(service.get("environment") or {}).values(), *(service.get("command") or [])]))
        for other in set(re.findall(r"//(?:[^/\s@]*@)?(\w+):\d", told)) & SERVICES.keys():
            shared = set(service["networks"]) & set(SERVICES[other]["networks"])
            # MLflow is told the gateway's address by the job that subscribes it, which does not call it itself.
            assert shared or (name, other) == ("deployments", "gateway"), f"{name} cannot reach {other}"
    networks = compose()["networks"]
    assert all(
        networks[network]["internal"] for name in ("postgres", "minio") for network in SERVICES[name]["networks"]
    )
    assert not set(SERVICES["gateway"]["networks"]) & set(SERVICES["minio"]["networks"])


def test_every_secret_is_a_file_that_is_made_mounted_and_read(secrets: Path) -> None:
    declared = compose()["secrets"]
    assert {path.name for path in secrets.iterdir()} == set(declared)
    assert all(one == {"file": f"./secrets/{name}"} for name, one in declared.items())
    for name, service in SERVICES.items():
        mounted = {one if isinstance(one, str) else one["source"] for one in service.get("secrets", [])}
        told = " ".join(map(str, [*(service.get("environment") or {}).values(), *(service.get("command") or [])]))
        read = set(re.findall(r"/run/secrets/([\w.]+)", told)) | ({"roles.sql"} if name == "postgres" else set())
        assert mounted == read, name


def test_no_password_is_in_the_repository() -> None:
    for name, service in SERVICES.items():
        for key, value in (service.get("environment") or {}).items():
            secret = re.search(r"PASSWORD|SECRET|TOKEN|_KEY|AUTH_STRING|CREDENTIALS|DATABASE|STORE_URI", key)
            assert not secret or key.endswith("_FILE") or key == "FLYWHEEL_TEACHER_KEY", f"{name}: {key}={value}"
    ignored = subprocess.run(["git", "check-ignore", "infra/secrets/database_url"], cwd=ROOT, capture_output=True)
    assert ignored.returncode == 0
    assert "infra/secrets" in (ROOT / ".dockerignore").read_text().splitlines()


def test_secrets_are_long_their_own_and_never_made_twice(secrets: Path) -> None:
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    content = {path.name: path.read_text() for path in secrets.iterdir()}
    again = make(secrets)
    assert again.returncode == 2 and "stays as it is" in again.stderr
    assert {path.name: path.read_text() for path in secrets.iterdir()} == content
    other = secrets.with_name("other")
    assert make(other).returncode == 0
    same = {name for name, text in content.items() if (other / name).read_text() == text}
    assert same == {"s3_user", "teacher_key"}
    for name in ("postgres_password", "s3_password", "redaction_key", "webhook_secret", "grafana_password"):
        assert len(content[name]) >= 32


def enter(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The image's entry point before a program that shows its environment."""
    command = ["sh", str(ROOT / "infra" / "entrypoint.sh"), "env"]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environment})


def test_the_entry_point_gives_a_program_what_stands_in_the_file(tmp_path: Path) -> None:
    odd = "admin:a$b`c\"d'e f\\g"
    (tmp_path / "auth").write_text(f"{odd}\n")
    shown = enter(
        tmp_path, PREFECT_API_AUTH_STRING_FILE=str(tmp_path / "auth"), FLYWHEEL_TOKENS_FILE="/left/alone"
    ).stdout
    assert f"PREFECT_API_AUTH_STRING={odd}" in shown.splitlines()
    assert "PREFECT_API_AUTH_STRING_FILE" not in shown and "FLYWHEEL_TOKENS_FILE=/left/alone" in shown


def test_the_entry_point_starts_nothing_without_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for file in (tmp_path / "missing", tmp_path / "empty"):
        refused = enter(tmp_path, MLFLOW_BACKEND_STORE_URI_FILE=str(file))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert str(file) in refused.stderr and len(refused.stderr.splitlines()) == 1
