"""`python -m flows.gateway`: the gateway with the configured teacher behind it, as `flywheel up` starts it."""

from flows.__main__ import quiet_environment
from infra.settings import settings


def main() -> None:
    quiet_environment()
    from infra.gateway import create_app
    from tasks.redeploy import serve

    from infra.engines import load
    from tasks.teachers import gateway_teacher

    teacher = gateway_teacher()
    app = create_app(teacher=load(teacher) if not isinstance(teacher, str | None) else teacher)
    serve(app, settings().host, settings().gateway_port)


if __name__ == "__main__":
    main()
