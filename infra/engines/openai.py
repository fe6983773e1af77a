"""The engine of a server that speaks OpenAI's API: llama-server, vLLM, NIM, or whatever else lists its models.

FLYWHEEL_SERVER is its address (`http://host:8000/v1`), FLYWHEEL_SERVER_FOLDER the folder that it reads models from,
`HERE:THERE` where it sees that under another path. An artifact is linked (or copied) to `HERE/NAME`, whole or not at
all, and NAME has the hash of its files in it: two versions never meet. Then the server is told, in its own way:

| artifact     | server                     | load                                    | unload                       |
|--------------|----------------------------|-----------------------------------------|------------------------------|
| GGUF         | llama-server, router mode  | GET /models?reload=1, POST /models/load | POST /models/unload          |
| LoRA adapter | vLLM, runtime LoRA on      | POST /v1/load_lora_adapter              | POST /v1/unload_lora_adapter |
| full weights | vLLM, dev mode with sleep  | sleep, new weights, wake up: see below  | -                            |
| any          | that watches its folder    | -                                       | the folder goes              |

and it counts as loaded when it lists NAME and has answered. Of others nothing is known but the second half: NIM, or a
llama-server that was started with NAME.

Prompts go to `/v1/completions` as tokens of the model's own tokenizer, which all of these take: what is read is, id for
id, what was read in training, whatever template the server would have put around messages.

Several processes may hold one artifact: gateways, an evaluation, `flywheel redeploy`. Each has a shared lock on
`HERE/.NAME.lock`; the one that is left alone with it unloads. A process that dies lets go.

vLLM's full weights are replaced in place, at HERE/current, the path that it was started with. There are no two versions
side by side: no canary, and only what is to serve all may replace them (`replace`), not an evaluation. Calls in flight
are waited for, and while the server sleeps the teacher answers; so it does for an engine whose weights have been
replaced, which says so instead of answering for another.

Tested against llama.cpp's server over a socket; the calls of router and vLLM against their documented answers, since no
binary of either is to be had from a package index without a compiler or a GPU.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from infra.engines.chat import load_tokenizer, parse, render
from infra.engines.engine import Engine, Progress, Reply
from infra.registry import artifact_hash
from infra.settings import SetupError, settings

LOAD_SECONDS = 900.0
POLL_SECONDS = 0.25
CURRENT = "current"


def name_of(folder: Path, workload: str) -> str:
    """What the server knows an artifact by: unlike any other, and of characters that every server takes."""
    return f"{re.sub('[^A-Za-z0-9.-]+', '-', workload) or 'student'}-{artifact_hash(folder)[:12]}"


class OpenAI(Engine):
    """Answers through the server of FLYWHEEL_SERVER, as many requests at once as it is asked.

    Args:
        replace: Whether weights that are served may be replaced, where the server holds no more than one set.

    Raises:
        SetupError: The server does not answer, does not take the artifact, or has not loaded it in time.
    """

    name = "openai"

    def __init__(self, folder: Path, replace: bool = False) -> None:
        super().__init__(folder)
        self.replace = replace
        self.tokenizer = load_tokenizer(folder)
        self.model = name_of(folder, self.manifest.get("workload", ""))
        self.here, self.there = _places()
        key = settings().server_key.get_secret_value()
        self.client = httpx.Client(
            timeout=httpx.Timeout(600, connect=10), headers={"authorization": f"Bearer {key}"} if key else {}
        )
        self.url = settings().server.rstrip("/")
        self.root = self.url.removesuffix("/v1")
        self.here.mkdir(parents=True, exist_ok=True)
        self.lock = (self.here / f".{self.model}.lock").open("a")
        fcntl.flock(self.lock, fcntl.LOCK_SH)  # waits for one who unloads it just now
        try:
            self.way = self._way()
            self.way.load()
            self._wait()
        except BaseException as problem:
            self.close()
            if isinstance(problem, httpx.HTTPError):
                raise SetupError(
                    f"the server at {self.url} does not answer ({type(problem).__name__}); start it, or check "
                    "FLYWHEEL_SERVER"
                ) from problem
            raise

    def _way(self) -> "Way":
        if (self.folder / "adapter_config.json").exists():
            return Adapter(self)
        if (self.folder / "model.gguf").exists():
            return Router(self) if self.get("/props").get("role") == "router" else Watched(self)
        return InPlace(self) if "is_sleeping" in self.get("/is_sleeping") else Watched(self)

    def get(self, path: str) -> dict[str, Any]:
        """What the server says at a path; nothing where it has no such path."""
        answer = self.client.get(f"{self.root}{path}")
        try:
            said = answer.json() if answer.is_success else {}
        except ValueError:
            said = {}
        return said if isinstance(said, dict) else {}

    def tell(self, path: str, body: dict[str, Any] | None = None, fine: str = "already") -> None:
        """Have the server do something; that it is done already, by an answer that says `fine`, is as good.

        Raises:
            SetupError: It refuses.
        """
        answer = self.client.post(f"{self.root}{path}", json=body)
        if not answer.is_success and fine not in answer.text:
            raise SetupError(
                f"the server at {self.url} refuses {path} for {self.model}: {answer.status_code} {answer.text[:200]!r}"
            )

    def _wait(self) -> None:
        """Until the server lists the model and has answered with it."""
        deadline = time.monotonic() + LOAD_SECONDS
        listed: list[str] = []
        while time.monotonic() < deadline:
            models = self.get("/v1/models").get("data", [])
            listed = [str(entry.get("id")) for entry in models]
            status = next((entry.get("status") or {} for entry in models if entry.get("id") == self.way.called), None)
            if status is not None and (status.get("failed") or status.get("value") == "failed"):
                raise SetupError(f"the server at {self.url} cannot load {self.model}; its log says why")
            if status is not None and status.get("value", "loaded") == "loaded":
                self._complete([self.tokenizer.eos_token_id], 1)
                return
            time.sleep(POLL_SECONDS)
        raise SetupError(
            f"the server at {self.url} does not serve {self.way.called} after {LOAD_SECONDS:.0f} s, but "
            f"{', '.join(listed) or 'nothing'}; let it read {self.there} (FLYWHEEL_SERVER_FOLDER)"
        )

    def chat(
        self, requests: Sequence[dict[str, Any]], progress: Progress | None = None, parallel: int = 8
    ) -> list[Reply]:
        replies: list[Reply] = []
        with ThreadPoolExecutor(max(1, min(parallel, len(requests)))) as pool:
            for reply in pool.map(self._answer, requests):
                replies.append(reply)
                if progress:
                    progress(len(replies), len(requests), "answers")
        return replies

    def _answer(self, request: dict[str, Any]) -> Reply:
        started = time.monotonic()
        prompt = render(self.tokenizer, request["messages"], request.get("tools"), prompt=True)
        said = self._complete(prompt, self.max_tokens(request))
        spent = 1000 * (time.monotonic() - started)
        if said is None:
            return Reply({"role": "assistant", "content": ""}, "length", len(prompt), 0, None, spent)
        choice, usage = said["choices"][0], said.get("usage") or {}
        message = parse(choice["text"])
        return Reply(
            message, "tool_calls" if message.get("tool_calls") else choice.get("finish_reason") or "stop",
            usage.get("prompt_tokens", len(prompt)), usage.get("completion_tokens", 1), None, spent,
        )  # fmt: skip

    def _complete(self, prompt: list[int], limit: int) -> dict[str, Any] | None:
        """A completion; None where the prompt is longer than the server's context.

        Raises:
            RuntimeError: The server fails, or serves other weights by now.
        """
        self.way.check()
        body = {"model": self.way.called, "prompt": prompt, "max_tokens": limit, "temperature": 0}
        answer = self.client.post(f"{self.url}/completions", json=body)
        if answer.status_code == 400 and "context" in answer.text:
            return None
        if not answer.is_success:
            raise RuntimeError(f"the server at {self.url} answered {answer.status_code}")
        said: dict[str, Any] = answer.json()
        return said

    def close(self) -> None:
        """Let go of the model; the last who holds it unloads it."""
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            if hasattr(self, "way"):
                with contextlib.suppress(SetupError, httpx.HTTPError):  # gone, or never loaded: nothing is left to do
                    self.way.unload()
        finally:
            self.lock.close()
            self.client.close()


def _places() -> tuple[Path, Path]:
    """The server's folder as this process sees it, and as the server does."""
    here, _, there = settings().server_folder.partition(":")
    if not here:
        raise SetupError(
            f"FLYWHEEL_SERVER is {settings().server!r} and FLYWHEEL_SERVER_FOLDER is empty; set it to the folder "
            "that the server reads models from"
        )
    return Path(here).absolute(), Path(there or os.path.abspath(here))


