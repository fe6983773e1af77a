"""A house of one's own for each test: a temporary FLYWHEEL_HOME, and both kinds of database."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import make_url

from infra.database import session
from infra.settings import settings
from tests.models import artifact, bare, labelled  # noqa: F401 (fixtures)

SHARED = Path(os.environ.get("FLYWHEEL_SHARED", Path(__file__).parent.parent.parent / "shared"))
NUMBERS = count()
ROOMY = 4 << 30  # bytes


@contextmanager
def living_in(home: Path, **environment: str) -> Iterator[Path]:
    """FLYWHEEL_HOME is `home`, other settings as given (FLYWHEEL_ left off), and nothing of another home is known."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FLYWHEEL_") and name != "FLYWHEEL_SHARED"]:
            patch.delenv(name)
        patch.setenv("FLYWHEEL_HOME", str(home))
        for name, value in environment.items():
            patch.setenv(f"FLYWHEEL_{name}", value)
        settings.cache_clear()
        session.close()
        try:
            yield home
        finally:
            session.close()
            settings.cache_clear()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A temporary FLYWHEEL_HOME without a teacher."""
    with living_in(tmp_path / "home", TEACHER="") as folder:
        yield folder


class Cluster:
    """A private PostgreSQL cluster, reached by a socket: `url` has `{}` for the database's name.

    With a port it is on the loopback address too, where it asks for passwords.
    The clients of a restarted one wait or fail as with any other; nothing of it is synced to the disk.
    """

    def __init__(self, programs: Path, folder: Path, port: int | None = None) -> None:
        self.programs, self.folder, self.port = programs, folder, port or 5432
        self.listens = "127.0.0.1" if port else ""
        self.url = f"postgresql://postgres@/{{}}?host={folder}&port={self.port}"
        trust = ("--auth-local=trust", "--auth-host=scram-sha-256")
        self.run("initdb", "-U", "postgres", *trust, "--no-sync", "-E", "UTF8")
        self.control("start")

    def control(self, action: str) -> None:
        """`pg_ctl` start, stop or restart; without asking those who are connected."""
        where = f"-c listen_addresses='{self.listens}' -c port={self.port} -k {self.folder}"
        options = f"{where} -c fsync=off -c max_connections=60"
        begin = ["-l", str(self.folder / "log"), "-o", options] if action != "stop" else []
        end = ["-m", "immediate"] if action != "start" else []
        self.run("pg_ctl", "-w", *begin, *end, action)

    def run(self, program: str, *arguments: str) -> None:
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*as_postgres, str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def cluster(port: int | None = None) -> Iterator[Cluster]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL: `apt-get install postgresql` (in /usr/lib/postgresql)")
    # In memory where there is room: hundreds of databases come and go, some 300 files each.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOMY
    folder = Path(tempfile.mkdtemp(prefix="fw-pg-", dir=memory if roomy else "/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    try:
        made = Cluster(found[-1].parent, folder, port)
        try:
            yield made
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                made.control("stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a private PostgreSQL cluster with `{}` for the database's name."""
    with cluster() as made:
        yield made.url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database that the settings name, once SQLite and once PostgreSQL."""
    if request.param == "sqlite":
        with living_in(tmp_path / "home", TEACHER=""):
            yield settings().database_url
        return
    url = new_database(request.getfixturevalue("postgres"))
    with living_in(tmp_path / "home", TEACHER="", DATABASE=url):
        yield url
    with administered(request.getfixturevalue("postgres")) as connection:
        connection.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")


def new_database(postgres: str) -> str:
    name = f"flywheel_{next(NUMBERS)}"
    with administered(postgres) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.format(name)


def administered(postgres: str) -> Any:
    """A connection on which a statement is its own transaction."""
    import psycopg

    return psycopg.connect(postgres.format("postgres"), autocommit=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs: needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real traffic."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no shared data: {SHARED} (FLYWHEEL_SHARED)")
    return SHARED / "data"


@contextmanager
def answering(server: ThreadingHTTPServer) -> Iterator[str]:
    """A server that answers in a thread of its own; its address."""
    with server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Endpoint(BaseHTTPRequestHandler):
    """A teacher that always says the same, and notes what it was asked."""

    asked: ClassVar[list[dict[str, Any]]] = []
    url: ClassVar[str] = ""

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        message = {"role": "assistant", "content": "the teacher says"}
        body = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[type[Endpoint]]:
    """A teacher behind an OpenAI-compatible endpoint: its `url`, and what it was `asked`."""
    Endpoint.asked.clear()
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)) as address:
        Endpoint.url = f"{address}/v1"
        yield Endpoint


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-docs", action="store_true", help="write into the README and docs/ what their commands say now"
    )
