"""A teacher behind an OpenAI-compatible endpoint: vLLM, NIM, a hosted model.

Several requests are under way at a time, each answer is kept as soon as it is there (`cache.py`), and what goes wrong
is told apart:

| the endpoint says                                 | what is done                                               |
|---------------------------------------------------|------------------------------------------------------------|
| 408, 409, 425, 429, 5xx; no answer, or half a one | TRIES tries, with pauses or after its own `Retry-After`    |
| the same, and no try is left                      | the row has no answer; three in a row stop the stage       |
| 400, 413, 422: too long, filtered                 | the row has no answer, for that reason                     |
| the same to the first twenty, and nothing else    | the stage stops: it is not the rows                        |
| 401, 402, 403, 404, a redirection, quota used up  | the stage stops                                            |

What was answered before a stage stops is kept, and the next run goes on from there.
"""

import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import httpx

from infra.database.jsontext import Rejected, dumps, loads
from infra.database.messages import normalized_response
from infra.database.records import count
from infra.settings import Settings, SetupError
from tasks.teachers.answers import GIVEN_UP, Answer, Question, whole
from tasks.teachers.cache import Keep, through
from tasks.teachers.logprobs import compact
from tasks.teachers.pace import TRIES, Pace, pause, retry_after
from tasks.teachers.tally import Tally

Progress = Callable[[int, int, str], None]
AGAIN = {408, 409, 425, 429}  # and 5xx
REFUSALS = {400, 413, 422}
FAILED_IN_A_ROW, REFUSED_AT_FIRST = 3, 20
LONGEST_WAIT = 600.0  # seconds; who is told to wait longer had better run again then
CODE = re.compile(r"[A-Za-z_]{1,40}")


class Said(NamedTuple):
    """What came of one request, and whether the endpoint would not give log-probabilities."""

    answer: Answer
    detail: str = ""
    refused_logprobs: bool = False


class _Stopped(Exception):
    """Another request has found out that the stage cannot go on."""


