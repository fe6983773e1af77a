"""A teacher behind an OpenAI-compatible endpoint: vLLM, NIM, a hosted model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.settings import SetupError

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EndpointTeacher:
    """Asked over HTTP; its logits are not to be had, so students imitate its answers alone."""

    url: str
    model: str = ""
    key: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        return self.model or self.url

    def behind_gateway(self) -> str:
        """What the gateway asks where no champion answers: the endpoint itself."""
        return self.url

    def answer(self, requests: Sequence[dict[str, Any]], progress: Progress | None = None) -> list[dict[str, Any]]:
        """One assistant message a request, in order, eight asked at a time.

        Raises:
            SetupError: The endpoint cannot be reached or refuses.
        """
        from concurrent.futures import ThreadPoolExecutor

        import httpx

        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        transport = httpx.HTTPTransport(retries=3)

        def ask(client: httpx.Client, request: dict[str, Any]) -> dict[str, Any]:
            body = {**request, "model": self.model or request.get("model", ""), "stream": False}
            response = client.post(f"{self.url.rstrip('/')}/chat/completions", json=body)
            response.raise_for_status()
            message: dict[str, Any] = response.json()["choices"][0]["message"]
            return message

        answers = []
        try:
            with (
                httpx.Client(headers=headers, transport=transport, timeout=120) as client,
                ThreadPoolExecutor(8) as pool,
            ):
                for message in pool.map(lambda request: ask(client, request), requests):
                    answers.append(message)
                    if progress:
                        progress(len(answers), len(requests), "teacher answers")
        except (httpx.HTTPError, KeyError, IndexError, ValueError) as problem:
            raise SetupError(
                f"teacher {self.url!r} failed after {len(answers)} of {len(requests)} answers ({problem!r}); "
                "check FLYWHEEL_TEACHER and FLYWHEEL_TEACHER_KEY"
            ) from problem
        return answers
