"""`python -m flows.serve`: the deployments, each with its button in Prefect's UI; the wheel also turns nightly."""

from typing import Any

from flows.__main__ import quiet_environment


def main() -> None:
    quiet_environment()
    from prefect import serve
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.curate import curate
    from flows.distill import distill
    from flows.evaluate import evaluate
    from flows.flywheel import flywheel
    from flows.ingest import ingest
    from flows.nightly import nightly
    from flows.prune import prune
    from flows.quantize import quantize
    from flows.redeploy import redeploy
    from flows.release import release
    from flows.report import report
    from flows.traffic import traffic

    # One turn at a time: two would train on the same night's traffic and race for the alias.
    alone = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    module = EntrypointType.MODULE_PATH
    wheels: list[Any] = [  # to_deployment is declared to return a coroutine too, which it does only in async code
        nightly.to_deployment(
            "nightly", cron="0 3 * * *", concurrency_limit=alone, entrypoint_type=module, tags=["flywheel"],
            description="Turns the wheel of every workload, each night at 3:00 UTC.",
        ),
        flywheel.to_deployment(
            "flywheel", concurrency_limit=alone, entrypoint_type=module, tags=["flywheel"],
            description="Turns the wheel of one workload: **Run → Custom run**.",
        ),
    ]  # fmt: skip
    single = (ingest, traffic, curate, distill, quantize, evaluate, release, redeploy, report, prune)
    stages: list[Any] = [f.to_deployment(f.name, entrypoint_type=module, tags=["flywheel"]) for f in single]
    serve(*wheels, *stages, pause_on_shutdown=False, print_starting_message=False)


if __name__ == "__main__":
    main()