@dataclass(frozen=True)
class EndpointTeacher:
    """Asked over HTTP.

    Attributes:
        model: The model it is asked for; empty for the one that each request names.
        parallel: Requests under way at a time.
        logprobs: How many of the likeliest tokens it is asked for at each position; 0 for none.
        timeout: Seconds without a byte after which a request has failed.
        role: What it is to whoever asks: another one than the teacher is set up elsewhere (`check`).
    """

    url: str
    model: str
    key: str = field(repr=False)
    parallel: int
    logprobs: int
    pace: Pace = field(repr=False, compare=False)
    tally: Tally = field(repr=False, compare=False)
    timeout: float = 600
    role: Literal["teacher", "judge"] = "teacher"

    @classmethod
    def of(cls, chosen: Settings) -> "EndpointTeacher":
        """As the settings have it.

        Raises:
            SetupError: They do not fit together.
        """
        key = chosen.teacher_key.get_secret_value().strip()
        if not (key.isascii() and key.isprintable()):  # the library's own error would show it
            raise SetupError("FLYWHEEL_TEACHER_KEY has characters that no header carries; give the key alone")
        tally = Tally(chosen.teacher_prompt_price, chosen.teacher_completion_price, chosen.teacher_budget)
        return cls(
            chosen.teacher_base, chosen.teacher_model, key, chosen.teacher_parallel, chosen.teacher_logprobs,
            Pace(chosen.teacher_rate_limit), tally,
        )  # fmt: skip

    @property
    def shown(self) -> str:
        """The address without what may be secret in it."""
        try:
            return str(httpx.URL(self.url.rstrip("/")).copy_with(username="", password="", query=None))
        except httpx.InvalidURL as problem:
            raise SetupError(
                f"FLYWHEEL_TEACHER is no address ({problem}); give one such as https://api.example.com/v1"
            ) from problem

    @property
    def name(self) -> str:
        return self.model or self.shown

    @property
    def check(self) -> str:
        """What a person looks at where it cannot be asked."""
        if self.role == "judge":
            return "the judge's url and model, and FLYWHEEL_JUDGE_KEY"
        return "FLYWHEEL_TEACHER, FLYWHEEL_TEACHER_KEY and FLYWHEEL_TEACHER_MODEL"

    @property
    def identity(self) -> str:
        """What its scorecard is known by."""
        return f"{self.shown} {self.model}"

    def behind_gateway(self) -> str:
        """What the gateway asks where no champion answers: the endpoint itself."""
        return self.url

    def answer(self, questions: Sequence[Question], progress: Progress | None = None) -> list[Answer]:
        """An answer a question, in order; from the database where it was asked before.

        Raises:
            SetupError: The endpoint cannot be reached or refuses to be asked.
            BudgetSpent: More would cost more than a stage may spend.
        """
        bodies = [self.body(question.request) for question in questions]
        return through(self.shown, questions, bodies, self._ask, self.tally, progress)

    def body(self, request: dict[str, Any]) -> dict[str, Any]:
        """A logged request as it is sent."""
        plain = {name: said for name, said in whole(request).items() if name not in ("logprobs", "top_logprobs")}
        wanted = {"logprobs": True, "top_logprobs": self.logprobs} if self.logprobs else {}
        return {**plain, "model": self.model or request.get("model", ""), "stream": False, **wanted}

    def _ask(self, bodies: Mapping[str, dict[str, Any]], keep: Keep) -> None:
        """Ask all, `parallel` at a time, and keep answers as they come, those under way at the end included."""
        waiting, flying = deque(bodies), dict[Future[Said], str]()
        stop, watch = threading.Event(), Watch(self)
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {self.key}"} if self.key else {}
        patience = httpx.Timeout(self.timeout, connect=min(10, self.timeout))
        lines = httpx.Limits(max_connections=self.parallel, max_keepalive_connections=self.parallel)
        with (
            httpx.Client(headers=headers, timeout=patience, limits=lines) as client,
            ThreadPoolExecutor(self.parallel) as pool,
        ):
            try:
                while (waiting and not watch.problem) or flying:
                    while waiting and not watch.problem and self._may_begin(len(flying)):
                        key = waiting.popleft()
                        flying[pool.submit(self._said, client, bodies[key], stop)] = key
                    if not flying:
                        raise self.tally.spent()
                    done, _ = wait(flying, return_when=FIRST_COMPLETED)
                    keep(watch.landed({flying.pop(future): future for future in done}))
                    if watch.problem:
                        stop.set()
            finally:
                stop.set()  # whoever waits for a turn gives up; whoever is being answered is waited for
                wait(flying)
                if flying:
                    keep(watch.landed({key: future for future, key in flying.items()}))
        if watch.problem:
            raise watch.problem

    @property
    def _completions(self) -> str:
        return f"{self.url.rstrip('/')}/chat/completions"

    def _may_begin(self, under_way: int) -> bool:
        return under_way < self.parallel and self.tally.room(under_way)

    def _said(self, client: httpx.Client, body: dict[str, Any], stop: threading.Event) -> Said:
        """What the endpoint says to one request, asked again while that can help."""
        tried, detail, refused_logprobs = 0, "", False
        if self.tally.refused_logprobs:
            body = _without_logprobs(body)
        while tried < TRIES:
            if tried:
                self.pace.rest(pause(tried), stop)
            self.pace.turn(stop)
            if stop.is_set():
                raise _Stopped
            tried += 1
            try:
                response = client.post(self._completions, content=dumps(body))
            except httpx.HTTPError as problem:
                detail = self._hidden(f"{type(problem).__name__}: {problem}".rstrip(": "))
                continue
            status = response.status_code
            if response.is_success:
                answer = _answer(response.content)
                if answer.message is not None:
                    return Said(answer, refused_logprobs=refused_logprobs)
                detail = self._hidden(answer.reason)
            elif status in REFUSALS and "logprobs" in body:
                body, refused_logprobs, tried = _without_logprobs(body), True, 0  # perhaps it was only these
            elif status in REFUSALS:
                return Said(Answer(None, reason=f"the teacher refused: {_code(response)}"), self._told(response))
            elif (status in AGAIN or status >= 500) and _code(response) != "insufficient_quota":
                detail = self._told(response)
                self._leave_alone(response, detail)
            else:
                raise self.stopping(self._told(response))
        return Said(Answer(None, reason=GIVEN_UP), detail)

    def _leave_alone(self, response: httpx.Response, detail: str) -> None:
        """Wait as long as the endpoint asks for, all of us; a pause of our own comes on top."""
        seconds = retry_after(response)
        if seconds is not None and seconds > LONGEST_WAIT:
            raise SetupError(
                f"{self.role} {self.shown} wants to be asked again in {seconds:.0f} s, over {LONGEST_WAIT:.0f} "
                f"({detail}); what it answered is kept: run again then"
            )
        if seconds:
            self.pace.hold(seconds)

    def _told(self, response: httpx.Response) -> str:
        """What the endpoint says is wrong, in one line."""
        try:
            error = loads(response.content)["error"]
            said = str(error.get("message") or error) if isinstance(error, dict) else str(error)
        except (Rejected, KeyError, TypeError):
            said = response.headers.get("location") or response.text
        return self._hidden(f"{response.status_code} {' '.join(said.split())}".strip())

    def _hidden(self, said: str) -> str:
        """It without the key and the address's secrets, should they be repeated in it; not too long."""
        address = httpx.URL(self.url)
        for secret in (self.key, self.url.rstrip("/"), address.password, address.query.decode()):
            said = said.replace(secret, "***") if secret else said
        return said[:200]

    def stopping(self, detail: str) -> SetupError:
        return SetupError(f"{self.role} {self.shown} refuses to be asked ({detail}); check {self.check}")


