"""`python -m flows.serve`: the deployments of `infra/prefect.yaml`, each with its button in Prefect's UI."""

import importlib
from typing import Any

from flows.__main__ import quiet_environment
from flows.deployments import deployments

# Turns that wait for another of their workload take a place as well, and must not keep `redeploy` from running.
AT_ONCE = 32


def main() -> None:
    quiet_environment()
    from prefect import serve

    serve(*(served(one) for one in deployments()), limit=AT_ONCE, pause_on_shutdown=False, print_starting_message=False)


def served(described: dict[str, Any]) -> Any:
    """A deployment of the file, for the process that serves them all: without its work pool."""
    from prefect.events.schemas.deployment_triggers import DeploymentTriggerTypes
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType
    from pydantic import TypeAdapter

    module, name = described["entrypoint"].rsplit(".", 1)
    flow = getattr(importlib.import_module(module), name)
    trigger: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
    return flow.to_deployment(
        described["name"],
        description=described["description"],
        tags=described["tags"],
        parameters=described.get("parameters"),
        schedules=[Cron(s["cron"], timezone=s["timezone"], slug=s["slug"]) for s in described.get("schedules", [])],
        triggers=[trigger.validate_python(one) for one in described.get("triggers", [])],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


if __name__ == "__main__":
    main()
