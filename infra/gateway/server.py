"""The gateway as a process: it listens, and when it is told to stop it ends what it has begun.

SIGTERM (or Ctrl-C): `/readyz` says 503 from now on, and so does every new call, which a balancer sends elsewhere; the
port stays open for that as long as answers are on their way, FLYWHEEL_DRAIN_SECONDS at most. What is not at its end by
then is cut off and recorded as that. Then the records go into the database, and the process ends with 0. A second
signal cuts off at once; the records stay in the journal for the next gateway, and the exit code is 128 and the signal.
"""

import asyncio
import gc
import os
import resource
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from infra.gateway import logs
from infra.gateway.access import require_tokens
from infra.settings import settings

LAST_BYTES_SECONDS = 2
SWITCH_SECONDS = 0.001


class Server(uvicorn.Server):
    """uvicorn's, which waits for answers that are on their way before it closes the port."""

    signalled = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again when all is done: a process that ended well ends with 0.
        if self.should_exit:
            self.force_exit, self.signalled = True, sig
        self.should_exit = True

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is loaded now stays: to look through it again would stop all calls for a tenth of a second

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        gateway = self.config.app.state.gateway  # type: ignore[union-attr]
        gateway.stopping = True
        deadline = time.monotonic() + settings().drain_seconds
        while gateway.recorder.open and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run the gateway until it is told to stop.

    Raises:
        SetupError: Others than this machine could reach it, and there are no tokens.
    """
    require_tokens(host)
    logs.configure()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a stream is two sockets
    # The writer's thread must not keep the loop waiting for Python's default of 5 ms each time they meet.
    sys.setswitchinterval(SWITCH_SECONDS)
    server = Server(
        uvicorn.Config(
            app, host=host, port=port, log_config=None, access_log=False, server_header=False,
            timeout_graceful_shutdown=LAST_BYTES_SECONDS,
        )
    )  # fmt: skip
    server.run()
    if server.signalled:
        os._exit(128 + server.signalled)  # threads that wait for an engine or a lock would hold it up
