"""MLflow's registry webhook: a person moves an alias in MLflow, and the gateway is told.

MLflow signs as Standard Webhooks does: `X-MLflow-Signature: v1,<base64 of HMAC-SHA256>` over
`<X-MLflow-Delivery-Id>.<X-MLflow-Timestamp>.<body>`, the time in seconds. A retry repeats all three, so a delivery's id
is taken once, by a row of the database, which outlives a restart; rows go when their time alone would be refused. The
event is a hint to look, no more: what serves is what the registry says, and whoever could forge one could make us look.

`python -m infra.webhook` has the MLflow server of FLYWHEEL_MLFLOW call the gateway of FLYWHEEL_GATEWAY.
"""

import base64
import hmac
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from infra.database.session import session
from infra.database.tables import Delivery, now
from infra.home_key import home_key
from infra.settings import SetupError, settings
from infra.tracking import connected, shown

PATH = "/v1/registry"
NAME = "flywheel-gateway"
EVENTS = ("model_version_alias.created", "model_version_alias.deleted")
TOLERANCE_SECONDS = 300
LONGEST_ID = 64


class Untrusted(Exception):
    """A delivery that is not, or no longer, to be believed."""


class Replayed(Exception):
    """A delivery that was taken before."""


def secret() -> str:
    """What MLflow signs with: FLYWHEEL_WEBHOOK_SECRET, else one that lies in the home."""
    chosen = settings()
    return chosen.webhook_secret.get_secret_value() or home_key(chosen.home, "webhook", "FLYWHEEL_WEBHOOK_SECRET").hex()


def server_environment() -> dict[str, str]:
    """What an MLflow server of ours needs to keep the secret, and to reach a gateway on this machine.

    What is set already stays.
    """
    key = home_key(settings().home, "mlflow-webhook", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY")
    wanted = {
        # Without a key of its own it would make another at each start, and could not read what it has stored.
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(key).decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


def subscribe(uri: str, gateway: str) -> None:
    """Have the MLflow server at `uri` call the gateway at `gateway`; once made, the webhook is kept up to date.

    Raises:
        SetupError: MLflow cannot be reached or refuses.
    """
    with connected(uri) as client:
        asked = {"url": f"{gateway}{PATH}", "events": list(EVENTS), "secret": secret(), "status": "ACTIVE"}
        token = None
        while True:
            page = client.list_webhooks(page_token=token)
            for known in page:
                if known.name == NAME:
                    client.update_webhook(known.webhook_id, **asked)
                    return
            token = page.token
            if not token:
                break
        client.create_webhook(NAME, description="Tells the gateway that a person has moved an alias", **asked)


def verify(headers: Mapping[str, str], raw: bytes) -> str:
    """The id of a delivery that MLflow has signed, a moment ago.

    Raises:
        Untrusted: It has not, or it is too long ago (or ahead: the clocks differ).
    """
    names = ("x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature")
    delivery, at, signature = (headers.get(name, "") for name in names)
    if not delivery or len(delivery) > LONGEST_ID:
        raise Untrusted("no delivery of MLflow's webhook: X-MLflow-Delivery-Id is missing or too long")
    signed = hmac.digest(secret().encode(), f"{delivery}.{at}.".encode() + raw, "sha256")
    if not hmac.compare_digest(f"v1,{base64.b64encode(signed).decode()}".encode(), signature.encode()):
        raise Untrusted("the signature is not that of FLYWHEEL_WEBHOOK_SECRET (or of webhook.key in the home)")
    age = time.time() - int(at) if at.isdecimal() and len(at) < 12 else float("inf")
    if abs(age) > TOLERANCE_SECONDS:
        raise Untrusted(f"X-MLflow-Timestamp {at!r} is over {TOLERANCE_SECONDS} s from now; check the clocks")
    return delivery


def take(delivery: str) -> None:
    """Take a delivery, which cannot be taken again.

    Raises:
        Replayed: It has been.
    """
    try:
        with session() as db:
            # Twice the tolerance: a time that lies ahead is believed as well.
            db.execute(delete(Delivery).where(Delivery.created < now() - timedelta(seconds=2 * TOLERANCE_SECONDS)))
            db.add(Delivery(id=delivery))
    except IntegrityError as problem:
        raise Replayed(f"delivery {delivery} was taken before") from problem


def give_back(delivery: str) -> None:
    """Let MLflow try a delivery again, of which nothing came."""
    with session() as db:
        db.execute(delete(Delivery).where(Delivery.id == delivery))


def main() -> int:
    try:
        chosen = settings()
        if not (chosen.gateway and chosen.mlflow.startswith("http")):
            raise SetupError(
                f"FLYWHEEL_GATEWAY {chosen.gateway!r} and FLYWHEEL_MLFLOW {shown(chosen.mlflow)!r} must both be http(s)://..."
            )
        subscribe(chosen.mlflow, chosen.gateway.rstrip("/"))
    except SetupError as problem:
        print(f"flywheel: {problem}", file=sys.stderr)
        return 2
    print(f"{shown(chosen.mlflow)} calls {chosen.gateway.rstrip('/')}{PATH} when an alias is moved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
