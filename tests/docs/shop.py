"""The folder that the pages' commands are run in, one page after the other, and what comes of them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.docs.pages import Block, calls, changes, heard
from tests.docs.warm import client
from tests.shop_log import write_orders

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("flows", "tasks", "quant", "infra")
MARK = "\036"


class Shop:
    """A folder with logs in it, and `flywheel` and `python` on its path.

    Attributes:
        tree: The packages that are run: the repository's, or a copy that a page writes into.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment, self.tree = folder, environment, ROOT

    def say(self, page: Sequence[Block]) -> dict[Block, list[list[str]]]:
        """Run a page's blocks in order, in one shell; what each command of a block of `console` said."""
        found: dict[Block, list[list[str]]] = {}
        script = ["exec </dev/null"]
        order: list[Block] = []
        for block in page:
            if block.unrun:
                continue
            if block.language == "console":
                for one in block.shown():
                    script += [one.command, f"printf '{MARK}%d{MARK}' $?"]
                    order.append(block)
            elif block.language == "python" and not block.title:
                (self.folder / f"block-{block.line}.py").write_text(block.text)
                script += [f"python block-{block.line}.py", f"printf '{MARK}%d{MARK}' $?"]
                order.append(block)
            elif block.language in ("diff", "python"):
                self.write(block)
        if not order:
            return {}
        file = self.folder / "page.sh"
        file.write_text("\n".join(script))
        done = subprocess.run(
            ["bash", str(file)], cwd=self.folder, env={**self.environment, "PYTHONPATH": str(self.tree)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1800,
        )  # fmt: skip
        said = done.stdout.split(MARK)
        for n, block in enumerate(order):
            lines = heard(said[2 * n], self.folder) if 2 * n < len(said) else ["the shell has ended"]
            status = said[2 * n + 1] if 2 * n + 1 < len(said) else "?"
            if status != "0" and not any(line.startswith("flywheel: ") for line in lines):
                lines.append(f"exit code {status}")
            found.setdefault(block, []).append(lines)
        return found

    def write(self, block: Block) -> None:
        """A file that a page shows, or its change of one, in a copy of the packages."""
        if self.tree == ROOT:
            self.tree = self.folder / "tree"
            for name in PACKAGES:
                shutil.copytree(ROOT / name, self.tree / name, ignore=_heavy)
            (self.tree / "infra/seedling/models").symlink_to(ROOT / "infra/seedling/models")
        if block.language == "python":
            self.path(block).write_text(block.text)
            return
        for name, old, new in changes(block.text):
            file = self.tree / name
            text = file.read_text()
            assert text.count(old) == 1, f"{block.place}: {name} has {text.count(old)} times\n{old}"
            file.write_text(text.replace(old, new))

    def path(self, block: Block) -> Path:
        """Where the file that a block is lies: in a room of the house, or beside the logs."""
        return (self.tree if block.title.startswith(PACKAGES) else self.folder) / block.title


def _heavy(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__" or (name == "models" and folder.endswith("seedling"))]


@contextmanager
def opened(folder: Path) -> Iterator[Shop]:
    """The shop's folder: two days of its log, and what its clerks said of the answers."""
    (folder / "logs").mkdir(parents=True)
    write_orders(folder / "logs", seed=1, messages=360)
    # The same pseudonyms each time are the same training rows, and on one machine the same student.
    (folder / ".flywheel").mkdir()
    (folder / ".flywheel" / "redaction.key").write_text("0" * 64)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLYWHEEL_", "PREFECT_", "MLFLOW_"))}
    environment = {
        **kept, "FLYWHEEL_TEACHER": "", "FLYWHEEL_THREADS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80",
        "PYTHONPATH": str(ROOT), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    quiet = subprocess.run(
        [sys.executable, "-c", QUIET], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    environment |= json.loads(quiet.stdout)
    # A socket's path is short, and a test's folder is not.
    address = Path(f"/tmp/flywheel-docs-{os.getpid()}")
    for place in ("bin/flywheel", ".venv/bin/flywheel"):
        client(folder / place, "flywheel", address)
    client(folder / "bin/python", "python", address)
    warm = subprocess.Popen([sys.executable, "-m", "tests.docs.warm", str(address)], cwd=ROOT, env=environment)
    try:
        _wait(warm, address)
        yield Shop(folder, environment)
    finally:
        warm.terminate()
        warm.wait()
        address.unlink(missing_ok=True)


QUIET = """
import json, os
from flows.__main__ import quiet_environment
before = dict(os.environ)
quiet_environment()
print(json.dumps({name: value for name, value in os.environ.items() if before.get(name) != value}))
"""


def _wait(warm: subprocess.Popen[bytes], address: Path) -> None:
    for _ in range(1200):
        assert warm.poll() is None, "it has not come up"
        with socket.socket(socket.AF_UNIX) as knock:
            if address.exists() and knock.connect_ex(str(address)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("it does not answer")


def parsed(block: Block) -> Iterator[tuple[list[str], str]]:
    """Each `flywheel` of a block, and what its command line has against its options; nothing where it takes them."""
    from flows.__main__ import COMMANDS, nested, parser_of, resolve, validated
    from infra.settings import SetupError

    for one in block.shown():
        for given in calls(one.command):
            if not given or given[0] == "--help":
                continue
            problem = "" if given[0] in COMMANDS else "there is no such command"
            if not problem and "--help" not in given:
                function = resolve(COMMANDS[given[0]][0])
                plain = getattr(function, "fn", function)
                parser, options = parser_of(given[0], plain)
                try:
                    validated(plain, nested(options, parser.parse_args(given[1:])))
                except (SetupError, ValueError) as wrong:
                    problem = "" if one.output[:1] and one.output[0].startswith("flywheel: ") else str(wrong)
            yield given, problem


def options() -> dict[str, set[str]]:
    """The options of each command."""
    from flows.__main__ import COMMANDS, parser_of, resolve

    found = {}
    for name, (place, _) in COMMANDS.items():
        function = resolve(place)
        parser, _ = parser_of(name, getattr(function, "fn", function))
        found[name] = {option for action in parser._actions for option in action.option_strings}
    return found
