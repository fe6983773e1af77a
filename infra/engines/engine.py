"""What every engine is: something that answers requests from a folder on disk."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from infra.prefix import Prefix

Progress = Callable[[int, int, str], None]
DEFAULT_MAX_TOKENS = 512
ABSTAINED = "abstained"


class Reply(NamedTuple):
    """One answer.

    Attributes:
        message: Assistant message in OpenAI form.
        finish_reason: `stop`, `length` or `tool_calls`. A request longer than the context gets `length` and no token,
            one that is out of a classifier's scope ABSTAINED and no token.
        first_token_ms: From the request to the end of the prompt; absent where the engine answers batches.
        latency_ms: From the request to the whole answer.
        probability: Of this answer among all, where the engine knows it: a classifier does.
    """

    message: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    first_token_ms: float | None
    latency_ms: float
    probability: float | None = None


class Engine(ABC):
    """An artifact that is loaded and answers greedily.

    A request is `{"messages", "tools"?, "max_tokens"?}` without the baked prefix: `strip` takes it off.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "flywheel.json"
        self.manifest: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self.prefix = Prefix.from_json(self.manifest.get("prefix"))

    def strip(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The request as this artifact was trained to read it; nothing where its prefix is not the baked one."""
        if self.prefix is None:
            return request
        stripped = self.prefix.strip(request["messages"], request.get("tools"))
        if stripped is None:
            return None
        messages, tools = stripped
        return {**request, "messages": messages, "tools": tools}

    def max_tokens(self, request: dict[str, Any]) -> int:
        """The request's own limit, else the longest answer that training saw twice over."""
        asked = request.get("max_completion_tokens") or request.get("max_tokens")
        return int(asked or self.manifest.get("max_tokens") or DEFAULT_MAX_TOKENS)

    @abstractmethod
    def chat(
        self, requests: Sequence[dict[str, Any]], progress: Progress | None = None, parallel: int = 8
    ) -> list[Reply]:
        """One reply a request, in order, `parallel` of them at a time. May be called from several threads."""

    def surprise(
        self, requests: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]
    ) -> list[float | None] | None:
        """Nats of each answer to its request, as the model would write it; None where the engine cannot tell.

        Of an answer that it would not write in this form at all, None, too.
        """
        return None

    @property
    def alive(self) -> bool:
        """Whether it can answer; one that cannot is loaded anew."""
        return True

    @abstractmethod
    def close(self) -> None:
        """Free the model. Nothing may be asked afterwards."""
