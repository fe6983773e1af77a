"""Everything read from the environment, once.

Each setting is `FLYWHEEL_` and its name in capitals. Without any, all lives in one folder and no server is needed.

With `_FILE` behind its name each is read from a file instead (FLYWHEEL_TOKENS_FILE=/run/secrets/tokens), as
PostgreSQL's image and others do it: whoever may inspect a container sees its environment, and not its secrets. White
space at the end of the file is left off. A setting that is given both ways is a mistake, as is a file that cannot be
read. pydantic-settings' own `secrets_dir` was left: a file that is missing there is silence, and the default serves.
"""

import contextlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

SEEDLING = Path(__file__).parent / "seedling" / "models"


class SetupError(Exception):
    """Something a person must change: one line that names the value, the limit and the way out."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_", extra="ignore")

    home: Path = Field(Path(".flywheel"), description="The one folder that everything lives under")
    database: str = Field("", description="SQLAlchemy URL; SQLite or PostgreSQL. Default: a file in the home")
    mlflow: str = Field("", description="MLflow tracking URI. Default: SQLite and a folder in the home")
    student: str = Field("seedling", description="Base of the student: a Hugging Face id or path, or `seedling`")
    encoder: str = Field("", description="Encoder of the classifier: a Hugging Face id or path. Default: no classifier")
    teacher: str = Field(
        "seedling", description="http(s)://.../v1, a Hugging Face id or path, `seedling`, or empty for none"
    )
    teacher_model: str = Field(
        "", description="The model name a teacher endpoint is asked for. Default: what the request names"
    )
    teacher_key: SecretStr = Field(SecretStr(""), description="Bearer token of the teacher endpoint")
    teacher_parallel: int = Field(8, ge=1, le=256, description="Requests that a teacher endpoint is asked at a time")
    teacher_rate_limit: int = Field(
        0, ge=0, description="Requests a minute that a teacher endpoint is sent, retries included; 0 is no limit"
    )
    teacher_prompt_price: float = Field(
        0, ge=0, description="What a million tokens of prompt cost at the teacher endpoint, in USD"
    )
    teacher_completion_price: float = Field(0, ge=0, description="What a million tokens of its answers cost")
    teacher_budget: float = Field(
        0, ge=0, description="USD that a stage may spend on the teacher endpoint before it stops; 0 is no limit"
    )
    teacher_logprobs: int = Field(
        0,
        ge=0,
        le=100,
        description="Likeliest tokens that a teacher endpoint is asked for at each position; 0 for none",
    )
    judge_key: SecretStr = Field(SecretStr(""), description="Bearer token of the endpoint that judges answers")
    langfuse_host: str = Field("https://cloud.langfuse.com", description="Address of Langfuse's API")
    langfuse_public_key: SecretStr = Field(SecretStr(""), description="Public key of a Langfuse project")
    langfuse_secret_key: SecretStr = Field(SecretStr(""), description="Its secret key")
    sql_url: SecretStr = Field(SecretStr(""), description="SQLAlchemy URL of the database that `ingest sql` reads")
    redact: str = Field("all", description="What is redacted before it is stored: `all`, `none`, or kinds by comma")
    redaction_key: SecretStr = Field(
        SecretStr(""), description="Key of the pseudonyms of what was redacted. Default: a file in the home"
    )
    host: str = Field("127.0.0.1", description="What the servers bind to")
    gateway: str = Field(
        "", description="http(s)://... of the gateway, where it runs on another machine. Default: the one of this home"
    )
    gateway_port: int = Field(8080, ge=1, le=65535, description="The gateway's port")
    server: str = Field(
        "", description="http(s)://.../v1 of a server that runs the students. Default: they run in the gateway"
    )
    server_folder: str = Field(
        "", description="Folder that it reads models from; `HERE:THERE` where it sees it under another path"
    )
    server_key: SecretStr = Field(SecretStr(""), description="Its bearer token")
    tokens: SecretStr = Field(
        SecretStr(""),
        description="`CLIENT:TOKEN` pairs, separated by commas: who may write to the gateway. Default: all",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="What MLflow signs its webhook's calls with. Default: a file in the home"
    )
    rate_limit: int = Field(0, ge=0, description="Requests a minute that a client may send the gateway; 0 is no limit")
    body_limit_mb: int = Field(32, ge=1, le=1024, description="The largest body that the gateway reads, in MiB")
    drain_seconds: int = Field(
        25, ge=0, description="Seconds that a gateway which is told to stop gives the answers that are on their way"
    )
    log: Literal["", "json", "text"] = Field(
        "", description="Form of the gateway's log: `json` or `text`. Default: text on a terminal, else JSON"
    )
    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of Prefect's server and UI")
    mlflow_port: int = Field(5000, ge=1, le=65535, description="Port of MLflow's server and UI")
    torchrun: str = Field(
        "",
        description="Arguments of torchrun, to train in several processes: `--nproc-per-node 8`. Default: in this one",
    )
    shard: bool = Field(False, description="Whether each of several processes holds a part of the base alone (FSDP)")
    ray: str = Field(
        "", description="Ray cluster that stages fan out to: `host:6379`, `ray://host:10001`, `auto`. Default: none"
    )
    threads: int = Field(0, ge=0, description="Threads for training and serving; 0 takes the idle cores")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, InitSettingsSource(settings_cls, from_files(settings_cls.model_fields))

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.home / 'flywheel.db'}"

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def student_base(self) -> str:
        return str(SEEDLING / "student") if self.student == "seedling" else self.student

    @property
    def teacher_base(self) -> str:
        return str(SEEDLING / "teacher") if self.teacher == "seedling" else self.teacher

    @property
    def cores(self) -> int:
        """Threads to use: what was asked for, else the cores that other programs leave free now (at least one)."""
        if self.threads:
            return self.threads
        # Two threads that share a core with another process wait for each other at every step: three times slower than
        # one. This process and those it started do not count: they wait while it computes.
        ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, round(ours - _busy_cores_of_others(0.4)))


def from_files(names: Iterable[str]) -> dict[str, str]:
    """What stands in the files that `FLYWHEEL_{NAME}_FILE` name, by setting.

    Raises:
        SetupError: One cannot be read, or its setting is given by value as well.
    """
    found = {}
    for name in names:
        by_value = f"FLYWHEEL_{name.upper()}"
        by_file = f"{by_value}_FILE"
        if not (file := os.environ.get(by_file)):
            continue
        if os.environ.get(by_value):
            raise SetupError(f"{by_value} and {by_file} are both set; unset one of them")
        try:
            found[name] = Path(file).read_text().rstrip()
        except (OSError, UnicodeDecodeError) as problem:
            why = problem.strerror if isinstance(problem, OSError) else "it is no text"
            raise SetupError(
                f"{by_file} names {file!r}, which cannot be read: {why}; make it, or unset {by_file}"
            ) from problem
    return found


def _busy_cores_of_others(seconds: float) -> float:
    """How many cores' worth of time programs other than this one and its children take, over some seconds."""
    import psutil

    here = psutil.Process()
    family = [here, *here.children(recursive=True)]

    def spent() -> float:
        total = 0.0
        for process in family:
            with contextlib.suppress(psutil.Error):  # gone in the meantime
                times = process.cpu_times()
                total += times.user + times.system
        return total

    before = spent()
    busy: float = psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)
    return max(0.0, busy - (spent() - before) / seconds)


@cache
def settings() -> Settings:
    """The settings of this process. Tests clear the cache after they change the environment."""
    return Settings()
