"""The gateway with the configured teacher behind it; `python -m flows.gateway` runs it, as `flywheel up` does."""

from typing import TYPE_CHECKING

from infra.settings import settings

if TYPE_CHECKING:
    from fastapi import FastAPI


def app(workload: str | None = None) -> "FastAPI":
    """The gateway; where a workload is named, its teacher stands behind it, else whichever is configured."""
    from infra.gateway import create_app
    from tasks.teachers import teacher_for

    teacher = teacher_for(workload)
    return create_app(teacher.behind_gateway() if teacher else None)


def main() -> None:
    from flows.__main__ import quiet_environment

    quiet_environment()
    from infra.gateway import serve

    serve(app(), settings().host, settings().gateway_port)


if __name__ == "__main__":
    main()
