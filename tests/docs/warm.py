"""A process that has the heavy libraries loaded and forks for each command: what takes seconds is done once.

    python -m tests.docs.warm SOCKET

A client sends the three files it reads and writes with one message: its arguments, folder and environment. Each command
gets a fresh process that has imported nothing of ours, and of PYTHONPATH what the client's says.
"""

import doctest
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

HEAVY = "sqlalchemy alembic prefect mlflow torch transformers peft datasets scipy.stats httpx fastapi safetensors rich"

# {python}: -I and -S, so that it starts in a few hundredths of a second.
CLIENT = """#!{python} -IS
import json, os, socket, sys
said = json.dumps([{kind!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    socket.send_fds(server, [b"%12d" % len(said)], [0, 1, 2])
    server.sendall(said)
    sys.exit(int(server.recv(16) or 1))
"""


def client(file: Path, kind: str, address: Path) -> None:
    """Write a program that runs its arguments there: by the command line of `flywheel`, or as a file of Python."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CLIENT.format(python=sys.executable, kind=kind, socket=str(address)))
    file.chmod(0o755)


def serve(address: str) -> NoReturn:
    for name in HEAVY.split():
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            caller, _ = server.accept()
            if os.fork():
                caller.close()
                continue
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answer(caller)


def answer(caller: socket.socket) -> NoReturn:
    """Run what is asked in a child, and say how it ended."""
    size, files, _, _ = socket.recv_fds(caller, 12, 3)
    if not size:  # who only knocked
        os._exit(0)
    said = b""
    while len(said) < int(size):
        said += caller.recv(1 << 16)
    kind, arguments, folder, environment = json.loads(said)
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        caller.sendall(str(status if status >= 0 else 128 - status).encode())
        os._exit(0)
    caller.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = environment["PYTHONPATH"]
    sys.exit(run(kind, arguments))


def run(kind: str, arguments: list[str]) -> int:
    if kind == "python":
        file, *rest = arguments
        sys.argv = arguments
        text = rest[0] if file == "-c" else Path(file).read_text()
        if text.startswith(">>> "):
            example = doctest.DocTestParser().get_doctest(text, {}, file, file, 0)
            return doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(example).failed
        exec(compile(text, file, "exec"), {"__name__": "__main__"})
        return 0
    main = importlib.import_module("flows.__main__").main
    try:
        return int(main(arguments))
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    serve(sys.argv[1])
