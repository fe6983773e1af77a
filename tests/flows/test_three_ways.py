"""The three ways to another champion, on what `flywheel up` runs: the schedule, Prefect's form, an alias in MLflow."""

import httpx
from sqlalchemy import select

from infra import registry
from infra.database.session import session
from infra.database.tables import Promotion
from tests.flows.house import House


def test_the_form_rolls_back_and_what_does_not_fit_it_is_refused(house: House) -> None:
    one, two = house.versions
    assert house.eventually(lambda: house.serves(two))
    schema = house.deployment("release/release")["parameter_openapi_schema"]
    assert {"workload", "rollback", "gate"} <= set(schema["properties"]) and schema["required"] == ["workload"]
    refused = house.run("release/release", workload="shop", rollback="perhaps")
    assert refused.status_code in (409, 422) and "perhaps" in refused.text
    made = house.run("release/release", workload="shop", rollback=True)
    assert made.status_code == 201, made.text
    assert house.ended("release/release", id=made.json()["id"])["state_type"] == "COMPLETED"
    assert house.eventually(lambda: house.serves(one))
    with session(write=False) as db:
        moves = list(db.scalars(select(Promotion).order_by(Promotion.at)))
    assert (moves[-1].version, moves[-1].by, moves[-1].flow_run_id) == (one, "rollback", made.json()["id"])


def test_an_alias_that_is_moved_in_mlflow_runs_redeploy(house: House) -> None:
    champion = registry.champion_number("shop")
    other = next(version for version in house.versions if version != champion)
    url = f"{house.address['mlflow']}/api/2.0/mlflow/registered-models/alias"  # as MLflow's page does
    moved = httpx.post(url, json={"name": "shop", "alias": "champion", "version": other}, timeout=60)
    assert moved.status_code == 200, moved.text
    run = house.ended("redeploy/redeploy")
    assert (run["state_type"], run["parameters"]) == ("COMPLETED", {"workload": "shop"})
    assert house.logged(run, f"version {other} of 'shop' did not pass the gate")
    assert house.serves(other), "redeploy has waited for it"
    assert len(house.runs_of("redeploy/redeploy")) == 1
    with session(write=False) as db:
        last = list(db.scalars(select(Promotion).order_by(Promotion.at)))[-1]
    assert (last.version, last.replaced, last.by, last.verdict_id) == (other, champion, "hand", None)
    assert "did not pass the gate" in (house.home / "logs" / "gateway.log").read_text()


def test_the_schedule_turns_every_workload(house: House) -> None:
    nightly = house.deployment("nightly/nightly")
    assert [one["schedule"]["cron"] for one in nightly["schedules"]] == ["0 3 * * 1-6"]
    url = f"{house.address['prefect']}/api/deployments/{nightly['id']}/schedules"
    # A schedule as well, of each half minute: nobody waits for three at night.
    soon = {"schedule": {"interval": 30}, "active": True}
    made = house.eventually(lambda: r if (r := httpx.post(url, json=[soon], timeout=60)).status_code == 201 else None)
    try:
        run = house.ended("nightly/nightly")
    finally:
        httpx.delete(f"{url}/{made.json()[0]['id']}", timeout=60).raise_for_status()
    assert run["auto_scheduled"] and run["state_type"] == "COMPLETED"
    assert house.logged(run, "small: "), "each workload had its turn, and too little traffic is no failure"
