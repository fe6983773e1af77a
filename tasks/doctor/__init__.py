"""The menu of checks: one line a check, in the order in which what rests on what is found out."""

from tasks.doctor import clocks, database, disk, engines, gpu, leftovers, mlflow, models, prefect, secrets, variables

CHECKS = {
    "settings": variables.check,
    "secrets": secrets.check,
    "disk": disk.check,
    "database": database.check,
    "prefect": prefect.check,
    "mlflow": mlflow.check,
    "clocks": clocks.check,
    "gpu": gpu.check,
    "models": models.check,
    "engines": engines.check,
    "leftovers": leftovers.check,
}
