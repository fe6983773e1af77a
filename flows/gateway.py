"""`python -m flows.gateway`: the gateway with the configured teacher behind it, as `flywheel up` starts it."""

from flows.__main__ import quiet_environment
from infra.settings import settings


def main() -> None:
    quiet_environment()
    from infra.engines import load
    from infra.gateway import create_app, serve
    from tasks.teachers import LocalTeacher, teacher_for

    teacher = teacher_for(None)
    behind = load(teacher.artifact()) if isinstance(teacher, LocalTeacher) else teacher.url if teacher else None
    serve(create_app(behind), settings().host, settings().gateway_port)


if __name__ == "__main__":
    main()
