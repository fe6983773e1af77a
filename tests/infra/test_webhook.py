"""MLflow's webhook: what it signs is believed, once; everything else is refused."""

import time
from pathlib import Path
from typing import Any

import pytest

from infra import webhook
from infra.database import session
from infra.database.session import session as opened
from infra.database.tables import Delivery, now
from infra.settings import settings
from tests.conftest import living_in

BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"name": "shop", "alias": "champion"}}'


def signed(body: bytes = BODY, delivery: str = "d-1", at: int | None = None, key: str = "") -> dict[str, str]:
    """Headers as MLflow's own code makes them."""
    from mlflow.webhooks.delivery import _generate_hmac_signature

    stamp = str(int(time.time()) if at is None else at)
    signature = _generate_hmac_signature(key or webhook.secret(), delivery, stamp, body.decode())
    return {"x-mlflow-delivery-id": delivery, "x-mlflow-timestamp": stamp, "x-mlflow-signature": signature}


def test_what_mlflow_signs_is_believed(home: Path) -> None:
    assert webhook.verify(signed(), BODY) == "d-1"


@pytest.mark.parametrize("change", [
    {"x-mlflow-delivery-id": "d-2"}, {"x-mlflow-delivery-id": ""}, {"x-mlflow-delivery-id": "d" * 65},
    {"x-mlflow-timestamp": "0"}, {"x-mlflow-timestamp": "soon"}, {"x-mlflow-signature": ""},
    {"x-mlflow-signature": "v1,"}, {"x-mlflow-signature": "v1,ÿ"},
])  # fmt: skip
def test_what_was_changed_is_not(home: Path, change: dict[str, str]) -> None:
    with pytest.raises(webhook.Untrusted):
        webhook.verify({**signed(), **change}, BODY)


def test_neither_is_another_body_nor_another_secret(home: Path) -> None:
    with pytest.raises(webhook.Untrusted, match="signature"):
        webhook.verify(signed(), BODY.replace(b"shop", b"shoq"))
    with pytest.raises(webhook.Untrusted, match="signature"):
        webhook.verify(signed(key="another"), BODY)
    with pytest.raises(webhook.Untrusted):
        webhook.verify({}, BODY)


@pytest.mark.parametrize("seconds", [-301, 302])
def test_a_call_of_another_time_is_refused_though_it_is_signed(home: Path, seconds: int) -> None:
    with pytest.raises(webhook.Untrusted, match="check the clocks"):
        webhook.verify(signed(at=int(time.time()) + seconds), BODY)
    webhook.verify(signed(at=int(time.time()) + seconds // 2), BODY)


def test_a_delivery_is_taken_once_also_after_a_restart(database: str) -> None:
    webhook.take("d-1")
    with pytest.raises(webhook.Replayed, match="d-1"):
        webhook.take("d-1")
    session.close()
    with pytest.raises(webhook.Replayed):
        webhook.take("d-1")
    webhook.give_back("d-1")
    webhook.take("d-1")


def test_deliveries_are_kept_for_as_long_as_their_time_would_be_believed(database: str) -> None:
    from datetime import timedelta

    ages = {"old": 2 * webhook.TOLERANCE_SECONDS + 1, "young": 2 * webhook.TOLERANCE_SECONDS - 60}
    with opened() as db:
        db.add_all(Delivery(id=name, created=now() - timedelta(seconds=age)) for name, age in ages.items())
    webhook.take("new")
    with opened(write=False) as db:
        assert {delivery.id for delivery in db.query(Delivery)} == {"young", "new"}


def test_the_secret_is_the_setting_or_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    with living_in(tmp_path, WEBHOOK_SECRET="s3cret"):
        assert webhook.secret() == "s3cret" and not (tmp_path / "webhook.key").exists()
    with living_in(tmp_path):
        made = webhook.secret()
        assert (tmp_path / "webhook.key").stat().st_mode & 0o077 == 0 and "s3cret" not in made
        settings.cache_clear()
        assert webhook.secret() == made


def test_the_server_s_key_is_one_that_mlflow_takes_and_stays(tmp_path: Path, monkeypatch: Any) -> None:
    from cryptography.fernet import Fernet

    name = "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"
    monkeypatch.delenv(name, raising=False)
    with living_in(tmp_path):
        key = webhook.server_environment()[name]
        Fernet(key)
        assert webhook.server_environment()[name] == key
        monkeypatch.setenv(name, "a person's own")
        assert name not in webhook.server_environment()


def test_who_is_to_call_whom_must_both_be_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert webhook.main() == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "FLYWHEEL_GATEWAY ''" in said and "FLYWHEEL_MLFLOW ''" in said
