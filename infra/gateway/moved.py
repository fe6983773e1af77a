"""What becomes of a call of MLflow's webhook: an alias was moved, by hand or by a flow of ours.

| what moved                              | what happens                                                             |
|-----------------------------------------|--------------------------------------------------------------------------|
| `champion`, by hand                     | it is written down, and `redeploy` is begun                              |
| `champion`, by a flow of ours           | nothing: that flow goes on to `redeploy` itself                          |
| `champion` was deleted                  | it is written down; there is nothing to redeploy, and the teacher serves |
| another alias, a model that is not ours | nothing                                                                  |

The gateway serves what the alias says without any of this, within a second. Where `redeploy` cannot be begun MLflow is
told 503 and tries again, for which the delivery is given back.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from infra import promotions, registry, webhook
from infra.database.jsontext import Rejected
from infra.gateway.body import document
from infra.gateway.errors import Refused, trace
from infra.settings import SetupError

log = logging.getLogger("flywheel.gateway")

# Begins `redeploy` for (workload, id of the delivery), once for one id, and says what has begun.
Redeploy = Callable[[str, str], str]


class Moved:
    """The receiver of MLflow's webhook."""

    def __init__(self, redeploy: Redeploy | None) -> None:
        self.redeploy = redeploy

    def receive(self, headers: Mapping[str, str], raw: bytes) -> dict[str, Any]:
        """What was done about a delivery.

        Raises:
            Refused: 401 not signed by MLflow, or too long ago; 400 no event; 409 taken before; 503 try again.
        """
        try:
            delivery = webhook.verify(headers, raw)
            event = document(raw)
            webhook.take(delivery)
        except webhook.Untrusted as problem:
            raise Refused(401, str(problem), code="invalid_signature") from problem
        except webhook.Replayed as problem:
            raise Refused(409, str(problem), code="replayed") from problem
        except Rejected as problem:
            raise Refused(400, str(problem)) from problem
        except SetupError as problem:
            raise self._later(problem) from problem
        try:
            done = self._act(event, delivery)
        except Exception as problem:
            webhook.give_back(delivery)
            raise self._later(problem) from problem
        log.info("webhook %s: %s", delivery, json.dumps(done))
        return done

    def _later(self, problem: Exception) -> Refused:
        log.warning("a webhook is put off: %s", problem if isinstance(problem, SetupError) else trace(problem))
        return Refused(503, "not now; try again", headers={"retry-after": "1"})

    def _act(self, event: dict[str, Any], delivery: str) -> dict[str, Any]:
        data = event.get("data")
        name, alias = (data.get("name"), data.get("alias")) if isinstance(data, dict) else (None, None)
        workload = registry.workload_of(name) if isinstance(name, str) and alias == registry.CHAMPION else None
        if workload is None:
            return {"ignored": f"{event.get('entity')}.{event.get('action')} of {alias!r}"}
        row = promotions.notice(workload, registry.champion_number(workload), "webhook")
        done: dict[str, Any] = {"workload": workload, "version": row.version if row else None}
        if row is None or row.by != promotions.HAND:
            return {**done, "ignored": "moved by a flow"}
        if row.version is None or self.redeploy is None:
            return {**done, "warning": promotions.warning(row)}
        return {**done, "warning": promotions.warning(row), "redeploy": self.redeploy(workload, delivery)}
