"""The gateway with the configured teacher behind it; `python -m flows.gateway` runs it, as `flywheel up` does."""

import sys
from typing import TYPE_CHECKING

from infra.settings import SetupError, settings

if TYPE_CHECKING:
    from fastapi import FastAPI


def app(workload: str | None = None) -> "FastAPI":
    """The gateway; where a workload is named, its teacher stands behind it, else whichever is configured."""
    from infra.gateway.app import create_app
    from tasks.teachers import teacher_for

    return create_app(teacher_for(workload).behind_gateway())


def main() -> int:
    from flows.__main__ import complain, quiet_environment

    quiet_environment()
    from infra.gateway.app import serve

    try:
        serve(app(), settings().host, settings().gateway_port)
    except SetupError as problem:
        return complain(str(problem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