class Way(ABC):
    """How a server is brought to serve an artifact.

    Attributes:
        called: The model's name in a request.
    """

    def __init__(self, engine: OpenAI) -> None:
        self.engine, self.called = engine, engine.model
        self.target = engine.here / engine.model

    @abstractmethod
    def load(self) -> None: ...

    @abstractmethod
    def unload(self) -> None: ...

    def check(self) -> None:  # noqa: B027 (only weights in place can be replaced)
        """Raise RuntimeError where the server serves other weights under this name by now."""

    def write(self) -> None:
        """Put the artifact where the server reads, unless it is there."""
        if self.target.exists():
            return
        partial = self.target.with_name(f".{self.target.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(self.engine.folder, partial, copy_function=_link)
        try:
            partial.rename(self.target)
        except OSError:  # another process was first
            shutil.rmtree(partial, ignore_errors=True)
            if not self.target.exists():
                raise

    def remove(self) -> None:
        shutil.rmtree(self.target, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


class Watched(Way):
    """The server looks for itself."""

    def load(self) -> None:
        self.write()

    def unload(self) -> None:
        self.remove()


class Router(Way):
    """llama-server in router mode (`--models-dir HERE`): a process for each model, so one that dies takes no other."""

    def load(self) -> None:
        self.write()
        self.engine.get("/models?reload=1")
        self.engine.tell("/models/load", {"model": self.called})

    def unload(self) -> None:
        self.engine.tell("/models/unload", {"model": self.called})
        self.remove()


class Adapter(Way):
    """vLLM, with VLLM_ALLOW_RUNTIME_LORA_UPDATING: adapters beside each other on the base that it was started with."""

    def load(self) -> None:
        self.write()
        path = str(self.engine.there / self.called)
        self.engine.tell("/v1/load_lora_adapter", {"lora_name": self.called, "lora_path": path})

    def unload(self) -> None:
        self.engine.tell("/v1/unload_lora_adapter", {"lora_name": self.called})
        self.remove()


class InPlace(Way):
    """vLLM with VLLM_SERVER_DEV_MODE and --enable-sleep-mode, started on HERE/current as --served-model-name current.

    HERE/current is a link, moved while the server sleeps; what it points to says whose weights are served.
    """

    def __init__(self, engine: OpenAI) -> None:
        super().__init__(engine)
        self.called, self.link = CURRENT, engine.here / CURRENT

    def load(self) -> None:
        if self.current == self.target.name:
            return
        if self.current and not self.engine.replace:
            raise SetupError(
                f"the server at {self.engine.url} holds one set of weights, and serves {self.current}: nothing else "
                "can be tried on it; begin without steps, or set FLYWHEEL_SERVER to another server"
            )
        self.write()
        moved = self.link.with_name(f".{CURRENT}.{os.getpid()}.partial")
        moved.unlink(missing_ok=True)
        moved.symlink_to(self.target.name)
        self.engine.tell("/sleep?level=2&mode=wait")
        try:
            self.engine.tell("/wake_up?tags=weights")
            moved.replace(self.link)
            self.engine.tell("/collective_rpc", {"method": "reload_weights"})
        finally:
            self.engine.tell("/wake_up?tags=kv_cache")

    @property
    def current(self) -> str:
        """Name of what is served now."""
        return os.readlink(self.link) if self.link.is_symlink() else ""

    def check(self) -> None:
        if self.current != self.target.name:
            raise RuntimeError("the server's weights have been replaced")

    def unload(self) -> None:
        if self.current != self.target.name:
            self.remove()
