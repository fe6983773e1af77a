"""The prefix that all requests of a workload share: the system prompt and the tool schemas.

A student has learned it and is not sent it ("baked"). Gateway and training strip it by the same function, so that a
student reads in service exactly what it read in training; a request with another prefix is another job. A prefix that
was learned from redacted records (an address for complaints in the system prompt) is that of the requests which would
be redacted to it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from infra.privacy.plain import plain
from infra.privacy.pseudonyms import TOKEN
from infra.privacy.redaction import redactor

Message = dict[str, Any]


@dataclass(frozen=True)
class Prefix:
    """What a request begins with.

    Attributes:
        system: Text of the leading system (or developer) message, None where there is none.
        tools: Tool schemas in their order; empty where there are none.
    """

    system: str | None
    tools: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "Prefix":
        """The prefix of a request `{"messages": [...], "tools": [...]?}`."""
        messages = request.get("messages") or []
        first = messages[0] if messages else {}
        system = text_of(first.get("content")) if first.get("role") in ("system", "developer") else None
        return cls(system, tuple(request.get("tools") or ()))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of canonical JSON: key order and whitespace of the schemas do not matter, the tools' order does."""
        return hashlib.sha256(json.dumps([self.system, self.tools], sort_keys=True).encode()).hexdigest()

    @cached_property
    def is_redacted(self) -> bool:
        """Whether a pseudonym may be in it: no other prefix can be what a request is redacted to.

        Zeros that stand there by chance cost no more than a comparison.
        """
        return TOKEN.search(plain(json.dumps(self.to_json(), ensure_ascii=False))) is not None

    def strip(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None
    ) -> tuple[list[Message], list[dict[str, Any]] | None] | None:
        """Messages and tools without this prefix, or None where the request begins with another."""
        mine = Prefix.of({"messages": messages, "tools": tools})
        if mine != self and not (self.is_redacted and redactor().value(mine.to_json()) == self.to_json()):
            return None
        return list(messages[1:] if self.system is not None else messages), None

    def restore(self, messages: Sequence[Message]) -> tuple[list[Message], list[dict[str, Any]] | None]:
        """Messages and tools with this prefix again: the opposite of `strip`."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *messages], list(self.tools) or None

    def to_json(self) -> dict[str, Any]:
        return {"system": self.system, "tools": list(self.tools)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any] | None) -> "Prefix | None":
        return None if stored is None else cls(stored["system"], tuple(stored["tools"]))


def text_of(content: Any) -> str | None:
    """Text of a message's content, parts joined; None where there is none or a part is no text (an image, a sound)."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None
