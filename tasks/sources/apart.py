"""Requests that lie apart from their answers: on other lines, most often in another file, before them or after.

| what lies apart                                                  | is found by            |
|------------------------------------------------------------------|------------------------|
| a line of a batch's input, `{"custom_id", "body": request}`      | the custom_id          |
| a message of a stored completion, `{"id": "<completion>-<n>", …}` | the completion's id    |
| a page of such messages, `{"object": "list", "data": [message]}` | the completion's id    |

When the first answer without its request turns up, all the files of the run are looked through once. What is found
goes to a private database of SQLite, which lies in memory while it is small and on disk when it is not: an input of
50,000 requests (the most a batch may have) needs no memory, packed files can be used in any order, and a run that goes
on behind its cursor finds the same.

Every batch may begin with "request-1". Where files say different things under one name, the file in the answer's own
folder counts; where that does not decide it, no answer is given: a wrong request is worse than none.
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.database.jsontext import Rejected, loads
from tasks.sources.files import lines, text

STORED = re.compile(r"(.+)-(\d+)")


class Requests:
    """The requests in some files that lie apart from their answers."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def of_batch(self, custom_id: str, answer: Path | None) -> dict[str, Any]:
        """The request of a batch under that name; `answer` is the file that its answer lies in.

        Raises:
            Rejected: It is in none of the files, or in several that disagree.
        """
        found = self._find("batch", custom_id, answer)
        if not found:
            raise Rejected(
                f"the request of custom_id {custom_id[:80]!r} is in no file here; "
                "read the batch's input file together with its output"
            )
        request: dict[str, Any] = json.loads(found[0])
        return request

    def of_completion(self, completion: str, answer: Path | None) -> list[dict[str, Any]]:
        """The messages that a stored completion answers.

        Raises:
            Rejected: They are in none of the files, not complete, or in several that disagree.
        """
        found = self._find("completion", completion, answer)
        if not found:
            raise Rejected(
                f"the messages of completion {completion[:80]!r} are in no file here; read them together with it "
                "(GET /v1/chat/completions/{id}/messages), or put them on its line as `messages`"
            )
        missing = next((n for n in range(max(found) + 1) if found.get(n) is None), None)
        if missing is not None:
            raise Rejected(
                f"message {missing} of completion {completion[:80]!r} is in no file here; read all its pages"
            )
        return [json.loads(said) for _, said in sorted(found.items())]

    def _find(self, kind: str, key: str, answer: Path | None) -> dict[int, Any]:
        """What was said under that name, by its number; None where it is known that there is something."""
        query = "SELECT number, said, file FROM apart WHERE kind = ? AND name = ? ORDER BY number, file"
        places: dict[int, dict[str | None, set[str]]] = {}
        for number, said, file in self._database.execute(query, (kind, key)):
            places.setdefault(number, {}).setdefault(said, set()).add(file)
        return {number: _chosen(key, said, answer) for number, said in places.items()}

    @cached_property
    def _database(self) -> sqlite3.Connection:
        database = sqlite3.connect("")
        database.execute("CREATE TABLE apart (kind, name, number, said, file)")
        for path in self.files:
            # One that may not be read is named when it is its turn.
            with suppress(PermissionError), path.open("rb") as file:
                found = ((*each, str(path)) for line in lines(text(file), _Unread()) for each in _apart(line.raw))
                database.executemany("INSERT INTO apart VALUES (?, ?, ?, ?, ?)", found)
        database.execute("CREATE INDEX by_name ON apart (kind, name)")
        return database


class _Unread:
    """The hash of a file that nobody asks for."""

    def update(self, _: bytes) -> None: ...


def _chosen(key: str, said: dict[str | None, set[str]], answer: Path | None) -> str | None:
    there = {text: files for text, files in said.items() if text is not None}
    if len(there) > 1 and answer is not None:
        beside = {text: files for text, files in there.items() if any(Path(f).parent == answer.parent for f in files)}
        there = beside or there
    if len(there) > 1:
        several = ", ".join(sorted({file for files in there.values() for file in files})[:3])
        raise Rejected(
            f"{key[:80]!r} is the name of different requests in {several}; read each batch by itself, or keep it in a "
            "folder of its own"
        )
    return next(iter(there), None)


def _apart(raw: bytes) -> Iterator[tuple[str, str, int, str | None]]:
    """(kind, name, number, what is said) of each part of a request on a line that has no answer."""
    if not (b'"custom_id"' in raw and b'"body"' in raw) and b'"content_parts"' not in raw:
        return
    try:
        record = loads(raw)
    except Rejected:
        return
    if is_batch_request(record):
        yield "batch", str(record["custom_id"]), 0, json.dumps(record["body"], sort_keys=True)
    for message in _messages_in(record):
        completion, number = STORED.fullmatch(message["id"]).groups()  # type: ignore[union-attr]
        yield "completion", completion, int(number), json.dumps(message, sort_keys=True)
        if record.get("has_more") is True and message["id"] == record.get("last_id"):
            yield "completion", completion, int(number) + 1, None


def is_apart(record: Any) -> bool:
    """Whether a line is the request of an answer that lies elsewhere, or part of one."""
    return is_batch_request(record) or bool(_messages_in(record))


def is_batch_request(record: Any) -> bool:
    """Whether it is a line of a batch's input."""
    return (
        isinstance(record, dict) and "custom_id" in record and isinstance(record.get("body"), dict)
        and "response" not in record and "error" not in record
    )  # fmt: skip


def _messages_in(record: Any) -> list[dict[str, Any]]:
    """The messages of stored completions that a line consists of; none where it is anything else."""
    page = isinstance(record, dict) and record.get("object") == "list" and isinstance(record.get("data"), list)
    found = record["data"] if page else [record]
    return found if all(_is_stored_message(message) for message in found) else []


def _is_stored_message(said: Any) -> bool:
    known = isinstance(said, dict) and "content_parts" in said and isinstance(said.get("role"), str)
    return known and isinstance(said.get("id"), str) and STORED.fullmatch(said["id"]) is not None