class Watch:
    """Looks at what comes back, and whether it makes sense to go on.

    Attributes:
        problem: Why it does not.
    """

    def __init__(self, teacher: EndpointTeacher) -> None:
        self.teacher, self.tally = teacher, teacher.tally
        self.problem: SetupError | None = None

    def landed(self, done: Mapping[str, "Future[Said]"]) -> dict[str, Answer]:
        """The answers among what is done, counted."""
        found = {}
        for key, future in done.items():
            try:
                said = future.result()
                found[key] = said.answer
                self.tally.refused_logprobs |= said.refused_logprobs and said.answer.message is not None
                self.tally.add(said.answer)
                self._judge(said)
            except _Stopped:
                continue
            except SetupError as problem:
                self.problem = self.problem or problem
        return found

    def _judge(self, said: Said) -> None:
        """Raise SetupError where what is wrong is not the row."""
        if self.tally.failed >= FAILED_IN_A_ROW:
            raise SetupError(
                f"{self.teacher.role} {self.teacher.shown} failed {self.tally.failed} requests in a row, {TRIES} tries "
                f"each ({said.detail}); {self.tally.asked} answers are kept: check {self.teacher.check}, and run again"
            )
        if self.tally.refused >= REFUSED_AT_FIRST and not (self.tally.asked or self.tally.recalled):
            raise self.teacher.stopping(f"it refused the first {self.tally.refused}: {said.detail}")


def _answer(content: bytes) -> Answer:
    """The answer in a response's body; one without a message says what is wrong with it."""
    try:
        response = normalized_response(loads(content))
    except Rejected as problem:
        return Answer(None, reason=str(problem))
    if not response.get("choices"):
        return Answer(None, reason=f"an error instead of an answer: {response['error']}")
    choice = response["choices"][0]
    usage = response["usage"] if isinstance(response.get("usage"), dict) else {}
    finish_reason = choice.get("finish_reason")
    return Answer(
        choice["message"], finish_reason if isinstance(finish_reason, str) else None, compact(choice),
        count(usage.get("prompt_tokens")), count(usage.get("completion_tokens")),
    )  # fmt: skip


def _code(response: httpx.Response) -> str:
    """The error's code, if it has one that is a word, else the status: a few, whatever the rows."""
    try:
        code = loads(response.content)["error"]["code"]
    except (Rejected, KeyError, TypeError):
        code = None
    return code if isinstance(code, str) and CODE.fullmatch(code) else str(response.status_code)


def _without_logprobs(body: dict[str, Any]) -> dict[str, Any]:
    return {name: said for name, said in body.items() if name not in ("logprobs", "top_logprobs")}
