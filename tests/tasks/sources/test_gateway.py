"""The spool as a source: read from the command line as the gateway itself would have stored it."""

import json
from pathlib import Path

import pytest

from infra.database.tables import Feedback, Interaction, Quarantine
from infra.gateway import spool
from infra.gateway.journal import Journal
from infra.gateway.record import Call
from infra.settings import SetupError
from tasks.ingest import ingest
from tasks.sources.gateway import Gateway
from tests.flows.conftest import flywheel
from tests.infra.gateway.test_app import rows

CALL = Call("shop", {"model": "shop", "messages": [{"role": "user", "content": "hi"}]}, "web/ann", "c1")
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}]}


def line(call: Call = CALL) -> bytes:
    return json.dumps(call.record(ANSWER)).encode()


def spooled(*lines: bytes) -> None:
    """What a gateway leaves that ends while the database is away."""
    journal = Journal()
    for each in lines:
        journal.append(each)
    journal.close()


def test_a_spool_is_read_as_the_gateway_would_have_stored_it(home: Path) -> None:
    spooled(line(), json.dumps({"id": "f", "record_id": CALL.id, "kind": "thumb", "value": 1}).encode(), b"{torn")
    counts = ingest(Gateway())
    assert (counts["interactions"], counts["feedback"], counts["quarantined"]) == (1, 1, 1)
    (stored,), (opinion,), (bad,) = rows(Interaction), rows(Feedback), rows(Quarantine)
    assert (stored.source, stored.external_id, stored.at) == ("gateway", CALL.id, CALL.at)
    assert (stored.client, stored.conversation, stored.workload) == ("web/ann", "c1", "shop")
    assert (opinion.record_id, bad.source, bad.raw) == (CALL.id, "gateway", b"{torn")
    again = ingest(Gateway())
    assert (again["duplicates"], again["quarantined"], again["rows"]) == (2, 1, 3)
    (file,) = spool.files(spool.folder())
    assert "stored" not in spool.drain(file) and not file.exists()


def test_a_file_that_the_gateway_drains_meanwhile_has_nothing_more_to_say(home: Path) -> None:
    spooled(line())
    (part,) = Gateway().parts()
    spool.drain(part.path)
    assert list(part.read(None)) == [] and len(rows(Interaction)) == 1


@pytest.mark.parametrize("paths", [(), ("nowhere.jsonl",)])
def test_nothing_to_read_is_one_line(home: Path, paths: tuple[str, ...]) -> None:
    with pytest.raises(SetupError, match="does not exist; give" if paths else "in the database already"):
        Gateway(paths).parts()


def test_the_command_reads_this_homes_spool_or_another(home: Path, tmp_path: Path) -> None:
    spooled(line())
    done = flywheel("ingest", "gateway", "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["interactions"] == 1
    done = flywheel("ingest", "gateway", str(spool.folder()), "--json", home=tmp_path / "other")
    assert json.loads(done.stdout)["interactions"] == 1
